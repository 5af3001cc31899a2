"""Where containers are read from: `open_store` finds the store for a path or URL; `FolderStore` is a local folder."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Union

from histocodec.errors import FormatError, UsageError
from histocodec.formats.container.abstract_store import Part, Store, read_runs
from histocodec.formats.container.files import (
    linked_folders,
    open_regular,
    read_at,
    read_bounded,
    regular_size,
    relative_files,
)
from histocodec.formats.container.locations import is_url, local_path
from histocodec.formats.container.zipped import FileSource, ZipStore, is_zip

if TYPE_CHECKING:
    import zarr.abc.store

__all__ = ["FolderStore", "Location", "Store", "open_store"]

LINK_DEPTH = 2  # folders: groups and arrays; what is in them is looked at as it is read

Location = Union[str, bytes, "os.PathLike[str]", Store, "zarr.abc.store.Store"]  # a name in quotes


def open_store(location: Location) -> Store:
    """The store at a path or URL: a folder, or a ZIP archive; or what a Zarr store holds. A store of ours is returned
    as it is.

    Raises UsageError where a local path does not exist, FormatError where an archive is damaged, and UnsupportedError
    for a URL whose kind is not known.
    """
    if isinstance(location, Store):
        return location
    if not isinstance(location, str | bytes | os.PathLike):
        return _zarr_store(location)
    text = os.fsdecode(location)
    if is_url(text):
        from histocodec.formats.container.remote import open_remote

        return open_remote(text)
    path = local_path(text)
    if not path.exists():
        raise UsageError(f"{path}: does not exist")
    return ZipStore(FileSource(path)) if is_zip(path) else FolderStore(path)


def _zarr_store(store: object) -> Store:
    if "zarr" in sys.modules:  # or nobody can have made a store of it
        from zarr.abc.store import Store as AnyZarrStore

        if isinstance(store, AnyZarrStore):
            from histocodec.formats.container.zarr_store import ZarrStore

            return ZarrStore(store)
    raise UsageError(f"{store!r}: is no path, no URL and no Zarr store")


class FolderStore(Store):
    """A local folder. Links are refused, which could lead out of it, and so is all that is no regular file: a read of a
    pipe or a device could wait or last for ever."""

    path: Path

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = str(path)
        self._folders: set[str] = set()  # those that were looked at: they are no links

    def read(self, key: str, most: int) -> bytes:
        """See `Store`."""
        return read_bounded(self._file(key), most)

    def read_parts(self, key: str, parts: Sequence[Part]) -> list[bytes]:
        """See `Store`."""
        path = self._file(key)
        with open_regular(path) as file:
            return read_runs(parts, lambda offset, size: read_at(file, size, offset, str(path)))

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See `Store`."""
        path = self._file(key)
        with open_regular(path) as file:
            total = os.fstat(file.fileno()).st_size
            part = min(size, total)
            return read_at(file, part, total - part, str(path)), total

    def size(self, key: str) -> int | None:
        """See `Store`."""
        return regular_size(self._file(key))

    def entries(self) -> Iterator[tuple[str, int]]:
        """See `Store`."""
        for name in relative_files(self.path):
            try:
                size = (self.path / name).lstat().st_size
            except OSError as exc:  # gone since it was listed
                raise FormatError(f"{self.path / name}: cannot be read: {exc.strerror or exc}") from exc
            yield name, size

    def keys(self) -> Iterator[str]:
        """See `Store`."""
        return relative_files(self.path)

    def check(self) -> None:
        """See `Store`."""
        for link in linked_folders(self.path, LINK_DEPTH):
            raise FormatError(f"{link}: is a link; a container consists of folders and regular files")

    def zarr(self) -> "zarr.abc.store.Store":
        """See `Store`."""
        from zarr.storage import LocalStore

        return LocalStore(self.path, read_only=True)

    def _file(self, key: str) -> Path:
        """The path of a file. Raises FormatError where a folder on the way to it is a link: a container may have too
        many folders to look at all of them when it is opened."""
        for folder in PurePosixPath(key).parents[:-1]:
            name = str(folder)
            if name not in self._folders:
                if (self.path / name).is_symlink():
                    raise FormatError(
                        f"{self.path / name}: is a link; a container consists of folders and regular files"
                    )
                self._folders.add(name)
        return self.path / key

    def __repr__(self) -> str:
        return f"FolderStore({self.name!r})"
