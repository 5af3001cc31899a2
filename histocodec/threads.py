"""Worker threads that each compute on one core: many blocks at once, and every block in the same way.

A convolution shared out over several threads may round differently from the same one on a single thread. Here a
block is always computed by one thread, so the number of workers changes the speed and nothing else.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

LARGE = 31 << 20  # bytes: the most that teaches glibc anything is 32 MiB

T = TypeVar("T")
R = TypeVar("R")


def default_workers() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A lazily started pool that survives pickling and forking (a forked child starts its own)."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count or default_workers()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    def map(self, function: Callable[[T], R], items: Iterable[T], *, ahead: int = 2) -> Iterator[R]:
        """Results in the order of the items; at most `ahead` items a worker are taken before they are needed.

        When the caller stops early or an item fails, what has not begun is cancelled and the rest awaited."""
        pool = self._started()
        waiting: deque[Future[R]] = deque()
        source = iter(items)
        try:
            for item in source:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            for future in waiting:
                if not future.cancelled():
                    future.exception()

    def run(self, function: Callable[[], R]) -> R:
        """One call on a worker, where arithmetic is that of one core."""
        return self._started().submit(function).result()

    def close(self) -> None:
        with self._lock:
            if self._pool is not None and self._process == os.getpid():
                self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _started(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._process != os.getpid():
                self._pool, self._process = _single_core_pool(self.count), os.getpid()
            return self._pool


def _single_core_pool(count: int) -> ThreadPoolExecutor:
    import torch

    # What a block needs for a moment, glibc returns to the system and gets again page by page, for a fifth of the time,
    # until something as large as this was freed once (mallopt(3), M_MMAP_THRESHOLD). Untouched, it costs nothing.
    bytearray(LARGE)
    everyone = threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)  # for this thread; and, as a side effect, for threads yet to be started …
        torch.get_num_threads()  # … of which this is one until it has asked: else its first operation takes theirs
        everyone.wait()

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, thread_name_prefix="histocodec", initializer=start)
    for _ in range(count):
        pool.submit(lambda: None)
    everyone.wait()
    torch.set_num_threads(threads)  # … which the caller's own must not notice
    return pool
