"""Memory stays in proportion to what is asked for and to what lies on disk, whatever a file claims."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from histocodec.errors import UnsupportedError, UsageError
from histocodec.formats.container.states import chunks_where
from histocodec.formats.decode import openslide_face, resample
from histocodec.formats.decode.describe import describe
from histocodec.formats.decode.openslide_face import OpenSlideFace
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.formats.decode.verify import verify
from histocodec.formats.embed import embed
from histocodec.formats.export.tiff import write_pyramid
from histocodec.geometry import ChunkKey, Level, Region
from histocodec.search.embedding import Embedder, log_energies
from histocodec.slide import BaseSlide, Pixels
from histocodec.sources import with_pyramid
from histocodec.threads import LARGE_BYTES
from tests.support.containers import claiming


class Shaded(OpenSlideFace):
    """A slide of one level, computed as it is read: columns are darker to the right."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self.name, self.closed = "shaded", False
        self.levels = (Level(width, height, 1.0),)

    @property
    def icc_profile(self) -> bytes:
        """Some bytes."""
        return b"profile"

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


@contextmanager
def at_most(most: int) -> Iterator[None]:
    """What is within takes at most this many bytes at once, of Python's and numpy's."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= most


def test_a_thumbnail_of_a_large_level_takes_no_memory_of_its_size() -> None:
    slide = Shaded(12_000, 10_001)
    with at_most(100 << 20):  # of 360 MB of pixels
        thumbnail = slide.get_thumbnail((300, 300))
    assert thumbnail.size == (300, 250)
    assert thumbnail.info["icc_profile"] == b"profile"


@pytest.mark.parametrize("size", [(64, 64), (7, 90), (500, 500), (4000, 4000)])
def test_a_thumbnail_in_parts_looks_like_one_at_once(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    slide = Shaded(901, 407)
    whole = slide.get_thumbnail(size)
    monkeypatch.setattr(openslide_face, "THUMBNAIL_PIXELS", 0)
    monkeypatch.setattr(openslide_face, "PART", 100)
    parts = slide.get_thumbnail(size)
    assert parts.size == whole.size
    assert np.abs(np.asarray(parts).astype(int) - np.asarray(whole)).max() <= 2


# Containers that claim far more background than they have bytes: chunks of 64 pixels, of which no file says anything.

LINE = 8_000_000  # pixels of a level that is one pixel high: 125,000 chunks
MILLION = 65_536  # pixels of a side of a level of 2^20 chunks
PER_CHUNK = 16  # bytes: the maps as they are read and checked


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Iterator[CompressedSlide]:
    """A container of one row of pixels, open and read once, so that what is loaded only once is not counted."""
    root = tmp_path_factory.mktemp("line") / "line.zarr"
    claiming(root, LINE, 1, tiny_file)
    with open_compressed(root, device="cpu", workers=2) as slide:
        slide.read_array(0, 0, 5, 1)
        yield slide


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """A container of a million chunks."""
    root = tmp_path_factory.mktemp("million") / "million.zarr"
    claiming(root, MILLION, MILLION, tiny_file)
    return root


def test_a_region_of_many_chunks_takes_its_pixels_and_little_more(line: CompressedSlide) -> None:
    with at_most(3 * LINE + (8 << 20)):
        pixels = line.read(Region(0, 0, LINE, 1), 0)
    assert (pixels == 1).all()


def test_a_batch_of_many_chunks_takes_its_pixels_and_little_more(line: CompressedSlide) -> None:
    count, width = 1000, 16_000  # 250,000 chunks
    locations = [(8 * i, 0) for i in range(count)]
    with at_most(3 * count * width + (8 << 20)):
        pixels = line.read_batch(locations, (width, 1))
    assert (pixels == 1).all()


def test_thousands_of_locations_take_little_beside_their_pixels(slide: CompressedSlide) -> None:
    locations = [(x, y) for x in range(0, 1200, 20) for y in range(0, 800, 8)]
    slide.read_batch(locations[:1], (8, 8))
    slide.read(slide.levels[0].region, 0)  # what is cached is bounded elsewhere
    with at_most(3 * 64 * len(locations) + (6 << 20)):
        assert slide.read_batch(locations, (8, 8)).shape == (len(locations), 8, 8, 3)


def test_a_resampled_region_is_read_in_strips(million: Path) -> None:
    with open_compressed(million, device="cpu", workers=2) as slide:
        slide.read_array(0, 0, 5, 1)
        with at_most(3 * resample.STRIP_PIXELS + (32 << 20)):  # of 432 MB of pixels
            pixels = slide.read_array(0, 0, 100, 100, mpp=0.25 * 120)
    assert (pixels == 1).all()


def test_a_resolution_that_is_far_too_coarse_is_refused(line: CompressedSlide) -> None:
    with pytest.raises(UsageError, match="need"):
        line.read_array(0, 0, 1000, 1000, mpp=1e5)


def test_a_million_chunks_are_described_and_verified_in_a_few_bytes_each(million: Path) -> None:
    with at_most(PER_CHUNK * 2**20 + (8 << 20)):
        levels = describe(million)["levels"]
    assert isinstance(levels, list)
    assert levels[0]["background"] == 2**20
    with at_most(PER_CHUNK * 2**20 + LARGE_BYTES + (8 << 20)):
        assert verify(million, device="cpu", workers=1).ok


def test_a_million_chunks_without_tissue_are_refused_by_embed_at_once(million: Path) -> None:
    with at_most(PER_CHUNK * 2**20 + LARGE_BYTES + (8 << 20)), pytest.raises(UnsupportedError):
        embed(million, embedder=Embedder("any", log_energies, lambda *_: 1.0, 4, 1), workers=1)


def test_chunks_are_listed_one_by_one() -> None:
    with at_most(1 << 20):
        assert next(chunks_where(0, np.broadcast_to(np.True_, (2, 1 << 24)))) == ChunkKey(0, 0, 0)


def test_latents_of_a_million_chunks_are_read_as_they_are_indexed(million: Path) -> None:
    with open_compressed(million, device="cpu") as slide:
        slide.latents(0)[:, :1, :1]
        with at_most(16 << 20):
            assert not slide.latents(0)[:, 100:104, 100:104].any()


class Ramp(BaseSlide):
    """A slide of one level, computed as it is read."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(name="ramp", levels=(Level(width, height, 1.0),))

    def _read_inside(self, region: Region, level: int) -> Pixels:
        rows, columns = np.arange(region.y, region.y_end), np.arange(region.x, region.x_end)
        ramp = (7 * rows[:, None] + columns % 251).astype(np.uint8)
        return np.repeat(ramp[..., None], 3, axis=2)


def test_a_pyramid_of_a_wide_level_takes_no_memory_of_its_size(tmp_path: Path) -> None:
    slide = Ramp(800_000, 3)
    write_pyramid(tmp_path / "first.tif", Ramp(5, 5))
    with at_most(64 << 20):
        write_pyramid(tmp_path / "a.tif", slide)


def test_a_derived_level_is_made_of_pieces_however_coarse_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    slide = with_pyramid(Ramp(5_000, 33))
    expected = [slide.read(level.region, n) for n, level in enumerate(slide.levels)]
    monkeypatch.setattr("histocodec.sources.pyramid.PIECE", 3)
    for n, level in enumerate(slide.levels):
        assert np.array_equal(slide.read(level.region, n), expected[n])
