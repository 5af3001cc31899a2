"""Many readers at once: threads, and the processes of a DataLoader, read random regions of one container.

    python -m histocodec.benchmarks.studies.load slide.svs --seconds 60

Every region is compared with the same crop of the whole decoded level. Memory is looked at after a third of the
time, when caches are full, and at the end. OpenSlide reads as many regions of the source as it can, for comparison.
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
CACHE_BYTES = 8 << 20  # of a reader: a few blocks, so that most regions are decoded anew
MOST_PIXELS = 256 << 20  # of the level that is held in memory as what is right
WARM = 1 / 3  # of the time, after which memory must not grow


@dataclass(frozen=True)
class Load:
    """What readers got: regions, how many of them were wrong, and by how many bytes the largest process grew after
    its caches were full; None where the system does not tell."""

    readers: str
    regions: int
    wrong: int
    seconds: float
    grown: int | None

    def __str__(self) -> str:
        memory = "memory unknown" if self.grown is None else f"{size_text(max(0, self.grown))} of memory added"
        return f"{self.readers}: {self.regions / self.seconds:.1f} regions/s, {self.wrong} wrong, {memory}"


def random_regions(level: Level, seed: int) -> Iterator[Region]:
    """Without end."""
    rng = np.random.default_rng(seed)
    width, height = min(SIDE, level.width), min(SIDE, level.height)
    while True:
        x, y = rng.integers(level.width - width + 1), rng.integers(level.height - height + 1)
        yield Region(int(x), int(y), width, height)


def thread_load(slide: Slide, right: Pixels | None, *, threads: int, seconds: float, name: str) -> Load:
    """`threads` threads share one slide. Raises what the first of them raised."""
    begun, counts, wrong, failures = time.perf_counter(), [0] * threads, [0] * threads, list[BaseException]()

    def read(number: int) -> None:
        try:
            for region in random_regions(slide.levels[0], number):
                pixels = slide.read(region, 0)
                counts[number] += 1
                wrong[number] += right is not None and not np.array_equal(pixels, _crop(right, region))
                if failures or time.perf_counter() - begun > seconds:
                    return
        except BaseException as exc:
            failures.append(exc)

    pool = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    for thread in pool:
        thread.start()
    time.sleep(seconds * WARM)
    warm = resident_bytes()
    for thread in pool:
        thread.join()
    if failures:
        raise failures[0]
    after = resident_bytes()
    grown = None if warm is None or after is None else after - warm
    return Load(name, sum(counts), sum(wrong), time.perf_counter() - begun, grown)


class _Regions(IterableDataset[tuple[int, int, bool]]):
    """In each worker: its number, its resident bytes (-1: unknown), and whether a random region was right."""

    def __init__(self, slide: CompressedSlide, right: Pixels, seconds: float) -> None:
        self.slide, self.right, self.seconds = slide, right, seconds

    def __iter__(self) -> Iterator[tuple[int, int, bool]]:
        info = get_worker_info()
        number, begun = (0 if info is None else info.id), time.perf_counter()
        for region in random_regions(self.slide.levels[0], 1000 + number):
            same = np.array_equal(self.slide.read(region, 0), _crop(self.right, region))
            yield number, resident_bytes() or -1, same
            if time.perf_counter() - begun > self.seconds:
                return


def process_load(slide: CompressedSlide, right: Pixels, *, processes: int, seconds: float) -> Load:
    """The workers of a DataLoader, each with the slide that it was given when it began."""
    sizes: dict[int, list[int]] = {number: [] for number in range(processes)}
    begun, wrong = time.perf_counter(), 0
    for number, size, same in DataLoader(_Regions(slide, right, seconds), batch_size=None, num_workers=processes):
        sizes[number].append(size)
        wrong += not same
    took = time.perf_counter() - begun
    grown = [of_one[-1] - of_one[int(len(of_one) * WARM)] for of_one in sizes.values() if of_one]
    unknown = any(-1 in of_one for of_one in sizes.values())
    regions = sum(map(len, sizes.values()))
    return Load(f"{processes} processes", regions, wrong, took, None if unknown else max(grown))


def _crop(right: Pixels, region: Region) -> Pixels:
    return right[region.y : region.y_end, region.x : region.x_end]


def load(source: Slide, container: Path, *, threads: int, processes: int, seconds: float) -> Iterator[Load]:
    """Threads and processes on the container, then threads on the source that it was made of."""

    def opened() -> CompressedSlide:
        return open_compressed(container, device="cpu", cache_bytes=CACHE_BYTES)

    with opened() as slide:
        right = slide.read(slide.levels[0].region, 0)
    with opened() as slide:
        yield process_load(slide, right, processes=processes, seconds=seconds)
    with opened() as slide:
        yield thread_load(slide, right, threads=threads, seconds=seconds, name=f"{threads} threads")
    yield thread_load(source, None, threads=threads, seconds=seconds / 4, name=f"{threads} threads on the source")


@click.command()
@click.argument("slide", type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", default=60.0, show_default=True, help="For each kind of reader.")
@click.option("--threads", default=16, show_default=True)
@click.option("--processes", default=8, show_default=True)
def main(slide: Path, *, seconds: float, threads: int, processes: int) -> None:
    """Encode level 0 of SLIDE, and read random regions of it in many threads and processes at once."""
    with open_slide(slide) as source, TemporaryDirectory() as folder:
        level = source.levels[0]
        if level.region.area > MOST_PIXELS:
            raise UsageError(f"{slide}: {level.region.area} pixels; at most {MOST_PIXELS} are held in memory here")
        say(f"encoding {level.width} x {level.height} pixels")
        container = Path(folder) / "slide.zarr"
        encode_slide(source, container, EncodeOptions(levels=(0,), device="cpu"))
        for found in load(source, container, threads=threads, processes=processes, seconds=seconds):
            click.echo(str(found))


if __name__ == "__main__":
    main()
