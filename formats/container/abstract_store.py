"""What a container is read from: objects with names, of which parts can be read. A folder, a ZIP archive, a URL."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import zarr.abc.store

Part = tuple[int, int]  # offset and size in bytes

MAX_RUN = 64 << 20  # bytes of neighbouring parts that are read at once; a larger single part is still read whole


class Store(ABC):
    """Objects with keys like `latents/0/c/0/1/2`, read-only. Thread-safe, fork-safe and picklable.

    Every method raises FormatError where an object is damaged, and StoreError where the place cannot be reached just
    now or refuses access.
    """

    name: str  # as errors name it: the path or URL, never credentials
    path: Path | None = None  # of a local folder or file

    @abstractmethod
    def read(self, key: str, most: int) -> bytes:
        """All bytes of an object of at most `most` bytes. Raises FormatError where it is missing or larger."""

    @abstractmethod
    def read_parts(self, key: str, parts: Sequence[Part]) -> list[bytes]:
        """The bytes of parts of one object, in their order; neighbours are read in one go. Raises FormatError where
        the object is missing, or ends before one of them does."""

    def read_many(self, requests: Sequence[tuple[str, Sequence[Part]]]) -> list[list[bytes]]:
        """`read_parts` of several objects, all at the same time where that saves time."""
        return [self.read_parts(key, parts) for key, parts in requests]

    @abstractmethod
    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """The last `size` bytes of an object, all of them where it has fewer, and the size of the object. Raises
        FormatError where it is missing."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """The size of an object in bytes; None where there is none."""

    @abstractmethod
    def entries(self) -> Iterator[tuple[str, int]]:
        """Key and size in bytes of everything in the store that is no folder."""

    def keys(self) -> Iterator[str]:
        """The keys of `entries`."""
        return (key for key, _ in self.entries())

    def check(self) -> None:  # noqa: B027  # most stores have nothing to refuse
        """Raises FormatError for what must not be in a store, links say, where that is found without reading much."""

    def problems(self) -> Iterator[str]:
        """Everything that `check` would find if it could take its time."""
        return iter(())

    def crc32(self, key: str) -> int | None:
        """The CRC-32 that an object is to have; None where the store has none."""
        return None

    @abstractmethod
    def zarr(self) -> "zarr.abc.store.Store":
        """The same objects as a read-only store of the package zarr."""

    def where(self, key: str) -> str:
        """An object as errors name it."""
        return f"{self.name}/{key}" if key else self.name


def runs(parts: Sequence[Part], *, gap: int = 0) -> Iterator[list[int]]:
    """The numbers of parts that are best read in one go: in the order of their offsets, at most `gap` bytes between
    neighbours, and at most MAX_RUN bytes in all unless there is only one."""
    run: list[int] = []
    start = end = 0
    for number in sorted(range(len(parts)), key=parts.__getitem__):
        offset, size = parts[number]
        if run and (offset > end + gap or offset + size - start > MAX_RUN):
            yield run
            run = []
        if not run:
            start = end = offset
        run.append(number)
        end = max(end, offset + size)
    if run:
        yield run


def read_runs(parts: Sequence[Part], read: Callable[[int, int], bytes], *, gap: int = 0) -> list[bytes]:
    """The bytes of parts, in their order; `read` takes the offset and the size of a run of them."""
    data: dict[int, bytes] = {}
    for run in runs(parts, gap=gap):
        start, end = parts[run[0]][0], max(sum(parts[number]) for number in run)
        together = read(start, end - start)
        for number in run:
            offset, size = parts[number]
            whole = offset == start and size == len(together)
            data[number] = together if whole else together[offset - start : offset - start + size]
    return [data[number] for number in range(len(parts))]
