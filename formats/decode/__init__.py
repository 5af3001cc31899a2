"""Containers to pixels: compressed slides are read, verified and saved as images."""
