"""Decoding on a GPU with Triton, from bytes to pixels, bit for bit as on a CPU: chunks, and the integer synthesis."""
