"""A run: hands slides to a Dask cluster as tasks, and writes into the ledger what becomes of each.

Only as many tasks are with the scheduler at a time as keep its workers busy, so a cohort of a million slides costs it
no more than one of a hundred. Lost workers are Dask's affair: it gives their tasks to others, which find what was
finished (task.py). A lost scheduler is found again, if it returns; else the run ends, and the next one goes on.
"""

import heapq
import itertools
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocodec.errors import HistocodecError, StoreError
from histocodec.formats.cohort.cluster import Place, connected
from histocodec.formats.cohort.holder import holding
from histocodec.formats.cohort.ledger import Kind, Ledger, Row
from histocodec.formats.cohort.task import BUSY, LOST, Json, Task, perform
from histocodec.version import VERSION

if TYPE_CHECKING:
    from distributed import Client, Future

ATTEMPTS = 3
AHEAD = 2  # tasks with the scheduler for each that can run, so that no worker waits for this process
LEAST_AHEAD = 8
TICK = 0.5  # seconds between two looks at the clock
DELAY = 2.0  # seconds before a slide is tried again, doubled with each attempt …
LONGEST_DELAY = 60.0  # … up to this
RETURNS = 3  # times that a scheduler may be lost in one run
COLUMNS_NOT_STORED = ("number", "lasting")


@dataclass(frozen=True)
class Request:
    """What a run does: its kind of work, how often a slide is tried, and what its tasks are told. `again` also works on
    slides that failed for good, and of other work than encoding on those that are done."""

    kind: Kind = "encode"
    attempts: int = ATTEMPTS
    again: bool = False
    device: str = "auto"
    threads: int | None = None
    verify: bool = False
    overwrite: bool = False
    detail: Mapping[str, object] = field(default_factory=dict)
    delay: float = DELAY


@dataclass(frozen=True)
class Failure:
    """A slide that failed for good in this run."""

    number: int
    source: str
    kind: str
    error: str


@dataclass(frozen=True)
class RunReport:
    """What came of a run. `done` and `failed` are those of this run, `left` slides are not finished. Bytes are those of
    sources and containers that this run finished, `pixels` those of all their levels."""

    ledger: str
    kind: Kind
    done: int
    adopted: int
    failed: int
    left: int
    source_bytes: int
    result_bytes: int
    pixels: int
    seconds: float
    failures: tuple[Failure, ...]


@dataclass
class Progress:
    """How far a run has come. `area` counts pixels of level 0, `total` those of all slides it has to do."""

    slides: int
    total: int
    workers: int | None = None  # tasks that can run at a time; None before that is known
    began: float = field(default_factory=time.perf_counter)
    done: int = 0
    adopted: int = 0
    area: int = 0
    pixels: int = 0
    source_bytes: int = 0
    result_bytes: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.perf_counter() - self.began

    @property
    def seconds_left(self) -> float | None:
        """What is left takes, at the speed so far; None before anything is done."""
        return self.seconds * (self.total - self.area) / self.area if self.area and self.total else None


class _SchedulerLost(Exception):
    """The connection to the scheduler broke."""


def run(
    ledger: Path, place: Place, request: Request, *, progress: Callable[[Progress], None] | None = None
) -> RunReport:
    """Works on all slides of a ledger that are not done. `progress` is called whenever something was.

    A slide that fails does not stop the others. Raises BusyError where another process works on the ledger, StoreError
    where the scheduler cannot be reached or was lost, and KeyboardInterrupt; what was done until then is in the ledger.
    """
    work = {"encode": "run"}.get(request.kind, request.kind)
    with holding(ledger, work) as holder, Ledger.open(ledger) as opened:
        opened.begin(request.kind, again=request.again, attempts=request.attempts)
        number = opened.open_run(request.kind, holder, str(place), VERSION)
        ended = "interrupted"
        try:
            numbers, area = opened.pending(request.kind)
            state = Progress(len(numbers), area)
            try:
                _drive(opened, place, request, number, deque(numbers), state, progress or (lambda state: None))
                ended = "done"
            except HistocodecError:
                ended = "lost"
                raise
        finally:
            opened.close_run(number, ended)
        left = opened.counts(request.kind)["planned"]
    return RunReport(
        str(ledger), request.kind, state.done, state.adopted, len(state.failures), left, state.source_bytes,
        state.result_bytes, state.pixels, state.seconds, tuple(state.failures),
    )  # fmt: skip


