"""What could name a patient is not in the container, in none of its bytes, unless it was asked for."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile

import histocodec
from histocodec.cli.main import run
from histocodec.formats.container.attributes import DERIVED_PROPERTIES
from histocodec.formats.encode.extras import MAX_ASSOCIATED
from histocodec.formats.encode.options import EncodeOptions
from histocodec.formats.encode.privacy import is_private, kept_properties, without_private
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide

SECRETS = {
    "Date": "12/29/09", "Time": "09:59:15", "User": "jane.doe", "Filename": "DOE^JOHN_1949", "ImageID": "1004486",
    "Barcode": "S09-4711;2", "Title": "Doe, John", "Patient": "John Doe", "DSR ID": "hospital-7",
}  # fmt: skip
HARMLESS = {"AppMag": "20", "MPP": "0.4990", "StripeWidth": "2040", "Exposure Time": "109", "Left": "25.691574"}
LABEL = (200, 30, 60)  # the colour of the whole label
MACRO = (30, 60, 200)


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a scanner writes it: tiles, a thumbnail, and a label and a macro image in strips."""
    path = tmp_path_factory.mktemp("privacy") / "a.svs"
    pixels = synthetic_slide(700, 600, seed=3)
    facts = "|".join(f"{name} = {value}" for name, value in {**HARMLESS, **SECRETS}.items())
    head = "Aperio Image Library v11.2.1\r\n"
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            pixels, tile=(256, 256), photometric="rgb", compression="jpeg", subfiletype=0, metadata=None,
            description=f"{head}700x600 [0,0 700x600] (256x256) JPEG/RGB Q=70|{facts}",
        )  # fmt: skip
        for name, kind, image in (
            ("700x600 -> 175x150", 0, pixels[::4, ::4]),
            ("label 80x90", 1, np.full((90, 80, 3), LABEL, np.uint8)),
            ("macro 120x50", 9, np.full((50, 120, 3), MACRO, np.uint8)),
        ):
            writer.write(
                np.ascontiguousarray(image), photometric="rgb", rowsperstrip=16, metadata=None, subfiletype=kind,
                description=f"{head}{name}",
            )  # fmt: skip
    with histocodec.open_slide(path) as slide:
        assert {"label", "macro"} <= set(slide.associated)
        assert {name: slide.properties[f"aperio.{name}"] for name in SECRETS} == SECRETS
    return path


def encode(svs: Path, target: Path, tiny_file: Path, *options: str) -> dict[str, object]:
    given = ["encode", str(svs), str(target), "--model", str(tiny_file), "--device", "cpu", "--embed-model"]
    assert run([*given, *options]) == 0
    attributes: dict[str, object] = json.loads((target / "zarr.json").read_text())["attributes"]["histocodec"]
    return attributes


def everything(container: Path) -> bytes:
    """All bytes of all files, those of plain arrays unpacked."""
    parts = []
    for file in sorted(path for path in container.rglob("*") if path.is_file()):
        data = file.read_bytes()
        parts.append(zlib.decompress(data, 31) if data.startswith(b"\x1f\x8b") else data)
    return b"\n".join(parts)


def test_no_secret_is_in_any_byte_of_the_container(svs: Path, tmp_path: Path, tiny_file: Path) -> None:
    encode(svs, tmp_path / "a.zarr", tiny_file)
    found = everything(tmp_path / "a.zarr")
    assert [name for name, value in SECRETS.items() if value.encode() in found] == []
    for colour in (LABEL, MACRO):
        assert bytes(colour) * 50 not in found


@pytest.mark.slow
def test_what_is_harmless_is_kept_word_for_word(svs: Path, tmp_path: Path, tiny_file: Path) -> None:
    kept = encode(svs, tmp_path / "a.zarr", tiny_file)["properties"]
    assert isinstance(kept, dict)
    assert {name: kept[f"aperio.{name}"] for name in HARMLESS} == HARMLESS
    assert kept["openslide.vendor"] == "aperio"


