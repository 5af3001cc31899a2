"""Worker threads that compute on one core each: many chunks at once, and every chunk in the same way.

A convolution that several threads share may round differently from the same one on a single thread. Here one thread
computes a chunk from beginning to end, so that the number of workers changes the speed and nothing else.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from histocodec.forks import renew_in_children

LARGE_BYTES = 31 << 20  # just below 32 MiB, the highest that glibc raises its mmap threshold to

T = TypeVar("T")
R = TypeVar("R")

_current = threading.local()  # `mark` tells whose thread this is


def default_workers() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of `count` threads, by default one for each core that this process may use. It starts on first use, and
    survives pickling and forking: a forked child starts its own. It does not load torch; import it before you give the
    pool work that uses it.

    Work may use the pool that it runs in: it then does there, on its own thread, what it would have waited for.
    """

    def __init__(self, count: int | None = None) -> None:
        self._chosen = count
        self._pool: ThreadPoolExecutor | None = None
        self._mark = object()  # what the threads of this pool, and no others, have as `_current.mark`
        self.renew()

    def __reduce__(self) -> tuple[type["Workers"], tuple[int | None]]:
        return Workers, (self._chosen,)

    @property
    def count(self) -> int:
        """The number of threads."""
        return self._chosen or default_workers()

    def map(self, function: Callable[[T], R], items: Iterable[T], *, ahead: int = 2) -> Iterator[R]:
        """Yield the function's results in the order of the items. At most `ahead` items for each worker are taken
        before their results are needed.

        When the caller stops early or an item fails, items that have not begun are cancelled, and the others awaited.
        """
        if self._is_here():
            yield from map(function, items)
            return
        waiting: deque[Future[R]] = deque()
        most = ahead * self.count
        try:
            for item in items:
                waiting.append(self._submit(partial(function, item)))
                if len(waiting) >= most:
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
        return function() if self._is_here() else self._submit(function).result()

    def resize(self, count: int | None) -> None:
        """From the next item on, work on `count` threads, by default one for each core. What runs is finished on the
        old ones, which then end."""
        with self._lock:
            pool, self._pool, self._chosen = self._pool, None, count
        if pool is not None:
            pool.shutdown(wait=False)

    def close(self) -> None:
        """Finish what was given to the threads, and stop them. The next use starts them again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=not self._is_here())

    def renew(self) -> None:
        """Forget the threads, and whoever was starting them. See `forks`."""
        self._lock = threading.Lock()
        self._pool = None
        self._limits_torch = False  # whether the pool's threads have torch use one core each
        renew_in_children(self)

    def _is_here(self) -> bool:
        """Whether this thread is one of the pool's own. If it waited for another, all of them might wait."""
        return getattr(_current, "mark", None) is self._mark

    def _submit(self, function: Callable[[], R]) -> "Future[R]":
        with self._lock:  # so that nobody stops the pool before it has the work
            torch_loaded = sys.modules.get("torch") is not None
            if self._pool is not None and torch_loaded and not self._limits_torch:
                self._pool.shutdown(wait=False)  # its threads finish what they have, which does without torch
                self._pool = None
            if self._pool is None:
                self._limits_torch = torch_loaded
                self._pool = _single_core_pool(self.count, self._mark, limit_torch=torch_loaded)
            return self._pool.submit(function)


SHARED_WORKERS = Workers()  # of all compressed slides that have none of their own


def _single_core_pool(count: int, mark: object, *, limit_torch: bool) -> ThreadPoolExecutor:
    # Until something this large has been freed once, glibc returns the short-lived memory of each chunk to the system
    # and gets it back page by page, which takes a fifth of the time (mallopt(3), M_MMAP_THRESHOLD). Untouched, the
    # memory costs nothing.
    bytearray(LARGE_BYTES)
    all_started = threading.Barrier(count + 1)

    def start() -> None:  # holds no reference to the Workers, so that these and their threads can be collected
        _current.mark = mark
        if limit_torch:
            _use_one_core()
        all_started.wait()

    if limit_torch:
        import torch

        threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, thread_name_prefix="histocodec", initializer=start)
    for _ in range(count):
        pool.submit(lambda: None)
    all_started.wait()
    if limit_torch:
        torch.set_num_threads(threads)  # which must not change the caller's own number
    return pool


def _use_one_core() -> None:
    """Has torch use one core in this thread."""
    import torch

    torch.set_num_threads(1)  # for this thread; and, as a side effect, for threads yet to be started …
    torch.get_num_threads()  # … of which this is one until it has asked: else its first operation takes theirs
