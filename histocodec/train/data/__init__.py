"""What models are trained on: images, patches of them, and latents as the encoder leaves them."""
