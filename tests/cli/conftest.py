"""A sound container and its source, to be copied and broken."""

import shutil
from pathlib import Path

import pytest

import histocodec
from histocodec.sources.synthetic import synthetic_slide, write_pyramidal_tiff

SIZE = (1100, 600)  # 3 x 2 chunks, and a level of 275 x 150


@pytest.fixture(scope="session")
def sound_folder(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """Holds slide.tif and sound.zarr, which carries an ICC profile, a label and its model."""
    folder = tmp_path_factory.mktemp("faults")
    write_pyramidal_tiff(folder / "slide.tif", synthetic_slide(*SIZE, seed=1), mpp=0.5)
    with histocodec.open_slide(folder / "slide.tif") as slide:
        slide.icc_profile = bytes(200)  # type: ignore[misc]  # a plain attribute of every source
        slide.associated = {"label": synthetic_slide(40, 30)}  # type: ignore[misc]
        histocodec.encode(
            slide, folder / "sound.zarr", model=str(tiny_file), device="cpu", embed_model=True, keep_label=True
        )
    return folder


@pytest.fixture
def broken(sound_folder: Path, tmp_path: Path) -> Path:
    """A copy of the sound container, to be broken."""
    return Path(shutil.copytree(sound_folder / "sound.zarr", tmp_path / "broken.zarr"))


@pytest.fixture
def plain(sound_folder: Path, tmp_path: Path, tiny_file: Path) -> Path:
    """A container without an embedded model."""
    target = tmp_path / "plain.zarr"
    histocodec.encode(sound_folder / "slide.tif", target, model=str(tiny_file), device="cpu", levels=(0,))
    return target


@pytest.fixture
def jpeg_tiff(sound_folder: Path, tmp_path: Path) -> Path:
    """A copy of the source, to be broken."""
    return Path(shutil.copy(sound_folder / "slide.tif", tmp_path / "slide.tif"))
