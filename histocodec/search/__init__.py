"""Search by latents: a vector for each patch of tissue, an index of many slides, and what is nearest in it."""
