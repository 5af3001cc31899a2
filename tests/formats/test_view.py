"""The view: a slide as an OME-Zarr image, which other programs read through zarr; every pixel is that of the slide."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

import histocodec
from histocodec.errors import UsageError
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.geometry import Region
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.slides import whole


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return folder / "a.zarr"


@pytest.fixture(scope="module")
def opened(path: Path) -> Iterator[CompressedSlide]:
    with histocodec.open(path, device="cpu") as slide:
        yield slide


def channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(2, 0, 1)


@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize("chunk", [512, 200])
def test_every_pixel_of_every_level_is_that_of_the_slide(
    path: Path, opened: CompressedSlide, version: str, chunk: int
) -> None:
    group = zarr.open(histocodec.view(path, device="cpu", chunk=chunk, version=version), mode="r")
    assert sorted(group.array_keys()) == [str(level) for level in range(len(opened.levels))]
    for level in range(len(opened.levels)):
        assert np.array_equal(group[str(level)][:], channels_first(whole(opened, level)))
    part = group["0"][:, 500:530, 510:700]
    assert np.array_equal(part, channels_first(opened.read(Region(510, 500, 190, 30), 0)))


def test_levels_resolution_and_profile_come_along(path: Path, opened: CompressedSlide) -> None:
    group = zarr.open(histocodec.view(path, device="cpu"), mode="r")
    (scales,) = group.attrs["ome"]["multiscales"]
    assert [axis["name"] for axis in scales["axes"]] == ["c", "y", "x"]
    assert {axis.get("unit") for axis in scales["axes"]} == {None, "micrometer"}
    found = [dataset["coordinateTransformations"][0]["scale"] for dataset in scales["datasets"]]
    assert found == [[1.0, 0.25 * level.downsample, 0.25 * level.downsample] for level in opened.levels]
    assert group.attrs["icc_profile"]
    bare = zarr.open(histocodec.view(ArraySlide(synthetic_slide(80, 60)), chunk=32), mode="r")
    assert all("unit" not in axis for axis in bare.attrs["ome"]["multiscales"][0]["axes"])
    assert "icc_profile" not in bare.attrs


def test_the_view_is_what_the_standard_says(path: Path) -> None:
    models = pytest.importorskip("ome_zarr_models", reason="the validator of OME-NGFF is not installed")
    v5 = models.open_ome_zarr(zarr.open(histocodec.view(path, device="cpu"), mode="r"), version="0.5")
    assert v5.ome_attributes.multiscales[0].axes[0].name == "c"
    v4 = zarr.open(histocodec.view(path, device="cpu", version="0.4"), mode="r", zarr_format=2)
    assert models.open_ome_zarr(v4, version="0.4").ome_attributes.multiscales[0].version == "0.4"


def test_dask_reads_the_view_in_parts(path: Path, opened: CompressedSlide) -> None:
    array = pytest.importorskip("dask.array", reason="dask is not installed")
    lazy = array.from_zarr(histocodec.view(path, device="cpu"), component="0")
    assert lazy.chunksize == (3, 512, 512)
    part = lazy[:, 100:700, 300:900].compute()
    assert np.array_equal(part, channels_first(opened.read(Region(300, 100, 600, 600), 0)))


def test_the_view_survives_pickling(path: Path, opened: CompressedSlide) -> None:
    again = pickle.loads(pickle.dumps(histocodec.view(path, device="cpu")))
    assert np.array_equal(zarr.open(again, mode="r")["1"][:], channels_first(whole(opened, 1)))


def test_the_view_is_for_reading_only_and_has_nothing_else(path: Path) -> None:
    store = histocodec.view(path, device="cpu")
    with pytest.raises((UsageError, ValueError)):
        zarr.open(store, mode="r+")["0"][0, 0, 0] = 1
    group = zarr.open(store, mode="r")
    assert "9" not in group
    for key in ("0/c/0/9/0", "0/c/0/00/0", "0/c/1/0/0", "7/zarr.json", "0/c/0/0"):
        with pytest.raises(KeyError):
            group[key]


@pytest.mark.parametrize(("keyword", "value"), [("chunk", 0), ("chunk", 10_000), ("version", "0.3")])
def test_what_cannot_be_is_refused(path: Path, keyword: str, value: object) -> None:
    with pytest.raises(UsageError):
        histocodec.view(path, **{keyword: value})  # type: ignore[arg-type]


def test_chunks_that_are_asked_for_at_the_same_moment_are_decoded_together(
    opened: CompressedSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = CompressedSlide.read_regions

    def counted(self: CompressedSlide, regions: list[Region], level: int) -> list[np.ndarray]:
        calls.append(len(regions))
        return original(self, regions, level)

    monkeypatch.setattr(CompressedSlide, "read_regions", counted)
    pixels = zarr.open(histocodec.view(opened, chunk=256), mode="r")["0"][:, :512, :512]
    assert np.array_equal(pixels, channels_first(opened.read(Region(0, 0, 512, 512), 0)))
    assert calls == [4]


def test_an_error_of_one_chunk_reaches_all_who_wait(opened: CompressedSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: CompressedSlide, regions: list[Region], level: int) -> list[np.ndarray]:
        raise UsageError("refused")

    monkeypatch.setattr(CompressedSlide, "read_regions", refuse)
    with pytest.raises(UsageError, match="refused"):
        zarr.open(histocodec.view(opened, chunk=256), mode="r")["0"][:, :512, :512]


def test_regions_read_together_are_the_regions_read_alone(opened: CompressedSlide) -> None:
    regions = [Region(-5, 3, 40, 30), Region(500, 500, 300, 100), Region(0, 0, 0, 0), Region(9000, 0, 4, 5)]
    for region, pixels in zip(regions, opened.read_regions(regions, 0), strict=True):
        assert np.array_equal(pixels, opened.read(region, 0))
