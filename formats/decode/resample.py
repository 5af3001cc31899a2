"""Resampling an image that is larger than memory should be: Pillow's Lanczos filter, from strips, bit for bit.

    strips of rows ── Pillow ──▶ rows of the final width ── weights of 22 bits ──▶ rows of the result

Pillow filters the rows first and rounds them to 8 bits, then the columns (tall images the other way round, from
version 13 on, which moves a few pixels by a grey value or so). Each row of the result needs a window of the rows above,
so only a window is kept.
"""

import math
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histocodec.slide import Pixels

STRIP_PIXELS = 16 << 20  # that are read at once: 48 MB, and as much again in Pillow
LOBES = 3  # of the filter, on each side
PRECISION = 22  # bits of a weight, as in Pillow's Resample.c

Rows = Callable[[int, int], Pixels]  # the rows from one number up to another: (rows, width, 3) uint8


def resampled(read: Rows, source: tuple[int, int], size: tuple[int, int]) -> Pixels:
    """An image of `source` (width, height), of which `read` gives the rows, at another `size` (width, height): the
    pixels (height, width, 3) uint8 that `Image.resize` gives with LANCZOS for rows, then for columns.

    Memory: the result, STRIP_PIXELS in three copies, or one row of the source where that is more, and as many rows of
    the result's width as the filter spans, 6 for each row of the result that shrinks to one.
    """
    (source_width, source_height), (width, height) = source, size
    pixels = np.empty((height, width, 3), np.uint8)
    step = max(1, STRIP_PIXELS // source_width)
    rows: deque[Pixels] = deque()  # of the final width, from row `first` of the source on
    first = end = 0
    for y in range(height):
        start, weights = _weights(y, source_height, height)
        while end < start + len(weights):
            strip = Image.fromarray(read(end, min(end + step, source_height)))
            narrow = strip if width == source_width else strip.resize((width, strip.height), Image.Resampling.LANCZOS)
            rows.extend(np.asarray(narrow))
            end += strip.height
        while first < start:
            rows.popleft()
            first += 1
        pixels[y] = _weighted(rows, weights)
    return pixels


def _weighted(rows: deque[Pixels], weights: NDArray[np.int64]) -> Pixels:
    """The weighted mean of the first rows (width, 3), rounded as Pillow does."""
    total = np.full(rows[0].shape, 1 << (PRECISION - 1), np.int64)
    for row, weight in zip(rows, weights, strict=False):
        total += row * weight
    mean: Pixels = np.clip(total >> PRECISION, 0, 255).astype(np.uint8)
    return mean


def _weights(y: int, source: int, size: int) -> tuple[int, NDArray[np.int64]]:
    """The first row of the source that row `y` of the result needs, and the weights of the rows from there on."""
    if source == size:
        return y, np.array([1 << PRECISION], np.int64)
    scale = source / size
    stretch = max(scale, 1.0)
    support, centre = LOBES * stretch, (y + 0.5) * scale
    start, end = max(0, int(centre - support + 0.5)), min(source, int(centre + support + 0.5))
    inverse = 1.0 / stretch
    weights = [_lanczos((i + start - centre + 0.5) * inverse) for i in range(end - start)]
    total = sum(weights)
    fixed = [int(math.copysign(0.5, weight) + weight / total * (1 << PRECISION)) for weight in weights]
    return start, np.array(fixed, np.int64)


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / LOBES) if -LOBES <= x < LOBES else 0.0


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(x * math.pi) / (x * math.pi)
