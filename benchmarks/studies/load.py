"""Many readers at once: threads, and the processes of a DataLoader, read random regions of one container.

    python -m histocodec.benchmarks.studies.load slide.svs --seconds 60

Every region is compared with the same crop of the whole decoded level. Memory is measured after a third of the time,
when caches are full, and at the end. For comparison, OpenSlide reads as many regions of the source as it can.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from histocodec.benchmarks.measure.memory import resident_bytes
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.errors import UsageError
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.geometry import Level, Region
from histocodec.report import say
from histocodec.slide import Pixels, Slide
from histocodec.sources import open_slide
from histocodec.text import size_text

SIDE = 256  # pixels of a region
CACHE_BYTES = 8 << 20  # of a reader: a few decoded chunks, so that most regions are decoded anew
MOST_PIXELS = 256 << 20  # of the level that is held in memory to compare with
WARM_SHARE = 1 / 3  # of the time, after which memory must not grow


@dataclass(frozen=True)
class Load:
    """What readers got: how many regions, how many of them wrong, and by how many bytes the largest process grew after
    its caches were full (None where the system does not tell)."""

    readers: str
    regions: int
    wrong: int
    seconds: float
    grown: int | None

    def __str__(self) -> str:
        memory = "memory unknown" if self.grown is None else f"{size_text(max(0, self.grown))} of memory added"
        return f"{self.readers}: {self.regions / self.seconds:.1f} regions/s, {self.wrong} wrong, {memory}"


def random_regions(level: Level, seed: int) -> Iterator[Region]:
    """Draw regions of a level at random, without end."""
    rng = np.random.default_rng(seed)
    width, height = min(SIDE, level.width), min(SIDE, level.height)
    while True:
        x, y = rng.integers(level.width - width + 1), rng.integers(level.height - height + 1)
        yield Region(int(x), int(y), width, height)


def thread_load(slide: Slide, expected: Pixels | None, *, threads: int, seconds: float, name: str) -> Load:
    """Let `threads` threads share one slide; compare with the `expected` level (H, W, 3), unless it is None.

    Raises what the first thread to fail raised.
    """
    began, counts, wrong, failures = time.perf_counter(), [0] * threads, [0] * threads, list[BaseException]()

    def read(number: int) -> None:
        try:
            for region in random_regions(slide.levels[0], number):
                pixels = slide.read(region, 0)
                counts[number] += 1
                wrong[number] += expected is not None and not np.array_equal(pixels, _crop(expected, region))
                if failures or time.perf_counter() - began > seconds:
                    return
        except BaseException as exc:
            failures.append(exc)

    pool = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    for thread in pool:
        thread.start()
    time.sleep(seconds * WARM_SHARE)
    warm = resident_bytes()
    for thread in pool:
        thread.join()
    if failures:
        raise failures[0]
    after = resident_bytes()
    grown = None if warm is None or after is None else after - warm
    return Load(name, sum(counts), sum(wrong), time.perf_counter() - began, grown)


class _Regions(IterableDataset[tuple[int, int, bool]]):
    """In each worker: its number, its resident bytes (-1: unknown), and whether a random region was right."""

    def __init__(self, slide: CompressedSlide, expected: Pixels, seconds: float) -> None:
        self.slide, self.expected, self.seconds = slide, expected, seconds

    def __iter__(self) -> Iterator[tuple[int, int, bool]]:
        info = get_worker_info()
        number, began = (0 if info is None else info.id), time.perf_counter()
        for region in random_regions(self.slide.levels[0], 1000 + number):
            right = np.array_equal(self.slide.read(region, 0), _crop(self.expected, region))
            yield number, resident_bytes() or -1, right
            if time.perf_counter() - began > self.seconds:
                return


def process_load(slide: CompressedSlide, expected: Pixels, *, processes: int, seconds: float) -> Load:
    """Let the workers of a DataLoader read, each from the slide that it was given when it started; compare with the
    `expected` level (H, W, 3)."""
    sizes: dict[int, list[int]] = {number: [] for number in range(processes)}
    began, wrong = time.perf_counter(), 0
    dataset = _Regions(slide, expected, seconds)
    for number, size, right in DataLoader(dataset, batch_size=None, num_workers=processes):
        sizes[number].append(size)
        wrong += not right
    took = time.perf_counter() - began
    grown = [of_worker[-1] - of_worker[int(len(of_worker) * WARM_SHARE)] for of_worker in sizes.values() if of_worker]
    unknown = any(-1 in of_worker for of_worker in sizes.values())
    regions = sum(map(len, sizes.values()))
    return Load(f"{processes} processes", regions, wrong, took, None if unknown else max(grown))


def load(source: Slide, container: Path, *, threads: int, processes: int, seconds: float) -> Iterator[Load]:
    """Processes and threads on the container, then threads on the source that it was made of."""

    def opened() -> CompressedSlide:
        return open_compressed(container, device="cpu", cache_bytes=CACHE_BYTES)

    with opened() as slide:
        expected = slide.read(slide.levels[0].region, 0)
    with opened() as slide:
        yield process_load(slide, expected, processes=processes, seconds=seconds)
    with opened() as slide:
        yield thread_load(slide, expected, threads=threads, seconds=seconds, name=f"{threads} threads")
    yield thread_load(source, None, threads=threads, seconds=seconds / 4, name=f"{threads} threads on the source")


def _crop(pixels: Pixels, region: Region) -> Pixels:
    return pixels[region.y : region.y_end, region.x : region.x_end]


@click.command()
@click.argument("slide", type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", default=60.0, show_default=True, help="For each kind of reader.")
@click.option("--threads", default=16, show_default=True, help="That share one slide.")
@click.option("--processes", default=8, show_default=True, help="Workers of a DataLoader.")
def main(slide: Path, *, seconds: float, threads: int, processes: int) -> None:
    """Encode level 0 of SLIDE, and read random regions of it in many threads and processes at once."""
    with open_slide(slide) as source, TemporaryDirectory() as folder:
        level = source.levels[0]
        if level.region.area > MOST_PIXELS:
            raise UsageError(
                f"{slide}: level 0 has {level.region.area} pixels; at most {MOST_PIXELS} are held in memory here, so "
                "take a smaller slide"
            )
        say(f"encoding {level.width} x {level.height} pixels")
        container = Path(folder) / "slide.hcz"
        encode_slide(source, container, EncodeOptions(levels=(0,), device="cpu"))
        for result in load(source, container, threads=threads, processes=processes, seconds=seconds):
            click.echo(str(result))


if __name__ == "__main__":
    run_command(main)
