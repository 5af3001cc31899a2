"""One slide, encoded once for all the tests that only read it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import histocodec
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.slides import ICC, PROPERTIES, SIZE, WIDE
from tests.support.version1 import golden


@pytest.fixture(scope="session")
def source() -> ArraySlide:
    """A made-up slide that says all that an array can say about itself."""
    pixels = synthetic_slide(*SIZE, seed=3)
    return ArraySlide(pixels, name="a.svs", mpp=0.25, properties=PROPERTIES, icc_profile=ICC)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path, source: ArraySlide) -> Path:
    """Holds a.zarr, made of `source`, and wide.zarr, of two shards; both carry their model."""
    folder = tmp_path_factory.mktemp("samples")
    histocodec.encode(source, folder / "a.zarr", model=str(tiny_file), device="cpu", embed_model=True)
    wide = ArraySlide(synthetic_slide(*WIDE, seed=4))
    histocodec.encode(wide, folder / "wide.zarr", model=str(tiny_file), device="cpu", embed_model=True)
    return folder


@pytest.fixture
def golden_v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container of version 1 that decodes, to be damaged."""
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tmp_path))
    return golden(tmp_path)


@pytest.fixture(scope="session")
def slide(folder: Path) -> Iterator[CompressedSlide]:
    """a.zarr, open."""
    with histocodec.open(folder / "a.zarr", device="cpu") as slide:
        yield slide
