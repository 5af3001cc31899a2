"""Containers on other machines: `RemoteStore` is a folder of objects, `RemoteSource` an archive that is one object."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from histocodec.errors import FormatError, UnsupportedError, UsageError
from histocodec.formats.container.abstract_store import Part, Store, read_runs, runs
from histocodec.formats.container.client_process import ask, in_background
from histocodec.formats.container.obstore_client import Operation, Server, locate
from histocodec.formats.container.zip_directory import LOCAL_MAGIC
from histocodec.formats.container.zipped import ZIP_SUFFIXES, Source, ZipStore

if TYPE_CHECKING:
    import zarr.abc.store

FRONT = 256 << 10  # bytes of an archive that are read when it is opened: the metadata of most slides …
TAIL = 96 << 10  # … and the directory: more than its longest comment, 64 KiB, which may have to be searched
GAP = 256 << 10  # bytes between two parts that are read along with them rather than by another request
METADATA = "zarr.json"  # of the root: asked for more than once
MAX_CACHED = 16 << 20


def open_remote(url: str) -> Store:
    """The store at a URL. It is an archive where its name says so, or, under any name but that of a folder of Zarr,
    where it begins like one. Raises UsageError where there is nothing."""
    server, key = locate(url)
    name = key.rsplit("/", 1)[-1].lower()
    if name.endswith(ZIP_SUFFIXES):
        return ZipStore(RemoteSource(server, key))
    if key and not name.endswith(".zarr") and _begins_as_zip(server, key):
        return ZipStore(RemoteSource(server, key))
    return RemoteStore(server, key)


def _begins_as_zip(server: Server, key: str) -> bool:
    try:
        return bool(ask(server, "front", key, len(LOCAL_MAGIC))[0] == LOCAL_MAGIC)
    except (FileNotFoundError, FormatError, UnsupportedError):
        return False  # a folder, or something that a better message can be had for


class RemoteStore(Store):
    """The objects below a URL."""

    def __init__(self, server: Server, folder: str) -> None:
        self._server, self._folder = server, folder
        self.name = f"{server.name}/{folder}".rstrip("/")
        self._metadata: bytes | None = None

    def read(self, key: str, most: int) -> bytes:
        """See `Store`."""
        if key == METADATA and self._metadata is not None and len(self._metadata) <= most:
            return self._metadata
        data, _ = self._ask("whole", key, most)
        if data is None:
            raise FormatError(f"{self.where(key)}: has more than {most} bytes, the most that is allowed here")
        if key == METADATA:
            self._metadata = data
        return bytes(data)

    def read_parts(self, key: str, parts: Sequence[Part]) -> list[bytes]:
        """See `Store`."""
        return _read_ranges(lambda ranges: self._ask("ranges", key, ranges), parts)

    def read_many(self, requests: Sequence[tuple[str, Sequence[Part]]]) -> list[list[bytes]]:
        """See `Store`."""
        if len(requests) < 2:
            return super().read_many(requests)
        answers = [in_background(partial(self.read_parts, key, parts)) for key, parts in requests]
        return [answer.result() for answer in answers]

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See `Store`."""
        try:
            data, total = self._ask("tail", key, size)
        except UnsupportedError:  # Azure has no requests for the end of an object
            total = self._ask("size", key)
            data = self.read_parts(key, [(max(0, total - size), min(size, total))])[0]
        return data, total

    def size(self, key: str) -> int | None:
        """See `Store`."""
        try:
            if key == METADATA:  # which is about to be read
                data, size = ask(self._server, "whole", self._path(key), MAX_CACHED)
                self._metadata = data
                return int(size)
            return int(ask(self._server, "size", self._path(key)))
        except FileNotFoundError:
            return None

    def entries(self) -> Iterator[tuple[str, int]]:
        """See `Store`."""
        if self._server.is_web:
            raise UnsupportedError(
                f"{self.name}: a web server does not list the files of a folder, which this needs; copy the folder to "
                "this machine, or publish it as one file, which `histocodec pack` makes"
            )
        prefix = f"{self._folder}/" if self._folder else ""
        for path, size in ask(self._server, "list", self._folder):
            yield path[len(prefix) :], size

    def zarr(self) -> "zarr.abc.store.Store":
        """See `Store`."""
        from histocodec.formats.container.zarr_view import ZarrView

        return ZarrView(self)

    def _path(self, key: str) -> str:
        return f"{self._folder}/{key}" if self._folder else key

    def _ask(self, operation: Operation, key: str, *arguments: object) -> Any:
        try:
            return ask(self._server, operation, self._path(key), *arguments)
        except FileNotFoundError as exc:
            raise FormatError(f"{self.where(key)}: is missing") from exc

    def __repr__(self) -> str:
        return f"RemoteStore({self.name!r})"


class RemoteSource(Source):
    """One object. Its first FRONT and its last TAIL bytes are read at once when it is opened, and kept."""

    def __init__(self, server: Server, key: str) -> None:
        self._server, self._key = server, key
        self.name = f"{server.name}/{key}"
        tail = in_background(lambda: self._ask("tail", TAIL))
        self._front, self.size = self._ask("front", FRONT)
        try:
            self._tail, size = tail.result()
        except UnsupportedError:  # Azure has no requests for the end of an object
            start = max(0, self.size - TAIL)
            self._tail, size = self._ask("ranges", [(start, self.size - start)])[0], self.size
        if size != self.size or len(self._front) != min(FRONT, size) or len(self._tail) != min(TAIL, size):
            raise FormatError(f"{self.name}: was changed or replaced while it was opened; open it again")

    def read(self, parts: Sequence[Part]) -> list[bytes]:
        """See `Source`."""
        data = [self._kept(offset, size) for offset, size in parts]
        missing = [number for number, part in enumerate(data) if part is None]
        if missing:
            fetched = _read_ranges(lambda ranges: self._ask("ranges", ranges), [parts[number] for number in missing])
            for number, part in zip(missing, fetched, strict=True):
                data[number] = part
        return [part for part in data if part is not None]

    def _kept(self, offset: int, size: int) -> bytes | None:
        if offset + size > self.size:
            raise FormatError(f"{self.name}: ends at byte {self.size}, within something that has to be there")
        if offset + size <= len(self._front):
            return bytes(self._front[offset : offset + size])
        start = self.size - len(self._tail)
        return bytes(self._tail[offset - start : offset - start + size]) if offset >= start else None

    def _ask(self, operation: Operation, *arguments: object) -> Any:
        try:
            return ask(self._server, operation, self._key, *arguments)
        except FileNotFoundError:
            raise UsageError(f"{self.name}: does not exist") from None


def _read_ranges(fetch: Any, parts: Sequence[Part]) -> list[bytes]:
    """The bytes of parts. Those that lie close together are fetched in one range, all ranges at the same time."""
    parts = list(parts)
    ranges = [
        (parts[run[0]][0], max(sum(parts[number]) for number in run) - parts[run[0]][0]) for run in runs(parts, gap=GAP)
    ]
    wanted = [part for part in ranges if part[1]]
    fetched = dict(zip(wanted, fetch(wanted) if wanted else [], strict=True))
    return read_runs(parts, lambda offset, size: fetched.get((offset, size), b""), gap=GAP)