@pytest.mark.slow
def test_info_says_what_was_left_out(
    svs: Path, tmp_path: Path, tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode(svs, tmp_path / "a.zarr", tiny_file)
    capsys.readouterr()
    assert run(["info", str(tmp_path / "a.zarr"), "--json"]) == 0
    dropped = json.loads(capsys.readouterr().out)["dropped"]
    assert {"label", "macro", *(f"property aperio.{name}" for name in SECRETS)} <= set(dropped)
    assert {"property openslide.comment", "property tiff.ImageDescription"} <= set(dropped)
    assert not {f"property aperio.{name}" for name in HARMLESS} & set(dropped)
    assert run(["info", str(tmp_path / "a.zarr")]) == 0
    assert "aperio.Barcode" in capsys.readouterr().out


@pytest.mark.slow
def test_all_of_it_is_kept_where_it_is_asked_for(svs: Path, tmp_path: Path, tiny_file: Path) -> None:
    attributes = encode(svs, tmp_path / "a.zarr", tiny_file, "--keep-private", "--keep-label", "--keep-macro")
    with histocodec.open_slide(svs) as source, histocodec.open(tmp_path / "a.zarr") as slide:
        kept = {name: value for name, value in source.properties.items() if not name.startswith(DERIVED_PROPERTIES)}
        assert attributes["properties"] == kept
        assert kept.items() <= dict(slide.properties).items()
        assert (slide.associated["label"] == LABEL).all()
        assert (slide.associated["macro"] == MACRO).all()
    assert not any("property" in name for name in attributes["dropped"])  # type: ignore[attr-defined]  # from JSON


@pytest.mark.parametrize(
    "name",
    [
        "aperio.ScanScope ID", "dicom.PatientName", "dicom.PatientBirthDate", "dicom.StudyInstanceUID",
        "dicom.AccessionNumber", "dicom.ContainerIdentifier", "dicom.OperatorsName", "hamamatsu.Created",
        "hamamatsu.Reference", "leica.barcode", "leica.creation-date", "mirax.GENERAL.SLIDE_CREATIONDATETIME",
        "mirax.GENERAL.SLIDE_ID", "philips.PIM_DP_UFS_BARCODE", "philips.DICOM_ACQUISITION_DATETIME",
        "philips.PIIM_DP_SCANNER_OPERATOR_ID", "sakura.Creator", "tiff.Artist", "tiff.DateTime",
        "tiff.ImageDescription", "ventana.BarCode1D", "ventana.UserName", "zeiss.Information.Document.Title",
    ],
)  # fmt: skip
def test_every_vendors_spelling_is_known(name: str) -> None:
    assert is_private(name, "")


@pytest.mark.parametrize(
    "name",
    [
        "aperio.AppMag", "aperio.Exposure Time", "aperio.Filtered", "dicom.ManufacturerModelName",
        "hamamatsu.SourceLens", "hamamatsu.XOffsetFromSlideCentre", "leica.objective", "openslide.bounds-x",
        "openslide.associated.label.width", "openslide.quickhash-1", "tiff.ResolutionUnit", "tiff.Software",
        "ventana.Magnification",
    ],
)  # fmt: skip
def test_what_tells_nothing_of_people_is_not_private(name: str) -> None:
    assert not is_private(name, "20")


@pytest.mark.parametrize("value", ["scanned 2009-12-29", "29.12.2009", "20091229", "1.2.840.20091229.5", "12/29/09"])
def test_a_date_is_private_whatever_its_name(value: str) -> None:
    assert is_private("vendor.scan", value)


@pytest.mark.parametrize("value", ["11.2.1", "0.4990", "46000x32914 [0,0 46000x32914] (256x256)", "120091229", ""])
def test_other_numbers_are_no_dates(value: str) -> None:
    assert not is_private("vendor.scan", value)


@pytest.mark.parametrize("name", ["vendor.Xyzzy", "openslide.barcode", "openslide.comment", "openslide.something-new"])
def test_what_no_list_knows_is_private(name: str) -> None:
    assert is_private(name, "20")


@pytest.mark.parametrize(
    "value", ["S24-12345", "UzI0LTEyMzQ1", "SP_18_0012345", "slide 09S12345 of 3", "4012345678901"]
)
def test_what_looks_like_a_case_number_is_private_whatever_its_name(value: str) -> None:
    assert is_private("vendor.scan", value)


@pytest.mark.parametrize("value", ["0.000025 mm", "F0F0F0", "Leica SCN400;Leica SCN", "LAYER_0_LEVEL_0_SECTION", "20x"])
def test_what_scanners_say_is_no_case_number(value: str) -> None:
    assert not is_private("vendor.scan", value)


def test_a_property_that_repeats_a_private_value_is_private() -> None:
    properties = {"vendor.Barcode": "Z7-19", "vendor.Scan": "of Z7-19", "vendor.Version": "2.0"}
    assert without_private(properties) == ({"vendor.Version": "2.0"}, ("vendor.Barcode", "vendor.Scan"))


def test_more_names_than_there_is_room_for_are_counted(tmp_path: Path, tiny_file: Path) -> None:
    properties = {f"vendor.User {letter}{other}": "x" for letter in "abcdefghij" for other in "abcdefghij"}
    assert without_private(properties) == ({}, tuple(properties))
    slide = ArraySlide(synthetic_slide(40, 40), properties=properties)
    report = histocodec.encode(slide, tmp_path / "a.zarr", model=str(tiny_file), device="cpu")
    assert len(report.dropped) == MAX_ASSOCIATED
    assert report.dropped[-1] == "property and 37 more"


def test_properties_that_follow_from_levels_and_images_are_not_kept() -> None:
    derived = {
        "openslide.level-count": "1",
        "openslide.level[0].width": "600",
        "openslide.associated.label.width": "40",
        "openslide.mpp-x": "0.5",
        "openslide.icc-size": "4",
    }
    kept = {"openslide.vendor": "aperio", "openslide.quickhash-1": "ab", "aperio.AppMag": "20"}
    for options in (EncodeOptions(), EncodeOptions(keep_private=True)):
        assert kept_properties({**derived, **kept}, options) == kept
