"""--min-psnr: every chunk of every level of the decoded slide has it, measured here and not by the encoder."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import histocodec
from histocodec.errors import UsageError
from histocodec.formats.container.states import BACKGROUND, CODED, LOSSLESS
from histocodec.formats.decode.verify import verify
from histocodec.formats.encode import minimum_psnr
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.journal import Journal, journal_path, partial_path
from histocodec.formats.encode.minimum_psnr import MinimumPsnr
from histocodec.formats.encode.options import EncodeOptions
from histocodec.formats.encode.partial_container import PartialContainer
from histocodec.formats.encode.report import EncodeReport
from histocodec.geometry import Grid, Region
from histocodec.slide import Pixels, Slide
from histocodec.sources import ArraySlide, open_slide, with_pyramid
from histocodec.sources.synthetic import synthetic_slide
from tests.support.slides import contents

pytestmark = pytest.mark.slow

CHUNK = 512
SIZE = (4700, 600)  # 10 x 2 chunks: the shards' border is at x = 2560; and two derived levels
SHARD_PIXELS = 4096
NARROW = (4300, 130)  # the same in a few moments
BASE = 40
FLOOR = 27.0  # the tiny model has 22 to 26 dB on tissue at quality 40, and 28 to 30 at 100


def noise(side: int, rng: np.random.Generator) -> Pixels:
    return rng.integers(0, 256, (side, side, 3), np.uint8)


def ink(side: int, rng: np.random.Generator) -> Pixels:
    """Saturated strokes with hard edges on white."""
    y, x = np.mgrid[:side, :side]
    stroke = (x // 9 + y // 5) % 3
    return np.array([[255, 255, 255], [0, 40, 200], [0, 140, 30]], np.uint8)[stroke]


def fold(side: int, rng: np.random.Generator) -> Pixels:
    """Tissue twice on top of itself."""
    once, again = (synthetic_slide(side, side, seed=seed).astype(np.uint16) for seed in (21, 22))
    return (once * again // 255).astype(np.uint8)


def immunostain(side: int, rng: np.random.Generator) -> Pixels:
    """Brown granules on pale blue, far from the colours of H&E."""
    brown = (rng.random((side, side, 1)) < 0.2) * np.array([90, 130, 160])
    return (np.array([205, 210, 225]) - brown).astype(np.uint8)


def fluorescence(side: int, rng: np.random.Generator) -> Pixels:
    """Bright points on black."""
    points = (rng.random((side, side, 1)) < 0.01) * rng.integers(60, 256, (side, side, 3))
    return points.astype(np.uint8)


PATCHES: dict[str, tuple[Callable[[int, np.random.Generator], Pixels], int, int]] = {  # what, and x and y
    "noise": (noise, 2364, 100),  # across the border of two shards
    "ink": (ink, 4200, 480),  # a corner of four chunks, in the second shard
    "fold": (fold, 900, 60),
    "immunostain": (immunostain, 1500, 300),
    "fluorescence": (fluorescence, 3700, 0),
}


def strange_slide(width: int, height: int) -> ArraySlide:
    """Tissue with pen on it, on which everything is pasted that the model has never seen."""
    pixels, rng = synthetic_slide(width, height, seed=5, pen=True), np.random.default_rng(0)
    for patch, x, y in PATCHES.values():
        side = max(0, min(300, height - y))
        pixels[y : y + side, x : x + side] = patch(side, rng)
    return ArraySlide(pixels, mpp=0.25)


def encoded(source: Slide, path: Path, tiny_file: Path, **options: object) -> EncodeReport:
    chosen = {"quality": BASE, "device": "cpu", "model": str(tiny_file), "embed_model": True, **options}
    return encode_slide(source, path, EncodeOptions(**chosen))  # type: ignore[arg-type]  # the tests name fields only


def measured(path: Path, source: Slide) -> list[dict[tuple[int, int], float]]:
    """PSNR of each chunk of each level, from whole levels as the reader gives them."""
    source, found = with_pyramid(source), []
    with histocodec.open(path, device="cpu") as slide:
        for number, level in enumerate(slide.levels):
            error = slide.read(level.region, number).astype(float) - source.read(level.region, number)
            grid, chunks = Grid(level.height, level.width, CHUNK), {}
            for place in grid.squares_in(level.region):
                mean = float((error[grid.region(*place).within(level.region)] ** 2).mean())
                chunks[place] = 10 * math.log10(255**2 / mean) if mean else math.inf
            found.append(chunks)
    return found


def worst(path: Path, source: Slide) -> float:
    return min(min(chunks.values()) for chunks in measured(path, source))


@pytest.fixture(scope="module", autouse=True)
def small_shards() -> Iterator[None]:
    """So that these slides have two, 5 chunks wide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histocodec.formats.encode.scope.SHARD_PIXELS", SHARD_PIXELS)
        yield


