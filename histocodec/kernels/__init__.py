"""Native CPU kernels: how they are compiled, and oneDNN's products of bytes."""
