"""A container in one file: a ZIP archive whose entries are stored without compression, so that parts can be read.

    ┌ zarr.json ┬ other zarr.json … ┬ small arrays … ┬ shards … ┬ directory ┐

`Source` is the file, wherever it lies. Nothing but the directory is kept in memory.
"""

import io
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from histocodec.errors import FormatError, HistocodecError
from histocodec.formats.container.abstract_store import Part, Store, read_runs
from histocodec.formats.container.files import open_regular, read_at
from histocodec.formats.container.zip_directory import (
    LOCAL_HEADER,
    LOCAL_MAGIC,
    MAX_DIRECTORY,
    ZIP_ERRORS,
    Entry,
    read_directory,
    start_of,
)

if TYPE_CHECKING:
    import zarr.abc.store

SUFFIX = ".hcz"
ZIP_SUFFIXES = (SUFFIX, ".zip", ".ozx")


def is_zip(path: Path) -> bool:
    """Whether a file is a ZIP archive, or is called as if it were one of ours. False for whatever is no file."""
    if not path.is_file():
        return False
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(LOCAL_MAGIC)) == LOCAL_MAGIC
    except OSError:
        return False


def claims_zarr(path: Path) -> bool:
    """Whether a ZIP archive, sound or not, has the metadata of Zarr at its root."""
    try:
        with zipfile.ZipFile(cast(BinaryIO, _SourceFile(FileSource(path)))) as archive:
            return "zarr.json" in archive.namelist()
    except (HistocodecError, *ZIP_ERRORS):
        return False


class Source(ABC):
    """A file of which parts can be read. Thread-safe, fork-safe and picklable."""

    name: str  # as errors name it
    size: int  # in bytes
    path: Path | None = None

    @abstractmethod
    def read(self, parts: Sequence[Part]) -> list[bytes]:
        """The bytes of parts, in their order. Raises FormatError where the file ends before one of them does."""


class FileSource(Source):
    """A local file. It is opened for each read, and must still be the same one then."""

    path: Path

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._real = Path(os.path.realpath(path))  # a link to an archive may be opened; only links within are refused
        with open_regular(self._real) as file:
            status = os.fstat(file.fileno())
        self.size, self._identity = status.st_size, _identity(status)

    def read(self, parts: Sequence[Part]) -> list[bytes]:
        """See `Source`."""
        with open_regular(self._real) as file:
            if _identity(os.fstat(file.fileno())) != self._identity:
                raise FormatError(f"{self.name}: was changed or replaced while it was open; open it again")
            return read_runs(parts, lambda offset, size: read_at(file, size, offset, self.name))


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


class ZipStore(Store):
    """The entries of a ZIP archive. Raises FormatError where its directory is damaged or hostile.

    The header before an entry is compared with the directory before the entry is read. In an archive on another
    machine that would be one more request, so it is left to `problems`, unless the entry cannot be found without.
    """

    def __init__(self, source: Source) -> None:
        self.name, self.path = source.name, source.path
        self._source = source
        self._entries = read_directory(cast(BinaryIO, _SourceFile(source)), source.name)
        self._starts: dict[str, int] = {}

    def read(self, key: str, most: int) -> bytes:
        """See `Store`."""
        entry = self._entry(key)
        if entry.size > most:
            raise FormatError(f"{self.where(key)}: has more than {most} bytes, the most that is allowed here")
        return self.read_parts(key, [(0, entry.size)])[0]

    def read_parts(self, key: str, parts: Sequence[Part]) -> list[bytes]:
        """See `Store`."""
        return self._source.read(self._absolute(key, parts))

    def read_many(self, requests: Sequence[tuple[str, Sequence[Part]]]) -> list[list[bytes]]:
        """See `Store`."""
        absolute = [self._absolute(key, parts) for key, parts in requests]
        data = iter(self._source.read([part for parts in absolute for part in parts]))
        return [[next(data) for _ in parts] for parts in absolute]

    def _absolute(self, key: str, parts: Sequence[Part]) -> list[Part]:
        """Parts of an entry as parts of the archive."""
        entry = self._entry(key)
        for offset, size in parts:
            if offset + size > entry.size:
                raise FormatError(
                    f"{self.where(key)}: ends at byte {entry.size}, within something that has to be there"
                )
        start = self._start(entry)
        return [(start + offset, size) for offset, size in parts]

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See `Store`."""
        total = self._entry(key).size
        part = min(size, total)
        return self.read_parts(key, [(total - part, part)])[0], total

    def size(self, key: str) -> int | None:
        """See `Store`."""
        entry = self._entries.get(key)
        return None if entry is None else entry.size

    def entries(self) -> Iterator[tuple[str, int]]:
        """See `Store`."""
        return ((key, entry.size) for key, entry in self._entries.items())

    def crc32(self, key: str) -> int | None:
        """See `Store`."""
        return self._entry(key).crc

    def problems(self) -> Iterator[str]:
        """See `Store`."""
        for entry in self._entries.values():
            try:
                self._read_header(entry)
            except HistocodecError as exc:
                yield str(exc)

    def zarr(self) -> "zarr.abc.store.Store":
        """See `Store`."""
        from histocodec.formats.container.zarr_view import ZarrView

        return ZarrView(self)

    def _entry(self, key: str) -> Entry:
        entry = self._entries.get(key)
        if entry is None:
            raise FormatError(f"{self.where(key)}: is missing")
        return entry

    def _start(self, entry: Entry) -> int:
        """Where the data of an entry begin."""
        if self.path is None and entry.start is not None:
            return entry.start
        start = self._starts.get(entry.key)
        if start is None:
            start = self._starts[entry.key] = self._read_header(entry)
        return start

    def _read_header(self, entry: Entry) -> int:
        (header,) = self._source.read([(entry.header, LOCAL_HEADER.size + len(entry.raw_name))])
        return start_of(entry, header, self.where(entry.key))

    def __repr__(self) -> str:
        return f"ZipStore({self.name!r})"


class _SourceFile(io.RawIOBase):
    """A source as `zipfile` reads it. Refuses reads that are too large for a directory."""

    def __init__(self, source: Source) -> None:
        self._source, self._position = source, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise OSError("it is too short")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._source.size - self._position)
        size = left if size < 0 else min(size, left)
        if size > MAX_DIRECTORY:
            raise FormatError(
                f"{self._source.name}: its ZIP directory would have {size} bytes; up to {MAX_DIRECTORY} are read"
            )
        data = self._source.read([(self._position, size)])[0] if size else b""
        self._position += size
        return data
