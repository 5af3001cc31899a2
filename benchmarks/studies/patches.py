"""Patches as loaders read them, beside OpenSlide on the source: at random by several processes, and on a grid by one.
Then one cold region, and the first one of a process.

    python -m histocodec.benchmarks.studies.patches slide.svs slide.hcz

The container's cache is smaller than the slide (`--cache`), so that random patches are decoded anew; OpenSlide has its
own of 32 MiB. Readers take turns, for `--seconds` at a time and three times each; the best turn of each counts.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import openslide

from histocodec.benchmarks.studies.run_command import run_command
from histocodec.errors import UsageError
from histocodec.formats.decode.slide import open_compressed

SIDE = 256  # pixels of a patch
TURNS = 3
COLD_READS = 60
FIRST_READS = 7

Read = Callable[[int, int], object]
FIRST = """
import sys, time
import histocodec
x, y = int(sys.argv[2]), int(sys.argv[3])
with histocodec.open(sys.argv[1], device="cpu") as slide:
    slide.read_region((x, y), 0, (256, 256))
print(time.time() - float(sys.argv[4]))
"""


@dataclass(frozen=True)
class Sizes:
    """Level 0 in pixels."""

    width: int
    height: int


def reader(kind: str, path: Path, cache_bytes: int) -> tuple[Read, Sizes]:
    """What reads a patch at (x, y), in a process of its own."""
    if kind == "openslide":
        source = openslide.OpenSlide(path)
        return lambda x, y: source.read_region((x, y), 0, (SIDE, SIDE)), Sizes(*source.dimensions)
    slide = open_compressed(path, device="cpu", workers=1, cache_bytes=cache_bytes)
    return lambda x, y: slide.read_array(x, y, SIDE, SIDE), Sizes(*slide.dimensions)


def random_places(size: Sizes, seed: int) -> Iterator[tuple[int, int]]:
    """Corners of patches anywhere on the level, without end."""
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.integers(size.width - SIDE + 1)), int(rng.integers(size.height - SIDE + 1))


def grid_places(size: Sizes, seed: int) -> Iterator[tuple[int, int]]:
    """Corners on a grid, row by row; `seed` is where in it the first lies, so that turns do not read the same."""
    columns, rows = size.width // SIDE, size.height // SIDE
    number = seed * columns * 2
    while True:
        row, column = divmod(number % (rows * columns), columns)
        yield column * SIDE, row * SIDE
        number += 1


def _count(kind: str, path: Path, cache_bytes: int, grid: bool, seed: int, seconds: float) -> float:
    """Patches per second of one process, once it has read the first."""
    read, size = reader(kind, path, cache_bytes)
    places = (grid_places if grid else random_places)(size, seed)
    read(*next(places))
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        read(*next(places))
        count += 1
    return count / elapsed


def rate(
    kind: str, path: Path, cache_bytes: int, *, grid: bool, seed: int, processes: int, seconds: float
) -> float:  # fmt: skip
    """Patches per second of processes that read at the same time, together."""
    jobs = [(kind, path, cache_bytes, grid, processes * seed + number, seconds) for number in range(processes)]
    with get_context("spawn").Pool(processes) as pool:
        return sum(pool.starmap(_count, jobs, chunksize=1))


def cold(path: Path, places: list[tuple[int, int]]) -> float:
    """The shortest milliseconds of reading a patch with nothing cached but what opening a slide has read."""
    best = float("inf")
    for x, y in places * (COLD_READS // len(places)):
        with open_compressed(path, device="cpu") as slide:
            slide.read_array(0, 0, 1, 1)  # makes the decoder; the corner is seldom where the patches are
            began = time.perf_counter()
            slide.read_array(x, y, SIDE, SIDE)
            best = min(best, time.perf_counter() - began)
    return 1000 * best


def first(path: Path, x: int, y: int) -> float:
    """The shortest seconds from starting a process until it has a region, the kernels being compiled."""

    def once() -> float:
        arguments = [sys.executable, "-c", FIRST, str(path), str(x), str(y), str(time.time())]
        return float(subprocess.run(arguments, capture_output=True, check=True, text=True).stdout)

    return min(once() for _ in range(FIRST_READS))


def busiest_chunk(path: Path) -> tuple[int, int]:
    """The corner of the chunk of level 0 with the most bytes that has a neighbour on the right and below."""
    with open_compressed(path, device="cpu") as slide:
        sizes = np.array(slide.container.maps(0).size)[:-1, :-1]  # type: ignore[attr-defined]  # of version 2
        row, column = np.unravel_index(int(sizes.argmax()), sizes.shape)
        side = slide.container.attributes.chunk_side
    return int(column) * side, int(row) * side


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("container", type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", default=4.0, show_default=True, help="Of a reader's turn.")
@click.option("--processes", default=2, show_default=True, help="That read random patches at the same time.")
@click.option("--cache", default=16, show_default=True, help="MiB that each process keeps of the container.")
def main(source: Path, container: Path, *, seconds: float, processes: int, cache: int) -> None:
    """Read patches of level 0 of CONTAINER, and of SOURCE, from which it was encoded, with OpenSlide."""
    with openslide.OpenSlide(source) as one, open_compressed(container, device="cpu") as other:
        if one.dimensions != other.dimensions:
            raise UsageError(f"{container}: has {other.dimensions} pixels, {source} has {one.dimensions}")
    cache_bytes = cache << 20
    for name, grid, count in (("random", False, processes), ("grid", True, 1)):
        rates: dict[str, list[float]] = {"openslide": [], "histocodec": []}
        for turn in range(TURNS):
            for kind, path in (("openslide", source), ("histocodec", container)):
                rates[kind].append(
                    rate(kind, path, cache_bytes, grid=grid, seed=turn, processes=count, seconds=seconds)
                )
        theirs, ours = max(rates["openslide"]), max(rates["histocodec"])
        click.echo(
            f"{name}, {count} processes: {ours:.0f} patches/s, OpenSlide {theirs:.0f}, ratio {ours / theirs:.2f}"
        )
    x, y = busiest_chunk(container)
    with open_compressed(container, device="cpu") as slide:
        side = slide.container.attributes.chunk_side
    inside, corner = (side - SIDE) // 2, side - SIDE // 2
    click.echo(f"cold, in one chunk: {cold(container, [(x + inside, y + inside)]):.2f} ms")
    click.echo(f"cold, where four meet: {cold(container, [(x + corner, y + corner)]):.2f} ms")
    click.echo(f"first region of a process: {first(container, x + inside, y + inside):.2f} s")


if __name__ == "__main__":
    run_command(main)
