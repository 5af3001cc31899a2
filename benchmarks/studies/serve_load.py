"""Many viewers at once: clients that ask `histocodec serve` for tiles over loopback, each for the next when it has one.

    python -m histocodec.benchmarks.studies.serve_load slide.hcz --clients 64 --seconds 60

The server is a process of its own, as people start it. `spread` asks for tiles of all levels, chunks of OME-Zarr and
regions at random, most of which are decoded; `cached` asks for few tiles again and again. Memory is that of the server,
after a third of the time, when its caches are full, and at the end.
"""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import click
import numpy as np

from histocodec.benchmarks.measure.memory import resident_bytes
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.errors import HistocodecError
from histocodec.geometry import ceil_div
from histocodec.report import print_json, say
from histocodec.text import size_text

LOADS = ("spread", "cached")
SIDE = 512  # pixels of a tile and of a chunk of OME-Zarr
HOT_TILES = 24  # that `cached` asks for: what one viewer shows
WARM_SHARE = 1 / 3  # of the time, after which memory must not grow
PATIENCE = 120.0  # seconds for an answer


@dataclass(frozen=True)
class Served:
    """What clients got: answers, errors (anything but 200), seconds from request to last byte (median, 99th percentile
    and longest), bytes, and the server's memory after a third of the time and at the end (None: unknown)."""

    requests: str
    clients: int
    seconds: float
    answers: int
    errors: int
    median: float
    tail: float
    longest: float
    bytes: int
    warm_memory: int | None
    memory: int | None

    def __str__(self) -> str:
        memory = "memory unknown"
        if self.warm_memory is not None and self.memory is not None:
            memory = f"memory {size_text(self.warm_memory)}, then {size_text(self.memory)}"
        return (
            f"{self.requests}: {self.clients} clients, {self.answers / self.seconds:.0f} answers/s, "
            f"{self.errors} errors, "
            f"p50 {1000 * self.median:.0f} ms, p99 {1000 * self.tail:.0f} ms, longest {1000 * self.longest:.0f} ms, "
            f"{size_text(round(self.bytes / self.seconds))}/s; {memory}"
        )


@contextmanager
def server(container: Path, *options: str) -> Any:
    """`histocodec serve` on a free port; yields its process and its address, without a slash at its end."""
    command = [sys.executable, "-m", "histocodec", "serve", str(container), "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.rstrip() == "}":
                break
        if not lines:
            raise HistocodecError(f"{' '.join(command)}: ended at once; see its message above")
        try:
            yield process, str(json.loads("".join(lines))["address"]).rstrip("/")
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def paths(slide: dict[str, Any]) -> Callable[[random.Random], str]:
    """What `spread` asks for: a function that draws a path."""
    width, height, name = slide["width"], slide["height"], slide["id"]
    first, last = slide["deepzoom_levels"]

    def tile(rng: random.Random) -> str:
        level = last - min(rng.randrange(4), last - first)  # most people look closely
        factor = 2 ** (last - level)
        column = rng.randrange(ceil_div(ceil_div(width, factor), SIDE))
        row = rng.randrange(ceil_div(ceil_div(height, factor), SIDE))
        return f"/slides/{name}_files/{level}/{column}_{row}.jpeg"

    def chunk(rng: random.Random) -> str:
        row, column = rng.randrange(ceil_div(height, SIDE)), rng.randrange(ceil_div(width, SIDE))
        return f"/ome-zarr/{name}.ome.zarr/0/c/0/{row}/{column}"

    def region(rng: random.Random) -> str:
        x, y = rng.randrange(max(1, width - 256)), rng.randrange(max(1, height - 256))
        return f"/api/slides/{name}/region?x={x}&y={y}&width=256&height=256&format=jpeg"

    def draw(rng: random.Random) -> str:
        return rng.choices((tile, chunk, region), (8, 1, 1))[0](rng)

    return draw


async def client(address: str, draw: Callable[[], str], until: float, times: list[float]) -> tuple[int, int]:
    """Ask for one path after the other on one connection, until a moment of `time.perf_counter`. Returns how many
    answers were errors, and all bytes of bodies."""
    parts = urlsplit(address)
    assert parts.hostname is not None
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
    errors = size = 0
    while time.perf_counter() < until:
        began = time.perf_counter()
        writer.write(f"GET {draw()} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        except (asyncio.IncompleteReadError, TimeoutError) as exc:
            raise HistocodecError(f"{address}: closed a connection, or gave no answer") from exc
        status = int(head.split(b" ", 2)[1])
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        times.append(time.perf_counter() - began)
        errors += status != 200
        size += length
    writer.close()
    await writer.wait_closed()
    return errors, size


async def load(
    name: str, address: str, draw: Callable[[random.Random], str], process: int, *, clients: int, seconds: float
) -> Served:
    """Let clients ask for what `draw` draws."""
    began, times = time.perf_counter(), list[float]()

    async def one(number: int) -> tuple[int, int]:
        rng = random.Random(number)
        return await client(address, lambda: draw(rng), began + seconds, times)

    tasks = [asyncio.create_task(one(number)) for number in range(clients)]
    await asyncio.sleep(seconds * WARM_SHARE)
    warm = resident_bytes(process)
    found = await asyncio.gather(*tasks)
    took = time.perf_counter() - began
    median, tail = np.percentile(times, (50, 99)).tolist()
    errors, size = (sum(column) for column in zip(*found, strict=True))
    memory = resident_bytes(process)
    return Served(name, clients, took, len(times), errors, median, tail, max(times), size, warm, memory)


def measure(
    container: Path, *, clients: int, seconds: float, loads: Sequence[str] = LOADS, options: Sequence[str] = ()
) -> list[Served]:
    """Some of LOADS, each on a server of its own. `options` are for `histocodec serve`."""
    results = []
    for name in loads:
        with server(container, *options) as (process, address):
            with urlopen(f"{address}/api/slides", timeout=PATIENCE) as answer:
                slide = json.load(answer)["slides"][0]
            draw = paths(slide)
            if name == "cached":
                rng = random.Random(0)
                hot = [path for path in (draw(rng) for _ in range(50 * HOT_TILES)) if "_files" in path][:HOT_TILES]
                for path in hot:
                    urlopen(address + path, timeout=PATIENCE).close()
                draw = partial(_one_of, hot)
            say(f"{name}: {seconds:g} s")
            results.append(asyncio.run(load(name, address, draw, process.pid, clients=clients, seconds=seconds)))
    return results


def _one_of(choices: Sequence[str], rng: random.Random) -> str:
    return rng.choice(choices)


@click.command()
@click.argument("container", type=click.Path(exists=True, path_type=Path))
@click.option("--clients", default=64, show_default=True, help="That ask at the same time.")
@click.option("--seconds", default=60.0, show_default=True, help="For each of the two loads.")
@click.option("--load", "loads", multiple=True, type=click.Choice(LOADS), default=LOADS, help="Both by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def main(container: Path, *, clients: int, seconds: float, loads: Sequence[str], as_json: bool) -> None:
    """Serve CONTAINER, and load the server over loopback."""
    results = measure(container, clients=clients, seconds=seconds, loads=loads)
    if as_json:
        print_json({"loads": results})
        return
    for result in results:
        click.echo(str(result))


if __name__ == "__main__":
    run_command(main)
