"""What TIFF files of other programs do: pages in any order, turned, in any compression, in several files, misnamed."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from tifffile import TiffWriter

from histocodec.errors import UnsupportedError
from histocodec.sources import open_slide
from histocodec.sources.channels import check_colours
from tests.support.pictures import picture, whole

TILE = {"photometric": "rgb", "tile": (64, 64), "metadata": None}


def large() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """An image whose quarter is still as wide as a tile."""
    return np.tile(picture(), (4, 4, 1))[:360, :512].copy()


@pytest.mark.parametrize("order", [(4, 1), (1, 4), (4, 1, 2)])
def test_the_slide_is_the_largest_page_and_smaller_ones_are_its_levels(tmp_path: Path, order: tuple[int, ...]) -> None:
    image = large()
    with TiffWriter(tmp_path / "a.tif") as file:
        for factor in order:
            file.write(image[::factor, ::factor].copy(), compression="lzw", **TILE)
    with open_slide(tmp_path / "a.tif") as slide:
        assert [level.width for level in slide.levels] == [512 // factor for factor in sorted(order)]
        for number, factor in enumerate(sorted(order)):
            assert np.array_equal(whole(slide, number), image[::factor, ::factor])


@pytest.mark.parametrize("compression", ["zlib", "lzw", "jpeg", None])
@pytest.mark.parametrize("orientation", [3, 6])
def test_pixels_are_as_stored_whatever_the_orientation(
    tmp_path: Path, compression: str | None, orientation: int
) -> None:
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", large(), compression=compression, extratags=tag, **TILE)
    with open_slide(tmp_path / "a.tif") as slide:
        assert np.array_equal(whole(slide), tifffile.imread(tmp_path / "a.tif"))
        assert slide.properties["tiff.Orientation"] == str(orientation)
        assert f"its Orientation is {orientation}" in slide.notes[0]


@pytest.mark.parametrize("compression", ["webp", "jpegxl", "jpeg2000", "jpegxr", "png", "lzma", "packbits", "zstd"])
def test_every_compression_that_tifffile_reads_is_read(tmp_path: Path, compression: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", large(), compression=compression, **TILE)
    with open_slide(tmp_path / "a.tif") as slide:
        assert np.array_equal(whole(slide), tifffile.imread(tmp_path / "a.tif"))


def test_a_tile_without_bytes_is_filled_and_its_neighbours_are_read(tmp_path: Path) -> None:
    image = large()
    tiles = [image[y : y + 64, x : x + 64] for y in range(0, 360, 64) for x in range(0, 512, 64)]
    tiles[9] = None  # type: ignore[call-overload]  # what tifffile takes for a tile without bytes
    with TiffWriter(tmp_path / "a.tif") as file:
        file.write(iter(tiles), shape=image.shape, dtype="uint8", compression="zlib", **TILE)
    with open_slide(tmp_path / "a.tif", background=(240, 241, 242)) as slide:
        pixels = whole(slide)
    assert (pixels[64:128, 64:128] == (240, 241, 242)).all()
    pixels[64:128, 64:128] = image[64:128, 64:128]
    assert np.array_equal(pixels, image)


def ome_of_three_files(folder: Path, names: tuple[str, str, str]) -> tuple[Path, np.ndarray]:
    """An OME-TIFF whose channels lie in three files, by the UUIDs in the first one's XML."""
    image = large()
    files = [folder / f"c{channel}.ome.tif" for channel in range(3)]
    uuids = [f"urn:uuid:0000000{channel}-0000-0000-0000-000000000000" for channel in range(3)]
    channels = "".join(
        f'<Channel ID="Channel:0:{n}" Name="{name}" SamplesPerPixel="1"/>' for n, name in enumerate(names)
    )
    data = "".join(
        f'<TiffData FirstC="{n}" FirstT="0" FirstZ="0" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{file.name}">{uuid}</UUID></TiffData>'
        for n, (file, uuid) in enumerate(zip(files, uuids, strict=True))
    )
    for n, (file, uuid) in enumerate(zip(files, uuids, strict=True)):
        xml = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid}">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="512" SizeY="360" '
            f'SizeC="3" SizeZ="1" SizeT="1">{channels}{data}</Pixels></Image></OME>'
        )
        tifffile.imwrite(
            file, image[..., n].copy(), photometric="minisblack", tile=(64, 64), description=xml, metadata=None
        )
    return files[0], image


