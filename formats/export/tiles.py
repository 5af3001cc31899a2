"""The tiles of a slide's levels, in the order in which TIFF and DICOM store them."""

from collections.abc import Iterator

import numpy as np

from histocodec.geometry import Region
from histocodec.slide import Pixels, Slide

TILE = 512  # the side of a chunk, so that each chunk is decoded once
READ_TILES = 8  # tiles of a row that are read together: 6 MiB


def tiles_of(slide: Slide, index: int, tile: int) -> Iterator[tuple[Region, Pixels]]:
    """The tiles of a level, row by row: the region that each covers, and its pixels (tile, tile, 3). At the far edges
    the last pixels are repeated, which costs JPEG less than a jump to white."""
    level = slide.levels[index]
    for y in range(0, level.height, tile):
        for x in range(0, level.width, READ_TILES * tile):
            strip = Region(x, y, READ_TILES * tile, tile).intersect(level.region)
            pixels = slide.read(strip, index)
            for left in range(x, strip.x_end, tile):
                region = Region(left, y, tile, tile).intersect(strip)
                padding = ((0, tile - region.height), (0, tile - region.width), (0, 0))
                yield region, np.pad(pixels[region.within(strip)], padding, mode="edge")
