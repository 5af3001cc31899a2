"""The fidelity maps say what the pixels say, and `verify` finds where they do not."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import histocodec
from histocodec.device import other_dtype
from histocodec.errors import UsageError
from histocodec.fidelity import psnr, squared_error
from histocodec.formats.container.read import open_container
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.formats.decode.verify import verify
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.geometry import Grid
from histocodec.sources import ArraySlide, with_pyramid
from histocodec.sources.synthetic import synthetic_slide
from tests.support.slides import CHUNK, GLASS, SIZE, encoded
from tests.support.version2 import Contents, change_shard, lossless_shards, make_lossless, rewritten

HUNDREDTH = 6e-3  # measurements are stored in hundredths

# Fidelity and rate.


def test_a_sound_container_verifies_and_its_psnr_is_measured_again(folder: Path, source: ArraySlide) -> None:
    report = verify(folder / "a.zarr", against=source, device="cpu")
    assert report.ok, report.problems
    attributes = open_container(folder / "a.zarr").attributes
    assert report.psnr == pytest.approx(attributes.levels[0].psnr, abs=5e-5)  # four digits are stored
    assert (report.chunks, report.shards) == (7, 2)
    assert verify(folder / "wide.zarr", device="cpu").ok


def test_a_container_from_a_machine_of_other_arithmetic_verifies(
    tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A synthesis in floating point rounds differently in bfloat16 and float32: on a smooth chunk by more than the
    map's tolerance; here, on tissue, by more than a smaller one."""
    source, path, cpu = ArraySlide(synthetic_slide(512, 512)), tmp_path / "a.zarr", torch.device("cpu")
    options = EncodeOptions(quality=60, effort=0, levels=(0,), device="cpu", model=str(tiny_file), embed_model=True)
    encode_slide(source, path, options)
    other, tolerance = other_dtype(cpu), 0.001
    monkeypatch.setattr("histocodec.device.fastest_dtype", lambda _: other)
    monkeypatch.setattr("histocodec.codec.transform.fastest_dtype", lambda _: other)
    monkeypatch.setattr("histocodec.formats.decode.verify.PSNR_TOLERANCE", tolerance)
    with histocodec.open(path, device="cpu") as opened:
        error = squared_error(opened.read(opened.levels[0].region, 0), source.read(source.levels[0].region, 0))
        assert abs(psnr(error, 3 * 512**2) - opened.container.psnr(0)[0, 0]) > tolerance
    assert verify(path, against=source, device="cpu").ok


def test_another_original_does_not_verify(folder: Path) -> None:
    other = ArraySlide(synthetic_slide(*SIZE, seed=8))
    report = verify(folder / "a.zarr", against=other, device="cpu")
    assert not report.ok
    assert "the maps say" in report.problems[0]
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
            assert stored[row, column] == pytest.approx(expected, abs=HUNDREDTH)
        level_psnr = 10 * math.log10(255**2 * 3 * level.region.area / total)
        assert slide.container.attributes.levels[number].psnr == pytest.approx(level_psnr, abs=5e-5)


def test_the_map_of_block_errors_is_what_the_pixels_say(slide: CompressedSlide, source: ArraySlide) -> None:
    originals = with_pyramid(source)
    for number, level in enumerate(slide.levels):
        stored = slide.container.block_error(number)
        assert stored is not None
        for place in Grid(level.height, level.width, CHUNK).squares_in(level.region):
            region = Grid(level.height, level.width, CHUNK).region(*place)
            square = (slide.read(region, number).astype(float) - originals.read(region, number)) ** 2
            corners = [(y, x) for y in range(0, region.height, 16) for x in range(0, region.width, 16)]
            worst = max(float(square[y : y + 16, x : x + 16].mean()) for y, x in corners)
            assert stored[place] == pytest.approx(worst**0.5, abs=HUNDREDTH)


@pytest.mark.parametrize(("name", "words"), [("block_error", "block error"), ("psnr", "dB")])
def test_verify_compares_the_stored_measurements(
    tmp_path: Path, tiny_file: Path, source: ArraySlide, name: str, words: str
) -> None:
    path = tmp_path / "a.zarr"
    encoded(source, path, tiny_file, embed_model=True, levels=(0,))

    def change(contents: Contents) -> None:
        getattr(contents.maps[0], name)[1, 2] += 1

    rewritten(path, change)
    assert verify(path, device="cpu").ok
    (problem,) = verify(path, against=source, device="cpu").problems
    assert "chunk (1, 2)" in problem
    assert words in problem


def test_verify_measures_what_is_shown_in_place_of_background(tmp_path: Path, tiny_file: Path) -> None:
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
    (shard,) = lossless_shards(path)

    def spoil(chunks: list[bytes | None]) -> None:
        chunks[:] = [None if chunk is None else b"\0" * len(chunk) for chunk in chunks]

    change_shard(path, shard, spoil)
    rewritten(path, lambda contents: contents.digest(path))  # as if it had been written so
    assert verify(path, quick=True).ok
    (problem,) = verify(path, device="cpu").problems
    assert "lossless pixels of level 0 chunk (1, 2): is not sound gzip data" in problem
