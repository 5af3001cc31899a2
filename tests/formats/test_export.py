"""Exports as TIFF, OME-TIFF and OME-Zarr: the pixels, what goes along, and what the files say about themselves."""

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as Xml

import numpy as np
import openslide
import pytest
import tifffile
import zarr

import histocodec
from histocodec.cli.main import run
from histocodec.errors import OutputError, UsageError
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.formats.export import export as module
from histocodec.formats.export.export import export
from histocodec.formats.export.order import kind_of
from histocodec.geometry import Region
from histocodec.sources import open_slide
from tests.support.exports import IMAGES, MPP, POWER, PROFILE, reopened, rich_container
from tests.support.slides import whole

OME = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    return rich_container(tmp_path_factory.mktemp("export") / "rich.hcz", tiny_file)


@pytest.fixture(scope="module")
def slide(container: Path) -> Iterator[CompressedSlide]:
    with reopened(container) as slide:
        yield slide


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """A container without a resolution or a profile."""
    return rich_container(tmp_path_factory.mktemp("bare") / "bare.hcz", tiny_file, mpp=None, icc=False)


# TIFF.


def test_a_tiff_opens_in_openslide_with_levels_and_pixels(tmp_path: Path, slide: CompressedSlide) -> None:
    done = export(slide, tmp_path / "a.tif", codec="deflate")
    assert (done.kind, done.levels, done.associated) == ("tiff", 2, ())
    assert "label, macro" in done.notes[0]
    with openslide.OpenSlide(tmp_path / "a.tif") as opened:
        assert opened.level_dimensions == slide.level_dimensions
        assert float(opened.properties["openslide.mpp-y"]) == pytest.approx(MPP[1], rel=1e-5)
        assert "histocodec (model tiny-0, quality 60), 1:" in opened.properties["tiff.ImageDescription"]
        for level, size in enumerate(opened.level_dimensions):
            found = np.asarray(opened.read_region((0, 0), level, size))[..., :3]
            assert np.array_equal(found, whole(slide, level))


# OME-TIFF.


@pytest.fixture(scope="module")
def ome_tiff(tmp_path_factory: pytest.TempPathFactory, slide: CompressedSlide) -> Path:
    path = tmp_path_factory.mktemp("ome") / "a.ome.tif"
    export(slide, path, codec="deflate")
    return path


def test_an_ome_tiff_has_its_levels_in_subifds_and_associated_images_as_series(
    ome_tiff: Path, slide: CompressedSlide
) -> None:
    with tifffile.TiffFile(ome_tiff) as file:
        assert file.is_ome
        assert [series.kind for series in file.series] == ["ome"] * 3
        assert [series.name for series in file.series[1:]] == list(IMAGES)
        assert len(file.pages[0].subifds) == 1
        for level, found in enumerate(file.series[0].levels):
            assert np.array_equal(found.asarray(), whole(slide, level))
        for series in file.series[1:]:
            assert np.array_equal(series.asarray(), slide.associated[series.name])
        assert file.pages[0].iccprofile == PROFILE


@pytest.mark.parametrize("name", ["out.tif", "out.ome.tif"])
def test_jpeg_in_a_tiff_halves_colour_across_as_bio_formats_needs(
    tmp_path: Path, slide: CompressedSlide, name: str
) -> None:
    """Bio-Formats takes 4:4:4 for colours that its JPEG decoder did not convert, and converts them again."""
    export(slide, tmp_path / name, codec="jpeg")
    with tifffile.TiffFile(tmp_path / name) as file:
        levels = file.series[0].levels
        assert len(levels) == 2
        for level in levels:
            assert level.keyframe.tags["YCbCrSubSampling"].value == (2, 1)


def test_the_xml_states_resolution_objective_and_what_the_pixels_went_through(ome_tiff: Path) -> None:
    root = Xml.fromstring(tifffile.tiffcomment(ome_tiff))
    pixels = root.find("ome:Image/ome:Pixels", OME)
    assert pixels is not None
    assert (float(pixels.attrib["PhysicalSizeX"]), float(pixels.attrib["PhysicalSizeY"])) == MPP
    objective = root.find("ome:Instrument/ome:Objective", OME)
    assert objective is not None
    assert float(objective.attrib["NominalMagnification"]) == POWER
    facts = {item.attrib["K"]: item.text for item in root.iterfind(".//ome:M", OME)}
    assert facts["LossyImageCompression"] == "01"
    assert facts["LossyImageCompressionMethod[0]"] == "histocodec (model tiny-0, quality 60)"
    assert float(facts["LossyImageCompressionRatio[0]"] or 0) > 1
    assert facts["Coding"] == "Deflate, lossless"
    assert facts["scanner.Ω"] == "A < B & \ufffd"  # XML has no place for the control character


def test_an_ome_tiff_is_read_back_as_a_source_with_its_levels_and_resolution(
    ome_tiff: Path, slide: CompressedSlide
) -> None:
    with open_slide(ome_tiff) as read:
        assert [(level.width, level.height) for level in read.levels] == list(slide.level_dimensions)
        assert read.mpp == pytest.approx(MPP)
        assert np.array_equal(read.read(Region(700, 300, 500, 400), 0), slide.read(Region(700, 300, 500, 400), 0))


