"""Small cohorts: folders of made-up slides, their ledgers, and runs on workers that tests may kill."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from histocodec.formats.cohort.ledger import Ledger, Row, State
from histocodec.formats.cohort.plan import make_plan
from histocodec.formats.cohort.policy import Policy
from histocodec.sources.synthetic import synthetic_slide, write_pyramidal_tiff
from tests.support.modules import REPOSITORY

CREATED = 1_764_547_200  # as the fixture `fixed_time` has it


def make_slides(folder: Path, count: int, *, side: int = 300, start: int = 0) -> list[Path]:
    """Write small made-up slides, slide-000.tif and so on, each with other pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"slide-{number:03}.tif" for number in range(start, start + count)]
    for number, path in enumerate(paths, start):
        write_pyramidal_tiff(path, synthetic_slide(side, side - 20, seed=number), mpp=0.5)
    return paths


def planned(folder: Path, out: str | Path, model: Path, ledger: Path, **options: object) -> Path:
    """Plan a folder of slides with the tiny model at effort 0; returns the ledger."""
    make_plan([folder], str(out), ledger, Policy(), options={"model": str(model), "effort": 0, **options})
    return ledger


def rows(ledger: Path, *states: State) -> list[Row]:
    """The slides of a ledger."""
    with Ledger.open(ledger) as opened:
        return list(opened.rows(states=states)) if states else list(opened.rows())


def environment() -> dict[str, str]:
    """Variables for processes that run histocodec from this checkout."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def command(*arguments: str | Path) -> list[str]:
    """The command line of histocodec."""
    return [sys.executable, "-m", "histocodec", *map(str, arguments)]


def children_of(process: int) -> list[psutil.Process]:
    """The processes below one, nearest first."""
    try:
        return psutil.Process(process).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextmanager
def dask(*arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A `dask scheduler` or `dask worker`, killed with its children at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a process and those below it with SIGKILL."""
    for child in (*children_of(process.pid), process):
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
    process.wait()


def wait_until(fact: Callable[[], object], *, seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
