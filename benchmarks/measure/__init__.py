"""Measurements of one image, coded once."""
