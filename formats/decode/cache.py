"""What decoding remembers: a cache of bounded size, and a register of what other threads are decoding right now."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from histocodec.geometry import ChunkKey

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """The values of chunks, up to `limit` bytes; the least recently used are dropped first. Thread-safe.

    Callers share the values and must not change them. The newest value stays even if it alone exceeds the limit.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._lock = threading.Lock()
        self._values: OrderedDict[ChunkKey, tuple[Value, int]] = OrderedDict()

    def get(self, key: ChunkKey) -> Value | None:
        """The value of a chunk, or None where it is not cached."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: ChunkKey, value: Value, size: int) -> None:
        """Adds a value of `size` bytes. A value that the key already has is left as it is."""
        with self._lock:
            if key in self._values:
                return
            self._values[key] = (value, size)
            self.bytes += size
            while self.bytes > self.limit and len(self._values) > 1:
                self.bytes -= self._values.popitem(last=False)[1][1]


class Underway:
    """The chunks that threads are decoding right now, so that no two decode the same one. Thread-safe.

    A forked child starts with an empty register: the threads of its parent do not run in it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[tuple[int, ChunkKey], threading.Event] = {}

    @contextmanager
    def claim(self, key: ChunkKey) -> Iterator[bool]:
        """Yields True where this thread is to decode the chunk. Where another thread is decoding it, waits until that
        thread has succeeded or failed, then yields False."""
        entry = os.getpid(), key
        with self._lock:
            end = self._ends.get(entry)
            if end is None:
                self._ends[entry] = threading.Event()
        if end is not None:
            end.wait()
            yield False
            return
        try:
            yield True
        finally:
            with self._lock:
                self._ends.pop(entry).set()

    def free_first(self, keys: Iterable[ChunkKey]) -> Iterator[ChunkKey]:
        """The keys, each time one that no thread is decoding at that moment, as long as there is one."""
        waiting = list(keys)
        while waiting:
            free = (n for n, key in enumerate(waiting) if (os.getpid(), key) not in self._ends)
            yield waiting.pop(next(free, 0))
