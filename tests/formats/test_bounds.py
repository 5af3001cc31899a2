"""Memory stays in proportion to what is asked for and to what lies on disk, whatever a file claims."""

import tracemalloc

import numpy as np
import pytest

from histocodec.formats.decode import openslide_face
from histocodec.formats.decode.openslide_face import OpenSlideFace
from histocodec.geometry import Level, Region
from histocodec.slide import Pixels


class Shaded(OpenSlideFace):
    """A slide of one level, computed as it is read: columns are darker to the right."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self.name, self.icc_profile, self._profile, self.closed = "shaded", b"profile", b"profile", False
        self.levels = (Level(width, height, 1.0),)

    @property
    def properties(self) -> dict[str, str]:
        """None."""
        return {}

    def read(self, region: Region, level: int) -> Pixels:
        """A ramp over the columns."""
        ramp = 255 - 255 * np.arange(region.x, region.x_end) // self.levels[level].width
        return np.broadcast_to(ramp.astype(np.uint8)[:, None], (region.height, region.width, 3)).copy()

    def close(self) -> None:
        """Nothing to close."""


def test_a_thumbnail_of_a_large_level_takes_no_memory_of_its_size() -> None:
    slide = Shaded(12_000, 10_001)
    tracemalloc.start()
    try:
        thumbnail = slide.get_thumbnail((300, 300))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert thumbnail.size == (300, 250)
    assert thumbnail.info["icc_profile"] == b"profile"
    assert peak < 100 << 20  # of 360 MB of pixels


@pytest.mark.parametrize("size", [(64, 64), (7, 90), (500, 500), (4000, 4000)])
def test_a_thumbnail_in_parts_looks_like_one_at_once(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    slide = Shaded(901, 407)
    whole = slide.get_thumbnail(size)
    monkeypatch.setattr(openslide_face, "THUMBNAIL_PIXELS", 0)
    monkeypatch.setattr(openslide_face, "PART", 100)
    parts = slide.get_thumbnail(size)
    assert parts.size == whole.size
    assert np.abs(np.asarray(parts).astype(int) - np.asarray(whole)).max() <= 2
