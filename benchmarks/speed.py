"""How fast: encoding and decoding one region, beside OpenJPEG on the same pixels at the same PSNR.

    python -m histocodec.benchmarks.speed SLIDE [--quality 50] [--threads 1,all] [--repeat 3]

OpenJPEG gets what a slide needs for random access, as ours has: tiles of 512 pixels, shared out to the
threads. Its rate is sought first and not timed. Both start from pixels in memory; OpenJPEG's bytes stay
there, ours go through files, as they do in use. Every job is done once to warm up, then `repeat` times, there
and back.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import click
import torch

from histocodec.benchmarks.jobs import COLD, OURS, SMALL, Job, Ours, our_jobs, peer_jobs
from histocodec.benchmarks.memory import peak_bytes
from histocodec.benchmarks.peers import JPEG2000_TILES, coded_at_psnr
from histocodec.benchmarks.provenance import Machine, Model, at_hand, run, save, versions
from histocodec.cli.options import box, device_option, json_option
from histocodec.cli.report import decibel_text, print_json, say, size_text
from histocodec.errors import UsageError
from histocodec.formats.options import DEFAULT_QUALITY
from histocodec.formats.source import open_slide
from histocodec.geometry import Region
from histocodec.models.config import QUALITIES
from histocodec.models.weights import DEFAULT_MODEL
from histocodec.slide import Pixels
from histocodec.tissue import busiest_region
from histocodec.transform import choose_device
from histocodec.workers import default_workers

PEER = JPEG2000_TILES
SIDE = 2048  # pixels of the region that is timed: 16 chunks
COMPARED = ("encode", "decode")


@dataclass(frozen=True)
class Coding:
    """What is timed: so many bytes at this PSNR. Ours are those that reading the pixels needs."""

    codec: str
    setting: float
    bytes: int
    bpp: float
    psnr: float


@dataclass(frozen=True)
class Timing:
    """One thing, done several times. Megapixels a second of the median, the longest and the shortest time."""

    codec: str
    what: str
    device: str
    threads: int
    seconds: tuple[float, ...]
    median_seconds: float
    median_mps: float
    lowest_mps: float
    highest_mps: float

    @classmethod
    def of(cls, job: Job, what: str, seconds: Sequence[float], pixels: int) -> "Timing":
        times = (median(seconds), max(seconds), min(seconds))
        speeds = [pixels / 1e6 / one for one in times]
        return cls(job.codec, what, job.device, job.threads, tuple(seconds), times[0], *speeds)


@dataclass(frozen=True)
class Ratio:
    """Our megapixels a second over the peer's on the CPU with as many threads, by the medians."""

    what: str
    device: str
    threads: int
    ours_over_peer: float


@dataclass(frozen=True)
class Memory:
    """The most that a job took beyond what the process held already; None where the system does not tell."""

    codec: str
    what: str
    device: str
    threads: int
    peak_bytes: int | None


@dataclass(frozen=True)
class Measured:
    """The figures themselves, without where they come from."""

    codings: tuple[Coding, ...]
    timings: tuple[Timing, ...]
    ratios: tuple[Ratio, ...]
    memory: tuple[Memory, ...]


@dataclass(frozen=True)
class SpeedResult:
    machine: Machine
    versions: Mapping[str, str]
    model: Model
    slide: str
    region: str
    measured: Measured


def measure_speed(
    pixels: Pixels, *, quality: int, model: str, devices: Sequence[str], threads: Sequence[int], repeat: int
) -> Measured:
    """Everything, for pixels (H, W, 3) in memory. A GPU is timed with the largest number of threads alone."""
    area, most = pixels.shape[0] * pixels.shape[1], max(threads)
    counts = {device: threads if device == "cpu" else (most,) for device in devices}
    with TemporaryDirectory(prefix="histocodec-speed-") as folder:
        runs = [
            Ours(pixels, quality, model, device, count, Path(folder) / f"{device}-{count}".replace(":", "-"))
            for device in devices
            for count in counts[device]
        ]
        sizes = []
        for ours in runs:
            ours.folder.mkdir()
            sizes.append(ours.prepare().payload_bytes)
        reached = runs[0].psnr()
        say(f"seeking the rate at which {PEER.name} has {decibel_text(reached)}, too")
        coding = coded_at_psnr(PEER, pixels, reached, threads=most)
        jobs = [job for ours in runs for job in our_jobs(ours)]
        jobs += [job for count in threads for job in peer_jobs(PEER, pixels, coding, count)]
        jobs.sort(key=lambda job: (job.what not in COMPARED, job.what, job.threads))  # rivals side by side
        timings = timed(jobs, repeat, area)
        say("measuring memory")
        memory = [
            Memory(job.codec, job.what, job.device, job.threads, peak_bytes(job.run))
            for job in jobs
            if job.what in COMPARED and job.threads == most
        ]
    codings = (
        Coding(OURS, quality, sizes[0], 8 * sizes[0] / area, reached),
        Coding(PEER.name, coding.setting, len(coding.data), 8 * len(coding.data) / area, coding.psnr),
    )
    return Measured(codings, tuple(timings), tuple(ratios(timings)), tuple(memory))


