"""Any region of a compressed slide has the same pixels, however and from wherever it is read."""

import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import histocodec
from histocodec.errors import UsageError
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.geometry import Level, Region
from histocodec.slide import Pixels
from tests.support.slides import CHUNK, SIZE, crop, whole


def some_regions(level: Level, rng: np.random.Generator, count: int) -> list[Region]:
    """Corners, chunk and shard borders, single pixels, beyond each edge, and random ones."""
    w, h = level.width, level.height
    fixed = [
        Region(0, 0, 1, 1), Region(w - 1, h - 1, 1, 1), Region(w - 7, 0, 20, 5), Region(-5, h - 3, 9, 30),
        Region(CHUNK - 2, h // 2, 4, 3), Region(8 * CHUNK - 3, 0, 6, h), Region(w // 2, -10, 3, h + 20),
        Region(w, h, 5, 5), Region(-50, -50, 20, 20), Region(3, 3, 0, 5),
    ]  # fmt: skip
    corners = rng.integers((-60, -60), (w + 60, h + 60), (count, 2)).tolist()
    sizes = rng.integers(1, 700, (count, 2)).tolist()
    return fixed + [Region(x, y, *size) for (x, y), size in zip(corners, sizes, strict=True)]


# Regions.


@pytest.mark.parametrize("name", ["a.zarr", "wide.zarr"])
@pytest.mark.parametrize(("cache_bytes", "workers"), [(0, 1), (0, 3), (1 << 28, 1), (1 << 28, 3)])
def test_any_region_equals_the_crop_of_the_whole(folder: Path, name: str, cache_bytes: int, workers: int) -> None:
    rng = np.random.default_rng([cache_bytes, workers])
    with histocodec.open(folder / name, device="cpu") as reference:
        wholes = [whole(reference, level) for level in range(len(reference.levels))]
    with open_compressed(folder / name, device="cpu", cache_bytes=cache_bytes, workers=workers) as slide:
        for number, level in enumerate(slide.levels):
            for region in some_regions(level, rng, 12):
                expected = crop(wholes[number], region, slide.background or (255, 255, 255))
                assert np.array_equal(slide.read(region, number), expected), region


def test_read_array_takes_its_corner_in_level_0_pixels(slide: CompressedSlide) -> None:
    low = whole(slide, 1)
    assert np.array_equal(slide.read_array(400, 200, 60, 50, level=1), low[50:100, 100:160])


def test_a_batch_equals_its_regions_one_by_one(slide: CompressedSlide) -> None:
    places = [(0, 0), (500, 500), (505, 490), (-20, 880), (1299, 0), (5000, 5000), (500, 500)]
    for level in (0, 1):
        batch = slide.read_batch(places, (70, 40), level=level)
        assert batch.shape == (len(places), 40, 70, 3)
        for pixels, place in zip(batch, places, strict=True):
            assert np.array_equal(pixels, slide.read_array(*place, 70, 40, level=level))
    assert slide.read_batch([], (5, 6)).shape == (0, 6, 5, 3)


def test_a_batch_larger_than_its_memory_is_read_in_parts(
    slide: CompressedSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [(x, y) for x in (0, 300, 800) for y in (0, 480)]
    expected = slide.read_batch(places, (400, 400))
    for limit in ("BATCH_REGIONS", "BATCH_CHUNKS"):
        with monkeypatch.context() as patch:
            patch.setattr(f"histocodec.formats.decode.slide.{limit}", 1)
            assert np.array_equal(slide.read_batch(places, (400, 400)), expected)


def test_the_resolution_of_a_level_is_that_level(slide: CompressedSlide) -> None:
    assert np.array_equal(slide.read_array(40, 80, 99, 55, mpp=0.25), slide.read_array(40, 80, 99, 55))
    assert np.array_equal(slide.read_array(40, 80, 99, 55, mpp=1.0), slide.read_array(40, 80, 99, 55, level=1))


def test_a_resolution_between_levels_is_resampled_from_the_finer_one(slide: CompressedSlide) -> None:
    pixels = slide.read_array(100, 60, 300, 200, mpp=0.5)
    fine = Image.fromarray(slide.read_array(100, 60, 600, 400))
    assert np.array_equal(pixels, np.asarray(fine.resize((300, 200), Image.Resampling.LANCZOS)))
    assert slide.read_array(0, 0, 30, 20, mpp=0.1).shape == (20, 30, 3)  # finer than there is


@pytest.mark.parametrize("region", [(0, 0, -1, 5), (0, 0, 5, -1)])
def test_a_negative_size_is_refused(slide: CompressedSlide, region: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError, match="negative"):
        slide.read_array(*region)


def test_levels_that_do_not_exist_are_refused(slide: CompressedSlide) -> None:
    for level in (-1, 2):
        with pytest.raises(UsageError, match="0 to 1"):
            slide.read_array(0, 0, 5, 5, level=level)
        with pytest.raises(UsageError, match="0 to 1"):
            slide.read_region((0, 0), level, (5, 5))


# As OpenSlide's users see it.


def test_read_region_is_rgba_and_transparent_outside(slide: CompressedSlide) -> None:
    image = slide.read_region((1280, 880), 0, (50, 60))
    assert (image.mode, image.size) == ("RGBA", (50, 60))
    rgba = np.asarray(image)
    assert np.array_equal(rgba[:20, :20, :3], slide.read_array(1280, 880, 20, 20))
    assert (rgba[:20, :20, 3] == 255).all()
    assert not rgba[20:].any()
    assert not rgba[:, 20:].any()
    assert not np.asarray(slide.read_region((-100, 0), 1, (5, 5))).any()


def test_read_region_of_a_reduced_level_starts_at_level_0_pixels(slide: CompressedSlide) -> None:
    rgba = np.asarray(slide.read_region((400, 200), 1, (64, 48)))
    assert np.array_equal(rgba[..., :3], slide.read_array(400, 200, 64, 48, level=1))


def test_the_best_level_for_a_downsample_is_no_coarser(slide: CompressedSlide) -> None:
    assert [slide.get_best_level_for_downsample(d) for d in (0.5, 1, 3.9, 4, 100)] == [0, 0, 0, 1, 1]


def test_deep_zoom_tiles_are_crops(slide: CompressedSlide) -> None:
    tiles = DeepZoomGenerator(slide, tile_size=254, overlap=1, limit_bounds=False)
    assert tiles.level_dimensions[-1] == SIZE
    tile = np.asarray(tiles.get_tile(tiles.level_count - 1, (2, 1)))
    assert np.array_equal(tile, whole(slide)[253:509, 507:763])
    assert tiles.get_tile(0, (0, 0)).size == (1, 1)


def test_a_thumbnail_fits_its_box(slide: CompressedSlide) -> None:
    assert slide.get_thumbnail((200, 200)).size == (200, 138)


# The same from every thread and process.


def test_a_pickled_slide_reads_the_same(folder: Path, slide: CompressedSlide) -> None:
    with open_compressed(folder / "a.zarr", device="cpu", cache_bytes=5, workers=3) as original:
        copy = pickle.loads(pickle.dumps(original))
    assert (copy._cache.limit, copy._workers.count, copy.device) == (5, 3, "cpu")
    with copy:
        assert np.array_equal(copy.read_array(450, 400, 200, 200), slide.read_array(450, 400, 200, 200))


def test_threads_read_the_same(folder: Path, slide: CompressedSlide) -> None:
    pixels = whole(slide)
    places = np.random.default_rng(0).integers(0, (SIZE[0] - 200, SIZE[1] - 200), (32, 2)).tolist()
    with (
        open_compressed(folder / "a.zarr", device="cpu", cache_bytes=4 << 20, workers=2) as shared,
        ThreadPoolExecutor(8) as threads,
    ):
        found = list(threads.map(lambda place: shared.read_array(place[0], place[1], 200, 200), places))
    for (x, y), part in zip(places, found, strict=True):
        assert np.array_equal(part, pixels[y : y + 200, x : x + 200])


class Patches(Dataset[NDArray[np.uint8]]):
    def __init__(self, slide: CompressedSlide, places: list[tuple[int, int]]) -> None:
        self.slide, self.places = slide, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Pixels:
        return self.slide.read_array(*self.places[index], 64, 64)


FORKING = """
import os, sys, torch, histocodec
torch.set_num_threads(2)
torch.ones(1 << 20).add_(1)  # PyTorch's threads are there, and a fork has none of them
def read():
    with histocodec.open(sys.argv[1], device="cpu") as slide:
        return slide.read_array(500, 500, 64, 64).tobytes()
wanted = read()
child = os.fork()
if child == 0:
    os._exit(0 if read() == wanted else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_opens_a_slide_whatever_its_parent_computed(folder: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKING, str(folder / "a.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:This DataLoader:UserWarning", "ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_data_loader_reads_the_same(slide: CompressedSlide, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"processes cannot be started by {method} here")
    places = [(0, 0), (500, 500), (1200, 800), (480, 30), (30, 490)]
    loader = DataLoader(Patches(slide, places), batch_size=2, num_workers=2, multiprocessing_context=method)
    found = torch.cat(list(loader)).numpy()
    assert np.array_equal(found, slide.read_batch(places, (64, 64)))
