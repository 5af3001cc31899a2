"""ZIP archives: what a hostile one may not do, and what an honest one may."""

import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from histocodec.errors import FormatError, UnsupportedError
from histocodec.formats.container import zip_directory, zipped
from histocodec.formats.container.store import open_store
from histocodec.formats.decode.open import open_slide

LOCAL, CENTRAL, END = struct.Struct("<4sHHHHHIIIHH"), struct.Struct("<4sHHHHHHIIIHHHHHII"), struct.Struct("<4sHHHHIIH")
IN_ZIP64 = 0xFFFFFFFF


@dataclass(frozen=True)
class Described:
    """What a header, or the directory, says of an entry; None: the truth."""

    name: bytes | None = None
    flags: int = 0
    method: int = 0
    crc: int | None = None
    stored: int | None = None
    size: int | None = None
    offset: int | None = None
    attributes: int = 0
    extra: bytes = b""


@dataclass(frozen=True)
class Forged:
    """An entry as a forger writes it."""

    name: bytes
    data: bytes
    local: Described = Described()
    central: Described = Described()


def values(entry: Forged, said: Described) -> tuple[bytes, int, int, int]:
    return (
        entry.name if said.name is None else said.name,
        zlib.crc32(entry.data) if said.crc is None else said.crc,
        len(entry.data) if said.stored is None else said.stored,
        len(entry.data) if said.size is None else said.size,
    )


def lengths_of(name: bytes, said: Described) -> tuple[int, int]:
    return len(name), len(said.extra)


def archive(
    *entries: Forged, prefix: bytes = b"", comment: bytes = b"", directory: int | None = None, count: int | None = None
) -> bytes:
    """The bytes of a ZIP archive; `directory` is where its end says that the directory is, and `count` how many entries
    its end says that it has."""
    body, central = bytearray(prefix), bytearray()
    for entry in entries:
        at = len(body)
        said = entry.local
        name, crc, stored, size = values(entry, said)
        body += LOCAL.pack(b"PK\3\4", 20, said.flags, said.method, 0, 33, crc, stored, size, *lengths_of(name, said))
        body += name + said.extra + entry.data
        said = entry.central
        name, crc, stored, size = values(entry, said)
        central += CENTRAL.pack(
            b"PK\1\2", 0x314, 20, said.flags, said.method, 0, 33, crc, stored, size, *lengths_of(name, said), 0, 0, 0,
            said.attributes << 16, at if said.offset is None else said.offset,
        )  # fmt: skip
        central += name + said.extra
    start = len(body) if directory is None else directory
    said_count = len(entries) if count is None else count
    end = END.pack(b"PK\5\6", 0, 0, said_count, said_count, len(central), start, len(comment))
    return bytes(body + central) + end + comment


A, B = Forged(b"a", b"first"), Forged(b"b/c", b"second")


def read_all(data: bytes, folder: Path) -> dict[str, bytes]:
    (folder / "a.hcz").write_bytes(data)
    store = open_store(folder / "a.hcz")
    return {key: store.read(key, 1000) for key in sorted(store.keys())}


def test_an_honest_archive_is_read(tmp_path: Path) -> None:
    assert read_all(archive(A, B, comment=b"{}"), tmp_path) == {"a": b"first", "b/c": b"second"}


