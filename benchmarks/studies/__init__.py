"""Benchmarks of one thing each: speed, GPU, load, search."""
