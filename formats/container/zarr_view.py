"""A store as the package zarr sees it: read-only, with the same checks and errors."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Literal

from zarr.abc.store import OffsetByteRequest, RangeByteRequest
from zarr.abc.store import Store as ZarrStore

from histocodec.errors import UsageError
from histocodec.formats.container.abstract_store import Store

if TYPE_CHECKING:  # names that move between versions of zarr, and are needed for nothing but types
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

MOST = 1 << 30  # bytes of a whole object that zarr may ask for


class ZarrView(ZarrStore):
    """`store` as a Zarr store. Reads run on threads, so that several may wait for a server at a time."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, store: Store) -> None:
        super().__init__(read_only=True)
        self._store = store

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZarrView) and self._store is other._store

    def __hash__(self) -> int:
        return id(self._store)

    def __repr__(self) -> str:
        return f"ZarrView({self._store!r})"

    def with_read_only(self, read_only: bool = False) -> "ZarrView":
        """The view itself. Raises UsageError where it is to be written to."""
        if not read_only:
            raise self._refusal()
        return self

    async def get(
        self, key: str, prototype: "BufferPrototype", byte_range: "ByteRequest | None" = None
    ) -> "Buffer | None":
        """An object, or a part of it; None where there is none."""
        data = await asyncio.to_thread(self._get, key, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    def _get(self, key: str, byte_range: "ByteRequest | None") -> bytes | None:
        size = self._store.size(key)
        if size is None:
            return None
        if byte_range is None:
            return self._store.read(key, MOST)
        if isinstance(byte_range, RangeByteRequest):
            start, end = byte_range.start, min(byte_range.end, size)
        elif isinstance(byte_range, OffsetByteRequest):
            start, end = byte_range.offset, size
        else:
            return self._store.read_tail(key, byte_range.suffix)[0]
        return self._store.read_parts(key, [(start, end - start)])[0] if end > start else b""

    async def get_partial_values(
        self, prototype: "BufferPrototype", key_ranges: "Iterable[tuple[str, ByteRequest | None]]"
    ) -> "list[Buffer | None]":
        """Several objects, or parts of them."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is an object."""
        return await asyncio.to_thread(self._store.size, key) is not None

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        for key in await asyncio.to_thread(lambda: sorted(self._store.keys())):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys that begin with `prefix`."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names directly within a folder."""
        folder = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        names: dict[str, None] = {}
        async for key in self.list_prefix(folder):
            names[key[len(folder) :].split("/", 1)[0]] = None
        for name in names:
            yield name

    async def set(self, key: str, value: "Buffer") -> None:
        """Raises UsageError."""
        raise self._refusal()

    async def set_partial_values(self, key_start_values: "Iterable[tuple[str, int, object]]") -> None:
        """Raises UsageError. The first versions of zarr 3.1 have this method, too."""
        raise self._refusal()

    @property
    def supports_partial_writes(self) -> Literal[False]:
        """Never."""
        return False

    async def delete(self, key: str) -> None:
        """Raises UsageError."""
        raise self._refusal()

    def _refusal(self) -> UsageError:
        return UsageError(f"{self._store.name}: is opened for reading only")
