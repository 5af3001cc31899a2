"""A slide goes in, and any region of it comes back: the same pixels whoever asks, however, and from where."""

import json
import math
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import histocodec
from histocodec.codec.transform import other_dtype
from histocodec.errors import MissingModelError, UsageError
from histocodec.fidelity import psnr, squared_error
from histocodec.formats.container import read as files
from histocodec.formats.container.arrays import write_plain
from histocodec.formats.container.layout import BACKGROUND, CODED, LOSSLESS, plain_arrays
from histocodec.formats.container.read import Container
from histocodec.formats.container.zarr_codec import register
from histocodec.formats.decode.blocks import BlockKey
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.formats.decode.verify import verify
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.geometry import Grid, Level, Region
from histocodec.models.weights import MODELS_VARIABLE
from histocodec.slide import BaseSlide, Pixels
from histocodec.sources import ArraySlide, with_pyramid
from histocodec.sources.synthetic import synthetic_slide
from histocodec.tissue import GLASS_DISTANCE

SIZE = (1300, 900)  # 3 x 2 chunks, and a derived level of 325 x 225
WIDE = (4400, 40)  # two shards beside each other
CHUNK = 512
GLASS = (240, 238, 241)
ICC = b"\0\0\0\x0cnot really one"
PROPERTIES = {"vendor.scanner": "Ω 3", "vendor.lens": ""}


@pytest.fixture(scope="module")
def source() -> ArraySlide:
    pixels = synthetic_slide(*SIZE, seed=3)
    return ArraySlide(pixels, name="a.svs", mpp=0.25, properties=PROPERTIES, icc_profile=ICC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path, source: ArraySlide) -> Path:
    """With a.zarr of `source` and wide.zarr, which carry their model."""
    folder = tmp_path_factory.mktemp("roundtrip")
    histocodec.encode(source, folder / "a.zarr", model=str(tiny_file), device="cpu", embed_model=True)
    wide = ArraySlide(synthetic_slide(*WIDE, seed=4))
    histocodec.encode(wide, folder / "wide.zarr", model=str(tiny_file), device="cpu", embed_model=True)
    return folder


@pytest.fixture(scope="module")
def slide(folder: Path) -> Iterator[CompressedSlide]:
    with histocodec.open(folder / "a.zarr", device="cpu") as slide:
        yield slide


def encoded(slide: BaseSlide, path: Path, tiny_file: Path, **options: object) -> histocodec.EncodeReport:
    chosen = histocodec.EncodeOptions(**{"device": "cpu", "model": str(tiny_file), **options})  # type: ignore[arg-type]  # the tests name fields only
    return encode_slide(slide, path, chosen)


def whole(slide: CompressedSlide, level: int = 0) -> Pixels:
    return slide.read(slide.levels[level].region, level)


def crop(pixels: Pixels, region: Region, fill: tuple[int, int, int]) -> Pixels:
    """What reading `region` has to give, from the whole."""
    result = np.empty((region.height, region.width, 3), np.uint8)
    result[...] = fill
    inside = region.intersect(Region(0, 0, pixels.shape[1], pixels.shape[0]))
    result[inside.within(region)] = pixels[inside.y : inside.y_end, inside.x : inside.x_end]
    return result


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
    monkeypatch.setattr("histocodec.formats.decode.slide.BATCH_PIXELS", 1)
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


# What is known about the slide.


def test_facts_survive(slide: CompressedSlide) -> None:
    assert slide.mpp == (0.25, 0.25)
    assert slide.level_dimensions == (SIZE, (325, 225))
    assert slide.level_downsamples == (1.0, 4.0)
    assert slide.icc_profile == ICC
    assert {name: slide.properties[name] for name in PROPERTIES} == PROPERTIES
    assert float(slide.properties["openslide.mpp-x"]) == 0.25
    assert CompressedSlide.detect_format(slide.name) == "histocodec"


def test_what_the_source_does_not_say_stays_unknown(folder: Path) -> None:
    with histocodec.open(folder / "wide.zarr") as slide:
        assert slide.mpp is None
        assert slide.objective_power is None
        assert slide.icc_profile is None
        assert not slide.properties
        with pytest.raises(UsageError, match="resolution is not known"):
            slide.read_array(0, 0, 5, 5, mpp=1.0)


