"""What a container takes beside its chunks, and what a cold region of it takes to read.

    python -m histocodec.benchmarks.studies.layout slide.hcz slide.hc.zarr --s3

Each region is read from a slide that was just opened, with nothing cached: from this machine, from a web server on
loopback, and with --s3 from moto's S3. Requests are counted at the server, bytes are those of its answers without
headers, and the chain is how many requests had to wait for the one before. On this machine, reads of the store count.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from histocodec.benchmarks.measure.our_codec import COLD_SIDE, chunk_bytes
from histocodec.benchmarks.measure.slide_servers import s3_server, web_server
from histocodec.benchmarks.measure.traffic import DELAY, Recorder, Traffic, counting_store
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.layout import ASSOCIATED, ICC, MODEL, OVERVIEW
from histocodec.formats.container.read import open_container
from histocodec.formats.container.states import BACKGROUND
from histocodec.formats.container.store import Location
from histocodec.formats.decode.slide import open_compressed
from histocodec.geometry import ChunkKey, Region
from histocodec.report import print_json, say

LOCAL, HTTP, S3 = "local", "HTTP", "S3"
CACHE_BYTES = 64 << 20  # of each slide that is opened: its own, which begins empty


@dataclass(frozen=True)
class Parts:
    """The bytes of a container by what they are. `chunks` have their CRCs; `images` are the overview and associated
    images; `profile_and_model` the ICC profile and an embedded model; `rest` is everything else: attributes, maps,
    digests, metadata, the indices of shards, and the frame of an archive."""

    files: int
    chunks: int
    images: int
    profile_and_model: int
    rest: int


@dataclass(frozen=True)
class ColdRead:
    """What a region takes: where it lies, where the container lies, and the traffic."""

    where: str
    place: str
    region: Region
    traffic: Traffic


@dataclass(frozen=True)
class Layout:
    """What was found for one container."""

    container: str
    version: int
    form: str  # "folder" or "file"
    parts: Parts
    rest_percent: float  # of the rest and the chunks
    reads: tuple[ColdRead, ...]


def parts_of(path: Path) -> Parts:
    """The bytes of a local container."""
    container = open_container(path)
    sizes = dict(container.store.entries())
    total, files = (path.stat().st_size, 1) if path.is_file() else (sum(sizes.values()), len(sizes))
    levels = range(len(container.attributes.levels))
    chunks = sum(chunk_bytes(container, level) + container.level_bytes(level)[1] for level in levels)
    values = {key: size for key, size in sizes.items() if "/c/" in key}
    images = sum(size for key, size in values.items() if key.startswith((OVERVIEW, ASSOCIATED)))
    extras = sum(size for key, size in values.items() if key.split("/")[0] in (ICC, MODEL))
    return Parts(files, chunks, images, extras, total - chunks - images - extras)


def cold_regions(container: Container) -> dict[str, Region]:
    """The regions that are read: in the middle of a chunk, and where four shards meet, or four chunks where no four
    shards do. Of all such places that with the most coded chunks, and of these the one nearest the middle."""
    attributes, coded = container.attributes, container.tiles(0) != BACKGROUND
    level, side = attributes.levels[0], attributes.chunk_side
    rows, columns = coded.shape

    def region(y: int, x: int) -> Region:
        whole = Region(0, 0, level.width, level.height)
        return Region(x - COLD_SIDE // 2, y - COLD_SIDE // 2, COLD_SIDE, COLD_SIDE).intersect(whole)

    def best(places: Sequence[tuple[int, int]], count: Callable[[int, int], int]) -> tuple[int, int]:
        return min(places, key=lambda at: (-count(*at), (at[0] - rows / 2) ** 2 + (at[1] - columns / 2) ** 2))

    row, column = best([*np.ndindex(rows, columns)], lambda row, column: int(coded[row, column]))
    chunk = attributes.chunk_region(ChunkKey(0, row, column))
    regions = {"in a chunk": region(chunk.y + chunk.height // 2, chunk.x + chunk.width // 2)}
    for what, step in (("four shards", attributes.shard_side(0)), ("four chunks", 1)):
        corners = [(r, c) for r in range(step, rows, step) for c in range(step, columns, step)]
        if corners:
            row, column = best(
                corners, lambda row, column: int(coded[row - 1 : row + 1, column - 1 : column + 1].sum())
            )
            regions[what] = region(row * side, column * side)
            break
    return regions


def cold_reads(path: Path, regions: dict[str, Region], *, s3: bool, delay: float) -> list[ColdRead]:
    """Read each region of a local container cold, wherever it can lie. Raises UnsupportedError for S3 without moto."""
    recorder, reads = Recorder(delay), []

    def read(place: str, location: Callable[[], Location]) -> None:
        for where, region in regions.items():
            recorder.take()
            with open_compressed(location(), device="cpu", cache_bytes=CACHE_BYTES) as slide:
                slide.read(region, 0)
            reads.append(ColdRead(where, place, region, recorder.take()))

    read(LOCAL, lambda: counting_store(path, recorder))
    with TemporaryDirectory(prefix="histocodec-layout-") as folder:
        name = "slide.hcz" if path.is_file() else "slide.hc.zarr"  # which opening a URL goes by
        (shutil.copy if path.is_file() else shutil.copytree)(path, Path(folder) / name)
        with web_server(Path(folder), recorder) as url:
            read(HTTP, lambda: f"{url}/{name}")
        if s3:
            with s3_server(Path(folder), recorder) as url:
                read(S3, lambda: f"{url}/{name}")
    return reads


def layout_of(path: Path, *, s3: bool = False, delay: float = DELAY) -> Layout:
    """Measure a local container. `delay` is that of each answer, in seconds."""
    container = open_container(path)
    parts, reads = parts_of(path), cold_reads(path, cold_regions(container), s3=s3, delay=delay)
    rest_percent = 100 * parts.rest / max(1, parts.rest + parts.chunks)
    form = "file" if path.is_file() else "folder"
    return Layout(path.name, container.attributes.version, form, parts, rest_percent, tuple(reads))


def tables(layouts: Sequence[Layout]) -> str:
    """What was found, as two Markdown tables."""
    lines = [
        "| container | version | form | files | chunks | besides | | images | profile, model |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for found in layouts:
        parts = found.parts
        lines.append(
            f"| {found.container} | {found.version} | {found.form} | {parts.files:,} | {parts.chunks:,} "
            f"| {parts.rest:,} | {found.rest_percent:.2f} % | {parts.images:,} | {parts.profile_and_model:,} |"
        )
    lines += [
        "",
        "| container | region of 256 × 256 | from | requests | one after the other | bytes |",
        "|---|---|---|---|---|---|",
    ]
    for found in layouts:
        for read in found.reads:
            traffic = read.traffic
            lines.append(
                f"| {found.container} | {read.where} | {read.place} | {traffic.requests} | {traffic.chain} "
                f"| {traffic.bytes:,} |"
            )
    return "\n".join(lines)


@click.command()
@click.argument("containers", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--s3", is_flag=True, help="Read from an S3 server on loopback, too (moto's).")
@click.option("--delay", default=DELAY, show_default=True, help="Seconds before each answer, so that requests overlap.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def main(containers: Sequence[Path], *, s3: bool, delay: float, as_json: bool) -> None:
    """Count files, bytes and requests of local CONTAINERS of any version and form."""
    if s3 and find_spec("moto") is None:
        say("S3 is left out: moto is not installed (`pip install 'moto[server]'`)")
        s3 = False
    layouts = []
    for path in containers:
        say(f"reading {path}")
        layouts.append(layout_of(path, s3=s3, delay=delay))
    if as_json:
        print_json({"containers": layouts})
    else:
        click.echo(tables(layouts))


if __name__ == "__main__":
    run_command(main)