@pytest.fixture(scope="module")
def source() -> ArraySlide:
    return strange_slide(*SIZE)


@pytest.fixture(scope="module")
def narrow() -> ArraySlide:
    return strange_slide(*NARROW)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path, narrow: ArraySlide) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("undisturbed") / "a.zarr"
    report = encoded(narrow, path, tiny_file, min_psnr=FLOOR, workers=1)
    assert report.raised
    assert report.lossless
    return contents(path)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path, source: ArraySlide) -> tuple[Path, EncodeReport]:
    path = tmp_path_factory.mktemp("guarantee") / "held.zarr"
    return path, encoded(source, path, tiny_file, min_psnr=FLOOR, workers=1)


def test_every_chunk_of_every_level_has_it(held: tuple[Path, EncodeReport], source: ArraySlide) -> None:
    path, report = held
    levels = measured(path, source)
    assert len(levels) > 1
    assert min(min(chunks.values()) for chunks in levels) >= FLOOR
    assert report.worst_psnr is not None
    assert report.worst_psnr >= FLOOR


def test_without_it_the_same_slide_has_chunks_far_below(tmp_path: Path, tiny_file: Path, source: ArraySlide) -> None:
    encoded(source, tmp_path / "a.zarr", tiny_file)
    assert worst(tmp_path / "a.zarr", source) < FLOOR - 5


def test_a_chunk_is_raised_only_as_far_as_it_needs(held: tuple[Path, EncodeReport]) -> None:
    path, report = held
    with histocodec.open(path, device="cpu") as slide:
        stored = slide.container
        quality, tiles, psnr = stored.quality(0), stored.tiles(0), stored.psnr(0)
        level = stored.attributes.levels[0].quality  # for these statistics worth as much as BASE for the slide's own
    assert report.raised
    assert report.lossless
    assert (quality[tiles == CODED] >= level).all()
    raised = (tiles == CODED) & (quality > level)
    assert (psnr[raised & (quality < 100)] < FLOOR + 0.6).all()  # the next lower quality did not hold