def test_an_ome_tiff_in_several_files_takes_each_channel_from_its_own(tmp_path: Path) -> None:
    path, image = ome_of_three_files(tmp_path, ("Red", "Green", "Blue"))
    with open_slide(path) as slide:
        assert np.array_equal(whole(slide), image)


def test_a_missing_file_of_an_ome_tiff_is_missed(tmp_path: Path) -> None:
    path, _ = ome_of_three_files(tmp_path, ("Red", "Green", "Blue"))
    (tmp_path / "c1.ome.tif").unlink()
    with pytest.raises(UnsupportedError, match="lists 3 channels, of which 2 can be found"):
        open_slide(path)


def test_fluorescence_channels_are_refused_by_their_names(tmp_path: Path) -> None:
    path, _ = ome_of_three_files(tmp_path, ("DAPI", "FITC", "TRITC"))
    with pytest.raises(UnsupportedError, match="its channels are called DAPI, FITC, TRITC"):
        open_slide(path)


@pytest.mark.parametrize("names", [("Hoechst", "GFP", "RFP"), ("R", "G", "Cy5"), ("CD3", "CD8", "CD20")])
def test_names_of_stains_are_no_colours(names: tuple[str, ...]) -> None:
    with pytest.raises(UnsupportedError):
        check_colours(names, "a.tif")


@pytest.mark.parametrize(
    "names", [("red", "Green", "BLUE"), ("", "", ""), ("Channel 0", "Channel 1", "Channel 2"), ("C:0", "C:1", "C:2")]
)
def test_names_of_colours_and_no_names_are_taken(names: tuple[str, ...]) -> None:
    check_colours(names, "a.tif")


@pytest.mark.parametrize("unit", ["um", "micron", "microns", "\\u00B5m"])
def test_imagej_says_its_unit_in_the_description(tmp_path: Path, unit: str) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", large(), imagej=True, resolution=(4.0, 2.0), metadata={"unit": unit, "axes": "YXS"}
    )
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.mpp == pytest.approx((0.25, 0.5))


def test_ome_series_that_are_called_images_of_the_label_are_associated(tmp_path: Path) -> None:
    with TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        file.write(
            large(), compression="zlib", photometric="rgb", tile=(64, 64), metadata={"Name": "scan", "axes": "YXS"}
        )
        for name in ("label image", "Macro Image", "something else"):
            file.write(picture(), photometric="rgb", compression="zlib", metadata={"Name": name, "axes": "YXS"})
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert sorted(slide.associated) == ["label", "macro"]
        assert np.array_equal(slide.associated["macro"], picture())
        assert any("'something else'" in note and "is not read" in note for note in slide.notes)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_a_damaged_profile_costs_no_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, large(), compression="webp", iccprofile=b"not a profile", **TILE)
    else:
        Image.fromarray(large()).save(path, icc_profile=b"not a profile")
    with open_slide(path) as slide:
        assert slide.icc_profile is None
        assert slide.notes == ("its ICC profile is damaged and was left out",)
        assert np.array_equal(whole(slide), tifffile.imread(path) if suffix == "tif" else large())


def test_a_sound_profile_is_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, compression in (("openslide.tif", "jpeg"), ("tifffile.tif", "webp")):
        tifffile.imwrite(tmp_path / name, large(), compression=compression, iccprofile=profile, **TILE)
        with open_slide(tmp_path / name) as slide:
            assert slide.icc_profile == profile
