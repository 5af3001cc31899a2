"""Our public encoder and reader, as a benchmark uses them: what they make of an image, and how long each takes."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from histocodec.benchmarks.measure.result_rows import Sizes
from histocodec.fidelity import psnr, squared_error
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.container import ContainerV2
from histocodec.formats.container.read import open_container
from histocodec.formats.container.shard import PAIR_BYTES, read_index
from histocodec.formats.container.states import BACKGROUND
from histocodec.formats.container.version1.layout import shard_key
from histocodec.formats.decode.settings import configure
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions, EncodeProgress
from histocodec.formats.encode.report import EncodeReport
from histocodec.geometry import ChunkKey, Region, ShardKey
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide
from histocodec.threads import SHARED_WORKERS, Workers

COLD_SIDE = 256  # pixels of the region whose latency is measured
COLD = "cold region"  # how the names of its timings begin
TO_GPU = "decode to the GPU"

Seconds = Mapping[str, float]  # by what was done


@dataclass(frozen=True, eq=False)
class OurCodec:
    """Pixels (H, W, 3) uint8 as a slide of one level, coded at one quality on one device with so many worker threads.

    `folder` is for its containers. Call `prepare` first: it writes the container that everything else reads. The
    methods that return Seconds use a clock of their own, which leaves out what they need first.
    """

    pixels: Pixels
    quality: float
    model: str
    device: str
    threads: int
    folder: Path
    effort: float | None = None

    @property
    def whole(self) -> Region:
        """The region of all pixels."""
        return Region(0, 0, self.pixels.shape[1], self.pixels.shape[0])

    def prepare(self) -> EncodeReport:
        """Write the container."""
        return encode_slide(self._slide(), self._container, self._options)

    def sizes(self, report: EncodeReport) -> Sizes:
        """The size of the prepared container, in each of the three ways of counting."""
        container = open_container(self._container)
        entries = PAIR_BYTES * int(np.count_nonzero(container.tiles(0) != BACKGROUND))
        return Sizes(report.payload_bytes, chunk_bytes(container, 0) + entries, report.bytes)

    def read(self) -> Pixels:
        """Decode the prepared container."""
        with self._opened() as slide:
            return slide.read(self.whole, 0)

    def psnr(self) -> float:
        """The PSNR of the prepared container, in dB."""
        return psnr(squared_error(self.read(), self.pixels), self.pixels.size)

    def time_encode(self) -> Seconds:
        """Time encoding until the last chunk is coded, with the set-up and the statistics; and the whole call, which
        then decodes everything again, compares it with the source and writes the checksums."""
        coded = began = time.perf_counter()

        def note_time(progress: EncodeProgress) -> None:
            nonlocal coded
            if progress.stage == "encode":
                coded = time.perf_counter()

        with TemporaryDirectory(dir=self.folder) as folder:
            encode_slide(self._slide(), Path(folder) / "again.zarr", self._options, progress=note_time)
            ended = time.perf_counter()
        return {"encode": coded - began, "encode and verify": ended - began}

    def time_decode(self) -> Seconds:
        """Time opening, with the networks put together; then reading everything."""
        self._start_threads()
        began = time.perf_counter()
        with self._opened() as slide:
            assert slide.decoder
            opened = time.perf_counter()
            slide.read(self.whole, 0)
            ended = time.perf_counter()
        return {"open": opened - began, "decode": ended - opened}

    def time_decode_to_gpu(self) -> Seconds:
        """Time reading everything into pixels that stay on the device."""
        with self._opened() as slide:
            assert slide.decoder
            began = time.perf_counter()
            slide.read_tensor(0, 0, self.whole.width, self.whole.height)
            torch.cuda.synchronize(self.device)
            return {TO_GPU: time.perf_counter() - began}

    def time_entropy_decoding(self) -> Seconds:
        """Time reading files into integer latents alone."""
        with self._opened() as slide, _running_workers(self.threads) as workers:
            reader, grid = slide.decoder.reader, slide.container.attributes.grid(0)
            keys = [ChunkKey(0, r, c) for r in range(grid.chunk_rows) for c in range(grid.chunk_columns)]
            began = time.perf_counter()
            for _ in workers.map(reader.latents, keys):
                pass
            return {"entropy decoding": time.perf_counter() - began}

    def time_cold_regions(self) -> Seconds:
        """Time the first region that an opened container is asked for: inside a chunk in the middle of the slide, and
        where four chunks meet. Both need the neighbours' latents, too."""
        seconds = {}
        with self._opened() as slide:
            side = slide.container.attributes.chunk_side
        x, y = self.whole.width // 2 // side * side, self.whole.height // 2 // side * side
        for where, shift in (("one chunk", (side - COLD_SIDE) // 2), ("four chunks", -COLD_SIDE // 2)):
            region = Region(x + shift, y + shift, COLD_SIDE, COLD_SIDE).intersect(self.whole)
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
        """The prepared container, opened as most programs do: with the threads of the process, which outlive it."""
        self._start_threads()
        return open_compressed(self._container, device=self.device)

    def _start_threads(self) -> None:
        """Has the process use `threads` threads, which have worked before: their first work is slower."""
        if SHARED_WORKERS.count != self.threads:
            configure(workers=self.threads)
            self.read()


def chunk_bytes(container: Container, level: int) -> int:
    """The coded chunks of a level, each with its checksum."""
    if isinstance(container, ContainerV2):
        return int(container.maps(level).size.sum())
    total, slots = 0, container.attributes.shard_side(level) ** 2
    for row, column in np.argwhere(container.present_shards(level)).tolist():
        entries = read_index(container.store, shard_key(ShardKey(level, row, column)), slots).entries
        total += sum(entry[1] for entry in entries if entry is not None)
    return total


@contextmanager
def _running_workers(count: int) -> Iterator[Workers]:
    """Workers whose threads have started."""
    workers = Workers(count)
    try:
        list(workers.map(lambda item: item, range(count)))
        yield workers
    finally:
        workers.close()
