"""A container in any store of the package zarr: in memory, behind fsspec, in a database, in somebody's own.

Zarr's stores are asynchronous. Their methods run on one event loop, on a thread of its own, for all stores: those of
fsspec keep connections that belong to the loop of their first use.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as AnyZarrStore
from zarr.buffer import default_buffer_prototype

from histocodec.errors import FormatError, HistocodecError, StoreError, UnsupportedError
from histocodec.forks import renew_in_children
from histocodec.formats.container.abstract_store import Part, Store, read_runs, runs

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

GAP = 64 << 10  # bytes between two parts that are read along with them: a request may cost as much

T = TypeVar("T")


class _Loop:
    """An event loop on a thread, which starts with its first use. A forked child starts its own."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Forgets the loop and whoever was starting it. See `forks`."""
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        renew_in_children(self)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result, from any thread but the loop's own."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="histocodec-zarr-stores", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


_loop = _Loop()


class ZarrStore(Store):
    """The objects of a Zarr store. Picklable if the store is."""

    def __init__(self, store: AnyZarrStore) -> None:
        self._store, self._process = store, os.getpid()
        self.name = _name_of(store)
        self.path: Path | None = None

    def read(self, key: str, most: int) -> bytes:
        """See `Store`."""
        # One byte more than allowed tells that there is more, without reading all of it.
        data = self._get(key, RangeByteRequest(0, most + 1))
        if len(data) > most:
            raise FormatError(f"{self.where(key)}: has more than {most} bytes, the most that is allowed here")
        return data

    def read_parts(self, key: str, parts: Sequence[Part]) -> list[bytes]:
        """See `Store`."""
        parts = list(parts)
        ranges = []
        for run in runs(parts, gap=GAP):
            start, end = parts[run[0]][0], max(sum(parts[number]) for number in run)
            ranges.append((start, end - start))
        fetched = dict(zip(ranges, self._run(key, self._get_ranges(key, ranges)), strict=True))
        for (start, size), data in fetched.items():
            if len(data) != size:
                end = start + len(data)
                raise FormatError(f"{self.where(key)}: ends at byte {end}, within something that has to be there")
        return read_runs(parts, lambda offset, size: fetched[offset, size], gap=GAP)

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See `Store`."""
        total = self.size(key)
        if total is None:
            raise FormatError(f"{self.where(key)}: is missing")
        return (self._get(key, SuffixByteRequest(size)) if total > size else self._get(key, None)), total

    def size(self, key: str) -> int | None:
        """See `Store`."""

        async def ask() -> int | None:
            try:
                return await self._store.getsize(key)
            except (FileNotFoundError, NotADirectoryError):
                return None

        return self._run(key, ask())

    def entries(self) -> Iterator[tuple[str, int]]:
        """See `Store`."""

        async def ask() -> list[tuple[str, int]]:
            return [(key, await self._store.getsize(key)) async for key in self._store.list()]

        if not self._store.supports_listing:
            raise UnsupportedError(f"{self.name}: this store does not list what it holds, which this needs")
        return iter(self._run("", ask()))

    def zarr(self) -> AnyZarrStore:
        """See `Store`."""
        from histocodec.formats.container.zarr_view import ZarrView

        return ZarrView(self)

    def _get(self, key: str, part: "ByteRequest | None") -> bytes:
        return self._run(key, self._get_part(key, part))

    async def _get_part(self, key: str, part: "ByteRequest | None") -> bytes:
        data = await self._store.get(key, default_buffer_prototype(), part)
        if data is None:
            raise FormatError(f"{self.where(key)}: is missing")
        return data.to_bytes()

    async def _get_ranges(self, key: str, ranges: Sequence[Part]) -> list[bytes]:
        if not ranges:
            await self._get_part(key, RangeByteRequest(0, 1))
        return list(
            await asyncio.gather(*(self._get_part(key, RangeByteRequest(at, at + size)) for at, size in ranges))
        )

    def _run(self, key: str, coroutine: Coroutine[Any, Any, T]) -> T:
        if os.getpid() != self._process and type(self._store).__name__ == "ObjectStore":
            coroutine.close()
            raise UnsupportedError(
                f"{self.name}: a store of obstore cannot be used in a forked process; give histocodec its URL instead, "
                'or start processes with the method "spawn"'
            )
        try:
            return _loop.run(coroutine)
        except HistocodecError:
            raise
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise FormatError(f"{self.where(key)}: is missing") from exc
        except Exception as exc:  # whatever a store raises that somebody else wrote
            raise StoreError(f"{self.where(key)}: cannot be read: {type(exc).__name__}: {str(exc)[:300]}") from exc

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _process=os.getpid())

    def __repr__(self) -> str:
        return f"ZarrStore({self.name!r})"


def _name_of(store: AnyZarrStore) -> str:
    """A store as errors name it, without what may be credentials."""
    return str(store).split("?")[0]
