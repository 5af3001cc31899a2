"""What decoding remembers: caches of bounded size, and a register of what other threads are decoding right now.

Cache            up to `limit` bytes, of as many slides as share it
 └─ CachePart    values of one kind and one slide: its latents, its pixels, its shards' indices
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Generic, TypeVar, cast
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from histocodec.forks import renew_in_children
from histocodec.geometry import ChunkKey

CACHE_BYTES = 256 << 20
INDEX_BYTES = 32 << 20  # of the indices of shards: about three thousand, each of which finds 64 chunks

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Scalar = TypeVar("Scalar", bound=np.generic)


class Cache:
    """Values of up to `limit` bytes; the least recently used are dropped first. Thread-safe. A forked child starts with
    an empty one.

    Callers share the values and must not change them. The newest value stays even if it alone exceeds the limit.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._numbers = count()  # of the parts
        # Parts that are gone. A finalizer may run while its thread is in a method of this cache, and must not wait.
        self._gone: deque[int] = deque()
        self.renew()

    def renew(self) -> None:
        """Forgets all values, and whoever was adding one. See `forks`."""
        self._lock = threading.Lock()
        self._values: OrderedDict[tuple[int, Hashable], tuple[object, int]] = OrderedDict()
        self._keys: dict[int, set[Hashable]] = {}  # of each part that has any
        self.bytes = 0
        renew_in_children(self)

    def resize(self, limit: int) -> None:
        """Sets another limit, and drops at once what is beyond it."""
        with self._lock:
            self.limit = limit
            self._drop_gone()
            self._drop_excess()

    def get(self, part: int, key: Hashable) -> object | None:
        """The value of a key of a part, or None where it is not cached."""
        with self._lock:
            entry = self._values.get((part, key))
            if entry is None:
                return None
            self._values.move_to_end((part, key))
            return entry[0]

    def put(self, part: int, key: Hashable, value: object, size: int) -> None:
        """Adds a value of `size` bytes. A value that the key already has is left as it is."""
        with self._lock:
            if (part, key) not in self._values:
                self._values[part, key] = (value, size)
                self._keys.setdefault(part, set()).add(key)
                self.bytes += size
            self._drop_gone()
            self._drop_excess()

    def forget(self, part: int, *, wait: bool = False) -> None:
        """Drops all values of a part. Unless it may `wait`, a cache in use drops them with the next value added."""
        self._gone.append(part)
        if self._lock.acquire(blocking=wait):
            try:
                self._drop_gone()
            finally:
                self._lock.release()

    def _drop_gone(self) -> None:
        while self._gone:
            part = self._gone.popleft()
            for key in self._keys.pop(part, ()):
                self.bytes -= self._values.pop((part, key))[1]

    def _drop_excess(self) -> None:
        while self.bytes > self.limit and len(self._values) > 1:
            (part, key), (_, size) = self._values.popitem(last=False)
            self.bytes -= size
            self._keys[part].discard(key)
            if not self._keys[part]:
                del self._keys[part]


class CachePart(Generic[Key, Value]):
    """The values of one kind and one slide in a cache. They are dropped when the part is closed or collected."""

    def __init__(self, cache: Cache) -> None:
        self._cache, self._number, self._closed = cache, next(cache._numbers), False
        finalize(self, cache.forget, self._number).atexit = False

    @property
    def limit(self) -> int:
        """The bytes of the whole cache, at most."""
        return self._cache.limit

    def get(self, key: Key) -> Value | None:
        """The value of a key, or None where it is not cached."""
        return cast(Value | None, self._cache.get(self._number, key))

    def put(self, key: Key, value: Value, size: int) -> None:
        """Adds a value of `size` bytes, unless the part is closed or the key has a value already."""
        if not self._closed:
            self._cache.put(self._number, key, value, size)

    def close(self) -> None:
        """Drops the values, and keeps none from now on."""
        self._closed = True
        self._cache.forget(self._number, wait=True)


SHARED_CACHE = Cache(CACHE_BYTES)  # of all compressed slides that have none of their own
SHARED_INDICES = Cache(INDEX_BYTES)  # of all slides: without its index, a shard would be hashed for each chunk


def alone(values: NDArray[Scalar]) -> NDArray[Scalar]:
    """The values in memory of their own, where they are part of a larger array, all of which a cache would keep."""
    base = values.base
    return values.copy() if isinstance(base, np.ndarray) and base.nbytes > values.nbytes else values


class Underway:
    """The chunks that threads are decoding right now, so that no two decode the same one. Thread-safe.

    A forked child starts with an empty register: the threads of its parent do not run in it.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Forgets what threads decode. See `forks`."""
        self._lock = threading.Lock()
        self._ends: dict[ChunkKey, threading.Event] = {}
        renew_in_children(self)

    @contextmanager
    def claim(self, key: ChunkKey) -> Iterator[bool]:
        """Yields True where this thread is to decode the chunk. Where another thread is decoding it, waits until that
        thread has succeeded or failed, then yields False."""
        with self._lock:
            end = self._ends.get(key)
            if end is None:
                self._ends[key] = threading.Event()
        if end is not None:
            end.wait()
            yield False
            return
        try:
            yield True
        finally:
            with self._lock:
                self._ends.pop(key).set()

    def is_claimed(self, key: ChunkKey) -> bool:
        """Whether a thread is decoding the chunk at this moment."""
        return key in self._ends

    def free_first(self, keys: Iterable[ChunkKey]) -> Iterator[ChunkKey]:
        """The keys, each time one that no thread is decoding at that moment, as long as there is one."""
        waiting = list(keys)
        while waiting:
            free = (n for n, key in enumerate(waiting) if key not in self._ends)
            yield waiting.pop(next(free, 0))
