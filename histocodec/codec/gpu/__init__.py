"""Decoding on an NVIDIA GPU, from compressed bytes to pixels that stay there. Needs Triton, which PyTorch's CUDA builds
bring along; what is here is imported only where it is."""
