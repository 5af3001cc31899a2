"""A compressed slide where an `openslide.OpenSlide` is expected."""

import os
import pickle
from pathlib import Path

import numpy as np
import openslide
import pytest

import histocodec
from histocodec.errors import UnsupportedError, UsageError
from histocodec.formats.decode.slide import CompressedSlide


def test_errors_are_openslides_and_ours(slide: CompressedSlide, tmp_path: Path) -> None:
    for kind in (openslide.OpenSlideError, UsageError):
        with pytest.raises(kind, match="level 9 does not exist"):
            slide.read_region((0, 0), 9, (10, 10))
        with pytest.raises(kind, match="negative"):
            slide.read_region((0, 0), 0, (10, -10))
        with pytest.raises(kind, match="does not exist"):
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
