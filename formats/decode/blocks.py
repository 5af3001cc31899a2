"""Containers to pixels, block by block. A block is one chunk's 512×512 pixels. A pixel never depends on the region it
was read in: where the synthesis is not in whole numbers, a block is always computed from the same window of latents on
one thread (or in one fixed batch on a GPU)."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from histocodec.codec.chunk import ChunkCodec, fast_chunk_codec, quality_of
from histocodec.codec.transform import Transform
from histocodec.errors import FormatError
from histocodec.formats.container.layout import BACKGROUND, LOSSLESS
from histocodec.formats.container.read import Container
from histocodec.formats.container.shard import ShardIndex, read_chunks, read_index
from histocodec.geometry import ChunkKey, Grid, Margin, Region, ceil_div
from histocodec.kernels.jit import jit
from histocodec.models.weights import ModelWeights
from histocodec.slide import Pixels
from histocodec.threads import Workers

if TYPE_CHECKING:
    from histocodec.formats.decode.gpu import GpuRegions

MOST_INDICES = 1024  # shard indices kept, of 10 KB each as objects
TOGETHER = 2  # blocks side by side in one window, where there are many: they share a margin, and calls
GPU_BATCH = 16  # blocks a launch; always this many unless exact: a convolution may round differently in another batch


@dataclass(frozen=True)
class ChunkLatents:
    """One decoded chunk: y (C, n, n) int8 or int16, and the quality that says how to scale it."""

    y: NDArray[np.signedinteger]
    quality: int


class Cache:
    """Least recently used values up to a number of bytes. Thread-safe; values must not be changed."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._lock = threading.Lock()
        self._values: OrderedDict[ChunkKey, tuple[object, int]] = OrderedDict()

    def get(self, key: ChunkKey) -> object | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: ChunkKey, value: object, size: int) -> None:
        with self._lock:
            if key in self._values:
                return
            self._values[key] = (value, size)
            self.bytes += size
            while self.bytes > self.limit and len(self._values) > 1:
                self.bytes -= self._values.popitem(last=False)[1][1]


