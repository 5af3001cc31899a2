"""Pixels for many requests at a time: a bounded queue, and requests for one level that are decoded together.

    submit(work) ──▶ waiting (WAITING at most, else 503) ──▶ running: a thread for each worker
                          └─ reads of the same slide and level are taken together

Nothing is decoded on the event loop. Who stops waiting leaves the queue.
"""

import asyncio
import itertools
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

from histocodec.cli.viewer.limits import WAITING, busy
from histocodec.formats.decode.ome_zarr import read_regions
from histocodec.geometry import Region
from histocodec.slide import Pixels, Slide

T = TypeVar("T")

NOTHING = Region(0, 0, 0, 0)
TOGETHER = 4  # reads that are decoded together at most …
TOGETHER_PIXELS = 1 << 22  # … and their pixels, beyond the first's


@dataclass(eq=False)
class _Job:
    """Work for a thread: `finish` of the pixels of a region, or `work` alone."""

    future: "asyncio.Future[object]"
    work: Callable[[], object] | None = None
    slide: Slide | None = None
    level: int = 0
    region: Region = NOTHING
    finish: Callable[[Pixels], object] | None = None


class Decoding:
    """What all requests of a server decode with. `running` is the number of threads. To be used on one event loop."""

    def __init__(self, running: int) -> None:
        self._most, self._running = running, 0
        self._waiting: deque[_Job] = deque()
        self._pool = ThreadPoolExecutor(running + 2, thread_name_prefix="serve")
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Stop the threads when they have finished what they do."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def read(self, slide: Slide, level: int, region: Region, finish: Callable[[Pixels], T]) -> T:
        """`finish` of the pixels of a region, in the level's own pixels, on a thread."""
        future = asyncio.get_running_loop().create_future()
        return cast(T, await self._submit(_Job(future, slide=slide, level=level, region=region, finish=finish)))

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, which decodes, on a thread."""
        return cast(T, await self._submit(_Job(asyncio.get_running_loop().create_future(), work=work)))

    async def aside(self, work: Callable[[], T]) -> T:
        """The result of something short that waits for a disk or a server, on a thread, without the queue."""
        return await asyncio.get_running_loop().run_in_executor(None, work)

    async def _submit(self, job: _Job) -> object:
        if len(self._waiting) >= WAITING:
            self._waiting = deque(other for other in self._waiting if not other.future.done())
        if len(self._waiting) >= WAITING:
            raise busy(f"{WAITING} requests wait already; try again in a moment")
        self._waiting.append(job)
        self._start()
        return await job.future  # who is cancelled here cancels the future, and with it the job

    def _start(self) -> None:
        while self._running < self._most and self._waiting:
            job = self._waiting.popleft()
            if job.future.done():
                continue
            self._running += 1
            task = asyncio.create_task(self._execute([job, *self._companions(job)]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _companions(self, job: _Job) -> list[_Job]:
        """Take what waits for the same level of the same slide out of the queue."""
        chosen: list[_Job] = []
        if job.slide is None:
            return chosen
        share = max(1, min(TOGETHER, -(-(len(self._waiting) + 1) // self._most)))  # the others get their share
        room = TOGETHER_PIXELS
        for other in itertools.islice(self._waiting, WAITING):
            if len(chosen) + 1 >= share:
                break
            alike = other.slide is job.slide and other.level == job.level and not other.future.done()
            if alike and other.region.area <= room:
                room -= other.region.area
                chosen.append(other)
        for other in chosen:
            self._waiting.remove(other)
        return chosen

    async def _execute(self, jobs: list[_Job]) -> None:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._pool, _work, jobs)
            for job, result in zip(jobs, results, strict=True):
                if job.future.done():
                    continue
                if isinstance(result, Exception):
                    job.future.set_exception(result)
                else:
                    job.future.set_result(result)
        except BaseException as exc:  # the pool was shut down, or this task was cancelled
            for job in jobs:
                if not job.future.done():
                    job.future.cancel()
            if not isinstance(exc, Exception):
                raise
        finally:
            self._running -= 1
            self._start()


def _work(jobs: list[_Job]) -> list[object]:
    """The result, or the exception, of each job."""
    first = jobs[0]
    try:
        if first.work is not None:
            return [first.work()]
        assert first.slide is not None
        pixels = read_regions(first.slide, [job.region for job in jobs], first.level)
    except Exception as exc:
        return [exc] * len(jobs)
    results: list[object] = []
    for job, part in zip(jobs, pixels, strict=True):
        assert job.finish is not None
        try:
            results.append(job.finish(part))
        except Exception as exc:
            results.append(exc)
    return results


class Answers:
    """Bodies of answers by their tags, `limit` bytes at most; and each made once, however many ask at a time."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._underway: dict[str, tuple[asyncio.Task[bytes], list[int]]] = {}  # with the number of those who wait

    async def get(self, tag: str, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """The body with this tag. It is made where it is not kept; where all who wait have gone, that is ended."""
        if (body := self._kept.get(tag)) is not None:
            self._kept.move_to_end(tag)
            return body
        task, waiting = self._underway.get(tag, (None, [0]))
        if task is None:
            task = asyncio.ensure_future(self._make(tag, make))
            self._underway[tag] = task, waiting
        waiting[0] += 1
        try:
            return await asyncio.shield(task)
        finally:
            waiting[0] -= 1
            if not waiting[0] and not task.done():
                task.cancel()
                self._underway.pop(tag, None)

    async def _make(self, tag: str, make: Callable[[], Awaitable[bytes]]) -> bytes:
        try:
            body = await make()
        finally:
            if (found := self._underway.get(tag)) is not None and found[0] is asyncio.current_task():
                del self._underway[tag]
        if len(body) <= self._limit // 8:
            self._kept[tag] = body
            self._size += len(body)
            while self._size > self._limit:
                self._size -= len(self._kept.popitem(last=False)[1])
        return body