@pytest.mark.parametrize(
    "honest",
    [
        archive(replace(A, local=Described(extra=b"ux\4\0abcd")), B),
        archive(Forged(b"b/", b""), A, B),
        archive(Forged("ü".encode(), b"x", Described(flags=0x800), Described(flags=0x800)), B),
        archive(
            replace(
                A,
                local=Described(stored=IN_ZIP64, size=IN_ZIP64, extra=struct.pack("<HHQQ", 1, 16, 5, 5)),
                central=Described(stored=IN_ZIP64, size=IN_ZIP64, extra=struct.pack("<HHQQ", 1, 16, 5, 5)),
            ),
            B,
        ),
    ],
    ids=["extra field", "folder", "UTF-8", "ZIP64"],
)
def test_what_other_programs_write_is_read(tmp_path: Path, honest: bytes) -> None:
    read = read_all(honest, tmp_path)
    assert read["b/c"] == b"second"
    assert len(read) == 2


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (archive(A, A), "two entries a"),
        (archive(A, replace(B, central=Described(offset=0))), "something else begins at"),
        (archive(A, replace(B, central=Described(offset=3))), "something else begins at"),
        (archive(A, replace(B, central=Described(stored=7, size=7))), "something else begins at"),
        (archive(A, replace(B, local=Described(flags=1), central=Described(flags=1))), "is encrypted"),
        (archive(A, replace(B, local=Described(flags=8), central=Described(flags=8))), "has flags 0x8"),
        (archive(A, replace(B, local=Described(method=8), central=Described(method=8))), "is compressed"),
        (archive(A, replace(B, central=Described(size=1 << 30))), "is compressed"),
        (archive(A, replace(B, central=Described(name=b"d/e"))), "its name in the ZIP archive"),
        (archive(A, replace(B, local=Described(flags=1))), "its flags in the ZIP archive"),
        (archive(A, replace(B, local=Described(method=8))), "its compression in the ZIP archive"),
        (archive(A, replace(B, local=Described(crc=1))), "its CRC in the ZIP archive"),
        (archive(A, replace(B, local=Described(size=3, stored=3))), "its size in the ZIP archive"),
        (archive(replace(A, central=Described(stored=4, size=4, crc=0)), B), "its CRC in the ZIP archive"),
        (archive(A, replace(B, central=Described(attributes=0o120777))), "is a link"),
        (archive(A, Forged(b"a/b", b"x")), "is a file and the folder of a/b"),
        (archive(A, Forged(b"b/", b"x")), "is a folder with 1 bytes"),
        (archive(A, B, prefix=b"MZ and a program"), "does not begin with the first entry"),
        (archive(A, B, directory=7), "ZIP"),
        (archive(A, B) + b"more", "ZIP"),
        (archive(A, B, count=1), "has 2 entries, but its end says 1"),
        (archive(A, B, comment=b"1234")[:-1], "cut short"),
        (archive(A, B)[:-1], "no sound ZIP archive"),
        (archive(), "without entries"),
        (b"", "ZIP"),
        (b"PK\3\4", "no sound ZIP archive"),
        *(
            (archive(A, Forged(name, b"x")), "no relative path")
            for name in (b"../a", b"/a", b"b/../../c", b"b//c", b"./b", b"b\\..\\c", b"b\0c", b"b\nc", b"n" * 600)
        ),
        (archive(A, Forged(b"C:/b", b"x")), "another drive"),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, hostile: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_all(hostile, tmp_path)


def test_headers_are_compared_by_verify_even_where_nothing_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.hcz").write_bytes(archive(A, replace(B, local=Described(name=b"d/e"))))
    problems = list(open_store(tmp_path / "a.hcz").problems())
    assert len(problems) == 1 and "b/c: its name" in problems[0]


def test_an_archive_of_empty_entries_by_the_million_takes_no_memory(tmp_path: Path) -> None:
    entry = CENTRAL.pack(b"PK\1\2", 0x314, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = zip_directory.MAX_DIRECTORY // len(entry) + 1
    local = LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, 1, 0) + b"a"
    end = END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, count * len(entry), len(local), 0)
    (tmp_path / "a.hcz").write_bytes(local + entry * count + end)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="directory would have"):
            open_store(tmp_path / "a.hcz")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_sparse_file_of_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    with (tmp_path / "a.hcz").open("wb") as file:
        file.write(b"PK\3\4")
        file.truncate(30 << 30)
    with pytest.raises(FormatError, match="no sound ZIP archive"):
        open_store(tmp_path / "a.hcz")


def test_an_archive_that_is_replaced_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.hcz").write_bytes(archive(A, B))
    store = open_store(tmp_path / "a.hcz")
    (tmp_path / "b.hcz").write_bytes(archive(B, A))
    (tmp_path / "b.hcz").replace(tmp_path / "a.hcz")
    with pytest.raises(FormatError, match="was changed or replaced"):
        store.read("a", 9)


def test_a_link_to_an_archive_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.hcz").write_bytes(archive(A, B))
    (tmp_path / "link.hcz").symlink_to(tmp_path / "a.hcz")
    assert open_store(tmp_path / "link.hcz").read("a", 9) == b"first"


def test_pythons_zipfile_and_we_see_the_same_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for number in range(30):
            file.writestr(f"folder/{number}", bytes(number))
    store = open_store(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert dict(store.entries()) == {info.filename: info.file_size for info in file.infolist()}
        assert all(store.read(name, 99) == file.read(name) for name in file.namelist())


@pytest.mark.parametrize("change", [lambda data: data, lambda data: data[:-9]])
def test_no_changed_byte_crashes(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    data = change(archive(A, B, comment=b"{}"))
    for at in range(len(data)):
        for bit in (0, 4, 7):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            with suppress(FormatError):
                read_all(bytes(changed), tmp_path)


def test_an_archive_of_something_else_is_no_container(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "letter.docx", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("word/document.xml", bytes(1000))
    with pytest.raises(UnsupportedError, match="is no slide or image"):
        open_slide(tmp_path / "letter.docx")


def test_a_compressed_container_is_told_how_to_become_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "slide.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zarr.json", bytes(1000))
    with pytest.raises(FormatError, match="histocodec pack"):
        open_slide(tmp_path / "slide.zip")


def test_the_suffix_names_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.hcz").write_bytes(b"no archive")
    assert zipped.is_zip(tmp_path / "a.hcz")
    with pytest.raises(FormatError, match="no sound ZIP archive"):
        open_store(tmp_path / "a.hcz")
