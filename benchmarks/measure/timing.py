"""Time how fast a row's image is coded and decoded, and in how much memory: once each, on one thread and on all.

A single measurement of a small image says little; reports show the median over images. What one region of a slide
takes, repeated and side by side with a peer, is measured by `histocodec.benchmarks.studies.speed`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from histocodec.benchmarks.measure.memory import peak_bytes
from histocodec.benchmarks.measure.our_codec import OurCodec
from histocodec.benchmarks.measure.result_rows import Row, Speed
from histocodec.benchmarks.measure.timed_jobs import Job, our_jobs, peer_jobs, torch_threads
from histocodec.benchmarks.peers.contender import CodedImage, Contender
from histocodec.slide import Pixels

TIMED_BPP = (0.15, 0.5, 1.0)  # the rows nearest to these rates are timed: one in each of the bands
TIMED = ("encode", "decode")

PreparedJobs = Callable[[int], AbstractContextManager[Sequence[Job]]]  # by the number of threads


@dataclass(frozen=True)
class _Run:
    seconds: float
    peak: int | None


def nearest(rows: Sequence[Row]) -> list[Row]:
    """The rows to be timed, each once: those nearest to TIMED_BPP."""
    chosen = [min(rows, key=lambda row: abs(row.bpp - bpp)) for bpp in TIMED_BPP]
    return list({row.key: row for row in chosen}.values())


def speed_of(jobs: PreparedJobs, *, pixels: int, threads: int, timed_on: str) -> Speed:
    """Do every job twice and take the second time, on one thread and on `threads`."""
    on_one, on_all = (_timed(jobs, count) for count in (1, threads))
    megapixels = pixels / 1e6
    return Speed(
        timed_on=timed_on,
        encode_mps_1=megapixels / on_one["encode"].seconds,
        decode_mps_1=megapixels / on_one["decode"].seconds,
        encode_mps_all=megapixels / on_all["encode"].seconds,
        decode_mps_all=megapixels / on_all["decode"].seconds,
        encode_peak_bytes=on_all["encode"].peak,
        decode_peak_bytes=on_all["decode"].peak,
    )


def jobs_of_peer(peer: Contender, pixels: Pixels, setting: float) -> PreparedJobs:
    """A peer's jobs, on bytes in memory."""

    @contextmanager
    def jobs(threads: int) -> Iterator[Sequence[Job]]:
        data = peer.encode(pixels, setting, threads=threads)
        yield peer_jobs(peer, pixels, CodedImage(setting, data, 0.0), threads)

    return jobs


def jobs_of_ours(pixels: Pixels, quality: float, *, model: str, device: str, effort: float | None) -> PreparedJobs:
    """Our jobs, as users read: a container on disk, opened and asked for its pixels."""

    @contextmanager
    def jobs(threads: int) -> Iterator[Sequence[Job]]:
        with TemporaryDirectory(prefix="histocodec-bench-") as folder:
            ours = OurCodec(pixels, quality, model, device, threads, Path(folder), effort)
            ours.prepare()
            yield our_jobs(ours)

    return jobs


def _timed(jobs: PreparedJobs, threads: int) -> dict[str, _Run]:
    runs = {}
    with jobs(threads) as prepared, torch_threads(threads):
        for job in prepared:
            if job.what in TIMED:
                job.run()
                runs[job.what] = _run(job)
    return runs


def _run(job: Job) -> _Run:
    seconds: dict[str, float] = {}
    peak = peak_bytes(lambda: seconds.update(job.run()))
    return _Run(seconds[job.what], peak)
