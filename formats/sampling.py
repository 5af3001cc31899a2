"""Which quality meets a target: bisection on a sample of a slide's chunks, analysed once, coded at each try."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import UsageError
from histocodec.models.config import QUALITIES

SAMPLE_CHUNKS = 24  # 6 megapixels: the mean over them is within a few per cent of the slide's


@dataclass(frozen=True)
class SampledChunk:
    """A chunk's analysis before gains (C, h, w) and its pixels (H, W, 3); it stands for `weight` chunks."""

    y: NDArray[np.float32]
    pixels: NDArray[np.uint8]
    weight: float


def spread(items: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """At most `count` items, evenly spaced over the whole sequence."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def lowest_quality(meets: Callable[[int], bool], *, what: str) -> int:
    """The lowest quality for which `meets` holds, `meets` being monotone. Raises UsageError where none does."""
    if not meets(QUALITIES - 1):
        raise UsageError(f"{what} is beyond the highest quality, {QUALITIES - 1}")
    low, high = 0, QUALITIES - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle + 1, high)
    return low


def highest_quality(meets: Callable[[int], bool], *, what: str) -> int:
    """The highest quality for which `meets` holds. Raises UsageError where not even quality 0 does."""
    if not meets(0):
        raise UsageError(f"{what} is below the lowest quality, 0")
    low, high = 0, QUALITIES - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if meets(middle) else (low, middle - 1)
    return low
