"""How the cost of a cohort grows with slides and workers: measured on this machine, and simulated beyond it.

    python -m histocodec.benchmarks.studies.cohort_growth --workers 1 --workers 2 --workers 4 --slides 24
    python -m histocodec.benchmarks.studies.cohort_growth --tasks 2000 --rows 1000000

`--workers` compresses made-up slides with so many local workers of one thread each, after their processes have worked
before. `--tasks` runs tasks that do nothing, so that what is left is Dask and the ledger: slides a second, and bytes
through the scheduler for each. `--rows` makes a ledger of so many slides, takes and finishes some of them, and
reports on it.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from histocodec.benchmarks.studies.run_command import run_command
from histocodec.formats.cohort import run as run_module
from histocodec.formats.cohort.cluster import Place
from histocodec.formats.cohort.ledger import Ledger, Row
from histocodec.formats.cohort.plan import make_plan
from histocodec.formats.cohort.policy import Policy
from histocodec.formats.cohort.report import write_report
from histocodec.formats.cohort.run import Request, run
from histocodec.report import print_json, say
from histocodec.sources.synthetic import synthetic_slide, write_pyramidal_tiff
from histocodec.text import size_text
from histocodec.version import VERSION

BATCH = 64  # slides in one transaction: what a run of some dozen workers finishes between two looks


@dataclass(frozen=True)
class Workers:
    """Slides compressed with so many workers, their speed in MP/s, the whole time, and that without the start of the
    workers."""

    workers: int
    slides: int
    megapixels_per_second: float
    seconds: float
    working_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.workers} workers: {self.slides} slides, {self.megapixels_per_second:.2f} MP/s; "
            f"{self.working_seconds:.1f} s of {self.seconds:.1f} s with the workers"
        )


@dataclass(frozen=True)
class Traffic:
    """Tasks that do nothing: how many go through client, scheduler and ledger a second, and bytes a task."""

    tasks: int
    per_second: float
    bytes_per_task: float

    def __str__(self) -> str:
        return f"{self.tasks} empty tasks: {self.per_second:.0f} a second, {self.bytes_per_task:.0f} bytes each"


@dataclass(frozen=True)
class LedgerCost:
    """A ledger of so many slides: bytes, seconds to make it, rows begun and finished a second, seconds to find what is
    left and to write a report, and the most memory of the process in bytes."""

    rows: int
    bytes: int
    made_seconds: float
    finished_per_second: float
    pending_seconds: float
    report_seconds: float
    peak_memory: int

    def __str__(self) -> str:
        return (
            f"{self.rows} rows: {size_text(self.bytes)}, made in {self.made_seconds:.1f} s; "
            f"{self.finished_per_second:.0f} rows begun and finished a second; "
            f"what is left in {self.pending_seconds:.2f} s; report in "
            f"{self.report_seconds:.1f} s; {size_text(self.peak_memory)} of memory at most"
        )


def measure_workers(workers: int, slides: int, side: int, model: str | None) -> Workers:
    """Compresses slides on local workers of one thread. Each worker has a slide to begin with that is not counted."""
    with TemporaryDirectory(prefix="histocodec-growth-") as text:
        folder = Path(text)
        (folder / "slides").mkdir()
        for number in range(slides + 2 * workers):
            pixels = synthetic_slide(side, side, seed=number)
            write_pyramidal_tiff(folder / "slides" / f"{number:04}.tif", pixels, mpp=0.5)
        options: dict[str, object] = {"effort": 0, **({} if model is None else {"model": model})}
        make_plan([folder / "slides"], str(folder / "out"), folder / "ledger", Policy(), options=options)
        report = run(folder / "ledger", Place(workers=workers), Request(device="cpu", threads=1))
        with Ledger.open(folder / "ledger") as ledger:
            done = sorted((row.finished or 0, row.pixels or 0) for row in ledger.rows(states=("done",)))
    began, counted = done[2 * workers - 1][0], done[2 * workers :]
    seconds = counted[-1][0] - began
    return Workers(workers, slides, sum(pixels for _, pixels in counted) / seconds / 1e6, report.seconds, seconds)


def _empty(values: dict[str, Any]) -> dict[str, Any]:
    """A result of the size of a real one."""
    return {
        "number": values["number"], "worker": "node-0001:12345", "version": VERSION, "width": 100_000,
        "height": 80_000, "levels": 4, "mpp_x": 0.25, "mpp_y": 0.25, "source_bytes": 10**9, "result_bytes": 10**8,
        "pixels": 10**10, "psnr": 36.1234, "worst_psnr": 30.12, "worst_level": 0, "worst_row": 12, "worst_column": 34,
        "worst_block_error": 20.5, "quality": 50, "model": "hyper-6", "source_sha256": "0" * 64,
        "result_sha256": "1" * 64, "digest": "2" * 64, "adopted": False, "verified": False, "state": "done",
        "error_kind": None, "error": None, "seconds": 60.0, "finished": time.time(),
    }  # fmt: skip


def made_up(number: int) -> Row:
    """A planned slide with labels and options as an archive has them."""
    name = f"2024/{number // 1000:04}/S24-{number:07}"
    labels = {"vendor": "aperio", "mpp": "0.25", "power": "40", "stain": "HE", "organ": "lung"}
    return Row(
        0, f"/archive/{name}.svs", f"s3://archive/{name}.hcz", {"quality": 50, "source_name": "hash"}, 1_764_547_200,
        labels=labels, vendor="aperio", width=100_000, height=80_000, levels=4, mpp_x=0.25, mpp_y=0.25,
        source_bytes=10**9,
    )  # fmt: skip


def measure_traffic(tasks: int) -> Traffic:
    """Runs tasks that do nothing on a scheduler and four workers in threads of this process, over TCP."""
    from distributed import LocalCluster
    from distributed.comm import tcp

    kind: Any = tcp.TCP
    sent, write = [0], kind.write

    async def counted(self: Any, *arguments: Any, **choices: Any) -> int:
        size: int = await write(self, *arguments, **choices)
        sent[0] += size
        return size

    real = run_module._perform
    with TemporaryDirectory(prefix="histocodec-growth-") as text:
        path = Path(text) / "ledger"
        with Ledger.make(path, {"out": "s3://archive"}) as ledger:
            ledger.add(made_up(number) for number in range(tasks))
        with LocalCluster(
            n_workers=4, threads_per_worker=4, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster:  # fmt: skip
            kind.write = counted
            run_module._perform = _empty
            try:
                began = time.perf_counter()
                report = run(path, Place(scheduler=cluster.scheduler_address), Request())
                seconds = time.perf_counter() - began
            finally:
                kind.write, run_module._perform = write, real
    assert report.done == tasks
    return Traffic(tasks, tasks / seconds, sent[0] / tasks)


def measure_ledger(rows: int) -> LedgerCost:
    """Makes a ledger, finishes up to 20,000 of its slides in batches, and reports on it."""
    finished = min(rows, 20_000)
    with TemporaryDirectory(prefix="histocodec-growth-") as text:
        path, began = Path(text) / "ledger", time.perf_counter()
        with Ledger.make(path, {"out": "s3://archive"}) as ledger:
            ledger.add(made_up(number) for number in range(rows))
            made = time.perf_counter() - began
            began = time.perf_counter()
            ledger.pending()
            pending = time.perf_counter() - began
            chance, began = random.Random(0), time.perf_counter()
            for start in range(1, finished + 1, BATCH):
                numbers = range(start, min(start + BATCH, finished + 1))
                ledger.start("encode", numbers)
                changes = [(number, {**_empty({"number": number}), "psnr": 36 + chance.random()}) for number in numbers]
                ledger.finish("encode", [(number, {**change, "attempts": 1}) for number, change in changes])
            speed = finished / (time.perf_counter() - began)
        began = time.perf_counter()
        write_report(path, Path(text) / "report", pictures=0)
        reported = time.perf_counter() - began
        import resource  # here: Windows has none

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return LedgerCost(rows, path.stat().st_size, made, speed, pending, reported, peak)


@click.command()
@click.option("--workers", multiple=True, type=int, help="Numbers of workers to measure. Repeatable.")
@click.option("--slides", default=24, show_default=True, help="Slides for each number of workers.")
@click.option("--side", default=1024, show_default=True, help="Pixels of a slide's side.")
@click.option("--model", help="Model to encode with; the flagship by default.")
@click.option("--tasks", default=0, help="Empty tasks.")
@click.option("--rows", multiple=True, type=int, help="Slides in a ledger. Repeatable.")
@click.option("--json", "as_json", is_flag=True)
def command(
    workers: Sequence[int], slides: int, side: int, model: str | None, tasks: int, rows: Sequence[int], as_json: bool
) -> None:
    """Measure how the cost of a cohort grows."""
    results: list[Workers | Traffic | LedgerCost] = []
    for number in workers:
        results.append(measure_workers(number, slides, side, model))
        say(str(results[-1]))
    if tasks:
        results.append(measure_traffic(tasks))
        say(str(results[-1]))
    for count in rows:
        results.append(measure_ledger(count))
        say(str(results[-1]))
    if as_json:
        print_json({"results": results})


if __name__ == "__main__":
    run_command(command)
