"""Pixels of a slide at any size: which level to read, what of it, and how to scale it. And images as bytes."""

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from histocodec.cli.viewer.limits import SOURCE_PIXELS, RefusedError
from histocodec.geometry import Level, Region
from histocodec.slide import Pixels

Format = Literal["png", "jpeg", "webp"]

MEDIA: dict[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
FORMATS: dict[str, Format] = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"}
QUALITY = 90  # of JPEG and WebP tiles: without a visible loss of its own
PNG_EFFORT = 1  # of 9: tiles are wanted at once
MOST_PROFILE = 1 << 20  # bytes of an ICC profile that goes along with an image
ALMOST = 1e-3  # of a pixel, or of a factor: rounding, not meaning

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Reading:
    """What is read of a slide, and how it becomes an image of `size` (width, height): `box` is what is wanted, in
    pixels of `region`, which is in pixels of `level`."""

    level: int
    region: Region
    box: Box
    size: tuple[int, int]

    def scaled(self, pixels: Pixels) -> Pixels:
        """The image (height, width, 3) uint8 of the pixels that were read."""
        width, height = self.size
        exact = all(abs(a - b) < ALMOST for a, b in zip(self.box, (0, 0, width, height), strict=True))
        if exact and pixels.shape == (height, width, 3):
            return pixels
        factor = (self.box[2] - self.box[0]) / width, (self.box[3] - self.box[1]) / height
        whole = all(abs(f - round(f)) < ALMOST and round(f) >= 1 for f in factor)
        method = Image.Resampling.BOX if whole else Image.Resampling.HAMMING
        if max(factor) < 1:
            method = Image.Resampling.BICUBIC
        box = (
            max(0.0, self.box[0]),
            max(0.0, self.box[1]),
            min(float(pixels.shape[1]), self.box[2]),
            min(float(pixels.shape[0]), self.box[3]),
        )
        return np.asarray(Image.fromarray(pixels).resize(self.size, method, box))


def level_scale(levels: tuple[Level, ...], number: int) -> tuple[float, float]:
    """The pixels of a level for each of level 0, across and down. Scanners cut the last columns of a level, so a factor
    that a level misses by less than two pixels is meant: 4, where 1301 pixels became 325."""
    full, level = levels[0], levels[number]
    factor = round((full.width / level.width + full.height / level.height) / 2)
    if abs(full.width / factor - level.width) < 2 and abs(full.height / factor - level.height) < 2:
        return 1 / factor, 1 / factor
    return level.width / full.width, level.height / full.height


def reading_of(levels: tuple[Level, ...], box: Box, size: tuple[int, int]) -> Reading:
    """How to read `box`, in level-0 pixels, as an image of `size`: from the smallest level that has enough pixels.
    Raises RefusedError where even that has more pixels than one answer is made from."""
    factor = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]) * (1 + ALMOST)
    number = 0
    for candidate in range(len(levels)):
        if 1 / max(level_scale(levels, candidate)) <= factor:
            number = candidate
    across, down = level_scale(levels, number)
    wanted = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    shrink = max((wanted[2] - wanted[0]) / size[0], (wanted[3] - wanted[1]) / size[1])
    whole = abs(shrink - round(shrink)) < ALMOST and all(abs(edge - round(edge)) < ALMOST for edge in wanted)
    margin = 0 if whole else math.ceil(2 * max(1.0, shrink))  # as far as the filters reach
    left, top = math.floor(wanted[0] + ALMOST) - margin, math.floor(wanted[1] + ALMOST) - margin
    right, bottom = math.ceil(wanted[2] - ALMOST) + margin, math.ceil(wanted[3] - ALMOST) + margin
    inside = Region(left, top, right - left, bottom - top)
    if not whole:
        inside = inside.intersect(levels[number].region)
    if inside.area > SOURCE_PIXELS:
        raise RefusedError(
            400,
            f"{size[0]}x{size[1]} would be made from {inside.area / 1e6:.0f} megapixels of level {number}; at most "
            f"{SOURCE_PIXELS / 1e6:.0f} are read for one answer: ask for a smaller region",
        )
    relative = (wanted[0] - inside.x, wanted[1] - inside.y, wanted[2] - inside.x, wanted[3] - inside.y)
    return Reading(number, inside, relative, size)


def image_bytes(
    pixels: Pixels, form: Format, *, quality: int = QUALITY, fine: bool = False, icc: bytes | None = None
) -> bytes:
    """An image (h, w, 3 or 4) uint8, or (h, w), as a file. `fine` keeps the full resolution of colour in a JPEG."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    profile = icc if icc is not None and len(icc) <= MOST_PROFILE else None
    if form == "png":
        image.save(buffer, "PNG", compress_level=PNG_EFFORT, icc_profile=profile)
    elif form == "jpeg":
        image.save(buffer, "JPEG", quality=quality, subsampling=0 if fine else 2, icc_profile=profile)
    else:
        image.save(buffer, "WEBP", quality=quality, method=1, icc_profile=profile)
    return buffer.getvalue()