def test_noise_and_ink_are_stored_losslessly(held: tuple[Path, EncodeReport], source: ArraySlide) -> None:
    path, _ = held
    x, y = PATCHES["noise"][1:]
    with histocodec.open(path, device="cpu") as slide:
        tiles = slide.container.tiles(0)
        assert tiles[y // CHUNK, x // CHUNK] == LOSSLESS
        assert tiles[y // CHUNK, x // CHUNK + 1] == LOSSLESS  # in the other shard
        part = Region(x, y, 300, 300)
        assert np.array_equal(slide.read(part, 0), source.read(part, 0))


def test_the_container_verifies_against_its_source(held: tuple[Path, EncodeReport], source: ArraySlide) -> None:
    report = verify(held[0], against=source, device="cpu")
    assert report.ok, report.problems
    assert report.worst_psnr is not None
    assert report.worst_psnr >= FLOOR


def test_the_bytes_do_not_depend_on_the_workers(
    undisturbed: dict[str, bytes], tmp_path: Path, tiny_file: Path, narrow: ArraySlide
) -> None:
    encoded(narrow, tmp_path / "a.zarr", tiny_file, min_psnr=FLOOR, workers=3)
    assert contents(tmp_path / "a.zarr") == undisturbed


@pytest.mark.parametrize(
    ("owner", "method", "calls"),
    [
        (MinimumPsnr, "_searched", 1),  # before the first round is noted
        (PartialContainer, "change_shard", 1),  # noted, nothing made
        (PartialContainer, "change_shard", 2),  # one shard of two changed
        (MinimumPsnr, "_affected", 1),  # changed, not yet measured
        (PartialContainer, "pack_lossless", 1),  # measured, lossless chunks not packed
        (PartialContainer, "remove_staged", 1),  # packed
        (MinimumPsnr, "_searched", 2),
    ],
)
def test_wherever_it_is_interrupted_it_goes_on_to_the_same_container(
    undisturbed: dict[str, bytes], tmp_path: Path, tiny_file: Path, narrow: ArraySlide,
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, calls: int,
) -> None:  # fmt: skip
    path, original, left = tmp_path / "a.zarr", getattr(owner, method), calls

    def interrupted(*arguments: object) -> object:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(owner, method, interrupted)
        encoded(narrow, path, tiny_file, min_psnr=FLOOR)
    assert partial_path(path).is_dir()
    assert not path.exists()
    encoded(narrow, path, tiny_file, min_psnr=FLOOR, resume=True)
    assert contents(path) == undisturbed
    assert not journal_path(path).exists()


def test_a_note_that_was_made_for_a_shard_that_is_lost_is_made_again(
    undisturbed: dict[str, bytes], tmp_path: Path, tiny_file: Path, narrow: ArraySlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zarr"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Journal, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        encoded(narrow, path, tiny_file, min_psnr=FLOOR)
    shard = partial_path(path) / "latents/0/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    next(partial_path(path).glob("lossless-*/c/*/*/0")).unlink()
    encoded(narrow, path, tiny_file, min_psnr=FLOOR, resume=True)
    assert contents(path) == undisturbed


def test_another_floor_is_not_resumed(tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ArraySlide(synthetic_slide(600, 500, seed=1))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MinimumPsnr, "_searched", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        encoded(small, tmp_path / "a.zarr", tiny_file, min_psnr=40.0)
    with pytest.raises(UsageError, match="min_psnr was 40"):
        encoded(small, tmp_path / "a.zarr", tiny_file, min_psnr=41.0, resume=True)


def test_where_rounds_run_out_the_rest_is_stored_losslessly(
    tmp_path: Path, tiny_file: Path, narrow: ArraySlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minimum_psnr, "MOST_ROUNDS", 0)
    report = encoded(narrow, tmp_path / "a.zarr", tiny_file, min_psnr=FLOOR)
    assert (report.raised, report.lossless > 3) == (0, True)
    assert worst(tmp_path / "a.zarr", narrow) >= FLOOR


def test_a_chunk_that_a_neighbours_change_would_lower_is_raised_in_turn(
    tmp_path: Path, tiny_file: Path, narrow: ArraySlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that believes any chunk lifted by the least step is wrong, round after round."""
    monkeypatch.setattr(MinimumPsnr, "_lowest", lambda _, key, low, decoder: low + 6 if low + 6 < 101 else None)
    encoded(narrow, tmp_path / "a.zarr", tiny_file, min_psnr=FLOOR)
    assert worst(tmp_path / "a.zarr", narrow) >= FLOOR


def test_background_is_skipped_only_where_it_is_as_true_as_the_rest(tmp_path: Path, tiny_file: Path) -> None:
    rng, pixels = np.random.default_rng(1), np.full((600, 1100, 3), 238, np.uint8)
    pixels[:, :512] = np.clip(238 + rng.normal(0, 4, (600, 512, 3)).round(), 228, 248)  # 36 dB
    source = ArraySlide(pixels, background=(238, 238, 238))
    encoded(source, tmp_path / "low.zarr", tiny_file, min_psnr=30.0, levels=(0,))
    encoded(source, tmp_path / "high.zarr", tiny_file, min_psnr=40.0, levels=(0,))
    with histocodec.open(tmp_path / "low.zarr") as low, histocodec.open(tmp_path / "high.zarr") as high:
        assert (low.container.tiles(0) == BACKGROUND).all()
        assert (high.container.tiles(0) != BACKGROUND).tolist() == [[True, False, False]] * 2
    assert worst(tmp_path / "low.zarr", source) >= 30
    assert worst(tmp_path / "high.zarr", source) >= 40


@pytest.mark.parametrize("floor", [9.9, 100.5, math.nan])
def test_a_floor_out_of_range_is_refused(floor: float) -> None:
    with pytest.raises(UsageError, match=r"--min-psnr .*10 to 100 dB is allowed"):
        EncodeOptions(min_psnr=floor)


def test_real_tissue_with_noise_and_ink_on_it_holds_too(data_dir: Path, tmp_path: Path) -> None:
    file = data_dir / "slides" / "cmu-1-small-region.svs"
    if not file.is_file():
        pytest.skip(f"no real slide here: {file} is missing")
    with open_slide(file) as slide:
        level = slide.levels[0]
        middle = Region(level.width // 2 - 500, level.height // 2 - 500, 1000, 1000).intersect(level.region)
        pixels = slide.read(middle, 0).copy()
    rng = np.random.default_rng(0)
    pixels[:100, :100], pixels[450:600, 450:600] = noise(100, rng), ink(150, rng)
    source, path = ArraySlide(pixels), tmp_path / "a.zarr"
    encode_slide(source, path, EncodeOptions(quality=30, min_psnr=32.0, device="cpu"))
    assert worst(path, source) >= 32


def test_what_only_a_search_at_the_highest_quality_holds_is_not_lossless(tmp_path: Path, tiny_file: Path) -> None:
    slide = ArraySlide(synthetic_slide(256, 256, seed=5))
    rounded, searched = (
        encoded(slide, tmp_path / f"{effort}.zarr", tiny_file, quality=100, effort=effort, levels=(0,)).psnr
        for effort in (0, 1)
    )
    assert rounded < searched
    floor = (rounded + searched) / 2
    report = encoded(slide, tmp_path / "floor.zarr", tiny_file, min_psnr=floor, levels=(0,))
    assert (report.raised, report.lossless) == (1, 0)
    assert report.worst_psnr is not None
    assert report.worst_psnr >= floor
