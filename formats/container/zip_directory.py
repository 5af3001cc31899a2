"""The directory of a ZIP archive that may be hostile, and the header before each of its entries.

Taken are archives that any program reads in the same way: entries that are stored without compression or encryption,
under names of their own, back to back or with gaps, but never one upon another. ZIP64 is allowed. The archive begins
with its first entry, so it is not appended to anything else.
"""

import io
import stat
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from histocodec.errors import FormatError

LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")  # and then the name and the extra field
END = struct.Struct("<4sHHHHIIH")  # and then the comment
END_MAGIC = b"PK\5\6"
LOCAL_MAGIC = b"PK\3\4"
MAX_DIRECTORY = 8 << 20  # bytes: a hundred thousand entries, which take 100 MiB as Python objects
MAX_NAME = 512  # characters of an entry's name
UTF8 = 0x800  # the only flag that may be set: how the name is written
# What zipfile raises for archives that are damaged.
ZIP_ERRORS = (
    zipfile.BadZipFile, NotImplementedError, ValueError, LookupError, OSError, OverflowError, EOFError, struct.error
)  # fmt: skip
IN_ZIP64 = 0xFFFFFFFF  # a size that stands in the extra field
MANY = 0xFFFF  # a number of entries that stands in the end record of ZIP64


@dataclass(frozen=True)
class Entry:
    """One entry: where its header begins, how it is described, and where at the latest its data end."""

    key: str
    header: int
    raw_name: bytes
    flags: int
    crc: int
    size: int
    end: int  # where the next entry or the directory begins

    @property
    def start(self) -> int | None:
        """Where its data begin, as far as the directory can tell: where there is no room for an extra field."""
        start = self.header + LOCAL_HEADER.size + len(self.raw_name)
        return start if start + self.size == self.end else None


def read_directory(file: BinaryIO, name: str) -> dict[str, Entry]:
    """The entries of an archive by key, those of folders left out. `file` must refuse to read more than MAX_DIRECTORY
    bytes at once. Raises FormatError, which begins with `name`, for an archive that is damaged, or not of this kind."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos, directory, comment = archive.infolist(), archive.start_dir, archive.comment
        file.seek(-END.size - len(comment), io.SEEK_END)
        magic, _, _, on_disk, total, _, offset, comment_bytes = END.unpack(file.read(END.size))
    except ZIP_ERRORS as exc:
        raise FormatError(f"{name}: is no sound ZIP archive: {exc}") from exc
    if magic != END_MAGIC or comment_bytes != len(comment) or offset not in (directory, IN_ZIP64):
        raise FormatError(f"{name}: does not end with its ZIP directory (cut short, or appended to)")
    if not infos:
        raise FormatError(f"{name}: is a ZIP archive without entries")
    if not {on_disk, total} <= {len(infos), MANY}:  # programs that believe the count would see other entries
        raise FormatError(f"{name}: its ZIP directory has {len(infos)} entries, but its end says {total}")
    infos.sort(key=lambda info: info.header_offset)
    if infos[0].header_offset != 0:
        raise FormatError(f"{name}: does not begin with the first entry of its ZIP directory")
    entries: dict[str, Entry] = {}
    ends = [*(info.header_offset for info in infos[1:]), directory]
    for info, end in zip(infos, ends, strict=True):
        entry = _entry(info, end, name)
        if entry.key in entries:
            raise FormatError(f"{name}: has two entries {entry.key}")
        entries[entry.key] = entry
    files = {key: entry for key, entry in entries.items() if not key.endswith("/")}
    _check_folders(files, name)
    return files


def _entry(info: zipfile.ZipInfo, end: int, name: str) -> Entry:
    shown = info.orig_filename[:80]
    key = checked_name(info.orig_filename, name)
    if info.flag_bits & ~UTF8:
        encrypted = "is encrypted" if info.flag_bits & 1 else f"has flags {info.flag_bits:#x}"
        raise FormatError(f"{name}: entry {shown} {encrypted}; only plain entries are allowed, whose sizes are known")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise FormatError(
            f"{name}: entry {shown} is compressed; entries must be stored, so that parts of them can be read "
            "(`zip -0`, or `histocodec pack`)"
        )
    if stat.S_ISLNK(info.external_attr >> 16):
        raise FormatError(f"{name}: entry {shown} is a link; a container consists of folders and regular files")
    if key.endswith("/") and info.file_size:
        raise FormatError(f"{name}: entry {shown} is a folder with {info.file_size} bytes")
    raw_name = info.orig_filename.encode("utf-8" if info.flag_bits & UTF8 else "cp437")
    needed = LOCAL_HEADER.size + len(raw_name) + info.file_size
    if info.header_offset + needed > end:
        raise FormatError(
            f"{name}: entry {shown} needs {needed} bytes from byte {info.header_offset}, but something else begins at "
            f"byte {end}"
        )
    return Entry(key, info.header_offset, raw_name, info.flag_bits, info.CRC, info.file_size, end)


def checked_name(key: str, name: str) -> str:
    """A relative path with slashes, which leads nowhere else. Raises FormatError for other names."""
    parts = key.removesuffix("/").split("/")
    if len(key) > MAX_NAME or not key.isprintable() or "\\" in key or not {"", ".", ".."}.isdisjoint(parts):
        raise FormatError(f"{name}: has an entry named {key[:80]!r}, which is no relative path within it")
    if ":" in parts[0]:
        raise FormatError(f"{name}: has an entry named {key[:80]!r}, which may lead to another drive")
    return key


def _check_folders(files: Iterable[str], name: str) -> None:
    """Raises FormatError where a file would have to be a folder as well."""
    for before, after in pairwise(sorted(files, key=lambda key: key.split("/"))):
        if after.startswith(f"{before}/"):
            raise FormatError(f"{name}: entry {before} is a file and the folder of {after}")


def start_of(entry: Entry, header: bytes, where: str) -> int:
    """Where the data of an entry begin, from the first bytes of it: its header, name included. Raises FormatError,
    which begins with `where`, unless the header says what the directory says."""
    if len(header) < LOCAL_HEADER.size + len(entry.raw_name):
        raise FormatError(f"{where}: its header is cut short")
    magic, _, flags, method, _, _, crc, stored, size, name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(header)
    start = entry.header + LOCAL_HEADER.size + name_bytes + extra_bytes
    name = header[LOCAL_HEADER.size : LOCAL_HEADER.size + len(entry.raw_name)]
    differing = {
        "signature": magic != LOCAL_MAGIC,
        "name": name_bytes != len(entry.raw_name) or name != entry.raw_name,
        "flags": flags != entry.flags,
        "compression": method != zipfile.ZIP_STORED,
        "CRC": crc != entry.crc,
        "size": not {stored, size} <= {entry.size, *([IN_ZIP64] if extra_bytes else [])},
        "place": start + entry.size > entry.end,
    }
    for field, differs in differing.items():
        if differs:
            raise FormatError(f"{where}: its {field} in the ZIP archive is not what the archive's directory says")
    return int(start)
