"""What may lie at a path, or in a container, that is neither a folder nor a regular file, or was never listed."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from histocodec.cli.main import run
from histocodec.errors import FormatError, UnsupportedError
from histocodec.formats.container.arrays import Form, write_plain
from histocodec.formats.container.files import relative_files
from histocodec.formats.container.read import open_container
from histocodec.formats.container.version1.integrity import container_problems
from histocodec.sources import open_slide
from tests.support.containers import written

DEEP = 1200  # folders in folders: beyond what Python recurses into


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(30 << 30)


@pytest.mark.parametrize("command", ["info", "decode"])
@pytest.mark.parametrize("make", [pipe, endless, sparse])
@pytest.mark.parametrize("name", ["zarr.json", ".zgroup"])
def test_a_folder_whose_metadata_is_no_file_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None], name: str, command: str
) -> None:
    (tmp_path / "a").mkdir()
    make(tmp_path / "a" / name)
    output = [str(tmp_path / "out.png")] if command == "decode" else []
    assert run([command, str(tmp_path / "a"), *output]) in (3, 4)
    assert str(tmp_path / "a") in capsys.readouterr().err


def test_info_and_decode_agree_on_damaged_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "a")
    (tmp_path / "a/zarr.json").write_text("{")
    codes = {run(["info", str(tmp_path / "a")]), run(["decode", str(tmp_path / "a"), str(tmp_path / "out.png")])}
    assert codes == {3}


def test_a_pipe_is_no_slide(tmp_path: Path) -> None:
    pipe(tmp_path / "slide.svs")
    with pytest.raises(UnsupportedError, match="is a pipe or a device"):
        open_slide(tmp_path / "slide.svs")


def test_a_pipe_within_a_zarr_image_is_refused(tmp_path: Path) -> None:
    import zarr

    group = zarr.create_group(tmp_path / "a.zarr")
    array = group.create_array("0", shape=(8, 8), dtype="uint8")
    array[:] = 7
    (tmp_path / "a.zarr/0/zarr.json").unlink()
    pipe(tmp_path / "a.zarr/0/zarr.json")
    with pytest.raises(UnsupportedError):
        open_slide(tmp_path / "a.zarr")


@pytest.mark.parametrize("name", ["tiles/0/zarr.json", "stats/mean/c/0", "latents/0/zarr.json", "zarr.json"])
def test_a_file_that_is_a_link_is_refused_wherever_it_leads(tmp_path: Path, name: str) -> None:
    container = written(tmp_path / "a")
    (tmp_path / "a" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "a" / name).symlink_to(tmp_path / "elsewhere")
    assert any(f"{name}: is a link" in str(problem) for problem in container_problems(container))
    if name == "zarr.json":
        with pytest.raises(FormatError, match="is a link"):
            open_container(tmp_path / "a")


@pytest.mark.parametrize("name", ["tiles", "latents/0"])
def test_a_folder_that_is_a_link_is_refused_when_the_container_is_opened(tmp_path: Path, name: str) -> None:
    written(tmp_path / "a")
    (tmp_path / "a" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "a" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match=f"{name}: is a link"):
        open_container(tmp_path / "a")


@pytest.mark.parametrize(
    "name",
    [
        "associated/label/c/0/0/0",
        "latents/0/c/0/9/9",
        "latents/7/c/0/0/0",
        "tiles/7/zarr.json",
        "notes.txt",
        "model/weights/c/0",
    ],
)
def test_a_file_that_was_added_is_found(tmp_path: Path, name: str) -> None:
    container = written(tmp_path / "a")
    assert list(container_problems(container)) == []
    (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "a" / name).write_bytes(b"x")
    assert [str(problem) for problem in container_problems(container)] == [
        f"{tmp_path / 'a' / name}: is not listed in integrity/files, so it was added later"
    ]


@pytest.mark.parametrize(
    "listing",
    [
        b"0" * 64 + b"  a\x00b\n",
        b"0" * 64 + b"  ../a\n",
        b"z" * 64 + b"  a\n",
        b"0" * 64 + b"  a\n" + b"1" * 64 + b"  a\n",
    ],
)
def test_a_listing_that_names_no_file_or_one_twice_is_refused(tmp_path: Path, listing: bytes) -> None:
    container = written(tmp_path / "a")
    values = np.frombuffer(listing, np.uint8)
    write_plain(tmp_path / "a/integrity/files", Form(values.shape, "uint8"), values)
    assert any("integrity/files: line" in str(problem) for problem in container_problems(container))


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity"])
def test_metadata_with_numbers_that_are_none_is_no_json(tmp_path: Path, token: str) -> None:
    written(tmp_path / "a")
    file = tmp_path / "a/zarr.json"
    file.write_text(file.read_text().replace('"attributes":{', f'"attributes":{{"other":{token},', 1))
    with pytest.raises(FormatError, match="is not JSON"):
        open_container(tmp_path / "a")


def test_groups_of_other_programs_are_theirs(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    (tmp_path / "a/annotations").mkdir()
    (tmp_path / "a/annotations/zarr.json").write_text("{}")
    assert list(container_problems(container)) == []


def test_folders_may_be_nested_as_deeply_as_the_system_allows(tmp_path: Path) -> None:
    folders = ["d/" * depth for depth in range(1, DEEP + 1)]
    for folder in folders:
        (tmp_path / folder).mkdir()
    (tmp_path / folders[-1] / "a").write_bytes(b"")
    try:
        assert list(relative_files(tmp_path)) == [folders[-1] + "a"]
        assert run(["info", str(tmp_path)]) == 4
    finally:  # nobody else can remove them
        (tmp_path / folders[-1] / "a").unlink()
        for folder in reversed(folders):
            (tmp_path / folder).rmdir()
