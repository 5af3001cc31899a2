"""Images, arrays and derived levels are slides; what is no slide is refused."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from histocodec.errors import SourceError, UnsupportedError, UsageError
from histocodec.geometry import Region
from histocodec.slide import Slide
from histocodec.sources import ArraySlide, DerivedPyramid, open_slide, with_pyramid
from histocodec.sources.pyramid import box_mean
from histocodec.sources.synthetic import write_pyramidal_tiff
from tests.support.pictures import assert_regions_are_crops, picture, whole

# Images


def test_lossless_images_read_exactly(tmp_path: Path) -> None:
    image = picture()
    kinds: dict[str, dict[str, Any]] = {"png": {}, "bmp": {}, "webp": {"lossless": True}, "jp2": {}}
    for suffix, options in kinds.items():
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(image).save(path, **options)
        with open_slide(path) as slide:
            assert np.array_equal(whole(slide), image)
            assert_regions_are_crops(slide, 0, count=5)
            assert slide.mpp is None


def test_dots_per_inch_are_no_microns(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png", dpi=(50800, 50800))
    with open_slide(tmp_path / "a.png") as slide:
        assert slide.mpp is None


def test_an_orientation_is_recorded_and_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=exif)
    with open_slide(tmp_path / "a.png") as slide:
        assert np.array_equal(whole(slide), picture())
        assert slide.properties["exif.Orientation"] == "6"


def test_deep_images_are_refused(tmp_path: Path) -> None:
    grey = picture()[..., 0].astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "grey.png")
    import imagecodecs

    deep = picture().astype(np.uint16) * 257
    (tmp_path / "rgb.png").write_bytes(imagecodecs.png_encode(deep))
    (tmp_path / "rgb.jp2").write_bytes(imagecodecs.jpeg2k_encode(deep))
    (tmp_path / "rgb.avif").write_bytes(imagecodecs.avif_encode(deep >> 6, bitspersample=10))
    for name in ("grey.png", "rgb.png", "rgb.jp2", "rgb.avif"):
        with pytest.raises(UnsupportedError, match=name):
            open_slide(tmp_path / name)


def test_an_image_beyond_pillows_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnsupportedError, match="tiled TIFF"):
        open_slide(tmp_path / "a.png")


def test_a_truncated_image_is_a_source_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(picture()).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(SourceError, match=r"a\.jpg"):
        open_slide(path)


# Arrays


def test_an_array_is_a_slide() -> None:
    image = picture()
    slide = ArraySlide(image, mpp=0.5)
    assert isinstance(slide, Slide)
    assert np.array_equal(whole(slide), image)
    assert_regions_are_crops(slide, 0)
    slide.read(Region(0, 0, 9, 9), 0)[...] = 0
    assert np.array_equal(whole(slide), image)


def test_arrays_that_are_no_image_are_refused() -> None:
    for wrong in (picture().astype(np.float32), np.zeros((5, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(UnsupportedError):
            ArraySlide(wrong)


def test_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="level 1"):
        ArraySlide(picture()).read(Region(0, 0, 1, 1), 1)


def ome_attributes(version: str, paths: list[str]) -> dict[str, Any]:
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "nanometer"} for name in "yx"]
    datasets = [
        {"path": path, "coordinateTransformations": [{"type": "scale", "scale": [1, 250 * 2**i, 200 * 2**i]}]}
        for i, path in enumerate(paths)
    ]
    extra = [{"type": "scale", "scale": [1.0, 2.0, 2.0]}]
    multiscales = [{"axes": axes, "datasets": datasets, "coordinateTransformations": extra}]
    return (
        {"ome": {"version": version, "multiscales": multiscales}}
        if version == "0.5"
        else {"multiscales": [{"version": version, **multiscales[0]}]}
    )


@pytest.mark.parametrize(("version", "zarr_format"), [("0.4", 2), ("0.5", 3)])
def test_an_ome_zarr_group_is_a_slide(tmp_path: Path, version: str, zarr_format: Any) -> None:
    image = picture()
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=zarr_format)
    group.attrs.update(ome_attributes(version, ["0", "1"]))
    for name, pixels in (("0", image), ("1", box_mean(image, 2))):
        group.create_array(name, data=np.ascontiguousarray(np.moveaxis(pixels, 2, 0)), chunks=(3, 32, 32))
    with open_slide(tmp_path / "a.zarr") as slide:
        assert np.array_equal(whole(slide), image)
        assert np.array_equal(whole(slide, 1), box_mean(image, 2))
        assert_regions_are_crops(slide, 0, count=8)
        assert slide.mpp == pytest.approx((0.4, 0.5))


def test_a_plain_zarr_array_is_a_slide(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=picture(), chunks=(32, 32, 3))
    with open_slide(tmp_path / "a.zarr") as slide:
        assert np.array_equal(whole(slide), picture())


def test_a_compressed_slide_is_no_source(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "a.zarr", attributes={"histocodec": {}})
    with pytest.raises(UnsupportedError, match="compressed slide already"):
        open_slide(tmp_path / "a.zarr")


def test_a_zarr_group_without_an_image_is_refused(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "a.zarr", attributes={"ome": {"version": "0.5", "multiscales": []}})
    with pytest.raises(UnsupportedError, match="no OME-NGFF"):
        open_slide(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps({"zarr_format": 9}))
    with pytest.raises(UnsupportedError, match="Zarr"):
        open_slide(tmp_path / "a.zarr")


# What is no slide


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_slide(tmp_path / "nowhere.svs")


@pytest.mark.parametrize("content", [b"", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"garbage " * 500])
@pytest.mark.parametrize("name", ["a.svs", "a.tif", "a.png", "a"])
def test_empty_and_broken_files_are_unsupported(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnsupportedError, match=name):
        open_slide(tmp_path / name)


def test_a_folder_that_is_no_slide_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UnsupportedError, match="and no slide"):
        open_slide(tmp_path)


# Derived levels


def test_derived_levels_are_rounded_means_of_level_0() -> None:
    image = picture(1031, 2050)
    slide = with_pyramid(ArraySlide(image))
    assert isinstance(slide, DerivedPyramid)
    assert [(level.width, level.height) for level in slide.levels] == [(2050, 1031), (513, 258)]
    padded = np.pad(image.astype(float), ((0, 1), (0, 2), (0, 0)), constant_values=np.nan)
    expected = np.nanmean(padded.reshape(258, 4, 513, 4, 3), axis=(1, 3))
    assert np.array_equal(whole(slide, 1), np.floor(expected + 0.5).astype(np.uint8))


def test_derived_regions_are_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histocodec.sources.pyramid.PIECE", 256)
    slide = DerivedPyramid(ArraySlide(picture(1203, 1401)))
    assert_regions_are_crops(slide, 1)


def test_a_pyramid_is_derived_only_where_one_is_missing() -> None:
    small, image = ArraySlide(picture()), picture(1100, 40)
    with_levels = ArraySlide([image, box_mean(image, 4)])
    assert with_pyramid(small) is small
    assert with_pyramid(with_levels) is with_levels


# All of them


def test_threads_read_what_one_reader_reads(tmp_path: Path) -> None:
    image = picture(600, 700)
    write_pyramidal_tiff(tmp_path / "tiles.tif", image, compression="zlib", tile=64, smallest=200)
    tifffile.imwrite(tmp_path / "strips.tif", image, photometric="rgb", rowsperstrip=16, compression="zlib")
    rng = np.random.default_rng(0)
    corners = [(int(x), int(y)) for x, y in rng.integers(0, 500, (60, 2))]
    for name in ("tiles.tif", "strips.tif"):
        with open_slide(tmp_path / name) as slide, ThreadPoolExecutor(4) as pool:
            parts = [Region(x, y, 90, 80) for x, y in corners]
            found = pool.map(slide.read, parts, [0] * len(parts))
            for (x, y), pixels in zip(corners, found, strict=True):
                assert np.array_equal(pixels, image[y : y + 80, x : x + 90])


def test_sources_do_without_torch() -> None:
    code = "import sys, histocodec.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("size", [(160, 130), (16, 16), (1600, 2)])
def test_a_png_is_not_taken_for_a_deep_one_by_its_size(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (9, 8, 7)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        assert (slide.levels[0].width, slide.levels[0].height) == size


@pytest.mark.parametrize("mode", ["I;16"])
def test_a_deep_png_is_refused_by_its_bits(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(UnsupportedError):
        open_slide(tmp_path / "a.png")
