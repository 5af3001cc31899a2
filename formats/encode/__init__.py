"""Encoding: slides to containers. README.md tells the life of an encode."""