def timed(jobs: Sequence[Job], repeat: int, pixels: int) -> list[Timing]:
    """Every job once for nothing, then all of them in turn, there and back, `repeat` times."""
    seconds: dict[tuple[int, str], list[float]] = {}
    numbered = list(enumerate(jobs))
    for turn in range(repeat + 1):
        say(f"round {turn} of {repeat}" if turn else "warming up")
        for number, job in numbered if turn % 2 else reversed(numbered):
            with _torch_threads(job.threads):
                found = job.run()
            for what, one in found.items() if turn else ():
                seconds.setdefault((number, what), []).append(one)
    return [
        Timing.of(jobs[number], what, times, SMALL**2 if what.startswith(COLD) else pixels)
        for (number, what), times in sorted(seconds.items(), key=lambda item: item[0][0])
    ]


def ratios(timings: Sequence[Timing]) -> list[Ratio]:
    """Wherever both were timed with as many threads."""
    peers = {(one.what, one.threads): one.median_mps for one in timings if one.codec == PEER.name}
    return [
        Ratio(one.what, one.device, one.threads, one.median_mps / peers[one.what, one.threads])
        for one in timings
        if one.codec == OURS and (one.what, one.threads) in peers
    ]


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Outside the worker threads, too, no more cores are used than the run is said to use."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _thread_counts(text: str) -> tuple[int, ...]:
    parts = [default_workers() if part == "all" else part for part in text.split(",")]
    if not all(str(part).isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text!r}; numbers from 1 on, or all, with commas between them, are needed")
    return tuple(sorted({int(part) for part in parts}))


def _devices(name: str) -> tuple[str, ...]:
    """auto: the CPU, and a GPU where there is one."""
    chosen = str(choose_device(name))
    return tuple(dict.fromkeys(("cpu", chosen))) if name == "auto" else (chosen,)


@click.command("speed")
@click.argument("slide", type=click.Path(path_type=Path))
@click.option("--region", type=box, metavar="X,Y,W,H", help="Of level 0; default: a square full of tissue.")
@click.option("--quality", type=click.IntRange(0, QUALITIES - 1), default=DEFAULT_QUALITY, show_default=True)
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="ID|FILE")
@click.option("--threads", type=_thread_counts, default="1,all", show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="A file for the result, as JSON."
)
@device_option
@json_option
def command(
    *,
    slide: Path,
    region: tuple[int, int, int, int] | None,
    quality: int,
    model: str,
    threads: tuple[int, ...],
    repeat: int,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Encoding and decoding in megapixels a second, beside OpenJPEG at the same PSNR."""
    machine, devices = Machine.here(), _devices(device)
    with open_slide(slide, device=device) as opened:
        chosen = busiest_region(opened, SIDE) if region is None else Region(*region)
        chosen = chosen.intersect(opened.levels[0].region)
        if min(chosen.width, chosen.height) < SMALL:
            raise UsageError(f"{slide}: region {chosen} is too small; {SMALL} pixels a side are needed")
        pixels = opened.read(chosen, 0)
    with at_hand(model) as weights:
        measured = measure_speed(
            pixels, quality=quality, model=model, devices=devices, threads=threads, repeat=repeat
        )
    result = SpeedResult(machine, versions(), Model.of(weights), slide.name, str(chosen), measured)
    if out is not None:
        save(result, out)
    if as_json:
        print_json(result)
    else:
        _print_table(result)


def _print_table(result: SpeedResult) -> None:
    measured, machine = result.measured, result.machine
    click.echo(
        f"{result.slide}, region {result.region}, model {result.model.id} ({result.model.sha256[:12]})"
    )
    click.echo(f"{machine.cpu}, {machine.cores} cores, load {machine.load}; GPU: {machine.gpu or 'none'}\n")
    for coding in measured.codings:
        click.echo(
            f"{coding.codec:<24} {size_text(coding.bytes):>8}  {coding.bpp:.3f} bpp  {coding.psnr:.2f} dB"
        )
    click.echo(
        f"\n{'codec':<24} {'what':<26} {'device':<7} threads  {'median':>9}  {'MP/s':>8}  lowest … highest"
    )
    for one in measured.timings:
        milliseconds = f"{1000 * one.median_seconds:.0f} ms"
        click.echo(
            f"{one.codec:<24} {one.what:<26} {one.device:<7} {one.threads:>7}  {milliseconds:>9}"
            f"  {one.median_mps:>8.2f}  {one.lowest_mps:.2f} … {one.highest_mps:.2f}"
        )
    click.echo(f"\n{OURS} over {PEER.name} (above 1: we are faster)")
    for ratio in measured.ratios:
        click.echo(
            f"  {ratio.what:<26} {ratio.device:<7} {ratio.threads:>2} threads  {ratio.ours_over_peer:.2f} x"
        )
    click.echo("\nmemory beyond what the process held")
    for entry in measured.memory:
        peak = "not known" if entry.peak_bytes is None else size_text(entry.peak_bytes)
        click.echo(
            f"  {entry.codec:<24} {entry.what:<10} {entry.device:<7} {entry.threads:>2} threads  {peak}"
        )


def main() -> None:
    sys.exit(run(command, __spec__.name if __spec__ else "speed"))


if __name__ == "__main__":
    main()
