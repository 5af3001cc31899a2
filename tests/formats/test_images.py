"""Image files: what is written is what was given, with its resolution and profile, whole or not at all."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image, ImageCms

from histocodec.errors import OutputError, SourceError, UsageError
from histocodec.formats.decode.images import check_output, check_size, write_region
from histocodec.formats.export.tiff import write_pyramid
from histocodec.formats.export.tiles import READ_TILES
from histocodec.geometry import Region
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide, open_slide
from histocodec.sources.pyramid import box_mean
from histocodec.sources.synthetic import synthetic_slide

MPP = (0.25, 0.5)


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return synthetic_slide(700, 500, seed=3)


@pytest.fixture(scope="module")
def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def psnr(a: Pixels, b: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


# Regions.


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_lossless_files_hold_the_very_pixels_and_the_profile(
    tmp_path: Path, pixels: Pixels, profile: bytes, suffix: str
) -> None:
    path = tmp_path / f"region{suffix}"
    write_region(path, pixels, mpp=MPP, icc=profile)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), pixels)
        assert image.info["icc_profile"] == profile


def test_npy_holds_the_array(tmp_path: Path, pixels: Pixels) -> None:
    write_region(tmp_path / "region.npy", pixels, mpp=MPP, icc=None)
    assert np.array_equal(np.load(tmp_path / "region.npy"), pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_jpeg_is_near_with_full_chroma_and_profile(tmp_path: Path, pixels: Pixels, profile: bytes, suffix: str) -> None:
    path = tmp_path / f"region{suffix}"
    write_region(path, pixels, mpp=MPP, icc=profile)
    with Image.open(path) as image:
        assert image.info["icc_profile"] == profile
        assert {(horizontal, vertical) for _, horizontal, vertical, _ in image.layer} == {(1, 1)}  # type: ignore[attr-defined]  # Pillow's JPEG
        assert psnr(np.asarray(image), pixels) > 35


def test_the_resolution_goes_into_the_file(tmp_path: Path, pixels: Pixels) -> None:
    for suffix in (".png", ".jpg", ".tif"):
        write_region(tmp_path / f"region{suffix}", pixels, mpp=MPP, icc=None)
    with Image.open(tmp_path / "region.png") as image:
        assert image.info["dpi"] == pytest.approx((25_400 / 0.25, 25_400 / 0.5), rel=1e-5)
    with Image.open(tmp_path / "region.jpg") as image:
        exif = image.getexif()
        assert (exif[282], exif[283], exif[296]) == (40_000, 20_000, 3)
    with open_slide(tmp_path / "region.tif") as slide:
        assert slide.mpp == pytest.approx(MPP)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_an_unknown_resolution_is_not_invented(tmp_path: Path, pixels: Pixels, suffix: str) -> None:
    path = tmp_path / f"region{suffix}"
    write_region(path, pixels, mpp=None, icc=None)
    with Image.open(path) as image:
        assert image.getexif().get(282, 1) == 1
        assert image.info.get("jfif_unit", 0) == 0
    with open_slide(path) as slide:
        assert slide.mpp is None


@pytest.mark.parametrize("microns", [1e-300, 1e-6, 2.4e-6, 1e-4, 2.4e-4, 1e6, 1e9, 1e14])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_an_extreme_resolution_is_written_or_left_out(tmp_path: Path, suffix: str, microns: float) -> None:
    path, pixels = tmp_path / f"region{suffix}", np.full((20, 30, 3), 200, np.uint8)
    write_region(path, pixels, mpp=(microns, microns), icc=None)
    with Image.open(path) as image:
        assert image.size == (30, 20)
        dpi, exif = image.info.get("dpi"), image.getexif()
    if suffix == ".png":
        assert dpi is None or dpi[0] == pytest.approx(25_400 / microns)
    elif exif.get(296) == 3:
        assert float(exif[282]) == pytest.approx(10_000 / microns)
    else:
        assert float(exif.get(282, 1)) == 1  # as of a file whose resolution is not known


@pytest.mark.parametrize("microns", [1e-6, 1e6])
def test_a_pyramid_of_an_extreme_resolution_can_be_written(tmp_path: Path, microns: float) -> None:
    slide = ArraySlide(np.full((300, 300, 3), 200, np.uint8), mpp=(microns, microns))
    write_pyramid(tmp_path / "a.tif", slide)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].shape == (300, 300, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (17, 5)])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".jpg"])
def test_any_size_can_be_written(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    pixels = np.full((*size, 3), 200, np.uint8)
    write_region(tmp_path / f"region{suffix}", pixels, mpp=None, icc=None)
    read = np.load(tmp_path / "region.npy") if suffix == ".npy" else None
    if read is None:
        with Image.open(tmp_path / f"region{suffix}") as image:
            read = np.asarray(image)
    assert np.abs(read.astype(int) - 200).max() <= 1


def test_an_unknown_suffix_is_refused_and_the_known_ones_named(tmp_path: Path, pixels: Pixels) -> None:
    with pytest.raises(UsageError, match=r"\.png.*\.jpg.*\.tif.*\.npy"):
        write_region(tmp_path / "region.bmp", pixels, mpp=None, icc=None)
    assert not list(tmp_path.iterdir())


def test_what_is_too_large_for_memory_or_for_jpeg_is_refused(tmp_path: Path) -> None:
    check_size(tmp_path / "a.png", 20_000, 20_000)
    with pytest.raises(UsageError, match=r"as \.tif, or choose a --region"):
        check_size(tmp_path / "a.png", 20_000, 20_001)
    with pytest.raises(UsageError, match="65500"):
        check_size(tmp_path / "a.jpg", 70_000, 10)


def test_an_output_in_the_way_is_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "there.png"
    path.write_bytes(b"old")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="--overwrite"):
        check_output(path)
    check_output(path, overwrite=True)
    with pytest.raises(OutputError, match="folder"):
        check_output(tmp_path / "folder.png", overwrite=True)
    with pytest.raises(OutputError, match="does not exist"):
        check_output(tmp_path / "missing" / "a.png")


# Whole, or absent.


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, pixels: Pixels, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "region.png"
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        write_region(path, pixels, mpp=None, icc=None)
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


class Failing(ArraySlide):
    """Reads well at first."""

    error: BaseException = SourceError("the second row is damaged")

    def _read_inside(self, region: Region, level: int) -> Pixels:
        if region.y > 0:
            raise self.error
        return super()._read_inside(region, level)


@pytest.mark.parametrize("error", [SourceError("damaged"), KeyboardInterrupt(), MemoryError()])
def test_a_pyramid_whose_source_fails_is_absent(
    tmp_path: Path, pixels: Pixels, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "error", error)
    with pytest.raises(type(error)):
        write_pyramid(tmp_path / "slide.tif", Failing(pixels), tile=64)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_in_the_middle_of_a_pyramid_is_an_output_error(
    tmp_path: Path, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: tifffile.TiffWriter, *args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tifffile.TiffWriter, "write", full)
    with pytest.raises(OutputError, match=r"slide\.tif: cannot be written: No space left"):
        write_pyramid(tmp_path / "slide.tif", ArraySlide(pixels))
    assert not list(tmp_path.iterdir())


# Pyramids.


def reduced(image: Pixels) -> Iterator[Pixels]:
    yield image
    yield box_mean(image, 4)
    yield box_mean(image, 16)


@pytest.fixture(scope="module")
def large() -> Pixels:
    return synthetic_slide(1801, 1403, seed=1)  # neither side is whole tiles, nor divisible by 4


def test_a_lossless_pyramid_opens_in_openslide_with_its_levels_and_pixels(
    tmp_path: Path, large: Pixels, profile: bytes
) -> None:
    levels = list(reduced(large))
    slide = ArraySlide(levels, mpp=MPP, icc_profile=profile)
    slide.objective_power = 40.0
    path = tmp_path / "slide.tif"
    write_pyramid(path, slide, tile=256, compression="deflate")
    with openslide.OpenSlide(path) as opened:
        assert opened.properties["openslide.vendor"] == "generic-tiff"
        assert opened.level_count == 3
        assert opened.level_dimensions == tuple((one.shape[1], one.shape[0]) for one in levels)
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-6)
        assert float(opened.properties["openslide.mpp-y"]) == pytest.approx(0.5, rel=1e-6)
        assert "AppMag = 40" in opened.properties["tiff.ImageDescription"]
        assert opened.color_profile is not None
        for level, expected in enumerate(levels):
            size = (expected.shape[1], expected.shape[0])
            found = np.asarray(opened.read_region((0, 0), level, size))
            assert np.array_equal(found[..., :3], expected)
            assert (found[..., 3] == 255).all()
    with open_slide(path) as read:
        assert read.icc_profile == profile
        assert read.mpp == pytest.approx(MPP, rel=1e-6)


@pytest.mark.parametrize(("quality", "least", "most"), [(95, 40, 60), (20, 25, 36)])
def test_a_jpeg_pyramid_is_as_near_as_its_quality(
    tmp_path: Path, large: Pixels, quality: int, least: float, most: float
) -> None:
    path = tmp_path / "slide.tif"
    write_pyramid(path, ArraySlide(list(reduced(large)), mpp=0.5), quality=quality)
    with openslide.OpenSlide(path) as opened:
        assert opened.level_count == 3
        found = np.asarray(opened.read_region((0, 0), 0, (1801, 1403)))[..., :3]
    assert least < psnr(found, large) < most


def test_a_slide_of_one_level_gets_reduced_ones(tmp_path: Path, large: Pixels) -> None:
    path = tmp_path / "slide.tif"
    write_pyramid(path, ArraySlide(large), compression="deflate")
    with openslide.OpenSlide(path) as opened:
        assert opened.level_dimensions == ((1801, 1403), (451, 351))
        assert "openslide.mpp-x" not in opened.properties
        assert opened.color_profile is None
        found = np.asarray(opened.read_region((0, 0), 1, (451, 351)))[..., :3]
    assert np.array_equal(found, box_mean(large, 4))


def test_a_pyramid_can_start_at_a_reduced_level(tmp_path: Path, large: Pixels) -> None:
    path = tmp_path / "slide.tif"
    slide = ArraySlide(list(reduced(large)), mpp=0.25)
    write_pyramid(path, slide, first_level=1, compression="deflate")
    with openslide.OpenSlide(path) as opened:
        assert opened.level_dimensions == ((451, 351), (113, 88))
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(1.0, rel=2e-3)
    with pytest.raises(UsageError, match="level 3 does not exist"):
        write_pyramid(path, slide, first_level=3)


def test_a_pyramid_is_read_in_rows_of_tiles_and_progress_ends_at_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = synthetic_slide(2000, 300)
    asked: list[Region] = []
    seen: list[tuple[int, int]] = []

    class Watched(ArraySlide):
        def _read_inside(self, region: Region, level: int) -> Pixels:
            asked.append(region)
            return super()._read_inside(region, level)

    slide = Watched([image, box_mean(image, 4)])
    write_pyramid(tmp_path / "a.tif", slide, tile=64, progress=lambda done, total: seen.append((done, total)))
    assert max(region.area for region in asked) <= READ_TILES * 64**2
    total = 2000 * 300 + 500 * 75
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_odd_requests_are_refused(tmp_path: Path, pixels: Pixels) -> None:
    with pytest.raises(UsageError, match="pyramid"):
        write_pyramid(tmp_path / "slide.png", ArraySlide(pixels))
    with pytest.raises(UsageError, match="multiple of 16"):
        write_pyramid(tmp_path / "slide.tif", ArraySlide(pixels), tile=100)
