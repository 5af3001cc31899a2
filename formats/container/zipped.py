"""A container in one file: a ZIP archive whose entries are stored without compression, so that parts can be read."""

import zipfile
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Self

from histocodec.errors import FormatError
from histocodec.formats.container.abstract_store import Part, Store, read_runs
from histocodec.formats.container.files import open_regular, read_at

if TYPE_CHECKING:
    import zarr.abc.store

SUFFIX = ".hcz"
MAGIC = b"PK\3\4"
LOCAL_HEADER = 30  # bytes, without the name and the extra field


def is_zip(path: Path) -> bool:
    """Whether a file is a ZIP archive, or is called as if it were one of ours. False for whatever is no file."""
    if not path.is_file():
        return False
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class ZipStore(Store):
    """A ZIP archive on the disk."""

    path: Path

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        try:
            with zipfile.ZipFile(path) as archive:
                self._entries = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as exc:
            raise FormatError(f"{path}: is no sound ZIP archive: {exc}") from exc

    @classmethod
    def open(cls, path: Path) -> Self:
        """The archive at a path."""
        return cls(path)

    def _start(self, key: str, file: FileIO) -> tuple[int, int]:
        """Where the data of an entry begin, and their size."""
        info = self._entries.get(key)
        if info is None:
            raise FormatError(f"{self.where(key)}: is missing")
        if info.compress_type != zipfile.ZIP_STORED:
            raise FormatError(f"{self.where(key)}: is compressed; entries are to be stored")
        header = read_at(file, LOCAL_HEADER, info.header_offset, self.name)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return info.header_offset + LOCAL_HEADER + names, info.file_size

    def read(self, key: str, most: int) -> bytes:
        with open_regular(self.path) as file:
            start, size = self._start(key, file)
            if size > most:
                raise FormatError(f"{self.where(key)}: has more than {most} bytes, the most that is allowed here")
            return read_at(file, size, start, self.name)

    def read_parts(self, key: str, parts: Sequence[Part]) -> list[bytes]:
        with open_regular(self.path) as file:
            start, total = self._start(key, file)
            if any(offset + size > total for offset, size in parts):
                raise FormatError(f"{self.where(key)}: ends at byte {total}, within something that has to be there")
            return read_runs(parts, lambda offset, size: read_at(file, size, start + offset, self.name))

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        with open_regular(self.path) as file:
            start, total = self._start(key, file)
            part = min(size, total)
            return read_at(file, part, start + total - part, self.name), total

    def size(self, key: str) -> int | None:
        info = self._entries.get(key)
        return None if info is None else info.file_size

    def entries(self) -> Iterator[tuple[str, int]]:
        return ((key, info.file_size) for key, info in self._entries.items())

    def zarr(self) -> "zarr.abc.store.Store":
        from zarr.storage import ZipStore as ZarrZipStore

        return ZarrZipStore(self.path, mode="r", read_only=True)

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.path.absolute(),)

    def __repr__(self) -> str:
        return f"ZipStore({self.name!r})"