def test_a_large_ome_tiff_is_a_bigtiff(tmp_path: Path, slide: CompressedSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histocodec.formats.export.tiff.MAX_CLASSIC_TIFF", 1 << 20)
    export(slide, tmp_path / "a.ome.tif")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert file.is_bigtiff
        assert len(file.series[0].levels) == 2


# OME-Zarr.


@pytest.mark.parametrize(("ngff", "codec"), [("0.5", "zstd"), ("0.5", "blosc"), ("0.4", "zstd"), ("0.4", "blosc")])
def test_ome_zarr_holds_the_very_pixels_and_the_metadata_of_the_view(
    tmp_path: Path, slide: CompressedSlide, ngff: str, codec: str
) -> None:
    export(slide, tmp_path / "a.zarr", ngff=ngff, codec=codec)  # type: ignore[arg-type]  # the versions that there are
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    for level in range(2):
        array = group[str(level)]
        assert np.array_equal(array[:].transpose(1, 2, 0), whole(slide, level))
        assert array.chunks == (3, 512, 512)
        assert array.shards == ((3, 4096, 4096) if ngff == "0.5" else None)
    view = zarr.open_group(histocodec.view(slide, version=ngff), mode="r")  # type: ignore[arg-type]
    told = dict(group.attrs)
    facts = told.pop("histocodec_export")
    assert told == dict(view.attrs)
    assert facts["lossy_compression"][0][0]["method"] == "histocodec (model tiny-0, quality 60)"
    for name in IMAGES:
        assert np.array_equal(group[f"associated/{name}/0"][:].transpose(1, 2, 0), slide.associated[name])


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_ome_zarr_is_valid(tmp_path: Path, slide: CompressedSlide, ngff: str) -> None:
    models = pytest.importorskip("ome_zarr_models")
    export(slide, tmp_path / "a.zarr", ngff=ngff)  # type: ignore[arg-type]
    model = models.open_ome_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r"))
    assert type(model).__name__ == "Image"


# What was asked for.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.ome.tif", "ome-tiff"),
        ("A.OME.TIFF", "ome-tiff"),
        ("a.tif", "tiff"),
        ("a.ome.zarr", "ome-zarr"),
        ("a.dicom", "dicom"),
        ("a.dcm", "dicom"),
    ],
)
def test_the_name_chooses_the_format(name: str, kind: str) -> None:
    assert kind_of(Path(name)) == kind


@pytest.mark.parametrize("name", ["a", "a.png", ".tif"])
def test_a_name_that_says_nothing_is_refused_with_those_that_do(name: str) -> None:
    with pytest.raises(UsageError, match=r"\.ome\.tif.*--format"):
        kind_of(Path(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "htj2k"}, "jpeg or deflate"),
        ({"quality": 101}, "1 to 100"),
        ({"quality": 89.5}, "whole number"),
        ({"codec": "deflate", "quality": 90}, "leave --quality out"),
        ({"mpp": 0.5}, "leave --mpp out"),
        ({"ngff": "0.3"}, "0.5 and 0.4"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(
    tmp_path: Path, slide: CompressedSlide, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export(slide, tmp_path / "a.tif", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_resolution_that_is_not_known_is_said_and_can_be_given(tmp_path: Path, bare: Path) -> None:
    done = export(bare, tmp_path / "a.ome.tif", device="cpu")
    assert "--mpp" in done.notes[0]
    assert "PhysicalSize" not in tifffile.tiffcomment(tmp_path / "a.ome.tif")
    done = export(bare, tmp_path / "b.ome.tif", device="cpu", mpp=0.5)
    assert (done.mpp, done.notes) == ((0.5, 0.5), ())
    assert 'PhysicalSizeX="0.5"' in tifffile.tiffcomment(tmp_path / "b.ome.tif")


# Complete or absent.


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.zarr"])
def test_what_exists_is_replaced_on_demand_alone(tmp_path: Path, slide: CompressedSlide, name: str) -> None:
    export(slide, tmp_path / name)
    with pytest.raises(OutputError, match="--overwrite"):
        export(slide, tmp_path / name)
    export(slide, tmp_path / name, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.zarr", "a.dicom"])
def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path, slide: CompressedSlide, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.doc").write_text("years of work")
    with pytest.raises(OutputError, match="leaves it alone"):
        export(slide, tmp_path / name, overwrite=True)
    assert (tmp_path / name / "thesis.doc").read_text() == "years of work"


def test_a_container_is_never_replaced(tmp_path: Path, tiny_file: Path, slide: CompressedSlide) -> None:
    rich_container(tmp_path / "b.zarr", tiny_file)
    with pytest.raises(OutputError, match="leaves it alone"):
        export(slide, tmp_path / "b.zarr", overwrite=True)
    with reopened(tmp_path / "b.zarr") as still:
        assert still.level_count == 2


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.zarr"])
def test_an_export_that_is_interrupted_leaves_what_was_there(
    tmp_path: Path, container: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reopened(container) as slide:
        export(slide, tmp_path / name)
        before = module.file_bytes(tmp_path)

        def read(region: Region, level: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(slide, "read", read)
        with pytest.raises(KeyboardInterrupt):
            export(slide, tmp_path / name, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert module.file_bytes(tmp_path) == before


# The command line.


def test_the_command_says_what_it_wrote(tmp_path: Path, container: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.ome.tif"
    assert run(["export", str(container), str(out), "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["codec"], told["quality"], told["levels"]) == ("ome-tiff", "jpeg", 90, 2)
    assert told["bytes"] == out.stat().st_size
    assert told["associated"] == list(IMAGES)
    assert "JPEG at quality 90" in told["history"]
    assert run(["export", str(container), str(tmp_path / "b.tif"), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "tiff, 2 levels" in printed.out
    assert "associated images were left out" in printed.err