def _drive(
    ledger: Ledger,
    place: Place,
    request: Request,
    number: int,
    numbers: deque[int],
    state: Progress,
    progress: Callable[[Progress], None],
) -> None:
    """Connects and works until nothing is left, again if the scheduler goes and returns."""
    if not numbers:
        return
    for lost in itertools.count(1):
        with connected(place) as client:
            driver = _Driver(client, ledger, place, request, f"{number}-{lost}", numbers, state, progress)
            try:
                driver.work()
                return
            except _SchedulerLost as exc:
                numbers = driver.unfinished()
                if lost > RETURNS or place.scheduler is None:
                    raise StoreError(
                        f"{place}: the scheduler was lost ({exc}); what was done is in the ledger, and running again "
                        "goes on"
                    ) from exc
            finally:
                driver.cancel()


class _Driver:
    """One connection's work: keeps tasks with the scheduler, and the ledger true."""

    def __init__(
        self,
        client: "Client",
        ledger: Ledger,
        place: Place,
        request: Request,
        name: str,
        numbers: deque[int],
        state: Progress,
        progress: Callable[[Progress], None],
    ) -> None:
        self._client, self._ledger, self._place, self._request = client, ledger, place, request
        self._name, self._ready, self._state, self._progress = name, numbers, state, progress
        self._waiting: list[tuple[float, int]] = []  # a heap: when to try again
        self._running: dict[Future[Any], Row] = {}
        self._finished: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._counter = itertools.count()
        self._slots, self._slots_seen = 0, -1.0

    def work(self) -> None:
        """Works until nothing is left. Raises _SchedulerLost."""
        self._progress(self._state)
        while self._ready or self._waiting or self._running:
            self._submit()
            batch = self._next()
            if batch:
                self._note(self._results(batch))
                self._progress(self._state)
            if self._client.status not in ("running", "newly-created"):
                raise _SchedulerLost(f"the connection is {self._client.status}")

    def unfinished(self) -> deque[int]:
        """The numbers of the slides that are left to do."""
        running = (row.number for row in self._running.values())
        return deque([*running, *self._ready, *(number for _, number in self._waiting)])

    def cancel(self) -> None:
        """Takes back what the scheduler still has. A task that runs already runs on to its end."""
        with suppress(Exception):
            if self._running and self._client.status == "running":
                self._client.cancel(list(self._running), force=True)

    def _submit(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            self._ready.append(heapq.heappop(self._waiting)[1])
        room = max(LEAST_AHEAD, AHEAD * self._worker_slots()) - len(self._running)
        numbers = [self._ready.popleft() for _ in range(min(room, len(self._ready)))]
        rows = [
            row
            for number in numbers
            for row in self._ledger.rows(self._request.kind, ("planned", "running"), number=number)
        ]
        if not rows:
            self._worker_slots()
            return
        self._ledger.start(self._request.kind, [row.number for row in rows])
        for row in rows:
            key = f"histocodec-{self._request.kind}-{self._name}-{row.number}-{next(self._counter)}"
            future = self._client.submit(
                _perform,
                self._task(row).to_json(),
                key=key,
                pure=False,
                resources=dict(self._place.resources) or None,
            )
            self._running[future] = row
            future.add_done_callback(self._finished.put)

    def _task(self, row: Row) -> Task:
        request, detail = self._request, dict(self._request.detail)
        if request.kind == "verify":
            detail["digest"] = row.digest
        threads = request.threads or self._place.threads
        return Task(
            request.kind, row.number, row.source, row.result, row.options, row.created, row.parts, request.device,
            threads, request.verify, request.overwrite, detail=detail,
        )  # fmt: skip

    def _worker_slots(self) -> int:
        """The number of tasks that can run at a time; asked for now and then, since workers come and go."""
        now = time.monotonic()
        if now - self._slots_seen > 10 or not self._slots:
            with suppress(Exception):
                self._slots, self._slots_seen = sum(self._client.nthreads().values()), now
                if self._state.workers != self._slots:
                    self._state.workers = self._slots
                    self._progress(self._state)
        return self._slots

    def _next(self) -> list["Future[Any]"]:
        """The tasks that have ended since the last look, or none after a while."""
        batch = []
        with suppress(queue.Empty):
            batch.append(self._finished.get(timeout=TICK))
            while True:
                batch.append(self._finished.get_nowait())
        return [future for future in batch if future in self._running]

    def _results(self, batch: Iterable["Future[Any]"]) -> Iterator[tuple[Row, Json | None]]:
        """What came of tasks; None where one was taken back before it ran."""
        finished = [future for future in batch if future.status == "finished"]
        try:
            results = self._client.gather(finished, errors="raise", direct=False)
        except Exception as exc:
            if self._client.status != "running":
                raise _SchedulerLost(str(exc) or type(exc).__name__) from exc
            results = [None] * len(finished)  # a worker went with the result, which can be had again
        for future, result in zip(finished, results, strict=True):
            yield self._running.pop(future), result
        for future in batch:
            if future not in self._running:
                continue
            if future.status == "error":
                yield self._running.pop(future), _lost(future)
            elif self._client.status == "running":
                yield self._running.pop(future), None
            else:
                raise _SchedulerLost(f"the connection is {self._client.status}")

    def _note(self, results: Iterable[tuple[Row, Json | None]]) -> None:
        """Writes results into the ledger in one go, and puts back what is to be tried again."""
        changes: list[tuple[int, Mapping[str, object]]] = []
        try:
            for row, result in results:
                if result is None or result.get("error_kind") == BUSY:  # somebody else's task has the slide in work
                    changes.append((row.number, {"state": "planned"}))
                    self._put_back(row, self._request.delay)
                    continue
                attempts = row.attempts + 1
                change = {name: value for name, value in result.items() if name not in COLUMNS_NOT_STORED}
                change["attempts"] = attempts
                if result["state"] == "done":
                    self._count(row, result)
                elif attempts < self._request.attempts and not result.get("lasting"):
                    change["state"] = "planned"
                    self._put_back(row, min(LONGEST_DELAY, self._request.delay * 2 ** (attempts - 1)))
                else:
                    self._fail(row, result)
                if self._request.kind != "encode":
                    change = {name: value for name, value in change.items() if name != "version"}
                changes.append((row.number, change))
        finally:
            self._ledger.finish(self._request.kind, changes)

    def _put_back(self, row: Row, delay: float) -> None:
        heapq.heappush(self._waiting, (time.monotonic() + delay, row.number))

    def _count(self, row: Row, result: Json) -> None:
        state = self._state
        state.done += 1
        state.area += row.area
        state.adopted += bool(result.get("adopted"))
        state.pixels += _integer(result.get("pixels"))
        state.source_bytes += _integer(result.get("source_bytes"))
        state.result_bytes += _integer(result.get("result_bytes"))

    def _fail(self, row: Row, result: Json) -> None:
        self._state.area += row.area
        failure = Failure(row.number, row.source, str(result["error_kind"]), str(result["error"]))
        self._state.failures.append(failure)


def _perform(values: Json) -> Json:
    """`perform` on a worker, which shares its cores among the tasks it may run at a time."""
    from distributed import get_worker

    from histocodec.formats.cohort.cluster import cores

    return perform(values, max(1, cores() // get_worker().state.nthreads))


def _lost(future: "Future[Any]") -> Json:
    """The result of a task that ended with an error of Dask's: its workers died."""
    error: Any = future.exception()
    died = type(error).__name__ == "KilledWorker"
    text = "the workers that had it died, one after the other: killed, or out of memory" if died else str(error)
    return {
        "state": "failed",
        "error_kind": LOST if died else type(error).__name__,
        "error": text,
        "finished": time.time(),
    }


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0
