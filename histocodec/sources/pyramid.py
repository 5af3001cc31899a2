"""Derived levels for slides that have only one, averaged from level 0 on demand."""

import numpy as np
from numpy.typing import NDArray

from histocodec.geometry import Level, Region, ceil_div
from histocodec.slide import BaseSlide, Pixels, Slide, notes_of

STEP = 4  # between levels, as most scanners do
LONGEST = 1024  # pixels: the last level's longer side is at most this
PIECE = 2048  # level-0 pixels on a side that are read at once: 12 MiB


class DerivedPyramid(BaseSlide):
    """A slide's level 0, and levels of 1/4, 1/16, … of its size.

    Each pixel of a derived level is the mean of the level-0 pixels that exist under it, rounded half up, so that a
    region is the crop of the whole level. Nothing is cached: a derived level is computed at each reading, in pieces.
    """

    def __init__(self, slide: Slide) -> None:
        full = slide.levels[0]
        levels = [Level(full.width, full.height, 1.0)]
        while max(levels[-1].width, levels[-1].height) > LONGEST:
            factor = STEP ** len(levels)
            levels.append(Level(ceil_div(full.width, factor), ceil_div(full.height, factor), float(factor)))
        super().__init__(
            name=slide.name,
            levels=tuple(levels),
            mpp=slide.mpp,
            objective_power=slide.objective_power,
            properties=slide.properties,
            icc_profile=slide.icc_profile,
            background=slide.background,
            associated=slide.associated,
            notes=notes_of(slide),
        )
        self._slide = slide

    def _read_inside(self, region: Region, level: int) -> Pixels:
        if level == 0:
            return self._slide.read(region, 0)
        factor = STEP**level
        side = max(1, PIECE // factor)
        pixels = np.empty((region.height, region.width, 3), np.uint8)
        for y in range(region.y, region.y_end, side):
            for x in range(region.x, region.x_end, side):
                piece = Region(x, y, side, side).intersect(region)
                below = Region(x * factor, y * factor, piece.width * factor, piece.height * factor)
                below = below.intersect(self.levels[0].region)
                if factor > PIECE:
                    pixels[piece.within(region)] = self._mean(below)
                else:
                    pixels[piece.within(region)] = box_mean(self._slide.read(below, 0), factor)
        return pixels

    def _mean(self, box: Region) -> NDArray[np.int64]:
        """The mean (3,) of a box of level-0 pixels that is too large to be read at once, rounded half up."""
        sums = np.zeros(3, np.int64)
        for y in range(box.y, box.y_end, PIECE):
            for x in range(box.x, box.x_end, PIECE):
                sums += self._slide.read(Region(x, y, PIECE, PIECE).intersect(box), 0).sum((0, 1), np.int64)
        return (sums * 2 + box.area) // (box.area * 2)

    def close(self) -> None:
        """See `Slide.close`."""
        self._slide.close()


def with_pyramid(slide: Slide) -> Slide:
    """The slide with derived levels, or the slide itself where it has reduced levels or is too small to need any."""
    full = slide.levels[0]
    if len(slide.levels) > 1 or max(full.width, full.height) <= LONGEST:
        return slide
    return DerivedPyramid(slide)


def box_mean(pixels: Pixels, factor: int) -> Pixels:
    """The means of boxes of `factor` × `factor` pixels, rounded half up: (H, W, 3) uint8 → (⌈H / factor⌉, ⌈W / factor⌉,
    3) uint8. A box that reaches beyond the edge averages the pixels that exist."""
    height, width = pixels.shape[:2]
    rows = np.arange(0, height, factor)
    columns = np.arange(0, width, factor)
    sums: NDArray[np.uint32] = np.add.reduceat(pixels, rows, axis=0, dtype=np.uint32)
    sums = np.add.reduceat(sums, columns, axis=1, dtype=np.uint32)
    tall = np.minimum(factor, height - rows).astype(np.uint32)
    wide = np.minimum(factor, width - columns).astype(np.uint32)
    count = (tall[:, np.newaxis] * wide)[..., np.newaxis]
    # Sums fit in uint32 for boxes up to 2048² pixels, 2 · 255 · 2048² < 2^32; PIECE is the largest.
    means: Pixels = ((sums * 2 + count) // (count * 2)).astype(np.uint8)
    return means
