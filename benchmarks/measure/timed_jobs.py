"""Our public encoder and reader, and a peer's, on the same pixels: what is counted, and what is timed."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from histocodec.benchmarks.measure.result_rows import OURS, Sizes
from histocodec.benchmarks.peers.contender import Coded, Contender
from histocodec.fidelity import psnr, squared_error
from histocodec.formats.container.read import Container
from histocodec.formats.container.shard import PAIR_BYTES, read_index
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions, EncodeProgress
from histocodec.formats.encode.report import EncodeReport
from histocodec.geometry import ChunkKey, Region, ShardKey
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide
from histocodec.threads import Workers

SMALL = 256  # pixels of the region whose latency is measured
COLD = "cold region"  # how the names of its timings begin
TO_GPU = "decode to the GPU"

Seconds = Mapping[str, float]  # by what was done


@dataclass(frozen=True)
class Job:
    """Something to be timed, by its own clock: what it needs first is not counted. One run may give several
    times, each for so many pixels."""

    codec: str
    what: str
    device: str
    threads: int
    pixels: int
    run: Callable[[], Seconds]


def our_jobs(ours: "Ours") -> list[Job]:
    area = ours.whole.area
    calls = {
        "encode": (area, ours.encode),
        "decode": (area, ours.decode),
        "entropy decoding": (area, ours.decode_entropy),
        COLD: (SMALL**2, ours.decode_small),
    }
    return [Job(OURS, what, ours.device, ours.threads, size, call) for what, (size, call) in calls.items()]


def gpu_job(ours: "Ours") -> Job:
    """From files to pixels that stay on a GPU."""
    return Job(OURS, TO_GPU, ours.device, ours.threads, ours.whole.area, ours.decode_to_gpu)


def peer_jobs(peer: Contender, pixels: Pixels, coding: Coded, threads: int) -> list[Job]:
    def encode() -> Seconds:
        began = time.perf_counter()
        peer.encode(pixels, coding.setting, threads=threads)
        return {"encode": time.perf_counter() - began}

    def decode() -> Seconds:
        began = time.perf_counter()
        peer.decode(coding.data, threads=threads)
        return {"decode": time.perf_counter() - began}

    calls = {"encode": encode, "decode": decode}
    area = pixels.shape[0] * pixels.shape[1]
    return [Job(peer.name, what, "cpu", threads, area, call) for what, call in calls.items()]


@dataclass(frozen=True, eq=False)
class Ours:
    """`pixels` as a slide of one level, on one device, with so many worker threads. `folder` is for its
    containers; the one that the reading jobs read is there after `prepare`."""

    pixels: Pixels
    quality: float
    model: str
    device: str
    threads: int
    folder: Path
    effort: float | None = None

    @property
    def whole(self) -> Region:
        return Region(0, 0, self.pixels.shape[1], self.pixels.shape[0])

    def prepare(self) -> EncodeReport:
        return encode_slide(self._slide(), self._container, self._options)

    def sizes(self, report: EncodeReport) -> Sizes:
        """Of the prepared container, in each of the three ways of counting."""
        return Sizes(report.payload_bytes, _chunk_bytes(Container.open(self._container)), report.bytes)

    def read(self) -> Pixels:
        """What the prepared container decodes to."""
        with self._opened() as slide:
            return slide.read(self.whole, 0)

    def psnr(self) -> float:
        """In dB, of what the prepared container decodes to."""
        return psnr(squared_error(self.read(), self.pixels), self.pixels.size)

    def encode(self) -> Seconds:
        """Until the last block is coded, with the set-up and the statistics; and the whole call, which then
        decodes everything again, compares it with the source and writes the checksums."""
        coded = began = time.perf_counter()

        def tell(progress: EncodeProgress) -> None:
            nonlocal coded
            if progress.stage == "encode":
                coded = time.perf_counter()

        with TemporaryDirectory(dir=self.folder) as folder:
            encode_slide(self._slide(), Path(folder) / "again.zarr", self._options, progress=tell)
            ended = time.perf_counter()
        return {"encode": coded - began, "encode and verify": ended - began}

    def decode(self) -> Seconds:
        """Opening, with the networks put together; then reading everything."""
        began = time.perf_counter()
        with self._opened() as slide:
            assert slide.decoder
            opened = time.perf_counter()
            slide.read(self.whole, 0)
            ended = time.perf_counter()
        return {"open": opened - began, "decode": ended - opened}

    def decode_to_gpu(self) -> Seconds:
        """`decode`, to pixels that stay on the device."""
        with self._opened() as slide:
            assert slide.decoder
            began = time.perf_counter()
            slide.read_tensor(0, 0, self.whole.width, self.whole.height)
            torch.cuda.synchronize(self.device)
            return {TO_GPU: time.perf_counter() - began}

    def decode_entropy(self) -> Seconds:
        """Files to integer latents alone."""
        with self._opened() as slide, _started(self.threads) as workers:
            reader, grid = slide.decoder.reader, slide.container.attributes.grid(0)
            keys = [ChunkKey(0, r, c) for r in range(grid.chunk_rows) for c in range(grid.chunk_columns)]
            began = time.perf_counter()
            for _ in workers.map(reader.latents, keys):
                pass
            return {"entropy decoding": time.perf_counter() - began}

    def decode_small(self) -> Seconds:
        """The first region that an opened container is asked for: inside a block in the middle of the slide,
        and where four blocks meet. Either needs the neighbours' latents, too."""
        seconds = {}
        with self._opened() as slide:
            side = slide.container.attributes.chunk_side
        x, y = self.whole.width // 2 // side * side, self.whole.height // 2 // side * side
        for where, shift in (("one block", (side - SMALL) // 2), ("four blocks", -SMALL // 2)):
            region = Region(x + shift, y + shift, SMALL, SMALL).intersect(self.whole)
            with self._opened() as slide:
                assert slide.decoder
                began = time.perf_counter()
                slide.read(region, 0)
                seconds[f"{COLD}, {where}"] = time.perf_counter() - began
        return seconds

    @property
    def _container(self) -> Path:
        return self.folder / "timed.zarr"

    @property
    def _options(self) -> EncodeOptions:
        return EncodeOptions(
            quality=self.quality,
            model=self.model,
            levels=(0,),
            background="code",
            device=self.device,
            workers=self.threads,
            effort=self.effort,
        )

    def _slide(self) -> ArraySlide:
        return ArraySlide(self.pixels, name="region")

    def _opened(self) -> CompressedSlide:
        return open_compressed(self._container, device=self.device, workers=self.threads)


def _chunk_bytes(container: Container) -> int:
    """Level 0's chunks, each with its checksum and its entry in the index."""
    total, slots = 0, container.attributes.shard**2
    for row, column in np.argwhere(container.present_shards(0)).tolist():
        entries = read_index(container.shard_path(ShardKey(0, row, column)), slots).entries
        total += sum(entry[1] + PAIR_BYTES for entry in entries if entry is not None)
    return total


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Outside the worker threads, too, no more cores are used than the run is said to use."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _started(count: int) -> Iterator[Workers]:
    """Workers whose threads are there."""
    workers = Workers(count)
    try:
        list(workers.map(lambda item: item, range(count)))
        yield workers
    finally:
        workers.close()
