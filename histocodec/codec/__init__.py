"""Pixels to latents to bytes, chunk by chunk, and back."""
