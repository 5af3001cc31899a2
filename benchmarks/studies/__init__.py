"""Measurements of one thing each: speed, GPUs, many readers, search. Each module is a command."""
