"""Worker threads that compute on one core each: many chunks at once, and every chunk in the same way.

A convolution that several threads share may round differently from the same one on a single thread. Here one thread
computes a chunk from beginning to end, so that the number of workers changes the speed and nothing else.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

LARGE_BYTES = 31 << 20  # just below 32 MiB, the highest that glibc raises its mmap threshold to

T = TypeVar("T")
R = TypeVar("R")


def default_workers() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of `count` threads, by default one for each core that this process may use. It starts on first use, and
    survives pickling and forking: a forked child starts its own."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count or default_workers()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    def map(self, function: Callable[[T], R], items: Iterable[T], *, ahead: int = 2) -> Iterator[R]:
        """Yield the function's results in the order of the items. At most `ahead` items for each worker are taken
        before their results are needed.

        When the caller stops early or an item fails, items that have not begun are cancelled, and the others awaited.
        """
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
        """The function's result, computed on one worker, so that its arithmetic is that of a single core."""
        return self._started().submit(function).result()

    def close(self) -> None:
        """Stop the threads. The next use starts them again."""
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

    # Until something this large has been freed once, glibc returns the short-lived memory of each chunk to the system
    # and gets it back page by page, which takes a fifth of the time (mallopt(3), M_MMAP_THRESHOLD). Untouched, the
    # memory costs nothing.
    bytearray(LARGE_BYTES)
    all_started = threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)  # for this thread; and, as a side effect, for threads yet to be started …
        torch.get_num_threads()  # … of which this is one until it has asked: else its first operation takes theirs
        all_started.wait()

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, thread_name_prefix="histocodec", initializer=start)
    for _ in range(count):
        pool.submit(lambda: None)
    all_started.wait()
    torch.set_num_threads(threads)  # … which must not change the caller's own number
    return pool
