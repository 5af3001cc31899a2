"""Focal planes, optical paths, scenes and frames that are not read are named; a file read whole has no notes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from histocodec.cli.main import run
from histocodec.errors import UnsupportedError
from histocodec.slide import notes_of
from histocodec.sources import open_slide
from histocodec.sources.left_out import left_out, why_refused
from tests.support.vendors import (
    JPEG,
    reduced,
    tissue,
    write_dicom,
    write_leica,
    write_mrxs,
    write_ndpi,
    write_svs,
    write_vms,
)

SECTION = tissue(1024, 768)


def notes(path: Path) -> tuple[str, ...]:
    with open_slide(path) as slide:
        return notes_of(slide)


def mrxs(path: Path, count: int) -> Path:
    write_mrxs(path, SECTION)
    ini = path.with_suffix("") / "Slidedat.ini"
    focus = f"HIER_COUNT = 2\nHIER_1_NAME = Microscope focus level\nHIER_1_COUNT = {count}"
    ini.write_text(ini.read_text().replace("HIER_COUNT = 1", focus))
    return path


def generic(path: Path, *further: tuple[int, int]) -> Path:
    with tifffile.TiffWriter(path) as writer:
        writer.write(SECTION, tile=(256, 256), **JPEG)
        writer.write(reduced(SECTION, 2), tile=(256, 256), subfiletype=1, **JPEG)
        for width, height in further:
            writer.write(tissue(width, height), tile=(128, 128), **JPEG)
    return path


def zarr_images(path: Path, *names: str) -> Path:
    root = zarr.open_group(path, mode="w", zarr_format=2, attributes={"bioformats2raw.layout": 3})
    axes = [{"name": name, "type": "space"} for name in "yx"] + [{"name": "c", "type": "channel"}]
    for name in names:
        listed = {"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}
        group = root.create_group(name, attributes={"multiscales": [listed]})
        group.create_array("0", data=np.full((8, 9, 3), 200, np.uint8))
    return path


def frames(path: Path, count: int) -> Path:
    images = [Image.fromarray(reduced(SECTION, step)) for step in [16] * count]
    for number, image in enumerate(images):
        image.putpixel((0, 0), (number, 0, 0))
    images[0].save(path, save_all=count > 1, append_images=images[1:], lossless=True)
    return path


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda to: write_ndpi(to / "a.ndpi", SECTION, offsets=(0, -1000, 1000)),
            "2 further focal planes at -1000, 1",
        ),
        (
            lambda to: write_ndpi(to / "a.ndpi", SECTION, offsets=(0, 500)),
            "1 further focal plane at 500 is in",
        ),
        (lambda to: write_vms(to / "a.vms", SECTION, layers=3), "2 further focal planes are in the file, and not read"),
        (lambda to: write_leica(to / "a.scn", [(SECTION, 0, 0)], depths=3), "2 further focal planes are in the file"),
        (lambda to: write_dicom(to / "a", SECTION, optical_paths=2, frames=2), "2 optical paths are in the file"),
        (lambda to: write_dicom(to / "a", SECTION, frames=3), "36 frames are in the file for 12 tiles"),
        (lambda to: mrxs(to / "a.mrxs", 9), "9 of 'Microscope focus level' are in the file; only the first is read"),
        (lambda to: generic(to / "a.tif", (300, 400)), "image 2 of 300x400 pixels is not read"),
        (lambda to: zarr_images(to / "a.zarr", "0", "1", "10"), "3 images are in the folder, called 0, 1, 10"),
        (lambda to: frames(to / "a.webp", 2), "the file has further images"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, make: Callable[[Path], Path], expected: str) -> None:
    (note,) = notes(make(tmp_path))
    assert expected in note


@pytest.mark.parametrize(
    "make",
    [
        lambda to: write_ndpi(to / "a.ndpi", SECTION),
        lambda to: write_vms(to / "a.vms", SECTION),
        lambda to: write_leica(to / "a.scn", [(SECTION, 0, 0)]),
        lambda to: write_dicom(to / "a", SECTION),
        lambda to: mrxs(to / "a.mrxs", 1),
        lambda to: write_svs(to / "a.svs", SECTION),
        lambda to: generic(to / "a.tif"),
        lambda to: zarr_images(to / "a.zarr", "0"),
        lambda to: frames(to / "a.webp", 1),
    ],
)
def test_a_file_that_is_read_whole_has_no_notes(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    assert notes(make(tmp_path)) == ()


@pytest.mark.parametrize("name", ["a.ndpi", "a.vms"])
def test_the_plane_in_focus_is_the_one_that_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.ndpi":
        write_ndpi(path, SECTION, offsets=(-500, 0, 500))
    else:
        write_vms(path, SECTION, layers=2)
    with open_slide(path) as slide:
        pixels = slide.read(slide.levels[0].region, 0)
    assert np.abs(pixels.astype(int) - SECTION).mean() < 3


def test_dicom_with_several_focal_planes_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "a", SECTION, focal_planes=3, frames=3)
    with pytest.raises(UnsupportedError, match=r"several focal planes, of which none is read; save"):
        open_slide(file)


def test_info_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_ndpi(tmp_path / "a.ndpi", SECTION, offsets=(0, 500))
    assert run(["info", str(path), "--json"]) == 0
    assert "1 further focal plane" in json.loads(capsys.readouterr().out)["notes"][0]


def test_counts_of_other_vendors_and_odd_ones_are_understood_or_passed_over(tmp_path: Path) -> None:
    layers = {"openslide.vendor": "ventana", "ventana.Z-layers": "5"}
    assert left_out(tmp_path, layers, ()) == ("4 further focal planes are in the file, and not read",)
    assert left_out(tmp_path, layers | {"ventana.Z-layers": "many"}, ()) == ()
    assert left_out(tmp_path / "none", {"openslide.vendor": "leica"}, ()) == ()


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Reading a.dcm: Attribute TotalPixelMatrixFocalPlanes value 3 != 1", "focal planes"),
        ('Unrecognized subblock dimension "Z"', "focal planes"),
        ("Nonzero subblock channel 1", "channels"),
        ("Unrecognized transfer syntax", ""),
    ],
)
def test_what_openslide_refuses_is_explained(message: str, kind: str) -> None:
    assert why_refused(message) == "" if not kind else f"several {kind}" in why_refused(message)


@pytest.mark.parametrize("ome", [False, True])
def test_of_many_images_that_are_not_read_the_first_are_named(tmp_path: Path, ome: bool) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=ome) as writer:
        writer.write(SECTION, tile=(256, 256), **{**JPEG, "metadata": {} if ome else None})
        for number in range(20):
            small = tissue(100 + 30 * number, 90)
            writer.write(small, tile=(64, 64), **{**JPEG, "metadata": {} if ome else None})
    *_, last = found = notes(path)
    assert len(found) == 9
    assert last == "12 further images are not read"
