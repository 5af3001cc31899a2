"""TIFF and what OpenSlide reads: the pixels, levels and resolution that the file holds."""

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from histocodec.errors import SourceError, UnsupportedError, UsageError
from histocodec.geometry import Region
from histocodec.sources import OpenSlideSlide, TiffSlide, open_slide
from histocodec.sources.pyramid import box_mean
from histocodec.sources.synthetic import write_pyramidal_tiff
from tests.support.pictures import assert_regions_are_crops, picture, whole

SLIDES = ("cmu-1-small-region.svs", "her2st-C5.tif", "tcga-cr-7395-01a-01-ts1.svs")


# TIFF


@pytest.mark.parametrize(
    "options",
    [
        {"tile": (32, 48), "compression": "zlib"},
        {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
        {"rowsperstrip": 1 << 20},
        {"compression": "jpeg2000", "tile": (64, 64)},
        {"planarconfig": "separate", "tile": (32, 32)},
        {"planarconfig": "separate", "rowsperstrip": 16},
        {"bigtiff": True, "byteorder": ">"},
    ],
    ids=["tiled", "stripped", "flat", "jpeg2000", "planar-tiles", "planar-strips", "bigtiff"],
)
def test_a_tiff_reads_exactly_however_it_is_stored(tmp_path: Path, options: dict[str, Any]) -> None:
    path, image = tmp_path / "a.tif", picture()
    stored = np.moveaxis(image, 2, 0) if options.get("planarconfig") == "separate" else image
    tifffile.imwrite(path, stored, photometric="rgb", **options)
    with TiffSlide(path) as slide:
        assert np.array_equal(whole(slide), image)
        assert_regions_are_crops(slide, 0)


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    grey = picture()[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", grey, tile=(32, 32))
    tifffile.imwrite(tmp_path / "b.tif", 255 - grey, photometric="miniswhite")
    for name in ("a.tif", "b.tif"):
        with TiffSlide(tmp_path / name) as slide:
            assert np.array_equal(whole(slide), np.repeat(grey[..., np.newaxis], 3, axis=2))


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    index, table = picture()[..., 0], np.random.default_rng(1).integers(0, 256, (3, 256))
    tifffile.imwrite(tmp_path / "a.tif", index, photometric="palette", colormap=(table * 257).astype(np.uint16))
    with TiffSlide(tmp_path / "a.tif") as slide:
        assert np.array_equal(whole(slide), table.T.astype(np.uint8)[index])


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_transparent_pixels_have_the_background_colour(tmp_path: Path, suffix: str) -> None:
    image = picture()
    rgba = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    rgba[:30, :, 3], rgba[30:40, :, 3] = 0, 128
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(32, 32))
    else:
        Image.fromarray(rgba).save(path)
    with open_slide(path, background=(240, 230, 220)) as slide:
        pixels = whole(slide)
        assert (pixels[:30] == (240, 230, 220)).all()
        assert np.array_equal(pixels[40:], image[40:])
        expected = (image[30:40] * 128.0 + np.array([240, 230, 220]) * 127.0) / 255
        assert np.abs(pixels[30:40] - expected).max() <= 0.51
        assert slide.background == (240, 230, 220)


def test_a_pyramid_in_subifds_is_found(tmp_path: Path) -> None:
    path, image = tmp_path / "a.ome.tif", picture(400, 300)
    half = box_mean(image, 2)
    with tifffile.TiffWriter(path, ome=True) as writer:
        size = {"PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm"}
        size |= {"PhysicalSizeY": 0.0005, "PhysicalSizeYUnit": "mm"}
        writer.write(image, tile=(64, 64), subifds=1, photometric="rgb", metadata={"axes": "YXS", **size})
        writer.write(half, tile=(64, 64), subfiletype=1, photometric="rgb")
    with open_slide(path) as slide:
        assert isinstance(slide, TiffSlide)
        assert [(level.width, level.height) for level in slide.levels] == [(300, 400), (150, 200)]
        assert np.array_equal(whole(slide, 1), half)
        assert slide.mpp == pytest.approx((0.25, 0.5))


def test_ome_channels_are_joined(tmp_path: Path) -> None:
    path, image = tmp_path / "a.ome.tif", picture()
    tifffile.imwrite(path, np.moveaxis(image, 2, 0), photometric="minisblack", metadata={"axes": "CYX"}, tile=(32, 32))
    with open_slide(path) as slide:
        assert np.array_equal(whole(slide), image)
        assert slide.mpp is None


def test_levels_that_are_separate_pages_are_found(tmp_path: Path) -> None:
    path, image = tmp_path / "a.tif", picture(401, 299)
    with tifffile.TiffWriter(path) as writer:
        for factor in (1, 2, 4):
            writer.write(box_mean(image, factor), rowsperstrip=16, photometric="rgb", metadata=None)
        writer.write(picture(40, 200), rowsperstrip=16, photometric="rgb", metadata=None)  # another image
    with open_slide(path) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(299, 401), (150, 201), (75, 101)]
        assert np.array_equal(whole(slide, 2), box_mean(image, 4))


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((20000, 10000), "CENTIMETER", (0.5, 1.0)),
        ((50800, 50800), "INCH", (0.5, 0.5)),
        ((72, 72), "INCH", None),
        ((20000, 20000), "NONE", None),
    ],
)
def test_resolution_tags_count_only_as_a_microscopes(
    tmp_path: Path, resolution: tuple[int, int], unit: str, mpp: tuple[float, float] | None
) -> None:
    options: dict[str, Any] = {"resolution": resolution, "resolutionunit": unit, "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "strips.tif", picture(), **options)
    tifffile.imwrite(tmp_path / "tiles.tif", picture(), tile=(64, 64), **options)
    for name, kind in (("strips.tif", TiffSlide), ("tiles.tif", OpenSlideSlide)):
        with open_slide(tmp_path / name) as slide:
            assert isinstance(slide, kind)
            assert slide.mpp == (None if mpp is None else pytest.approx(mpp))


def test_the_users_mpp_overrules_the_files(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(), resolution=(20000, 20000), resolutionunit=3)
    with open_slide(tmp_path / "a.tif", mpp=0.3) as slide:
        assert slide.mpp == (0.3, 0.3)
    with pytest.raises(UsageError, match="microns"):
        open_slide(tmp_path / "a.tif", mpp=-1)


@pytest.mark.parametrize("tile", [None, (64, 64)], ids=["strips", "tiles"])
def test_16_bits_are_refused_by_name(tmp_path: Path, tile: tuple[int, int] | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture().astype(np.uint16), photometric="rgb", tile=tile)
    with pytest.raises(UnsupportedError, match=r"uint16.*only uint8"):
        open_slide(tmp_path / "a.tif")


def test_a_stack_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([picture()] * 5), photometric="rgb", metadata={"axes": "ZYXS"})
    with pytest.raises(UnsupportedError, match="not a stack"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize("tile", [None, (64, 64)], ids=["strips", "tiles"])
def test_a_damaged_part_is_named_and_the_rest_stays_readable(tmp_path: Path, tile: tuple[int, int] | None) -> None:
    path, image = tmp_path / "a.tif", picture(256, 64)
    options: dict[str, Any] = {"tile": tile} if tile else {"rowsperstrip": 64}
    tifffile.imwrite(path, image, photometric="rgb", compression="zlib", **options)
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.dataoffsets[2]
    data = bytearray(path.read_bytes())
    data[offset : offset + 64] = bytes(64)
    path.write_bytes(data)
    with open_slide(path) as slide:
        with pytest.raises(SourceError, match=r"a\.tif"):
            slide.read(Region(0, 130, 64, 10), 0)
        assert np.array_equal(slide.read(Region(0, 0, 64, 128), 0), image[:128])
        assert np.array_equal(slide.read(Region(0, 192, 64, 64), 0), image[192:])


def test_a_truncated_tiff_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", rowsperstrip=16)
    data = path.read_bytes()
    for length in (6, 9, 40, 200, len(data) // 2, len(data) - 50):
        path.write_bytes(data[:length])
        with pytest.raises((UnsupportedError, SourceError)), open_slide(path) as slide:
            whole(slide)


# OpenSlide


def test_any_region_of_a_level_with_an_odd_downsample_is_exact(tmp_path: Path) -> None:
    path, image = tmp_path / "a.tif", picture(901, 1003)
    write_pyramidal_tiff(path, image, compression="zlib", step=2, smallest=200, tile=64)
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideSlide)
        assert [(level.width, level.height) for level in slide.levels][:2] == [(1003, 901), (502, 451)]
        assert not slide.levels[1].downsample.is_integer()
        reduced = image
        for level in range(len(slide.levels)):
            assert np.array_equal(whole(slide, level), reduced)
            assert_regions_are_crops(slide, level)
            reduced = box_mean(reduced, 2)


def test_without_tiff_pages_regions_still_are_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    write_pyramidal_tiff(path, picture(1501, 1203), compression="zlib", step=2, smallest=400, tile=64)
    monkeypatch.setattr("histocodec.sources.openslide.tiled_pages", lambda file: [])
    with open_slide(path) as slide:
        for level in range(len(slide.levels)):
            assert_regions_are_crops(slide, level, count=10)


def test_openslides_own_properties_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_pyramidal_tiff(path, picture(300, 300), mpp=0.25)
    with open_slide(path) as slide, openslide.OpenSlide(path) as reference:
        assert dict(slide.properties) == dict(reference.properties)
        assert slide.mpp == pytest.approx((0.25, 0.25))
        assert slide.background is None


@pytest.mark.parametrize("name", SLIDES)
def test_real_slides_read_in_pieces_as_in_one(data_dir: Path, name: str) -> None:
    with open_slide(data_dir / "slides" / name) as slide:
        for index, level in enumerate(slide.levels):
            window = Region(max(0, level.width - 900), max(0, level.height - 900), 900, 900)
            full = slide.read(window, index)
            rng = np.random.default_rng(index)
            for _ in range(12):
                x, y = (int(v) for v in rng.integers(0, 800, 2))
                part = slide.read(Region(window.x + x, window.y + y, 90, 70), index)
                assert np.array_equal(part, full[y : y + 70, x : x + 90])


@pytest.mark.parametrize("name", SLIDES)
def test_real_slides_equal_openslides_own_view(data_dir: Path, name: str) -> None:
    path = data_dir / "slides" / name
    with open_slide(path) as slide, openslide.OpenSlide(path) as reference:
        for index, level in enumerate(slide.levels):
            size = min(level.width, 700), min(level.height, 700)
            expected = np.asarray(reference.read_region((0, 0), index, size).convert("RGB"))
            assert np.array_equal(slide.read(Region(0, 0, *size), index), expected)


def test_mpp_is_what_the_files_say(data_dir: Path) -> None:
    found = {}
    for name in SLIDES:
        with open_slide(data_dir / "slides" / name) as slide:
            found[name] = slide.mpp
    assert found["cmu-1-small-region.svs"] == (0.499, 0.499)
    assert found["her2st-C5.tif"] == pytest.approx((0.67, 0.67))
    assert found["tcga-cr-7395-01a-01-ts1.svs"] is None


def test_associated_images_are_listed_and_read(data_dir: Path) -> None:
    with open_slide(data_dir / "slides" / "cmu-1-small-region.svs") as slide:
        assert set(slide.associated) == {"label", "macro", "thumbnail"}
        assert slide.associated["label"].shape == (463, 387, 3)
        assert slide.objective_power == 20
    with open_slide(data_dir / "slides" / "tcga-cr-7395-01a-01-ts1.svs") as slide:
        assert slide.icc_profile is not None
        assert len(slide.icc_profile) == 3144
