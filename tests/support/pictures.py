"""A test picture, and a check that any source can be put to."""

import numpy as np

from histocodec.geometry import Region
from histocodec.slide import Pixels, Slide


def picture(height: int = 90, width: int = 130, seed: int = 0) -> Pixels:
    """(height, width, 3) uint8: smooth enough for JPEG, different everywhere."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(seed)
    waves = [127 + 90 * np.sin(x / a + y / b + seed) for a, b in ((17, 29), (31, 11), (13, 41))]
    return np.clip(np.stack(waves, axis=2) + rng.normal(0, 4, (height, width, 1)), 0, 255).astype(np.uint8)


def whole(slide: Slide, level: int = 0) -> Pixels:
    """All pixels of a level: (H, W, 3) uint8."""
    return slide.read(slide.levels[level].region, level)


def assert_regions_are_crops(slide: Slide, level: int, *, count: int = 25, seed: int = 0) -> None:
    """Check random regions, some across an edge, against crops of the level read at once."""
    size = slide.levels[level]
    full = np.full((size.height + 40, size.width + 40, 3), 255, np.uint8)
    full[20:-20, 20:-20] = whole(slide, level)
    rng = np.random.default_rng(seed)
    for _ in range(count):
        x, y = int(rng.integers(-20, size.width)), int(rng.integers(-20, size.height))
        width = int(rng.integers(1, min(300, size.width + 20 - x) + 1))
        height = int(rng.integers(1, min(300, size.height + 20 - y) + 1))
        found = slide.read(Region(x, y, width, height), level)
        assert found.flags.c_contiguous
        assert np.array_equal(found, full[y + 20 : y + 20 + height, x + 20 : x + 20 + width])
