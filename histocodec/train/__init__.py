"""Training: from slides and images to a model file. README.md beside this file says how a model is made."""
