"""What models are trained on: images, patches of them, and their latents, rounded or as a container stores them."""
