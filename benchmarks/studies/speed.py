"""Time encoding and decoding of one region of a slide, beside OpenJPEG on the same pixels at the same PSNR.

    python -m histocodec.benchmarks.studies.speed slide.svs

OpenJPEG gets what a slide needs for random access, as ours has it: tiles of 512 pixels, shared out to the threads.
Searching for its rate is not timed. Both start from pixels in memory; OpenJPEG's bytes stay there, ours go through
files, as they do in use. Every job runs once to warm up, then several times, in alternating order. A GPU is also timed
from files to pixels that stay there; whole slides are measured by `histocodec.benchmarks.studies.gpu`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import click

from histocodec.benchmarks.measure.memory import peak_bytes
from histocodec.benchmarks.measure.our_codec import COLD_SIDE, OurCodec
from histocodec.benchmarks.measure.provenance import Machine, Model, installed
from histocodec.benchmarks.measure.result_rows import OURS
from histocodec.benchmarks.measure.timed_jobs import Job, gpu_job, our_jobs, peer_jobs, torch_threads
from histocodec.benchmarks.peers.codecs import JPEG2000_TILES
from histocodec.benchmarks.peers.contender import code_at_psnr
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.device import choose_device
from histocodec.errors import UsageError
from histocodec.formats.decode.open import open_slide
from histocodec.formats.encode.options import DEFAULT_QUALITY
from histocodec.models.weights import DEFAULT_MODEL
from histocodec.report import print_json, say
from histocodec.slide import Pixels
from histocodec.text import decibel_text, size_text
from histocodec.threads import default_workers
from histocodec.tissue import busiest_region

PEER = JPEG2000_TILES
SIDE = 2048  # pixels of the region that is timed: 16 chunks
COMPARED = ("encode", "decode")
REPEAT = 3


@dataclass(frozen=True)
class Coding:
    """What is timed: so many bytes at this PSNR, in dB. Ours are those that reading the pixels needs."""

    codec: str
    setting: float
    bytes: int
    bpp: float
    psnr: float


@dataclass(frozen=True)
class Timing:
    """One job, done several times: megapixels a second of the median, the longest and the shortest time."""

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
    def of(cls, job: Job, what: str, seconds: Sequence[float]) -> "Timing":
        """The timing of `what`, one of the things that a job times."""
        times = (median(seconds), max(seconds), min(seconds))
        speeds = [job.pixels / 1e6 / time for time in times]
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
    """The most that a job took beyond what the process held before; None where the system does not tell."""

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
    """The figures, with the machine, the model and the region that they are of."""

    machine: Machine
    model: Model
    slide: str
    region: str
    measured: Measured


def measure_speed(
    pixels: Pixels,
    *,
    quality: int,
    model: str,
    devices: Sequence[str],
    threads: Sequence[int],
    repeat: int,
    effort: float | None = None,
    encoding: bool = True,
) -> Measured:
    """Measure everything for pixels (H, W, 3) uint8 in memory, or all but `encoding`. A GPU is timed with the largest
    number of threads only.

    `model` must be installed under its id.
    """
    area, most = pixels.shape[0] * pixels.shape[1], max(threads)
    counts = {device: threads if device == "cpu" else (most,) for device in devices}
    with TemporaryDirectory(prefix="histocodec-speed-") as folder:
        codecs = [
            OurCodec(
                pixels, quality, model, device, count, Path(folder) / f"{device}-{count}".replace(":", "-"), effort
            )
            for device in devices
            for count in counts[device]
        ]
        sizes = []
        for ours in codecs:
            ours.folder.mkdir()
            sizes.append(ours.prepare().payload_bytes)
        our_psnr = codecs[0].psnr()
        say(f"searching for the rate at which {PEER.name} has {decibel_text(our_psnr)}, too")
        theirs = code_at_psnr(PEER, pixels, our_psnr, threads=most)
        jobs = [job for ours in codecs for job in our_jobs(ours)]
        jobs += [gpu_job(ours) for ours in codecs if ours.device != "cpu"]
        jobs += [job for count in threads for job in peer_jobs(PEER, pixels, theirs, count)]
        if not encoding:
            jobs = [job for job in jobs if job.what != "encode"]
        jobs.sort(key=lambda job: (job.what not in COMPARED, job.what, job.threads))  # rivals side by side
        timings = timed(jobs, repeat)
        say("measuring memory")
        memory = [
            Memory(job.codec, job.what, job.device, job.threads, peak_bytes(job.run))
            for job in jobs
            if job.what in COMPARED and job.threads == most
        ]
    codings = (
        Coding(OURS, quality, sizes[0], 8 * sizes[0] / area, our_psnr),
        Coding(PEER.name, theirs.setting, len(theirs.data), 8 * len(theirs.data) / area, theirs.psnr),
    )
    return Measured(codings, tuple(timings), tuple(ratios(timings)), tuple(memory))


def timed(jobs: Sequence[Job], repeat: int) -> list[Timing]:
    """Run every job once to warm up, then all of them `repeat` times, forwards and backwards in turn."""
    seconds: dict[tuple[int, str], list[float]] = {}
    numbered = list(enumerate(jobs))
    for turn in range(repeat + 1):
        say(f"round {turn} of {repeat}" if turn else "warming up")
        for number, job in numbered if turn % 2 else reversed(numbered):
            with torch_threads(job.threads):
                times = job.run()
            for what, time in times.items() if turn else ():
                seconds.setdefault((number, what), []).append(time)
    return [
        Timing.of(jobs[number], what, times)
        for (number, what), times in sorted(seconds.items(), key=lambda item: item[0][0])
    ]


def ratios(timings: Sequence[Timing]) -> list[Ratio]:
    """Our speed over the peer's, wherever both were timed with as many threads."""
    peer_mps = {(timing.what, timing.threads): timing.median_mps for timing in timings if timing.codec == PEER.name}
    return [
        Ratio(timing.what, timing.device, timing.threads, timing.median_mps / peer_mps[timing.what, timing.threads])
        for timing in timings
        if timing.codec == OURS and (timing.what, timing.threads) in peer_mps
    ]


