"""A source or a target that fails: the right exit code, and nothing half done."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tifffile
import zarr

from histocodec.cli.main import run
from histocodec.errors import HistocodecError
from histocodec.formats.container.read import open_container
from histocodec.formats.encode import plan as planner
from histocodec.formats.encode.journal import journal_path, partial_path
from histocodec.sources.synthetic import synthetic_slide
from tests.support.commands import Captured, all_files, decoding, encoding, failure, problems


def test_an_unreadable_tile_is_exit_code_1_and_leaves_nothing(
    capsys: Captured, jpeg_tiff: Path, tiny_file: Path
) -> None:
    with tifffile.TiffFile(jpeg_tiff) as file:
        page = file.pages.first
        offset, size = page.dataoffsets[4], page.databytecounts[4]
    data = bytearray(jpeg_tiff.read_bytes())
    data[offset : offset + size] = bytes(size)
    jpeg_tiff.write_bytes(data)
    target = jpeg_tiff.parent / "a.zarr"
    code, line = failure(capsys, *encoding(jpeg_tiff, target, tiny_file))
    assert code == 1
    assert "slide.tif" in line
    assert sorted(path.name for path in jpeg_tiff.parent.iterdir()) == ["slide.tif"]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_a_truncated_source_is_refused_and_leaves_nothing(
    capsys: Captured, jpeg_tiff: Path, tiny_file: Path, share: float
) -> None:
    data = jpeg_tiff.read_bytes()
    jpeg_tiff.write_bytes(data[: int(len(data) * share)])
    target = jpeg_tiff.parent / "a.zarr"
    code, line = failure(capsys, *encoding(jpeg_tiff, target, tiny_file))
    assert code in (1, 4)
    assert "slide.tif" in line
    assert sorted(path.name for path in jpeg_tiff.parent.iterdir()) == ["slide.tif"]


@pytest.mark.slow
def test_a_source_that_fails_late_leaves_the_old_container(capsys: Captured, jpeg_tiff: Path, tiny_file: Path) -> None:
    target = jpeg_tiff.parent / "a.zarr"
    assert run([str(one) for one in encoding(jpeg_tiff, target, tiny_file)]) == 0
    before = {name: (target / name).read_bytes() for name in all_files(target)}
    data = jpeg_tiff.read_bytes()
    jpeg_tiff.write_bytes(data[: len(data) // 2])
    code, _ = failure(capsys, *encoding(jpeg_tiff, target, tiny_file, "--overwrite"))
    assert code in (1, 4)
    assert {name: (target / name).read_bytes() for name in all_files(target)} == before
    assert sorted(path.name for path in jpeg_tiff.parent.iterdir()) == ["a.zarr", "slide.tif"]


def test_a_directory_that_is_no_slide_is_exit_code_4(capsys: Captured, tmp_path: Path, tiny_file: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("hello")
    for command in (encoding(tmp_path / "photos", tmp_path / "a.zarr", tiny_file), decoding(tmp_path / "photos")):
        code, line = failure(capsys, *command)
        assert code == 4
        assert "photos" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_a_source_that_does_not_exist_is_exit_code_2(capsys: Captured, tmp_path: Path, tiny_file: Path) -> None:
    code, line = failure(capsys, *encoding(tmp_path / "none.svs", tmp_path / "a.zarr", tiny_file))
    assert code == 2
    assert "none.svs" in line
    assert list(tmp_path.iterdir()) == []


# Targets.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if mount is None or os.geteuid() != 0 or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_exit_code_1_and_what_is_left_can_be_resumed(
    capsys: Captured, sound_folder: Path, small_disk: Path, tiny_file: Path
) -> None:
    code, line = failure(capsys, *encoding(sound_folder / "slide.tif", small_disk / "a.zarr", tiny_file))
    assert code == 1
    assert "No space left on device" in line
    assert sorted(path.name for path in small_disk.iterdir()) == ["a.zarr.journal", "a.zarr.partial"]
    with pytest.raises(HistocodecError):
        open_container(partial_path(small_disk / "a.zarr"))


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 2, 8, 16])
def test_a_disk_that_fills_at_any_write_leaves_what_can_be_resumed(
    capsys: Captured, sound_folder: Path, tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    target, real, left = tmp_path / "a.zarr", os.fsync, [after]

    def full(descriptor: int) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        real(descriptor)

    given = encoding(sound_folder / "slide.tif", target, tiny_file)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, line = failure(capsys, *given)
    assert code == 1
    assert "No space left on device" in line
    assert not target.exists()
    assert not list(tmp_path.rglob("*.tmp"))
    assert run([*map(str, given), "--resume"]) == 0
    assert problems(capsys, target, "--quick") == (0, [])
    assert not journal_path(target).exists()


def test_a_folder_that_may_not_be_written_to_is_exit_code_1(
    capsys: Captured, sound_folder: Path, tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.access(locked, os.W_OK):  # root may write anywhere
        real = os.open

        def refused(path: Any, *arguments: Any, **options: Any) -> int:
            if str(path).startswith(str(locked)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, "open", refused)
    code, line = failure(capsys, *encoding(sound_folder / "slide.tif", locked / "a.zarr", tiny_file))
    assert code == 1
    assert "locked/a.zarr" in line
    assert "Permission denied" in line
    assert list(locked.iterdir()) == []


# What appears, vanishes or comes from elsewhere.


def test_a_source_that_vanishes_is_exit_code_1_and_is_not_encoded_as_black(
    capsys: Captured, tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that Zarr does not find reads as its fill value."""
    source = tmp_path / "slide.zarr"
    zarr.create_array(source, data=synthetic_slide(600, 400, seed=3), chunks=(100, 100, 3))
    real = planner.tissue_stats

    def and_then_nothing(*given: Any, **options: Any) -> Any:
        found = real(*given, **options)
        shutil.rmtree(source)
        return found

    monkeypatch.setattr(planner, "tissue_stats", and_then_nothing)
    code, line = failure(capsys, *encoding(source, tmp_path / "a.zarr", tiny_file, "--levels", "0"))
    assert code == 1
    assert "slide.zarr" in line
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.slow
def test_a_source_that_changes_while_it_is_read_is_exit_code_1(
    capsys: Captured, jpeg_tiff: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = planner.tissue_stats

    def and_then_later(*given: Any, **options: Any) -> Any:
        os.utime(jpeg_tiff, ns=(0, 7))
        return real(*given, **options)

    monkeypatch.setattr(planner, "tissue_stats", and_then_later)
    code, line = failure(capsys, *encoding(jpeg_tiff, jpeg_tiff.parent / "a.zarr", tiny_file))
    assert code == 1
    assert "slide.tif: changed or vanished while it was read" in line
    assert not (jpeg_tiff.parent / "a.zarr").exists()
