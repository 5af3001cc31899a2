"""Chunks from the files of a container to latents, and windows of latents that a synthesis can decode.

    shard  ── ShardReader ──▶  bytes  ── ChunkCodec ──▶  latents  ── gains undone ──▶  window of a region
                  (cached)                             (cached)

`ChunkReader` is what the two pixel decoders share: `pixels.PixelDecoder` takes windows from it, and `gpu.GpuRegions`
takes bytes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from histocodec.codec.chunk import ChunkCodec, fast_chunk_codec, quality_of
from histocodec.codec.native import decodes_natively
from histocodec.errors import FormatError
from histocodec.formats.container.abstract_container import DecodableContainer
from histocodec.formats.container.shard import ShardIndex
from histocodec.formats.container.states import BACKGROUND, chunks_where
from histocodec.formats.decode.cache import SHARED_INDICES, Cache, CachePart, Underway
from histocodec.geometry import ChunkKey, Grid, Margin, Region, ShardKey, ceil_div
from histocodec.kernels.jit import jit
from histocodec.models.weights import ModelWeights
from histocodec.threads import Workers


@dataclass(frozen=True, eq=False)
class ChunkLatents:
    """One decoded chunk: its latents (n, n, c) int8 or int16, of which only the first `c` of the model's `channels` are
    held, since all others are 0; and the quality whose gains scaled it."""

    used: NDArray[np.signedinteger]
    channels: int
    quality: int

    @property
    def y(self) -> NDArray[np.signedinteger]:
        """All latents, (C, n, n), channels last in memory."""
        full = np.zeros((*self.used.shape[:2], self.channels), self.used.dtype)
        full[:, :, : self.used.shape[2]] = self.used
        return full.transpose(2, 0, 1)


class ChunkReader:
    """Reads the chunks of one container. Thread-safe. Keeps decoded latents in `cache`, which others may share.

    Raises FormatError from every method where a file is missing or damaged, or contradicts another.
    """

    def __init__(self, container: DecodableContainer, weights: ModelWeights, workers: Workers, *, cache: Cache) -> None:
        self.container, self.weights, self.workers = container, weights, workers
        # Without native kernels on a worker: a process that was forked from one that had used PyTorch's threads waits
        # for these for ever as soon as its main thread multiplies.
        self.codec = _codec(weights) if decodes_natively(weights) else workers.run(lambda: _codec(weights))
        self.stats = container.stats()
        self.side = container.attributes.chunk  # latents of a chunk, in each direction
        self._tiles: dict[int, NDArray[np.uint8]] = {}  # the tile states (rows, columns) of levels that were read
        self._planes = [container.attributes.grid(level).latents for level in range(len(container.attributes.levels))]
        self._indices: CachePart[ShardKey, ShardIndex] = CachePart(SHARED_INDICES)
        self._shards = container.shard_reader(self._indices)
        self._cache: CachePart[ChunkKey, ChunkLatents] = CachePart(cache)
        self._underway = Underway()

    def close(self) -> None:
        """Forgets what was decoded. Reads that go on elsewhere are finished."""
        self._indices.close()
        self._cache.close()

    # Tile states.

    def state(self, key: ChunkKey) -> int:
        """BACKGROUND, CODED or LOSSLESS, as the map `tiles` says."""
        return int(self.tiles(key.level)[key.row, key.column])

    def tiles(self, level: int) -> NDArray[np.uint8]:
        """The tile states of a level, (rows, columns) uint8, read once."""
        if level not in self._tiles:
            self._tiles[level] = self.container.tiles(level)
        return self._tiles[level]

    def has_background(self, level: int, region: Region) -> bool:
        """Whether any chunk that a region in pixels touches is background."""
        side = self.container.attributes.chunk_side
        rows = slice(region.y // side, ceil_div(region.y_end, side))
        columns = slice(region.x // side, ceil_div(region.x_end, side))
        return bool((self.tiles(level)[rows, columns] == BACKGROUND).any())

    def check_absent(self, key: ChunkKey) -> None:
        """Raises FormatError where a shard holds a chunk that the map calls background: one of the two is wrong."""
        self._shards.check_absent(key)

    def stored_in(self, level: int, region: Region) -> Iterator[ChunkKey]:
        """The chunks of a region in pixels that are not background, row by row. Raises FormatError where a shard holds
        one of the others."""
        attributes = self.container.attributes
        size = attributes.levels[level]
        inside = region.intersect(Region(0, 0, size.width, size.height))
        if inside.empty:
            return
        side, shard_side = attributes.chunk_side, attributes.shard_side(level)
        left, right = inside.x // side, ceil_div(inside.x_end, side)
        bottom = ceil_div(inside.y_end, side)
        top = inside.y // side
        while top < bottom:  # the rows of one shard at a time
            end = min((top // shard_side + 1) * shard_side, bottom)
            states = self.tiles(level)[top:end, left:right]
            self._check_absent_in(level, top, left, states == BACKGROUND)
            for key in chunks_where(level, states != BACKGROUND):
                yield ChunkKey(level, top + key.row, left + key.column)
            top = end

    def _check_absent_in(self, level: int, top: int, left: int, background: NDArray[np.bool_]) -> None:
        """`check_absent` for those chunks, from row `top` and column `left` on, that are `background` (rows, columns)
        and in one row of shards. Each shard's file is looked for once."""
        shard_side, right = self.container.attributes.shard_side(level), left + background.shape[1]
        column = left
        while column < right:
            end = min((column // shard_side + 1) * shard_side, right)
            part = background[:, column - left : end - left]
            if part.any() and self._shards.has_shard(ChunkKey(level, top, column)):
                for key in chunks_where(level, part):
                    self.check_absent(ChunkKey(level, top + key.row, column + key.column))
            column = end

    # Bytes.

    def read(self, keys: Sequence[ChunkKey]) -> list[bytes]:
        """The bytes of chunks that are not background, in the order of the keys. The workers read a shard each."""
        shards: dict[ShardKey, list[ChunkKey]] = {}
        for key in keys:
            shards.setdefault(key.shard(self.container.attributes.shard_side(key.level)), []).append(key)
        chunks: dict[ChunkKey, bytes] = {}
        for members, data in zip(
            shards.values(), self.workers.map(self._shards.chunk_bytes, shards.values()), strict=True
        ):
            chunks.update(zip(members, data, strict=True))
        return [chunks[key] for key in keys]

    def checks(self, keys: Sequence[ChunkKey]) -> NDArray[np.uint32] | None:
        """The checks that the latents of chunks must have, (n,) uint32; None in a container of version 1."""
        return self._shards.checks(keys)

    def _name(self, key: ChunkKey) -> str:
        """A chunk as errors name it."""
        return f"{self.container.name}: level {key.level} chunk ({key.row}, {key.column})"

    # Latents.

    def latents(self, key: ChunkKey, data: bytes | None = None) -> ChunkLatents | None:
        """The latents of a chunk, from the cache where they are in it, else from its bytes `data`, where these were
        read already; None where the chunk is background. Two threads never decode the same chunk at a time."""
        if self.state(key) == BACKGROUND:
            self.check_absent(key)
            return None
        while True:
            if (cached := self._cache.get(key)) is not None:
                return cached
            with self._underway.claim(key) as mine:
                if mine:
                    chunk = self.decode(key, data)
                    self._cache.put(key, chunk, chunk.used.nbytes)
                    return chunk

    def decode(self, key: ChunkKey, data: bytes | None = None) -> ChunkLatents:
        """The latents of a chunk that is not background, decoded anew from its bytes `data`, or read anew, too."""
        if data is None:
            (data,) = self._shards.chunk_bytes([key])
        channels = self.weights.config.latent_channels
        dtype = np.dtype(self.container.attributes.levels[key.level].dtype)
        try:
            used = self.codec.decode_used(data, (channels, self.side, self.side), dtype)
        except FormatError as exc:
            raise FormatError(f"{self._name(key)}: {exc}") from exc
        self._shards.check_latents(key, quality_of(data), used.transpose(2, 0, 1))
        return ChunkLatents(used, channels, quality_of(data))

    def is_cached(self, key: ChunkKey) -> bool:
        """Whether the latents of a chunk are in the cache."""
        return self._cache.get(key) is not None

    def decode_ahead(self, areas: Iterable[tuple[int, Region]], *, here: bool = False) -> None:
        """Reads together what the windows of (level, area in latents) need, and has all workers decode it, or this
        thread if `here`. For a few windows, each of which one thread would read and decode; does nothing where the
        latents do not fit into half of the cache."""
        windows = [(level, self.window_of(level, area)[0]) for level, area in areas]
        needed = dict.fromkeys(key for level, window in windows for key in self.chunks_in(level, window))
        missing = [key for key in needed if self.state(key) != BACKGROUND and not self.is_cached(key)]
        size = self.side**2 * self.weights.config.latent_channels
        if len(missing) > 1 and 2 * len(missing) * size <= self._cache.limit:
            read = zip(missing, self._shards.chunk_bytes(missing), strict=True)
            for _ in (map if here else self.workers.map)(lambda chunk: self.latents(*chunk), read):
                pass

    def _missing_bytes(self, keys: Iterable[ChunkKey]) -> dict[ChunkKey, bytes]:
        """The bytes of those chunks that nobody has decoded or is decoding, read together."""
        missing = [key for key in keys if self.state(key) != BACKGROUND and not self.is_cached(key)]
        missing = [key for key in missing if not self._underway.is_claimed(key)]
        return dict(zip(missing, self._shards.chunk_bytes(missing), strict=True))

    # Windows. An area is a rectangle in latents; its window adds the halo of the synthesis, as far as the level goes.

    def latents_of(self, region: Region) -> Region:
        """The latents, as an area, that a region in pixels touches."""
        stride = self.weights.config.stride
        x, y = region.x // stride, region.y // stride
        return Region(x, y, ceil_div(region.x_end, stride) - x, ceil_div(region.y_end, stride) - y)

    def area_of(self, key: ChunkKey) -> Region:
        """The latents of a chunk, as an area: all n × n of them, even where the level ends before."""
        return Region(key.column * self.side, key.row * self.side, self.side, self.side)

    def window_of(self, level: int, area: Region) -> tuple[Region, Margin]:
        """The window of an area, and its margin: how far it reaches beyond the area."""
        window = area.expanded(self.weights.config.synthesis_halo).intersect(self._planes[level])
        beyond = max(0, window.y_end - area.y_end), max(0, window.x_end - area.x_end)
        return window, Margin(area.y - window.y, area.x - window.x, *beyond)

    def chunks_in(self, level: int, area: Region) -> list[ChunkKey]:
        """The chunks that an area, or a window, touches, row by row."""
        plane = self._planes[level]
        squares = Grid(plane.height, plane.width, self.side).squares_in(area)
        return [ChunkKey(level, row, column) for row, column in squares]

    def window(self, level: int, area: Region) -> tuple[NDArray[np.float32], Margin]:
        """The latents of an area's window with gains undone, (C, h, w) float32, and its margin. In memory the channels
        come last, as the synthesis takes them."""
        window, margin = self.window_of(level, area)
        scaled = np.empty((window.height, window.width, self.weights.config.latent_channels), np.float32)
        keys = self.chunks_in(level, window)
        data = self._missing_bytes(keys)
        for key in self._underway.free_first(keys):
            chunk_area, chunk = self.area_of(key), self.latents(key, data.get(key))
            shared = chunk_area.intersect(window)
            part = scaled[shared.within(window)]
            if chunk is None:
                part[...] = self.stats.background_latent
            else:
                top, left = shared.y - chunk_area.y, shared.x - chunk_area.x
                to = shared.y - window.y, shared.x - window.x
                gain = self.weights.inverse_gain(chunk.quality)
                scaled_into(chunk.used, (top, left), (shared.height, shared.width), gain, scaled, to)
        return scaled.transpose(2, 0, 1), margin

    def chunk_window(self, key: ChunkKey, count: int = 1) -> tuple[NDArray[np.float32], Margin]:
        """`window` of a chunk, or of `count` chunks in a row of which it is the leftmost."""
        return self.window(key.level, replace(self.area_of(key), width=count * self.side))


@lru_cache(maxsize=4)
def _codec(weights: ModelWeights) -> ChunkCodec:
    """Built once for all slides of a model: it takes as long as decoding several regions."""
    return fast_chunk_codec(weights)


@jit
def scaled_into(
    y: NDArray[np.signedinteger],
    first: tuple[int, int],
    size: tuple[int, int],
    gain: NDArray[np.float32],
    out: NDArray[np.float32],
    to: tuple[int, int],
) -> None:
    """y (n, n, c) · gain (C,), from the row and column `first` on, → out (h, w, C), from `to` on. Channels that y lacks
    are 0."""
    for row in range(size[0]):
        for column in range(size[1]):
            values, scaled = y[first[0] + row, first[1] + column], out[to[0] + row, to[1] + column]
            for channel in range(y.shape[2]):
                scaled[channel] = values[channel] * gain[channel]
            for channel in range(y.shape[2], out.shape[2]):
                scaled[channel] = 0
