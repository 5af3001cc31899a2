"""Native CPU kernels: how they are compiled, int8 convolutions, and the passes over pixels and streams around them."""
