"""Slides to containers."""
