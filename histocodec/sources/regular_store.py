"""A folder as a store for Zarr that reads regular files alone, since a source may come from anywhere."""

from pathlib import Path
from typing import Any

from zarr.storage import LocalStore

MAX_METADATA = 64 << 20  # bytes of a zarr.json, .zarray or .zattrs; parsing takes up to twenty times as much memory
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


class RegularFiles(LocalStore):
    """`LocalStore`, which raises ValueError instead of waiting for a pipe, reading a device without end, or loading
    metadata that is too large."""

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        """The value of a key; see `zarr.abc.store.Store.get`. Raises ValueError for what is no regular file."""
        _check(self.root / key)
        return await super().get(key, *args, **kwargs)

    def get_sync(self, key: str, *args: Any, **kwargs: Any) -> Any:
        """`get`, by which newer versions of zarr read without an event loop."""
        _check(self.root / key)
        return super().get_sync(key, *args, **kwargs)


def _check(path: Path) -> None:
    if not path.exists() or path.is_dir():
        return
    if not path.is_file():
        raise ValueError(f"{path} is a pipe or a device")
    if path.name in METADATA and path.stat().st_size > MAX_METADATA:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; metadata of up to {MAX_METADATA} is read")
