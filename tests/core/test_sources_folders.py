"""Slides of several files: found in a folder by their content, and counted whole."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from histocodec.errors import UnsupportedError
from histocodec.formats.encode.journal import source_identity
from histocodec.sources import open_slide
from histocodec.sources.dicom import series_of
from histocodec.sources.files import slide_bytes, slide_files
from tests.support.vendors import reduced, tissue, write_dicom, write_mrxs, write_vms

SECTION = tissue(600, 400)


def series(folder: Path, *names: str, uid: str = "1.2.3.1") -> list[Path]:
    """A DICOM slide of as many levels as there are names."""
    return [
        write_dicom(folder / name, reduced(SECTION, 2**number), series=uid, instance=number + 1)
        for number, name in enumerate(names)
    ]


@pytest.mark.parametrize(
    "names",
    [("a.dcm", "b.dcm"), ("A.DCM", "B.DCM"), ("00000001", "00000002"), ("sub/1", "sub/2"), ("x/y/1.dcm", "x/y/2.DCM")],
)
def test_a_dicom_slide_is_found_by_its_content(tmp_path: Path, names: tuple[str, ...]) -> None:
    files = series(tmp_path, *names)
    (tmp_path / "README.txt").write_text("not DICOM, though it lies here " * 20)
    with open_slide(tmp_path) as slide:
        assert slide.name == str(files[0])
        assert [(level.width, level.height) for level in slide.levels] == [(600, 400), (300, 200)]
        assert np.array_equal(slide.read(slide.levels[0].region, 0), SECTION)
        assert slide.mpp == (0.25, 0.25)
    assert slide_bytes(files[0]) == sum(file.stat().st_size for file in files)


def test_of_two_series_one_has_to_be_named(tmp_path: Path) -> None:
    first, second = series(tmp_path, "a", "b"), series(tmp_path, "c", uid="1.2.3.2")
    with pytest.raises(UnsupportedError, match="give one file") as raised:
        open_slide(tmp_path)
    for part in ("1.2.3.1: 2 in", "1.2.3.2: 1 in", "such as a", "such as c"):
        assert part in str(raised.value)
    with open_slide(second[0]) as slide:
        assert len(slide.levels) == 1
    assert slide_files(first[0]) == first
    assert slide_files(second[0]) == second


def test_a_series_in_two_folders_has_to_be_named_too(tmp_path: Path) -> None:
    series(tmp_path, "x/a", "y/b")
    with pytest.raises(UnsupportedError, match="give one file"):
        open_slide(tmp_path)


def test_a_pipe_beside_dicom_files_is_refused(tmp_path: Path) -> None:
    (file,) = series(tmp_path, "a")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, file):
        with pytest.raises(UnsupportedError, match="pipe"):
            open_slide(path)


def test_a_folder_without_a_slide_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(128) + b"DICM" + bytes(50))
    with pytest.raises(UnsupportedError, match="no slide"):
        open_slide(tmp_path)


def test_a_series_is_named_by_the_top_of_a_file(tmp_path: Path) -> None:
    (file,) = series(tmp_path, "a")
    assert series_of(file) == "1.2.3.1"  # not 9.9.9, which stands inside a sequence before it
    data = file.read_bytes()
    for length in range(0, 700, 7):
        file.write_bytes(data[:length])
        assert series_of(file) in (None, "1.2.3.1")


def test_the_size_of_a_slide_is_that_of_all_its_files(tmp_path: Path) -> None:
    mrxs = write_mrxs(tmp_path / "a.mrxs", SECTION, levels=1)
    files = [mrxs, *(tmp_path / "a").iterdir()]
    assert slide_bytes(mrxs) == sum(file.stat().st_size for file in files) > mrxs.stat().st_size
    names = [f"{colour}.ome.tif" for colour in ("red", "green", "blue")]
    blocks = "".join(
        f'<TiffData FirstC="{number}" IFD="0"><UUID FileName="{name}">urn:uuid:{number}</UUID></TiffData>'
        for number, name in enumerate(names)
    )
    xml = f'<?xml version="1.0"?><OME><Image ID="Image:0"><Pixels ID="Pixels:0">{blocks}</Pixels></Image></OME>'
    for name in names:
        tifffile.imwrite(tmp_path / name, SECTION[..., 0], description=xml, metadata=None)
    assert slide_bytes(tmp_path / names[0]) == sum((tmp_path / name).stat().st_size for name in names)
    assert slide_bytes(tmp_path) == sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert slide_bytes(tmp_path / "nothing") is None


@pytest.mark.parametrize("name", ["a.vms", "A.VMS"])
def test_a_vms_slide_is_all_files_that_it_names(tmp_path: Path, name: str) -> None:
    path = write_vms(tmp_path / name, SECTION, layers=2)
    (tmp_path / "neighbour.jpg").write_bytes(b"of another slide")
    others = sorted(file for file in tmp_path.glob(f"{path.stem}*.jpg"))
    assert len(others) == 4  # two layers, the map and the macro image
    assert slide_files(path) == [path, *others]
    assert slide_bytes(path) == sum(file.stat().st_size for file in (path, *others))
    with open_slide(path) as slide:
        assert slide.levels[0].width == 600


def test_a_vmu_slide_is_all_files_that_it_names(tmp_path: Path) -> None:
    for name in ("a.ngr", "map.ngr", "macro.jpg"):
        (tmp_path / name).write_bytes(bytes(100))
    path = tmp_path / "a.vmu"
    listed = (
        "ImageFile = a.ngr\r\nImageFile(1)=gone.ngr\r\nMapFile=map.ngr\r\nMacroImage=macro.jpg\r\nSourceLens=20\r\n"
    )
    path.write_text(f"[Uncompressed Virtual Microscope Specimen]\r\n{listed}")
    assert slide_bytes(path) == path.stat().st_size + 300


def test_a_vms_slide_is_no_file_outside_its_folder_and_none_twice(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "slide"
    folder.mkdir()
    path = folder / "a.vms"
    (folder / "a.jpg").write_bytes(bytes(10))
    lines = [
        "ImageFile=a.jpg",
        "MapFile=a.jpg",
        "MacroImage=../secret",
        f"OptimisationFile={tmp_path}/secret",
        "X=a.vms",
        "Y=.",
    ]
    path.write_text("\n".join(["[Virtual Microscope Specimen]", *lines, ""]))
    assert slide_files(path) == [path, folder / "a.jpg"]


def test_an_encode_of_a_vms_slide_notices_another_file_of_it(tmp_path: Path) -> None:
    path = write_vms(tmp_path / "a.vms", SECTION)
    before = source_identity(path)
    assert before["size"] == slide_bytes(path)
    os.utime(tmp_path / "a_map2.jpg", ns=(0, 2**62))
    assert source_identity(path) != before