def speed_of_slide(
    path: Path,
    *,
    model: Model,
    threads: int,
    device: str,
    effort: float | None = None,
    repeat: int = REPEAT,
    encoding: bool = True,
) -> SpeedResult:
    """Measure a square full of tissue, on one thread and on `threads`.

    `model` must be installed under its id. With `device` auto, both the CPU and, where there is one, the GPU are timed.
    Raises UsageError where the slide is smaller than the cold region that is read.
    """
    machine, chosen = Machine.here(), str(choose_device(device))
    devices = tuple(dict.fromkeys(("cpu", chosen))) if device == "auto" else (chosen,)
    with open_slide(path) as slide:
        region = busiest_region(slide, SIDE)
        if min(region.width, region.height) < COLD_SIDE:
            raise UsageError(
                f"{path}: {region.width} x {region.height} pixels; timing needs at least {COLD_SIDE} on each side"
            )
        pixels = slide.read(region, 0)
    measured = measure_speed(
        pixels,
        quality=DEFAULT_QUALITY,
        model=model.id,
        devices=devices,
        threads=sorted({1, threads}),
        repeat=repeat,
        effort=effort,
        encoding=encoding,
    )
    return SpeedResult(machine, model, path.name, str(region), measured)


def speed_lines(result: SpeedResult) -> list[str]:
    """The result in lines for people."""
    measured = result.measured
    lines = [
        f"{result.slide}, region {result.region}, model {result.model.id} ({result.model.sha256[:12]})",
        str(result.machine),
        "",
    ]
    for coding in measured.codings:
        lines.append(f"{coding.codec:<24} {size_text(coding.bytes):>8}  {coding.bpp:.3f} bpp  {coding.psnr:.2f} dB")
    heading = f"{'codec':<24} {'what':<26} {'device':<7} threads  {'median':>9}  {'MP/s':>8}  lowest … highest"
    lines += ["", heading]
    for timing in measured.timings:
        milliseconds = f"{1000 * timing.median_seconds:.0f} ms"
        lines.append(
            f"{timing.codec:<24} {timing.what:<26} {timing.device:<7} {timing.threads:>7}  {milliseconds:>9}"
            f"  {timing.median_mps:>8.2f}  {timing.lowest_mps:.2f} … {timing.highest_mps:.2f}"
        )
    lines += ["", f"{OURS} over {PEER.name} (above 1: we are faster)"]
    for ratio in measured.ratios:
        lines.append(f"  {ratio.what:<26} {ratio.device:<7} {ratio.threads:>2} threads  {ratio.ours_over_peer:.2f} x")
    lines += ["", "memory beyond what the process held"]
    for memory in measured.memory:
        peak = "unknown" if memory.peak_bytes is None else size_text(memory.peak_bytes)
        lines.append(f"  {memory.codec:<24} {memory.what:<10} {memory.device:<7} {memory.threads:>2} threads  {peak}")
    return lines


@click.command()
@click.argument("slide", type=click.Path(exists=True, path_type=Path))
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="ID|FILE", help="The model to time.")
@click.option("--effort", type=click.FloatRange(0, 9), help="Search effort, as in `histocodec encode`.")
@click.option("--threads", type=click.IntRange(min=1), help="Besides one thread.  [default: one a core]")
@click.option("--repeat", type=click.IntRange(min=1), default=REPEAT, show_default=True, help="Rounds that are timed.")
@click.option("--no-encode", is_flag=True, help="Time decoding alone.")
@click.option("--device", default="auto", metavar="auto|cpu|cuda", show_default=True, help="Where networks run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def main(
    slide: Path,
    *,
    model: str,
    effort: float | None,
    threads: int | None,
    repeat: int,
    no_encode: bool,
    device: str,
    as_json: bool,
) -> None:
    """Time a square of tissue of SLIDE, beside OpenJPEG at the same PSNR."""
    with installed(model) as weights:
        result = speed_of_slide(
            slide,
            model=Model.of(weights),
            threads=threads or default_workers(),
            device=device,
            effort=effort,
            repeat=repeat,
            encoding=not no_encode,
        )
    if as_json:
        print_json(result)
    else:
        click.echo("\n".join(speed_lines(result)))


if __name__ == "__main__":
    run_command(main)
