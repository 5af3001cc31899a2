"""Containers to pixels: slides that are read, verified, and saved as images."""
