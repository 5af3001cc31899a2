"""How fast a row's image was coded and decoded, and in how much memory: once each, with one thread and with all.

A single measurement of a small image says little; it is the median over the images that is shown. What one region
of a slide takes, repeated and side by side with a peer, is `histocodec.benchmarks.studies.speed`'s to say.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from histocodec.benchmarks.measure.memory import peak_bytes
from histocodec.benchmarks.measure.result_rows import Row, Speed
from histocodec.benchmarks.measure.timed_jobs import Job, Ours, our_jobs, peer_jobs, torch_threads
from histocodec.benchmarks.peers.contender import Coded, Contender
from histocodec.slide import Pixels

TIMED_BPP = (0.15, 0.5, 1.0)  # the rows nearest to these rates are timed: one in each of the bands
TIMED = ("encode", "decode")

JobsWith = Callable[[int], AbstractContextManager[Sequence[Job]]]  # with so many threads


@dataclass(frozen=True)
class _Once:
    seconds: float
    peak: int | None


def nearest(rows: Sequence[Row]) -> list[Row]:
    """The rows to be timed, each once."""
    found = [min(rows, key=lambda row: abs(row.bpp - bpp)) for bpp in TIMED_BPP]
    return list({row.key: row for row in found}.values())


def speed_of(jobs: JobsWith, *, pixels: int, threads: int, timed_on: str) -> Speed:
    """Every job is done twice, and the second time counts."""
    one, every = (_timed(jobs, count) for count in (1, threads))
    megapixels = pixels / 1e6
    return Speed(
        timed_on=timed_on,
        encode_mps_1=megapixels / one["encode"].seconds,
        decode_mps_1=megapixels / one["decode"].seconds,
        encode_mps_all=megapixels / every["encode"].seconds,
        decode_mps_all=megapixels / every["decode"].seconds,
        encode_peak_bytes=every["encode"].peak,
        decode_peak_bytes=every["decode"].peak,
    )


def _timed(jobs: JobsWith, threads: int) -> dict[str, _Once]:
    found = {}
    with jobs(threads) as prepared, torch_threads(threads):
        for job in prepared:
            if job.what in TIMED:
                job.run()
                found[job.what] = _once(job)
    return found


def _once(job: Job) -> _Once:
    seconds: dict[str, float] = {}
    peak = peak_bytes(lambda: seconds.update(job.run()))
    return _Once(seconds[job.what], peak)


def jobs_of_peer(peer: Contender, pixels: Pixels, setting: float) -> JobsWith:
    @contextmanager
    def jobs(threads: int) -> Iterator[Sequence[Job]]:
        data = peer.encode(pixels, setting, threads=threads)
        yield peer_jobs(peer, pixels, Coded(setting, data, 0.0), threads)

    return jobs


def jobs_of_ours(pixels: Pixels, quality: float, *, model: str, device: str, effort: float | None) -> JobsWith:
    """As users read: a container on disk, opened, and asked for its pixels."""

    @contextmanager
    def jobs(threads: int) -> Iterator[Sequence[Job]]:
        with TemporaryDirectory(prefix="histocodec-bench-") as folder:
            ours = Ours(pixels, quality, model, device, threads, Path(folder), effort)
            ours.prepare()
            yield our_jobs(ours)

    return jobs
