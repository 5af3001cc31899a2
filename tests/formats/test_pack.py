"""A container as one file, and back."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr

import histocodec
from histocodec.cli.main import run
from histocodec.errors import FormatError, OutputError, UsageError
from histocodec.formats.container.pack import pack, unpack, write_zip
from histocodec.formats.container.read import open_container
from tests.formats.test_zip import A, Forged, archive
from tests.support.containers import written


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder_and_file(tmp_path: Path) -> tuple[Path, Path]:
    written(tmp_path / "a.hc.zarr")
    return tmp_path / "a.hc.zarr", tmp_path / "a.hcz"


def test_packing_and_unpacking_give_the_folder_back_byte_for_byte(folder_and_file: tuple[Path, Path]) -> None:
    folder, file = folder_and_file
    assert run(["pack", str(folder), str(file)]) == 0
    assert run(["unpack", str(file), str(folder.with_name("b"))]) == 0
    assert files(folder.with_name("b")) == files(folder)


def test_equal_folders_give_equal_archives(folder_and_file: tuple[Path, Path]) -> None:
    folder, file = folder_and_file
    pack(folder, file)
    unpack(file, folder.with_name("b"))
    pack(folder.with_name("b"), file.with_name("b.hcz"))
    assert file.read_bytes() == file.with_name("b.hcz").read_bytes()


def test_a_packed_slide_reads_as_the_folder_does(folder: Path, tmp_path: Path) -> None:
    pack(folder / "a.zarr", tmp_path / "a.hcz")
    with (
        histocodec.open(folder / "a.zarr", device="cpu") as plain,
        histocodec.open(tmp_path / "a.hcz", device="cpu") as packed,
    ):
        assert np.array_equal(plain.read_array(50, 60, 300, 200), packed.read_array(50, 60, 300, 200))
        assert np.array_equal(plain.latents(0)[:], packed.latents(0)[:])
    assert run(["verify", str(tmp_path / "a.hcz")]) == 0
    assert run(["info", str(tmp_path / "a.hcz")]) == 0


def test_zarr_opens_an_archive_without_us(folder: Path, tmp_path: Path) -> None:
    pack(folder / "a.zarr", tmp_path / "a.hcz")
    with zarr.storage.ZipStore(tmp_path / "a.hcz", mode="r") as store:
        group = zarr.open_group(store, mode="r")
        overview = group["overview"]
        assert isinstance(overview, zarr.Array)
        expected = open_container(folder / "a.zarr").overview()
        assert expected is not None and np.array_equal(overview[:], expected.transpose(2, 0, 1))


def test_metadata_come_first_and_shards_last(folder_and_file: tuple[Path, Path]) -> None:
    folder, file = folder_and_file
    pack(folder, file)
    with zipfile.ZipFile(file) as archive:
        names = [info.filename for info in sorted(archive.infolist(), key=lambda info: info.header_offset)]
        assert names == archive.namelist()  # the directory has the same order
        assert json.loads(archive.comment)["ome"]["zipFile"] == {"centralDirectory": {"jsonFirst": True}}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    metadata = [name for name in names if name.endswith("zarr.json")]
    assert names[0] == "zarr.json" and names[: len(metadata)] == metadata
    assert [name.count("/") for name in metadata] == sorted(name.count("/") for name in metadata)
    shards = [name for name in names if name.startswith("latents/") and "/c/" in name]
    assert shards and names[-len(shards) :] == shards


def test_an_archive_that_needs_zip64_is_written_and_read(
    folder_and_file: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = folder_and_file
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)  # bytes, where it is 2 GiB
    pack(folder, file)
    monkeypatch.undo()
    assert b"PK\6\6" in file.read_bytes()[-200:]
    unpack(file, folder.with_name("b"))
    assert files(folder.with_name("b")) == files(folder)


def test_what_exists_is_kept_unless_it_is_to_be_replaced(folder_and_file: tuple[Path, Path]) -> None:
    folder, file = folder_and_file
    file.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        pack(folder, file)
    with pytest.raises(OutputError, match="is no packed container"):
        pack(folder, file, overwrite=True)
    assert file.read_bytes() == b"mine"
    file.unlink()
    pack(folder, file)
    pack(folder, file, overwrite=True)
    with pytest.raises(OutputError, match="exists already"):
        unpack(file, folder)


def test_only_containers_are_packed_and_only_under_names_that_are_known(folder_and_file: tuple[Path, Path]) -> None:
    folder, file = folder_and_file
    with pytest.raises(UsageError, match="must end in"):
        pack(folder, file.with_suffix(".tar"))
    with pytest.raises(UsageError, match="lies in the folder"):
        pack(folder, folder / "a.hcz")
    pack(folder, file)
    with pytest.raises(UsageError, match="is one file already"):
        pack(file, file.with_name("b.hcz"))
    assert run(["pack", str(folder.parent), str(file.with_name("b.hcz"))]) == 4


def test_a_link_is_not_packed(folder_and_file: tuple[Path, Path]) -> None:
    folder, file = folder_and_file
    (folder / "tiles/0/c/0/1").symlink_to("/etc/hosts")
    with pytest.raises(FormatError, match="is a link"):
        pack(folder, file)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["a.hc.zarr"]


@pytest.mark.parametrize("damage", ["bytes", "header"])
def test_what_cannot_be_unpacked_leaves_nothing_behind(folder_and_file: tuple[Path, Path], damage: str) -> None:
    folder, file = folder_and_file
    write_zip(folder, file)
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        last = archive.infolist()[-1]
    data[last.header_offset + (14 if damage == "header" else 30 + len(last.filename))] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError, match="CRC"):
        unpack(file, folder.with_name("b"))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["a.hc.zarr", "a.hcz"]


def test_a_name_that_leads_elsewhere_is_not_unpacked(tmp_path: Path) -> None:
    written(tmp_path / "a")
    entries = [Forged(name.encode(), data) for name, data in files(tmp_path / "a").items()]
    entries.sort(key=lambda entry: entry.name != b"zarr.json")
    (tmp_path / "a.hcz").write_bytes(archive(*entries, Forged(b"../outside", b"x")))
    assert run(["unpack", str(tmp_path / "a.hcz"), str(tmp_path / "b")]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.hcz"]
    (tmp_path / "a.hcz").write_bytes(archive(*entries, A))
    unpack(tmp_path / "a.hcz", tmp_path / "b")
    assert (tmp_path / "b/a").read_bytes() == b"first"
