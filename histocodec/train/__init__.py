"""Training: patches from slides and images, the KLT start, the loss and the loop."""