class Rich(ArraySlide):
    """An array with an objective power and associated images."""

    def __init__(self, pixels: Pixels) -> None:
        super().__init__(pixels, name="rich")
        self.objective_power = 40.0
        self.associated = {name: np.full((8, 9, 3), 77, np.uint8) for name in ("label", "macro", "thumbnail")}


def test_label_and_macro_are_left_out_unless_asked_for(tmp_path: Path, tiny_file: Path) -> None:
    slide = Rich(synthetic_slide(600, 500, seed=5))
    report = encoded(slide, tmp_path / "without.zarr", tiny_file)
    assert {"label", "macro"} <= set(report.dropped)
    encoded(slide, tmp_path / "with.zarr", tiny_file, keep_label=True, keep_macro=True, embed_model=True)
    with histocodec.open(tmp_path / "with.zarr") as kept:
        assert kept.objective_power == 40
        assert kept.properties["openslide.objective-power"] == "40"
        assert {"label", "macro"} <= set(kept.associated)
        assert np.array_equal(kept.associated["label"], slide.associated["label"])
        assert kept.associated_images["macro"].size == (9, 8)
        shutil.rmtree(tmp_path / "with.zarr" / "associated")
        assert "label" in list(kept.associated_images)  # listing decodes nothing


def test_the_attributes_fit_the_schema(folder: Path) -> None:
    schema = json.loads((Path(files.__file__).parents[1] / "schema.json").read_text())
    for name in ("a.zarr", "wide.zarr"):
        written = json.loads((folder / name / "zarr.json").read_text())
        jsonschema.validate(written["attributes"]["histocodec"], schema)


def test_levels_are_derived_where_a_large_source_has_none(folder: Path) -> None:
    with histocodec.open(folder / "wide.zarr", device="cpu") as slide:
        assert slide.level_dimensions == (WIDE, (1100, 10), (275, 3))


