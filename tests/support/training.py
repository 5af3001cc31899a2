"""Images to train on."""

from pathlib import Path

import torch
from PIL import Image

from histocodec.sources.synthetic import synthetic_slide
from histocodec.train.data.patches import TrainingImage, training_image


def image(seed: int = 0, side: int = 256) -> TrainingImage:
    """A synthetic image, as training samples it."""
    made = training_image(synthetic_slide(side, side, seed=seed), f"case {seed}", torch.device("cpu"))
    assert made is not None
    return made


def folder_of_images(folder: Path) -> Path:
    """Make a folder with three synthetic images of 256 × 256 pixels."""
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(synthetic_slide(256, 256, seed=seed)).save(folder / f"{seed}.png")
    return folder
