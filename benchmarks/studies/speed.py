"""How fast: encoding and decoding one region of a slide, beside OpenJPEG on the same pixels at the same PSNR.

OpenJPEG gets what a slide needs for random access, as ours has: tiles of 512 pixels, shared out to the
threads. Its rate is sought first and not timed. Both start from pixels in memory; OpenJPEG's bytes stay
there, ours go through files, as they do in use. Every job is done once to warm up, then several times, there
and back. A GPU is also timed from files to pixels that stay there; whole slides are for
`histocodec.benchmarks.studies.gpu`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from histocodec.benchmarks.measure.memory import peak_bytes
from histocodec.benchmarks.measure.provenance import Machine, Model
from histocodec.benchmarks.measure.result_rows import OURS
from histocodec.benchmarks.measure.timed_jobs import SMALL, Job, Ours, gpu_job, our_jobs, peer_jobs, torch_threads
from histocodec.benchmarks.peers.codecs import JPEG2000_TILES
from histocodec.benchmarks.peers.contender import coded_at_psnr
from histocodec.device import choose_device
from histocodec.errors import UsageError
from histocodec.formats.decode.open import open_slide
from histocodec.formats.encode.options import DEFAULT_QUALITY
from histocodec.report import say
from histocodec.slide import Pixels
from histocodec.text import decibel_text, size_text
from histocodec.tissue import busiest_region

PEER = JPEG2000_TILES
SIDE = 2048  # pixels of the region that is timed: 16 chunks
COMPARED = ("encode", "decode")
REPEAT = 3


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
    def of(cls, job: Job, what: str, seconds: Sequence[float]) -> "Timing":
        times = (median(seconds), max(seconds), min(seconds))
        speeds = [job.pixels / 1e6 / one for one in times]
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
) -> Measured:
    """Everything, for pixels (H, W, 3) in memory. A GPU is timed with the largest number of threads alone."""
    area, most = pixels.shape[0] * pixels.shape[1], max(threads)
    counts = {device: threads if device == "cpu" else (most,) for device in devices}
    with TemporaryDirectory(prefix="histocodec-speed-") as folder:
        runs = [
            Ours(pixels, quality, model, device, count, Path(folder) / f"{device}-{count}".replace(":", "-"), effort)
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
        jobs += [gpu_job(ours) for ours in runs if ours.device != "cpu"]
        jobs += [job for count in threads for job in peer_jobs(PEER, pixels, coding, count)]
        jobs.sort(key=lambda job: (job.what not in COMPARED, job.what, job.threads))  # rivals side by side
        timings = timed(jobs, repeat)
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


def timed(jobs: Sequence[Job], repeat: int) -> list[Timing]:
    """Every job once for nothing, then all of them in turn, there and back, `repeat` times."""
    seconds: dict[tuple[int, str], list[float]] = {}
    numbered = list(enumerate(jobs))
    for turn in range(repeat + 1):
        say(f"round {turn} of {repeat}" if turn else "warming up")
        for number, job in numbered if turn % 2 else reversed(numbered):
            with torch_threads(job.threads):
                found = job.run()
            for what, one in found.items() if turn else ():
                seconds.setdefault((number, what), []).append(one)
    return [
        Timing.of(jobs[number], what, times)
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


def speed_of_slide(
    path: Path, *, model: Model, threads: int, device: str, effort: float | None = None, repeat: int = REPEAT
) -> SpeedResult:
    """A square full of tissue, on one thread and on all. `model` is at hand by its id; `device` auto is the CPU, and
    the GPU where there is one."""
    machine, chosen = Machine.here(), str(choose_device(device))
    devices = tuple(dict.fromkeys(("cpu", chosen))) if device == "auto" else (chosen,)
    with open_slide(path) as slide:
        region = busiest_region(slide, SIDE)
        if min(region.width, region.height) < SMALL:
            raise UsageError(f"{path}: {region.width} x {region.height} pixels; {SMALL} a side are needed for --speed")
        pixels = slide.read(region, 0)
    measured = measure_speed(
        pixels,
        quality=DEFAULT_QUALITY,
        model=model.id,
        devices=devices,
        threads=sorted({1, threads}),
        repeat=repeat,
        effort=effort,
    )
    return SpeedResult(machine, model, path.name, str(region), measured)


def speed_lines(result: SpeedResult) -> list[str]:
    """For people."""
    measured, machine = result.measured, result.machine
    lines = [
        f"{result.slide}, region {result.region}, model {result.model.id} ({result.model.sha256[:12]})",
        f"{machine.cpu}, {machine.cores} cores, load {machine.load}; GPU: {machine.gpu or 'none'}",
        "",
    ]
    for coding in measured.codings:
        lines.append(f"{coding.codec:<24} {size_text(coding.bytes):>8}  {coding.bpp:.3f} bpp  {coding.psnr:.2f} dB")
    heading = f"{'codec':<24} {'what':<26} {'device':<7} threads  {'median':>9}  {'MP/s':>8}  lowest … highest"
    lines += ["", heading]
    for one in measured.timings:
        milliseconds = f"{1000 * one.median_seconds:.0f} ms"
        lines.append(
            f"{one.codec:<24} {one.what:<26} {one.device:<7} {one.threads:>7}  {milliseconds:>9}"
            f"  {one.median_mps:>8.2f}  {one.lowest_mps:.2f} … {one.highest_mps:.2f}"
        )
    lines += ["", f"{OURS} over {PEER.name} (above 1: we are faster)"]
    for ratio in measured.ratios:
        lines.append(f"  {ratio.what:<26} {ratio.device:<7} {ratio.threads:>2} threads  {ratio.ours_over_peer:.2f} x")
    lines += ["", "memory beyond what the process held"]
    for entry in measured.memory:
        peak = "not known" if entry.peak_bytes is None else size_text(entry.peak_bytes)
        lines.append(f"  {entry.codec:<24} {entry.what:<10} {entry.device:<7} {entry.threads:>2} threads  {peak}")
    return lines
