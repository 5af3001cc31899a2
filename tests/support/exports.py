"""A compressed slide that has all that an export can take along."""

from pathlib import Path

import numpy as np
from PIL import ImageCms

import histocodec
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.sources import ArraySlide
from histocodec.sources.pyramid import box_mean
from histocodec.sources.synthetic import synthetic_slide
from tests.support.slides import encoded

MPP = (0.25, 0.26)
POWER = 40.0
IMAGES = {"label": (60, 50), "macro": (150, 51)}  # width, height
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def rich_container(path: Path, tiny_file: Path, *, mpp: tuple[float, float] | None = MPP, icc: bool = True) -> Path:
    """Two levels, 1300 x 900 and 325 x 225, with label and macro, resolution and objective power."""
    pixels = synthetic_slide(1300, 900, seed=3)
    slide = ArraySlide(
        [pixels, box_mean(pixels, 4)],
        name="rich",
        mpp=mpp,
        properties={"scanner.Ω": "A < B & \x01"},
        icc_profile=PROFILE if icc else None,
    )
    slide.objective_power = POWER
    slide.associated = {
        name: np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
        for name, (width, height) in IMAGES.items()
    }
    encoded(slide, path, tiny_file, quality=60, keep_label=True, keep_macro=True, embed_model=True, keep_private=True)
    return path


def reopened(path: Path) -> CompressedSlide:
    """The container, open on the CPU."""
    return histocodec.open(path, device="cpu")
