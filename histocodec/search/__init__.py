"""Latents as something to be found by: a vector for each patch, an index of them, and what is nearest."""