class Underway:
    """What threads are making, so that none makes it a second time. A forked child begins with nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[tuple[int, ChunkKey], threading.Event] = {}

    @contextmanager
    def alone(self, key: ChunkKey) -> Iterator[bool]:
        """True where this thread is to make it; else waits until another thread has, or has failed to."""
        mine = os.getpid(), key
        with self._lock:
            end = self._ends.get(mine)
            if end is None:
                self._ends[mine] = threading.Event()
        if end is not None:
            end.wait()
            yield False
            return
        try:
            yield True
        finally:
            with self._lock:
                self._ends.pop(mine).set()

    def last(self, keys: Iterable[ChunkKey]) -> Iterator[ChunkKey]:
        """The keys, those that are underway just then last."""
        left = list(keys)
        while left:
            free = (n for n, key in enumerate(left) if (os.getpid(), key) not in self._ends)
            yield left.pop(next(free, 0))


class BlockDecoder:
    """Decodes blocks of one container. Half of `cache_bytes` keeps latents, half keeps pixels."""

    def __init__(
        self,
        container: Container,
        weights: ModelWeights,
        device: torch.device,
        workers: Workers,
        *,
        cache_bytes: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.container, self.weights, self.device, self.workers = container, weights, device, workers
        # On a worker: in a fork of a process that has used PyTorch's threads, this one would wait for them for ever.
        self.coder, self.transform = workers.run(lambda: _networks(weights, device, dtype))
        self.stats = container.stats()
        self.side = container.attributes.chunk  # latents a chunk, in each direction
        self._grids = [container.attributes.grid(level) for level in range(len(container.attributes.levels))]
        side = container.attributes.chunk_side
        self._blocks_of = [Grid(level.height, level.width, side) for level in container.attributes.levels]
        self.tiles = [container.tiles(level) for level in range(len(container.attributes.levels))]
        self._indices: dict[ChunkKey, ShardIndex] = {}
        self._latents, self._pixels = Cache(cache_bytes // 2), Cache(cache_bytes // 2)
        self._underway = Underway()

    @cached_property
    def on_gpu(self) -> "GpuRegions | None":
        """Whole regions on a GPU whose kernels are exact."""
        if not self.transform.by_kernels:
            return None
        from histocodec.formats.decode.gpu import GpuRegions

        return GpuRegions(self)

    def blocks(self, keys: Iterable[ChunkKey]) -> Iterator[tuple[ChunkKey, Pixels]]:
        """(key, pixels (h, w, 3) uint8, cut at the level's edge), in the order of the keys. Do not write to them."""
        if self.device.type != "cpu":
            yield from self._in_batches(keys)
            return
        wanted = list(keys)
        if len(wanted) < self.workers.count:
            self._share_out((key.level, self._area(key)) for key in wanted if self._undecoded(key))
        many = self.transform.exact and len(wanted) >= 2 * TOGETHER * self.workers.count
        for found in self.workers.map(self._blocks, _side_by_side(wanted, TOGETHER if many else 1)):
            yield from found

    def chunk(self, key: ChunkKey) -> ChunkLatents | None:
        """The latents of a chunk, or None where it is background."""
        if self.tiles[key.level][key.row, key.column] == BACKGROUND:
            self._check_absent(key)
            return None
        while True:
            known = self._latents.get(key)
            if isinstance(known, ChunkLatents):
                return known
            with self._underway.alone(key) as alone:
                if alone:
                    chunk = self.decoded(key)
                    self._latents.put(key, chunk, chunk.y.nbytes)
                    return chunk

    def stored(self, keys: Sequence[ChunkKey]) -> list[bytes]:
        """The bytes of chunks that are not background. The workers read them, a shard at a time."""
        across = self.container.attributes.shard
        shards: dict[ChunkKey, list[ChunkKey]] = {}
        for key in keys:
            shards.setdefault(ChunkKey(key.level, key.row // across, key.column // across), []).append(key)
        found: dict[ChunkKey, bytes] = {}
        for shard, chunks in zip(shards.values(), self.workers.map(self._stored, shards.values()), strict=True):
            for key, data in zip(shard, chunks, strict=True):
                if data is None:
                    raise FormatError(f"{self._named(key)} is missing from its shard")
                found[key] = data
        return [found[key] for key in keys]

    def _stored(self, keys: Sequence[ChunkKey]) -> list[bytes | None]:
        """Those of one shard."""
        path, _ = self._place(keys[0])
        return read_chunks(path, self._index(keys[0], path), map(self._number, keys))

    def decoded(self, key: ChunkKey) -> ChunkLatents:
        """The latents of a chunk that is not background, from its shard."""
        (data,), where = self._stored([key]), self._named(key)
        if data is None:
            raise FormatError(f"{where} is missing from its shard")
        try:
            y = self.coder.decode(data, (self.weights.config.latent_channels, self.side, self.side))
        except FormatError as exc:
            raise FormatError(f"{where}: {exc}") from exc
        dtype = np.dtype(self.container.attributes.levels[key.level].dtype)
        limits = np.iinfo(dtype)
        if y.min() < limits.min or y.max() > limits.max:
            raise FormatError(f"{where}: holds values from {y.min()} to {y.max()}, beyond {dtype}")
        return ChunkLatents(y.astype(dtype, copy=False), quality_of(data))

    def _named(self, key: ChunkKey) -> str:
        """A chunk as errors name it."""
        return f"{self.container.path}: level {key.level} chunk ({key.row}, {key.column})"

    def _check_absent(self, key: ChunkKey) -> None:
        """FormatError where a chunk is stored that `tiles` calls background: one of both is wrong."""
        path, number = self._place(key)
        if path.exists() and self._index(key, path).entries[number] is not None:
            raise FormatError(
                f"{path}: holds level {key.level} chunk ({key.row}, {key.column}), which tiles/{key.level} calls "
                "background"
            )

    def _place(self, key: ChunkKey) -> tuple[Path, int]:
        """The shard of a chunk, and the chunk's number there."""
        across = self.container.attributes.shard
        return self.container.shard_path(key.level, key.row // across, key.column // across), self._number(key)

    def _number(self, key: ChunkKey) -> int:
        across = self.container.attributes.shard
        return key.row % across * across + key.column % across

    def _index(self, key: ChunkKey, path: Path) -> ShardIndex:
        """The index of a chunk's shard, which is read once."""
        across = self.container.attributes.shard
        shard = ChunkKey(key.level, key.row // across, key.column // across)
        index = self._indices.get(shard)
        if index is None:
            index = read_index(path, across * across)
            if len(self._indices) >= MOST_INDICES:
                self._indices.clear()
            self._indices[shard] = index
        return index

    def apart(self, level: int, region: Region) -> bool:
        """Whether a region within the level is best decoded by itself: small beside the blocks that it touches, of
        which nothing is known yet, so that nobody seems to read around there. Else whole blocks are worth keeping."""
        coded = [key for key in self.touched(level, region) if self.coded(key)]
        window = region.expanded(self.weights.config.synthesis_halo * self.weights.config.stride).area
        block = self.container.attributes.chunk_side**2
        return (
            self.transform.exact
            and bool(coded)
            and region.area <= block
            and 2 * window <= len(coded) * block
            and all(cache.get(key) is None for cache in (self._latents, self._pixels) for key in coded)
        )

    def region(self, level: int, region: Region) -> Pixels:
        """The pixels (h, w, 3) uint8 of a region within the level from a window of its own. They are those of its
        blocks where the synthesis is exact."""
        self._share_out([(level, self.latents_of(region))])
        return self.workers.run(lambda: self.region_here(level, region))

    def region_here(self, level: int, region: Region) -> Pixels:
        """`region` on this thread alone."""
        area, stride = self.latents_of(region), self.weights.config.stride
        window, margin = self.window(level, area)
        decoded = self.transform.synthesise([window], margin, self.stats.channels)[0]
        pixels = np.ascontiguousarray(decoded[region.within(Region(area.x * stride, area.y * stride, 0, 0))])
        for key in self.touched(level, region):
            if (known := self.known(key)) is not None:
                where = self.where(key)
                part = where.intersect(region)
                pixels[part.within(region)] = known[part.within(where)]
        return pixels

    def window(self, level: int, area: Region) -> tuple[NDArray[np.float32], Margin]:
        """The scaled latents (C, h, w) float32 around an `area` in latents, as far as the synthesis looks and the level
        goes; in memory, channels come last."""
        seen, margin = self.window_of(level, area)
        window = np.empty((seen.height, seen.width, self.weights.config.latent_channels), np.float32)
        for key in self._underway.last(self.chunks_in(level, seen)):
            where = self._area(key)
            shared = where.intersect(seen)
            part, chunk = window[shared.within(seen)], self.chunk(key)
            if chunk is None:
                part[...] = self.stats.background_latent
            else:
                y = chunk.y[(slice(None), *shared.within(where))]
                _scale(y, self.weights.inverse_gain(chunk.quality), part)
        return window.transpose(2, 0, 1), margin

    def window_of(self, level: int, area: Region) -> tuple[Region, Margin]:
        """What the synthesis of an area in latents looks at, and how far that reaches beyond it."""
        seen = self.seen_from(level, area)
        beyond = max(0, seen.y_end - area.y_end), max(0, seen.x_end - area.x_end)
        return seen, Margin(area.y - seen.y, area.x - seen.x, *beyond)

    def block_window(self, key: ChunkKey, across: int = 1) -> tuple[NDArray[np.float32], Margin]:
        """`window` of a block, or of so many from there on `across` the level."""
        return self.window(key.level, replace(self._area(key), width=across * self.side))

    def _share_out(self, areas: Iterable[tuple[int, Region]]) -> None:
        """What the windows of few areas need is decoded by all workers first, where it can be kept."""
        seen = [(level, self.seen_from(level, area)) for level, area in areas]
        missing = [
            key
            for key in dict.fromkeys(key for level, area in seen for key in self.chunks_in(level, area))
            if self.tiles[key.level][key.row, key.column] != BACKGROUND and self._latents.get(key) is None
        ]
        size = self.side**2 * self.weights.config.latent_channels
        if self.workers.count > 1 and len(missing) > 1 and 2 * len(missing) * size <= self._latents.limit:
            for _ in self.workers.map(self.chunk, missing):
                pass

    def latents_of(self, region: Region) -> Region:
        """In latents, what a region in pixels touches."""
        stride = self.weights.config.stride
        x, y = region.x // stride, region.y // stride
        return Region(x, y, ceil_div(region.x_end, stride) - x, ceil_div(region.y_end, stride) - y)

    def _area(self, key: ChunkKey) -> Region:
        """A chunk in latents, whole even where the level ends."""
        return Region(key.column * self.side, key.row * self.side, self.side, self.side)

    def seen_from(self, level: int, area: Region) -> Region:
        """An area in latents and those around it, as far as the synthesis looks and the level goes."""
        grid = self._grids[level]
        whole = Region(0, 0, grid.latent_columns, grid.latent_rows)
        return area.expanded(self.weights.config.synthesis_halo).intersect(whole)

    def chunks_in(self, level: int, area: Region) -> Iterator[ChunkKey]:
        """The chunks that an area in latents touches."""
        grid = self._grids[level]
        for row, column in Grid(grid.latent_rows, grid.latent_columns, self.side).squares_in(area):
            yield ChunkKey(level, row, column)

    def _blocks(self, keys: Sequence[ChunkKey]) -> list[tuple[ChunkKey, Pixels]]:
        """Blocks that lie side by side, on this thread."""
        known = [(key, pixels) for key in keys if (pixels := self.known(key)) is not None]
        if known:
            return known if len(keys) == 1 else [block for key in keys for block in self._blocks([key])]
        window, margin = self.block_window(keys[0], len(keys))
        pixels = self.transform.synthesise([window], margin, self.stats.channels)[0]
        side = self.container.attributes.chunk_side
        return [(key, self._keep(key, pixels[:, n * side :])) for n, key in enumerate(keys)]

    def _in_batches(self, keys: Iterable[ChunkKey]) -> Iterator[tuple[ChunkKey, Pixels]]:
        """The same on a GPU: windows are made by the workers, GPU_BATCH of one shape go up together."""
        group: list[ChunkKey] = []
        for key in keys:
            group.append(key)
            if len(group) == 4 * GPU_BATCH:
                yield from self._batch(group)
                group = []
        yield from self._batch(group)

    def _batch(self, keys: Sequence[ChunkKey]) -> Iterator[tuple[ChunkKey, Pixels]]:
        done = {key: pixels for key in keys if (pixels := self.known(key)) is not None}
        missing = [key for key in dict.fromkeys(keys) if key not in done]
        windows = list(zip(missing, self.workers.map(self.block_window, missing), strict=True))
        windows.sort(key=lambda item: (item[1][0].shape, str(item[1][1])))
        for _, same in groupby(windows, key=lambda item: (item[1][0].shape, item[1][1])):
            alike = list(same)
            for start in range(0, len(alike), GPU_BATCH):
                batch = alike[start : start + GPU_BATCH]
                more = 0 if self.transform.exact else GPU_BATCH - len(batch)
                padded = [window for _, (window, _) in batch] + [batch[0][1][0]] * more
                results = self.transform.synthesise(padded, batch[0][1][1], self.stats.channels)
                for (key, _), pixels in zip(batch, results, strict=False):
                    done[key] = self._keep(key, pixels)
        for key in keys:
            yield key, done[key]

    def _undecoded(self, key: ChunkKey) -> bool:
        """Whether a block's pixels are still to come from its latents."""
        return self.coded(key) and self._pixels.get(key) is None

    def coded(self, key: ChunkKey) -> bool:
        """Whether a block's pixels come from its latents."""
        return self.tiles[key.level][key.row, key.column] not in (BACKGROUND, LOSSLESS)

    def known(self, key: ChunkKey) -> Pixels | None:
        """A block that is background, was decoded before, or is stored as pixels."""
        stored = self.tiles[key.level][key.row, key.column]
        if stored == BACKGROUND:
            self._check_absent(key)
            height, width = self._size(key)
            return np.broadcast_to(np.array(self.stats.background, np.uint8), (height, width, 3))
        known = self._pixels.get(key)
        if isinstance(known, np.ndarray):
            return known
        if stored == LOSSLESS:
            return self._keep(key, self.container.lossless(key.level, key.row, key.column))
        return None

    def _keep(self, key: ChunkKey, pixels: Pixels) -> Pixels:
        height, width = self._size(key)
        block = np.ascontiguousarray(pixels[:height, :width])
        self._pixels.put(key, block, block.nbytes)
        return block

    def _size(self, key: ChunkKey) -> tuple[int, int]:
        where = self.where(key)
        return where.height, where.width

    def where(self, key: ChunkKey) -> Region:
        """A block's pixels, cut at the level's edge."""
        return self._blocks_of[key.level].region(key.row, key.column)

    def touched(self, level: int, region: Region) -> list[ChunkKey]:
        return [ChunkKey(level, *place) for place in self._blocks_of[level].squares_in(region)]


@lru_cache(maxsize=4)
def _networks(weights: ModelWeights, device: torch.device, dtype: torch.dtype | None) -> tuple[ChunkCodec, Transform]:
    """Put together once for all slides of a model: it takes as long as several regions."""
    return fast_chunk_codec(weights), Transform(weights, device, dtype=dtype)


def _side_by_side(keys: Iterable[ChunkKey], most: int) -> Iterator[list[ChunkKey]]:
    """The keys in their order, up to `most` at once where one follows the other across a level."""
    run: list[ChunkKey] = []
    for key in keys:
        if run and (len(run) == most or key != replace(run[-1], column=run[-1].column + 1)):
            yield run
            run = []
        run.append(key)
    if run:
        yield run


@jit
def _scale(y: NDArray[np.signedinteger], gain: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """y (C, h, w) · gain (C,) → out (h, w, C). Most rows of a channel are zero."""
    for row in range(y.shape[1]):
        out[row] = 0
        for channel in range(y.shape[0]):
            values, used = y[channel, row], 0
            for column in range(y.shape[2]):
                used |= values[column]
            if used != 0:
                for column in range(y.shape[2]):
                    out[row, column, channel] = values[column] * gain[channel]
