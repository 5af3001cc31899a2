"""Exports as DICOM: OpenSlide and wsidicom read them, attributes are there, and UIDs are made once and kept."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pytest

from histocodec.cli.main import run
from histocodec.errors import SourceError, UnsupportedError, UsageError
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.formats.export import dicom as module
from histocodec.formats.export.export import export
from histocodec.formats.export.tiles import TILE
from histocodec.slide import Pixels
from histocodec.sources import open_slide
from tests.support.exports import IMAGES, MPP, POWER, PROFILE, reopened, rich_container
from tests.support.pictures import assert_regions_are_crops
from tests.support.slides import whole

pydicom = pytest.importorskip("pydicom")
if not getattr(getattr(imagecodecs, "HTJ2K", None), "available", False):
    pytest.skip("HTJ2K needs imagecodecs 2026.1.1 or later", allow_module_level=True)

FILES = ["label.dcm", "level-0.dcm", "level-1.dcm", "overview.dcm"]
CODINGS = [("jpeg", 90), ("jpeg2000", None), ("jpeg2000", 45), ("htj2k", None), ("htj2k", 45)]
SYNTAXES = dict(zip(CODINGS, ("50", "90", "91", "201", "203"), strict=True))


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    return rich_container(tmp_path_factory.mktemp("dicom") / "rich.hcz", tiny_file)


@pytest.fixture(scope="module")
def slide(container: Path) -> Iterator[CompressedSlide]:
    with reopened(container) as slide:
        yield slide


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, slide: CompressedSlide) -> dict[tuple[str, int | None], Path]:
    """The slide in every coding."""
    folder = tmp_path_factory.mktemp("exports")
    found = {}
    for codec, quality in CODINGS:
        found[codec, quality] = folder / f"{codec}-{quality}.dicom"
        export(slide, found[codec, quality], codec=codec, quality=quality)
    return found


def psnr(a: Pixels, b: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def sets(folder: Path) -> dict[str, Any]:
    return {path.name: pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.iterdir())}


def test_a_series_has_an_instance_for_each_level_and_image(exports: dict[Any, Path]) -> None:
    for coding, folder in exports.items():
        files = sets(folder)
        assert list(files) == FILES
        assert len({file.SOPInstanceUID for file in files.values()}) == len(FILES)
        assert len({file.InstanceNumber for file in files.values()}) == len(FILES)
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            assert len({getattr(file, name) for file in files.values()}) == 1
        assert {file.file_meta.TransferSyntaxUID for file in files.values()} == {
            f"1.2.840.10008.1.2.4.{SYNTAXES[coding]}"
        }


@pytest.mark.parametrize("coding", CODINGS[:3])
def test_openslide_opens_it_with_levels_resolution_objective_profile_and_images(
    exports: dict[Any, Path], slide: CompressedSlide, coding: tuple[str, int | None]
) -> None:
    with openslide.OpenSlide(exports[coding] / "level-1.dcm") as opened:
        assert opened.properties["openslide.vendor"] == "dicom"
        assert opened.level_dimensions == slide.level_dimensions
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(MPP[0])
        assert float(opened.properties["openslide.mpp-y"]) == pytest.approx(MPP[1])
        assert float(opened.properties["openslide.objective-power"]) == POWER
        assert opened.color_profile is not None
        assert {name: image.size for name, image in opened.associated_images.items()} == IMAGES
        for level, size in enumerate(opened.level_dimensions):
            found = np.asarray(opened.read_region((0, 0), level, size))[..., :3]
            if coding[1] is None:
                assert np.array_equal(found, whole(slide, level))
            else:
                assert psnr(found, whole(slide, level)) > 33


@pytest.mark.parametrize("coding", CODINGS)
def test_wsidicom_reads_the_same_pixels(
    exports: dict[Any, Path], slide: CompressedSlide, coding: tuple[str, int | None]
) -> None:
    wsidicom = pytest.importorskip("wsidicom")
    with wsidicom.WsiDicom.open(exports[coding]) as opened:
        sizes = [(level.size.width, level.size.height) for level in opened.levels]
        assert sizes == list(slide.level_dimensions)
        assert opened.levels[0].mpp.width == pytest.approx(MPP[0])
        found = np.asarray(opened.read_region((0, 0), 0, sizes[0]))
        if coding[1] is None:
            assert np.array_equal(found, whole(slide, 0))
        else:
            assert psnr(found, whole(slide, 0)) > 33


def test_the_metadata_say_what_the_pixels_went_through(exports: dict[Any, Path], slide: CompressedSlide) -> None:
    levels = slide.container.attributes.levels
    lossless = sets(exports["htj2k", None])
    for number, level in enumerate(levels):
        file = lossless[f"level-{number}.dcm"]
        assert file.LossyImageCompression == "01"
        assert file.LossyImageCompressionMethod == "HISTOCODEC"
        assert float(file.LossyImageCompressionRatio) == pytest.approx(
            3 * level.width * level.height / level.bytes, abs=1e-3
        )
        assert "histocodec (model tiny-0, quality 60)" in file.DerivationDescription
        assert list(file.ImageType) == ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED" if number else "NONE"]
    assert lossless["label.dcm"].LossyImageCompression == "00"
    twice = sets(exports["jpeg", 90])["level-0.dcm"]
    assert list(twice.LossyImageCompressionMethod) == ["HISTOCODEC", "ISO_10918_1"]
    assert len(twice.LossyImageCompressionRatio) == 2


def test_uids_are_the_same_at_every_export_and_others_for_another_coding(
    tmp_path: Path, container: Path, exports: dict[Any, Path]
) -> None:
    with reopened(container) as again:
        export(again, tmp_path / "again.dicom")
    first = exports["jpeg", 90]
    for name in FILES:
        assert (tmp_path / "again.dicom" / name).read_bytes() == (first / name).read_bytes()
    other = sets(exports["htj2k", None])["level-0.dcm"]
    same = sets(first)["level-0.dcm"]
    assert other.StudyInstanceUID == same.StudyInstanceUID
    assert other.SeriesInstanceUID != same.SeriesInstanceUID
    assert other.SOPInstanceUID != same.SOPInstanceUID
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in (same.SOPInstanceUID, same.StudyInstanceUID))


# Of PS3.3: the attributes of type 1, with a value, and of type 2, of the modules of A.32.8.
TYPE_1 = (
    *("StudyInstanceUID", "SeriesInstanceUID", "Modality", "FrameOfReferenceUID", "Manufacturer"),
    *("ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "InstanceNumber", "ContentDate"),
    *("ContentTime", "NumberOfFrames", "SharedFunctionalGroupsSequence", "DimensionOrganizationSequence"),
    *("ContainerIdentifier", "SpecimenDescriptionSequence", "ImageType", "ImagedVolumeWidth", "ImagedVolumeHeight"),
    *("ImagedVolumeDepth", "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "TotalPixelMatrixOriginSequence"),
    *("ImageOrientationSlide", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated"),
    *("BitsStored", "HighBit", "AcquisitionDateTime", "LossyImageCompression", "VolumetricProperties"),
    *("SpecimenLabelInImage", "BurnedInAnnotation", "FocusMethod", "ExtendedDepthOfField", "OpticalPathSequence"),
    *("SOPClassUID", "SOPInstanceUID"),
)
TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("ReferringPhysicianName", "AccessionNumber", "SeriesNumber", "PositionReferenceIndicator"),
    *("AcquisitionContextSequence", "IssuerOfTheContainerIdentifierSequence", "ContainerTypeCodeSequence"),
)


@pytest.mark.parametrize("coding", CODINGS)
def test_every_required_attribute_is_there(exports: dict[Any, Path], coding: tuple[str, int | None]) -> None:
    for file in sets(exports[coding]).values():
        assert [name for name in TYPE_1 if not hasattr(file, name) or file[name].is_empty] == []
        assert [name for name in (*TYPE_1, *TYPE_2) if name not in file] == []
        (path,) = file.OpticalPathSequence
        assert path.ICCProfile[: len(PROFILE)] == PROFILE
        (shared,) = file.SharedFunctionalGroupsSequence
        assert list(shared.PixelMeasuresSequence[0].PixelSpacing)
        assert file.NumberOfFrames == -(-file.TotalPixelMatrixColumns // file.Columns) * -(
            -file.TotalPixelMatrixRows // file.Rows
        )


@pytest.mark.parametrize("coding", CODINGS[:3])  # dciodvfy knows no HTJ2K yet
def test_dciodvfy_finds_no_error(exports: dict[Any, Path], coding: tuple[str, int | None]) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian's package dicom3tools)")
    for path in exports[coding].iterdir():
        told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
        assert "VLWholeSlideMicroscopyImage" in told
        assert [line for line in told.splitlines() if line.startswith("Error")] == []


def test_many_bytes_of_frames_have_an_extended_offset_table(
    tmp_path: Path, slide: CompressedSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BASIC", 1000)
    export(slide, tmp_path / "a.dicom", codec="jpeg2000")
    file = pydicom.dcmread(tmp_path / "a.dicom" / "level-0.dcm")
    assert len(file.ExtendedOffsetTable) == 8 * file.NumberOfFrames
    frame = pydicom.pixels.pixel_array(tmp_path / "a.dicom" / "level-0.dcm", index=1) if _decodes() else None
    if frame is not None:
        assert np.array_equal(frame[:TILE, :TILE], whole(slide, 0)[:TILE, TILE : 2 * TILE])
    wsidicom = pytest.importorskip("wsidicom")
    with wsidicom.WsiDicom.open(tmp_path / "a.dicom") as opened:
        assert np.array_equal(np.asarray(opened.read_region((0, 0), 0, slide.dimensions)), whole(slide, 0))


def _decodes() -> bool:
    """Whether pydicom has a decoder of JPEG 2000."""
    return bool(pydicom.pixels.get_decoder(pydicom.uid.JPEG2000Lossless).is_available)


def test_dicom_without_a_resolution_is_refused_unless_it_is_given(tmp_path: Path, tiny_file: Path) -> None:
    path = rich_container(tmp_path / "bare.hcz", tiny_file, mpp=None, icc=False)
    with pytest.raises(UsageError, match="DICOM demands one; give --mpp"):
        export(path, tmp_path / "a.dicom", device="cpu")
    assert not (tmp_path / "a.dicom").exists()
    done = export(path, tmp_path / "a.dicom", device="cpu", mpp=0.5)
    assert "sRGB" in done.notes[0]
    with openslide.OpenSlide(tmp_path / "a.dicom" / "level-0.dcm") as opened:
        assert float(opened.properties["openslide.mpp-x"]) == 0.5


def test_the_command_replaces_a_series_on_demand(tmp_path: Path, container: Path) -> None:
    out = tmp_path / "a.dicom"
    command = ["export", str(container), str(out), "--device", "cpu"]
    assert run(command) == 0
    assert run(command) == 1
    assert run([*command, "--overwrite"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.dicom"]
    assert sorted(path.name for path in out.iterdir()) == FILES


# Back in.


@pytest.mark.parametrize("coding", [("jpeg2000", None), ("htj2k", None)])
def test_an_export_is_a_source_with_the_same_pixels_and_facts(
    exports: dict[Any, Path], slide: CompressedSlide, coding: tuple[str, int | None]
) -> None:
    if coding[0] == "htj2k":
        pytest.importorskip("wsidicom")
    with open_slide(exports[coding]) as read:
        assert type(read).__name__ == ("DicomSlide" if coding[0] == "htj2k" else "OpenSlideSlide")
        assert [(level.width, level.height) for level in read.levels] == list(slide.level_dimensions)
        assert read.mpp == pytest.approx(MPP)
        assert read.objective_power == POWER
        assert read.icc_profile is not None
        assert read.icc_profile[: len(PROFILE)] == PROFILE
        assert {name: image.shape[1::-1] for name, image in read.associated.items()} == IMAGES
        assert np.array_equal(read.associated["label"], slide.associated["label"])
        for level, size in enumerate(read.levels):
            assert np.array_equal(read.read(size.region, level), whole(slide, level))
            assert_regions_are_crops(read, level)


def test_frames_that_nobody_decodes_are_refused_with_both_reasons(tmp_path: Path, exports: dict[Any, Path]) -> None:
    pytest.importorskip("wsidicom")
    path = tmp_path / "level-0.dcm"
    data = (exports["htj2k", None] / "level-0.dcm").read_bytes()
    path.write_bytes(data.replace(b"1.2.840.10008.1.2.4.201\0", b"1.2.840.10008.1.2.4.106\0"))  # MPEG
    with pytest.raises(UnsupportedError, match=r"OpenSlide cannot open it.*wsidicom cannot open"):
        open_slide(path)


def test_a_damaged_frame_is_an_error_of_the_source(tmp_path: Path, exports: dict[Any, Path]) -> None:
    pytest.importorskip("wsidicom")
    path = tmp_path / "level-0.dcm"
    data = bytearray((exports["htj2k", None] / "level-0.dcm").read_bytes())
    start = data.index(b"\xff\x4f\xff\x51")  # of the first frame
    data[start : start + 64] = bytes(64)
    path.write_bytes(data)
    with open_slide(path) as read, pytest.raises(SourceError, match="level 0 at 0,0 cannot be read"):
        read.read(read.levels[0].region, 0)


def test_without_wsidicom_the_error_names_the_extra(exports: dict[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wsidicom", None)
    with pytest.raises(UnsupportedError, match=r"histocodec\[dicom\]"):
        open_slide(exports["htj2k", None])
