"""What reading takes: how many requests, how many bytes, and how many requests wait for one another.

A `Recorder` notes when each request began and ended. Its holder delays every answer, so that requests which do not wait
for one another overlap, on however fast a connection; what is left one after the other does wait.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from histocodec.formats.container.abstract_store import Part, Store, runs
from histocodec.formats.container.store import FolderStore
from histocodec.formats.container.zipped import FileSource, ZipStore, is_zip

if TYPE_CHECKING:
    import zarr.abc.store

DELAY = 0.2  # seconds before an answer: long beside what starting a thread takes on a busy machine


@dataclass(frozen=True)
class Traffic:
    """Requests and the bytes of their answers; `chain` is the longest chain of requests of which each began after the
    one before it had been answered."""

    requests: int
    bytes: int
    chain: int


@dataclass
class Request:
    """One request: from when to when, in seconds, and the bytes of its answer."""

    began: float
    ended: float = float("inf")
    bytes: int = 0


class Recorder:
    """Notes requests. Thread-safe."""

    def __init__(self, delay: float = DELAY) -> None:
        self.delay = delay
        self._lock = threading.Lock()
        self._requests: list[Request] = []

    @contextmanager
    def request(self) -> Iterator[Request]:
        """One request, answered after the delay; whoever answers it sets its `bytes`."""
        request = Request(time.perf_counter())
        with self._lock:
            self._requests.append(request)
        time.sleep(self.delay)
        try:
            yield request
        finally:
            request.ended = time.perf_counter()

    def take(self) -> Traffic:
        """What was noted since it was taken last."""
        with self._lock:
            requests, self._requests = self._requests, []
        return Traffic(len(requests), sum(request.bytes for request in requests), longest_chain(requests))


def longest_chain(requests: Sequence[Request]) -> int:
    """The most requests of which each began after the one before it had ended."""
    length, ended = 0, float("-inf")
    for request in sorted(requests, key=lambda request: request.ended):
        if request.began >= ended:
            length, ended = length + 1, request.ended
    return length


def counting_store(path: Path, recorder: Recorder) -> Store:
    """The store of a local container, whose reads are noted."""
    return ZipStore(_CountingSource(path, recorder)) if is_zip(path) else _CountingStore(path, recorder)


class _CountingStore(FolderStore):
    """A folder. Neighbouring parts of a file, which are read in one go, are one read, and looking for a file is one
    without bytes."""

    def __init__(self, path: Path, recorder: Recorder) -> None:
        super().__init__(path)
        self._recorder = recorder

    def read(self, key: str, most: int) -> bytes:
        with self._recorder.request() as request:
            data = super().read(key, most)
            request.bytes = len(data)
        return data

    def read_parts(self, key: str, parts: Sequence[Part]) -> list[bytes]:
        read = super().read_parts
        return _noted(lambda run: read(key, run), parts, self._recorder)

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        with self._recorder.request() as request:
            data, total = super().read_tail(key, size)
            request.bytes = len(data)
        return data, total

    def size(self, key: str) -> int | None:
        with self._recorder.request():
            return super().size(key)

    def zarr(self) -> "zarr.abc.store.Store":
        raise NotImplementedError("what Zarr reads is not counted")


class _CountingSource(FileSource):
    """An archive. Neighbouring parts, which are read in one go, are one read."""

    def __init__(self, path: Path, recorder: Recorder) -> None:
        super().__init__(path)
        self._recorder = recorder

    def read(self, parts: Sequence[Part]) -> list[bytes]:
        return _noted(super().read, parts, self._recorder)


def _noted(read: Callable[[Sequence[Part]], list[bytes]], parts: Sequence[Part], recorder: Recorder) -> list[bytes]:
    """The bytes of parts, in their order; each run of neighbours is a request."""
    data = [b""] * len(parts)
    for run in runs(parts):
        with recorder.request() as request:
            for number, part in zip(run, read([parts[number] for number in run]), strict=True):
                data[number] = part
            request.bytes = max(sum(parts[number]) for number in run) - parts[run[0]][0]
    return data
