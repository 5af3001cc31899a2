"""The areas of a Leica slide (.scn): where each begins in a level, exactly.

A Leica slide is a large empty plane with one or more scanned areas. For each area, OpenSlide divides the level-0
coordinate that it is asked for by the level's downsample, subtracts the area's offset, and truncates towards zero. With
a downsample that is no integer, an address therefore shows an area that begins at or before it in its place if it is
rounded up, and one that begins after it if it is rounded down. No address is right for both kinds, so each area is
found and read for itself.
"""

import math
from collections.abc import Mapping
from itertools import combinations, count
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from histocodec.geometry import Level, Region

SLACK = 4  # pixels of the level: how far an area may be from where its level-0 position suggests


class ReadRgba(Protocol):
    """Reads a region of a level from a level-0 address: (h, w, 4) uint8. Only the region's size counts."""

    def __call__(self, x_level0: int, y_level0: int, region: Region) -> NDArray[np.uint8]: ...


def leica_areas(properties: Mapping[str, str], level: Level, read: ReadRgba) -> tuple[Region, ...] | None:
    """The areas of a level, each up to `SLACK` pixels wider and higher than its pixels. None where they cannot be found
    or lie too close together to be told apart. Raises SourceError where the level cannot be read."""
    areas = []
    for index in count():
        try:
            x, y, width, height = (
                int(properties[f"openslide.region[{index}].{name}"]) for name in ("x", "y", "width", "height")
            )
        except (KeyError, ValueError):
            break
        left = _start(x, y + height // 2, level, read, axis=1)
        top = _start(y, x + width // 2, level, read, axis=0)
        if left is None or top is None:
            return None
        right, bottom = (math.ceil(end / level.downsample) + SLACK for end in (x + width, y + height))
        areas.append(Region(left, top, right - left, bottom - top).intersect(level.region))
    apart = all(one.intersect(other).empty for one, other in combinations(areas, 2))
    return tuple(areas) if areas and apart else None


def address_after(pixel: int, downsample: float) -> int:
    """The smallest level-0 coordinate that OpenSlide takes for `pixel` of a level or a place after it."""
    address = math.ceil(pixel * downsample)
    while address / downsample < pixel:
        address += 1
    return address


def _address_before(pixel: int, downsample: float) -> int:
    address = math.floor(pixel * downsample)
    while address / downsample > pixel:
        address -= 1
    return address


def _start(start_level0: int, middle_level0: int, level: Level, read: ReadRgba, *, axis: int) -> int | None:
    """The first pixel of an area on one axis (0: y, 1: x), by a line of pixels through its middle; None where it is not
    near the expected place, or something else is."""
    before = max(0, math.floor(start_level0 / level.downsample) - SLACK)
    address, length = _address_before(before, level.downsample), 2 * SLACK + 2
    if axis == 1:
        line = read(address, middle_level0, Region(0, 0, length, 1))
    else:
        line = read(middle_level0, address, Region(0, 0, 1, length))
    opaque = np.flatnonzero(line[..., 3])
    if opaque.size == 0 or (opaque[0] == 0 and before > 0):
        return None
    return before + int(opaque[0])
