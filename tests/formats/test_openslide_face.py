"""A compressed slide where an `openslide.OpenSlide` is expected."""

import os
import pickle
from collections.abc import Callable
from ctypes import ArgumentError
from pathlib import Path

import numpy as np
import openslide
import pytest

import histocodec
from histocodec.errors import UnsupportedError, UsageError
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.geometry import Region
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide


def test_errors_are_openslides_and_ours(slide: CompressedSlide, tmp_path: Path) -> None:
    for kind in (openslide.OpenSlideError, UsageError):
        with pytest.raises(kind, match="level 9 does not exist"):
            slide.read_region((0, 0), 9, (10, 10))
        with pytest.raises(kind, match="negative"):
            slide.read_region((0, 0), 0, (10, -10))
        with pytest.raises(kind, match="does not exist"):
            histocodec.open(tmp_path / "nothing")
    with pytest.raises(openslide.OpenSlideUnsupportedFormatError, match="does not exist"):
        histocodec.open(tmp_path / "nothing")
    for kind in (openslide.OpenSlideUnsupportedFormatError, UnsupportedError):
        with pytest.raises(kind, match="is no histocodec container"):
            histocodec.open(tmp_path)


def test_errors_survive_pickling(slide: CompressedSlide) -> None:
    """As they have to between the processes of a DataLoader."""
    with pytest.raises(UsageError) as caught:
        slide.read_region((0, 0), 9, (10, 10))
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is type(caught.value)
    assert str(again) == str(caught.value)


def test_a_path_may_be_bytes(folder: Path) -> None:
    path = os.fsencode(folder / "a.zarr")
    assert CompressedSlide.detect_format(path) == "histocodec"
    with CompressedSlide(path, device="cpu") as slide:
        assert slide._filename == slide.name == str(folder / "a.zarr")


def test_a_pickled_slide_opens_from_another_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with histocodec.open("a.zarr", device="cpu") as slide:
        data = pickle.dumps(slide)
    monkeypatch.chdir(tmp_path)
    with pickle.loads(data) as slide:
        assert slide.name == str(folder / "a.zarr")


def test_a_cache_is_taken_and_anything_else_refused(slide: CompressedSlide) -> None:
    slide.set_cache(openslide.OpenSlideCache(1 << 20))
    with pytest.raises(TypeError):
        slide.set_cache(None)  # type: ignore[arg-type]  # that is the point


def test_a_resampled_region_may_be_written_to(slide: CompressedSlide) -> None:
    pixels = slide.read_array(0, 0, 50, 40, mpp=0.4)
    pixels[:] = 0
    assert not np.any(pixels)


def test_a_closed_slide_refuses_every_read_and_keeps_its_metadata(folder: Path) -> None:
    with histocodec.open(folder / "a.zarr", device="cpu") as slide:
        before = slide.read_region((0, 0), 0, (8, 8))
    reads: list[Callable[[], object]] = [
        lambda: slide.read_region((0, 0), 0, (8, 8)),
        lambda: slide.read_region((-99, -99), 0, (8, 8)),
        lambda: slide.get_thumbnail((8, 8)),
        lambda: slide.read(Region(0, 0, 8, 8), 0),
        lambda: slide.read_array(0, 0, 8, 8),
        lambda: slide.read_array(0, 0, 8, 8, mpp=0.4),
        lambda: slide.read_tensor(0, 0, 8, 8),
        lambda: slide.read_batch([], (8, 8)),
        lambda: slide.latents(),
        lambda: slide.decoder,
    ]
    for read in reads:
        for kind in (UsageError, openslide.OpenSlideError, ArgumentError):
            with pytest.raises(kind, match="is closed"):
                read()
    slide.close()
    assert slide.dimensions == slide.level_dimensions[0]
    assert slide.properties["openslide.level-count"] == str(slide.level_count)
    with pickle.loads(pickle.dumps(slide)) as again:  # it is opened anew
        assert again.read_region((0, 0), 0, (8, 8)) == before


def test_associated_images_end_with_the_slide(tmp_path: Path, tiny_file: Path) -> None:
    label = np.full((12, 20, 3), 200, np.uint8)
    source = ArraySlide(synthetic_slide(64, 64, seed=5))
    source.associated = {"label": label}
    path = tmp_path / "labelled.zarr"
    histocodec.encode(source, path, model=str(tiny_file), device="cpu", embed_model=True, keep_label=True)
    with histocodec.open(path, device="cpu") as slide:
        images, arrays = slide.associated_images, slide.associated
        assert images["label"].size == (20, 12)
        with pytest.raises(KeyError):
            images["macro"]
    for mapping in (images, arrays):
        assert list(mapping) == ["label"]
        with pytest.raises(openslide.OpenSlideError, match="is closed"):
            mapping["label"]