def test_only_the_levels_that_are_asked_for_are_kept(tmp_path: Path, tiny_file: Path) -> None:
    pixels = synthetic_slide(64, 64)
    slide = ArraySlide([pixels, pixels[::2, ::2], pixels[::4, ::4]])
    encoded(slide, tmp_path / "a.zarr", tiny_file, levels=(2, 0))
    assert [(level.width, level.downsample) for level in Container.open(tmp_path / "a.zarr").attributes.levels] == [
        (64, 1.0),
        (16, 4.0),
    ]
    with pytest.raises(UsageError, match="must include 0"):
        encoded(slide, tmp_path / "b.zarr", tiny_file, levels=(1,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr"]


# The same from every thread and process.


def test_a_pickled_slide_reads_the_same(folder: Path, slide: CompressedSlide) -> None:
    with open_compressed(folder / "a.zarr", device="cpu", cache_bytes=5, workers=3) as original:
        copy = pickle.loads(pickle.dumps(original))
    assert (copy._cache_bytes, copy._workers.count, copy.device) == (5, 3, "cpu")
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


# Latents.


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path, tiny_file: Path, source: ArraySlide) -> None:
    for workers in (1, 8):
        encoded(source, tmp_path / f"{workers}.zarr", tiny_file, workers=workers)
    assert contents(tmp_path / "1.zarr") == contents(tmp_path / "8.zarr")


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_zarr_alone_opens_the_latents(
    folder: Path, tiny_file: Path, slide: CompressedSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, str(tiny_file.parent))
    register()
    array = zarr.open_array(folder / "a.zarr" / "latents" / "0", mode="r")
    assert array.shape == (48, 57, 82)
    latents = np.asarray(array[:])
    assert np.array_equal(latents, np.asarray(slide.latents(0)[:]))
    for row, column in np.argwhere(slide.container.tiles(0) == CODED).tolist():
        chunk = slide.decoder.chunk(BlockKey(0, row, column))
        assert chunk is not None
        part = latents[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        assert chunk.y.dtype == array.dtype
        assert np.array_equal(chunk.y[:, : part.shape[1], : part.shape[2]], part)


def test_an_embedded_model_is_all_that_is_needed(
    tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, "")
    pixels = ArraySlide(synthetic_slide(200, 100))
    encoded(pixels, tmp_path / "with.zarr", tiny_file, embed_model=True)
    encoded(pixels, tmp_path / "without.zarr", tiny_file)
    with histocodec.open(tmp_path / "with.zarr", device="cpu") as slide:
        assert whole(slide).shape == (100, 200, 3)
    with pytest.raises(MissingModelError, match="tiny-0"):
        histocodec.open(tmp_path / "without.zarr")


# Background.


@pytest.mark.parametrize("quality", [0, 20, 50])
def test_glass_beside_tissue_keeps_its_colour_at_any_quality(tmp_path: Path, tiny_file: Path, quality: int) -> None:
    pixels = synthetic_slide(512, 512)
    pixels[:, 192:] = (243, 240, 244)
    options = EncodeOptions(quality=quality, model=str(tiny_file), levels=(0,), device="cpu", embed_model=True)
    encode_slide(ArraySlide(pixels), tmp_path / "a.zarr", options)
    with open_compressed(tmp_path / "a.zarr", device="cpu") as opened:
        found = opened.read(Region(384, 128, 128, 128), 0)
    assert np.abs(found.mean(axis=(0, 1)) - (243, 240, 244)).max() < 1


def test_bare_glass_is_skipped_and_has_exactly_its_colour(tmp_path: Path, tiny_file: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(-4, 5, (600, 1100, 3))
    pixels = (np.array(GLASS) + noise).astype(np.uint8)
    pixels[:500, :500] = synthetic_slide(500, 500)
    slide = ArraySlide(pixels, background=GLASS)
    encoded(slide, tmp_path / "a.zarr", tiny_file, levels=(0,), embed_model=True)
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:
        tiles = opened.container.tiles(0)
        assert tiles.tolist() == [[CODED, BACKGROUND, BACKGROUND], [BACKGROUND] * 3]
        assert (opened.read_array(512, 0, 588, 600) == GLASS).all()
        assert np.isnan(opened.container.psnr(0)[tiles == BACKGROUND]).all()
        assert np.isfinite(opened.container.psnr(0)[0, 0])


def test_background_is_coded_on_request(tmp_path: Path, tiny_file: Path) -> None:
    slide = ArraySlide(np.full((600, 600, 3), GLASS, np.uint8), background=GLASS)
    report = encoded(slide, tmp_path / "a.zarr", tiny_file, background="code", embed_model=True)
    assert report.chunks == 4
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:
        assert (opened.container.tiles(0) == CODED).all()
        assert np.abs(whole(opened).mean(axis=(0, 1)) - GLASS).max() < GLASS_DISTANCE  # all that a tiny model can


def test_faint_tissue_is_not_dropped(tmp_path: Path, tiny_file: Path) -> None:
    """One patch a few grey levels beyond what counts as glass, in a corner of a slide of glass."""
    pixels = np.full((1024, 1024, 3), GLASS, np.uint8)
    faint = np.array(GLASS, np.uint8) - np.array([2, GLASS_DISTANCE + 2, 2], np.uint8)
    pixels[700:764, 600:664] = faint
    pixels[100, 900] = faint  # a single pixel is reason enough
    encoded(ArraySlide(pixels), tmp_path / "a.zarr", tiny_file, levels=(0,), embed_model=True, quality=60)
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:
        assert opened.container.tiles(0).tolist() == [[BACKGROUND, CODED], [BACKGROUND, CODED]]
        decoded = opened.read_array(608, 708, 48, 48).reshape(-1, 3).mean(axis=0)
        assert np.abs(decoded - faint).max() < GLASS_DISTANCE / 2


# Fidelity and rate.


def test_a_sound_container_verifies_and_its_psnr_is_measured_again(folder: Path, source: ArraySlide) -> None:
    report = verify(folder / "a.zarr", against=source, device="cpu")
    assert report.ok, report.problems
    attributes = Container.open(folder / "a.zarr").attributes
    assert report.psnr == pytest.approx(attributes.levels[0].psnr, abs=1e-9)
    assert (report.chunks, report.shards) == (7, 2)
    assert verify(folder / "wide.zarr", device="cpu").ok


def test_a_container_from_a_machine_of_other_arithmetic_verifies(
    tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a synthesis is in floating point, bfloat16 and float32 round differently, on a smooth chunk by more than
    the map's tolerance; here, on tissue, by more than a smaller one."""
    source, path, cpu = ArraySlide(synthetic_slide(512, 512)), tmp_path / "a.zarr", torch.device("cpu")
    options = EncodeOptions(quality=60, effort=0, levels=(0,), device="cpu", model=str(tiny_file), embed_model=True)
    encode_slide(source, path, options)
    there, tolerance = other_dtype(cpu), 0.001
    monkeypatch.setattr("histocodec.codec.transform.fastest_dtype", lambda _: there)
    monkeypatch.setattr("histocodec.formats.decode.verify.PSNR_TOLERANCE", tolerance)
    with histocodec.open(path, device="cpu") as opened:
        error = squared_error(opened.read(opened.levels[0].region, 0), source.read(source.levels[0].region, 0))
        assert abs(psnr(error, 3 * 512**2) - opened.container.psnr(0)[0, 0]) > tolerance
    assert verify(path, against=source, device="cpu").ok


def test_another_original_does_not_verify(folder: Path) -> None:
    other = ArraySlide(synthetic_slide(*SIZE, seed=8))
    report = verify(folder / "a.zarr", against=other, device="cpu")
    assert not report.ok
    assert "the map says" in report.problems[0]
    with pytest.raises(UsageError, match="has no level of 1300x900"):
        verify(folder / "a.zarr", against=ArraySlide(synthetic_slide(300, 200)), device="cpu")


def test_the_psnr_map_is_what_the_pixels_say(slide: CompressedSlide, source: ArraySlide) -> None:
    originals = with_pyramid(source)
    for number, level in enumerate(slide.levels):
        stored, total = slide.container.psnr(number), 0.0
        grid = Grid(level.height, level.width, CHUNK)
        for row, column in grid.squares_in(level.region):
            region = grid.region(row, column)
            difference = slide.read(region, number).astype(float) - originals.read(region, number)
            total += float((difference**2).sum())
            expected = 10 * math.log10(255**2 / float((difference**2).mean()))
            assert stored[row, column] == pytest.approx(expected, abs=1e-4)
        level_psnr = 10 * math.log10(255**2 * 3 * level.region.area / total)
        assert slide.container.attributes.levels[number].psnr == pytest.approx(level_psnr)


def test_the_map_of_local_errors_is_what_the_pixels_say(slide: CompressedSlide, source: ArraySlide) -> None:
    originals = with_pyramid(source)
    for number, level in enumerate(slide.levels):
        stored = slide.container.block_error(number)
        assert stored is not None
        for place in Grid(level.height, level.width, CHUNK).squares_in(level.region):
            region = Grid(level.height, level.width, CHUNK).region(*place)
            square = (slide.read(region, number).astype(float) - originals.read(region, number)) ** 2
            corners = [(y, x) for y in range(0, region.height, 16) for x in range(0, region.width, 16)]
            worst = max(float(square[y : y + 16, x : x + 16].mean()) for y, x in corners)
            assert stored[place] == pytest.approx(worst**0.5)


def test_a_container_without_the_map_of_local_errors_opens_and_verifies(
    tmp_path: Path, tiny_file: Path, source: ArraySlide
) -> None:
    path = tmp_path / "a.zarr"
    encoded(source, path, tiny_file, embed_model=True)
    shutil.rmtree(path / "block_error")
    assert not verify(path, quick=True).ok  # it was there once
    files.finish(path, Container.open(path).attributes)
    assert Container.open(path).block_error(0) is None
    assert verify(path, against=source, device="cpu").ok


def test_verify_compares_the_stored_local_errors(tmp_path: Path, tiny_file: Path, source: ArraySlide) -> None:
    path = tmp_path / "a.zarr"
    encoded(source, path, tiny_file, embed_model=True, levels=(0,))
    container = Container.open(path)
    values = container.block_error(0)
    assert values is not None
    values[1, 2] += 1
    files.write_block_error(path, container.attributes, 0, values)
    files.finish(path, container.attributes)
    (problem,) = verify(path, against=source, device="cpu").problems
    assert "chunk (1, 2)" in problem
    assert "local error" in problem


def test_verify_measures_what_is_shown_in_place_of_glass(tmp_path: Path, tiny_file: Path) -> None:
    pixels = np.full((520, 1030, 3), GLASS, np.uint8)
    encoded(ArraySlide(pixels, background=GLASS), tmp_path / "a.zarr", tiny_file, embed_model=True, levels=(0,))
    other = pixels.copy()
    other[100:110, 100:110] = 0  # 100 of the 512 x 512 pixels of one chunk
    report = verify(tmp_path / "a.zarr", against=ArraySlide(other, background=GLASS), device="cpu")
    error = 100 * (np.array(GLASS, float) ** 2).mean() / CHUNK**2
    assert report.worst_background_psnr == pytest.approx(10 * math.log10(255**2 / error), abs=1e-4)
    assert (report.psnr, report.worst_psnr) == (math.inf, None)


def test_verify_reads_the_chunks_that_are_stored_losslessly(
    tmp_path: Path, tiny_file: Path, source: ArraySlide
) -> None:
    path = tmp_path / "a.zarr"
    encoded(source, path, tiny_file, embed_model=True)
    make_lossless(path, source, 0, 1, 2)
    (chunk,) = (file for file in (path / "lossless/0/c").rglob("0") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-9])
    files.finish(path, Container.open(path).attributes)  # as if it had been written so
    assert verify(path, quick=True).ok
    (problem,) = verify(path, device="cpu").problems
    assert "gzip" in problem or "cut short" in problem


def test_maps_that_contradict_each_other_do_not_verify(tmp_path: Path, tiny_file: Path, source: ArraySlide) -> None:
    path = tmp_path / "a.zarr"
    encoded(source, path, tiny_file, embed_model=True)
    container = Container.open(path)
    values = container.psnr(0).copy()
    values[0, 1] = np.nan
    files.write_array(path, container.attributes, "psnr/0", values)
    files.finish(path, container.attributes)
    (problem,) = verify(path, quick=True).problems
    assert "chunk (0, 1) is background by one of tiles/0 and psnr/0 only" in problem


def test_more_quality_is_more_bytes_and_less_error(tmp_path: Path, tiny_file: Path) -> None:
    slide = ArraySlide(synthetic_slide(700, 600, seed=6))
    reports = [encoded(slide, tmp_path / f"{q}.zarr", tiny_file, quality=q) for q in (0, 25, 50, 75, 100)]
    for less, more in pairwise(reports):
        assert less.payload_bytes < more.payload_bytes
        assert less.psnr < more.psnr


def test_a_quality_between_two_is_between_them(tmp_path: Path, tiny_file: Path) -> None:
    source = ArraySlide(synthetic_slide(600, 500, seed=6))
    asked = (40, 40.3, 40.7, 41)
    reports = [encoded(source, tmp_path / f"{quality}.zarr", tiny_file, quality=quality, effort=0) for quality in asked]
    assert [report.quality for report in reports] == [40, 40, 40, 41]
    assert tuple(report.asked_quality for report in reports) == asked
    assert reports[0].payload_bytes < reports[1].payload_bytes < reports[2].payload_bytes
    assert all(lower.psnr < higher.psnr for lower, higher in pairwise(reports))


def test_a_target_psnr_is_reached_and_hardly_exceeded(tmp_path: Path, tiny_file: Path, source: ArraySlide) -> None:
    report = encoded(source, tmp_path / "a.zarr", tiny_file, target_psnr=31.0)
    assert 31.0 <= report.psnr < 31.2


@pytest.mark.parametrize(("option", "value", "bpp"), [("target_bpp", 0.3, 0.3), ("ratio", 40.0, 0.6)])
def test_a_target_rate_is_hardly_missed(
    tmp_path: Path, tiny_file: Path, source: ArraySlide, option: str, value: float, bpp: float
) -> None:
    report = encoded(source, tmp_path / "a.zarr", tiny_file, **{option: value})
    assert report.bpp == pytest.approx(bpp, rel=0.03)


@pytest.mark.parametrize(("option", "value"), [("target_psnr", 60.0), ("target_bpp", 0.001)])
def test_a_target_out_of_reach_is_refused(tmp_path: Path, tiny_file: Path, option: str, value: float) -> None:
    with pytest.raises(UsageError, match="quality"):
        encoded(ArraySlide(synthetic_slide(300, 300)), tmp_path / "a.zarr", tiny_file, **{option: value})
    assert list(tmp_path.iterdir()) == []


# Small and strange slides.


@pytest.mark.parametrize("size", [(1, 1), (700, 1), (1, 700), (17, 15), (513, 16)])
def test_slides_of_any_size_come_back(tmp_path: Path, tiny_file: Path, size: tuple[int, int]) -> None:
    pixels = synthetic_slide(800, 800, seed=7)[: size[1], : size[0]]
    source = ArraySlide(np.ascontiguousarray(pixels))
    encoded(source, tmp_path / "a.zarr", tiny_file, quality=90, background="code", embed_model=True)
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:
        assert opened.dimensions == size
        assert np.sqrt(((whole(opened).astype(float) - pixels) ** 2).mean()) < 12
    assert verify(tmp_path / "a.zarr", against=source, device="cpu").ok


def test_a_slide_of_glass_alone_has_no_shards(tmp_path: Path, tiny_file: Path) -> None:
    source = ArraySlide(np.full((1100, 1200, 3), GLASS, np.uint8))
    report = encoded(source, tmp_path / "a.zarr", tiny_file, embed_model=True)
    assert (report.chunks, report.psnr) == (0, math.inf)
    assert not list((tmp_path / "a.zarr" / "latents").rglob("c"))
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:
        assert (whole(opened) == GLASS).all()
    assert verify(tmp_path / "a.zarr", against=source, device="cpu").ok


# Chunks that are stored as pixels.


def test_a_lossless_chunk_replaces_what_would_be_synthesised(
    tmp_path: Path, tiny_file: Path, source: ArraySlide, slide: CompressedSlide
) -> None:
    path = tmp_path / "a.zarr"
    encoded(source, path, tiny_file, embed_model=True)
    make_lossless(path, source, 0, 1, 2)
    expected = whole(slide).copy()
    expected[512:, 1024:] = source.read(Region(1024, 512, SIZE[0] - 1024, SIZE[1] - 512), 0)
    with histocodec.open(path, device="cpu") as opened:
        assert np.array_equal(whole(opened), expected)
        assert np.array_equal(opened.read_array(1000, 500, 60, 60), expected[500:560, 1000:1060])
        assert np.array_equal(np.asarray(opened.latents(0)[:]), np.asarray(slide.latents(0)[:]))
    report = verify(path, against=source, device="cpu")
    assert report.ok, report.problems
    assert report.psnr is not None
    (chunk,) = (path / "lossless" / "0" / "c").rglob("0")
    chunk.unlink()
    assert not verify(path, device="cpu").ok


def make_lossless(path: Path, source: BaseSlide, level: int, row: int, column: int) -> None:
    """What an encoder does that stores one chunk of a finished container as pixels, too."""
    container = Container.open(path)
    attributes = container.attributes
    size = attributes.levels[level]
    region = Grid(size.height, size.width, CHUNK).region(row, column)
    files.write_lossless(path, attributes, level, row, column, source.read(region, level))
    forms = plain_arrays(attributes)
    for name, value in ((f"tiles/{level}", LOSSLESS), (f"psnr/{level}", np.inf)):
        values = container.array(name).copy()
        values[row, column] = value
        write_plain(path / name, forms[name], values)
    block_error = container.block_error(level)
    assert block_error is not None
    block_error[row, column] = 0
    files.write_block_error(path, attributes, level, block_error)
    files.finish(path, attributes)
