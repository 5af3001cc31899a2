"""The latent chunk: integers (C, n, n) to bytes and back, exactly, on every machine. Follows SPEC's "latent chunk".

0  1  quality index, 0 … 100
1  1  channel quads: channels of index ≥ 4·quads are zero throughout the chunk     } all three zero: the chunk
2  1  cell rows:     rows of index ≥ 2·(cell rows) are zero                        } is zero, and nothing
3  1  cell columns:  likewise                                                      } follows
4  …  one rANS stream. `hyper`: five segments, z, then the four quadtree steps. `vae`: one, channel by channel
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy import RansDecoder, RansEncoder
from histocodec.errors import FormatError, UsageError
from histocodec.models.config import GROUPS, QUALITIES, HyperConfig
from histocodec.models.prior.exact import RELUCTANCE, IntegerPrior
from histocodec.models.prior.fast import FastPrior, float_product, int8_product
from histocodec.models.prior.graph import HYPER_CLIP, MEAN_BITS, PHASE_MASK, POSITIONS
from histocodec.models.weights import ModelWeights

HEADER_BYTES = 4
MAX_SIDE = 510  # a chunk's side in latents: 255 cells


@dataclass(frozen=True)
class ChunkHeader:
    """What the first four bytes say: the quality, and the corner of the chunk that is not zero."""

    quality: int
    quads: int
    cell_rows: int
    cell_columns: int

    @property
    def extent(self) -> tuple[int, int, int]:
        return self.quads, self.cell_rows, self.cell_columns

    @property
    def empty(self) -> bool:
        return self.quads == 0

    def pack(self) -> bytes:
        return bytes((self.quality, self.quads, self.cell_rows, self.cell_columns))

    @classmethod
    def unpack(cls, data: bytes, shape: tuple[int, int, int]) -> "ChunkHeader":
        """Raises FormatError unless the header fits a chunk of `shape`."""
        if len(data) < HEADER_BYTES:
            raise FormatError(f"a latent chunk has {len(data)} bytes; its header alone has {HEADER_BYTES}")
        header = cls(*data[:HEADER_BYTES])
        limits = (shape[0] // GROUPS, shape[1] // 2, shape[2] // 2)
        extent = header.extent
        if header.quality >= QUALITIES:
            raise FormatError(f"a latent chunk has quality {header.quality}; 0 to {QUALITIES - 1} are allowed")
        if any(e > limit for e, limit in zip(extent, limits, strict=True)) or (0 in extent and any(extent)):
            raise FormatError(f"a latent chunk has the extent {extent}; 1 to {limits}, or all zero, is allowed")
        if header.empty and len(data) > HEADER_BYTES:
            raise FormatError(f"a latent chunk that is zero has {len(data) - HEADER_BYTES} bytes too many")
        return header


@dataclass(frozen=True)
class Segment:
    """One segment of a chunk's stream in coding order: integers, each one's frequency table, and the whole part of
    its mean, which the symbol leaves out; (N,) int32, uint16, int32. A step's elements are those of the extent."""

    values: NDArray[np.int32]
    tables: NDArray[np.uint16]
    whole: NDArray[np.int32]
    extent: tuple[int, int, int]  # channel quads, cell rows, cell columns


def pad_latents(latents: NDArray[np.signedinteger]) -> NDArray[np.signedinteger]:
    """Latents (C, h, w) with zeros added below and on the right until h and w are multiples of 4, as a chunk's are."""
    return np.pad(latents, ((0, 0), (0, -latents.shape[1] % 4), (0, -latents.shape[2] % 4)))


def quality_of(data: bytes) -> int:
    """The quality index of an encoded chunk."""
    if not data or data[0] >= QUALITIES:
        raise FormatError(f"a latent chunk begins with {data[:1].hex() or 'nothing'}; a quality of 0 to 100 is needed")
    return data[0]


class ChunkCodec(ABC):
    """Codes chunks with one model's prior. Thread-safe. `chunk_codec` and `fast_chunk_codec` make one."""

    def __init__(self, weights: ModelWeights) -> None:
        self.weights = weights

    def encode(self, latents: NDArray[np.integer[Any]], quality: int, *, z: NDArray[np.int64] | None = None) -> bytes:
        """latents (C, n, n) int8 or int16 → bytes. Any values are coded; the prior only decides how briefly, and so
        does `z` (Cz, n/4, n/4) of a `hyper` model, by default `hyper_latents`."""
        self._checked_shape(latents.shape)
        if not 0 <= quality < QUALITIES:
            raise UsageError(f"quality {quality}; 0 to {QUALITIES - 1} are allowed")
        header = ChunkHeader(quality, *_extent(latents))
        if header.empty:
            return header.pack()
        encoder = RansEncoder(self.weights.tables)
        for segment in self._segments(latents, header, z):
            encoder.write(segment.values - segment.whole, segment.tables)
        return header.pack() + encoder.finish()

    def segments(
        self, latents: NDArray[np.integer[Any]], quality: int, *, z: NDArray[np.int64] | None = None
    ) -> Iterator[Segment]:
        """What `encode` would code, segment by segment. None for a chunk that is zero."""
        header = ChunkHeader(quality, *_extent(latents))
        if not header.empty:
            yield from self._segments(latents, header, z)

    def decode(self, data: bytes, shape: tuple[int, ...]) -> NDArray[np.int16]:
        """bytes → latents (C, n, n) int16. Raises FormatError for anything that `encode` cannot have written."""
        full = self._checked_shape(shape)
        header = ChunkHeader.unpack(data, full)
        if header.empty:
            return np.zeros(full, np.int16)
        decoder = RansDecoder(memoryview(data)[HEADER_BYTES:], self.weights.tables)
        latents = self._read(decoder, header, full)
        decoder.finish()
        return latents

    @abstractmethod
    def _segments(
        self, latents: NDArray[np.integer[Any]], header: ChunkHeader, z: NDArray[np.int64] | None
    ) -> Iterator[Segment]:
        """Those of a chunk that is not zero."""

    @abstractmethod
    def _read(self, decoder: RansDecoder, header: ChunkHeader, shape: tuple[int, int, int]) -> NDArray[np.int16]:
        """The latents (C, n, n) of a chunk that is not zero."""

    def _checked_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        channels = self.weights.config.latent_channels
        if len(shape) != 3 or shape[0] != channels or any(n % 4 or not 4 <= n <= MAX_SIDE for n in shape[1:]):
            raise UsageError(
                f"a chunk of shape {tuple(shape)}; ({channels}, n, n) with n a multiple of 4 up to {MAX_SIDE} is needed"
            )
        return (shape[0], shape[1], shape[2])

    def _fixed_parameters(self, name: str, quality: int) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        """Table and whole mean of each channel of what is coded with fixed tables, `prior.<name>_mean` and `_index`."""
        mean = self.weights.arrays[f"prior.{name}_mean"][quality].astype(np.int32)
        index = self.weights.arrays[f"prior.{name}_index"][quality].astype(np.int32)
        return ((index << MEAN_BITS) + (mean & PHASE_MASK)).astype(np.uint16), mean >> MEAN_BITS


class HyperChunkCodec(ChunkCodec):
    """The chunk codec of a `hyper` model. `prior` evaluates the model's prior: by default a `FastPrior` with numpy
    alone; `fast_chunk_codec` has PyTorch multiply; an `IntegerPrior` runs on any device. All write the same bytes."""

    def __init__(self, weights: ModelWeights, *, prior: FastPrior | IntegerPrior | None = None) -> None:
        super().__init__(weights)
        self.config = weights.hyper
        self.prior = prior or FastPrior(self.config, weights.arrays, float_product)

    def hyper_latents(
        self, latents: NDArray[np.integer[Any]], quality: int, *, reluctance: int = RELUCTANCE
    ) -> NDArray[np.int64]:
        """z (Cz, n/4, n/4) that `encode` takes by itself; with a `reluctance` of 0 exactly that of h_a."""
        shape, header = self._checked_shape(latents.shape), ChunkHeader(quality, *_extent(latents))
        return self.prior.chunk(quality, shape, header.extent).hyper_latents(latents, reluctance=reluctance)

    def _segments(
        self, latents: NDArray[np.integer[Any]], header: ChunkHeader, z: NDArray[np.int64] | None
    ) -> Iterator[Segment]:
        shape = self._checked_shape(latents.shape)
        chunk = self.prior.chunk(header.quality, shape, header.extent)
        keep = self._hyper_extent(header)
        chosen = chunk.hyper_latents(latents) if z is None else z
        z = np.zeros((self.config.hyper_channels, shape[1] // 4, shape[2] // 4), np.int64)
        if chosen.shape != z.shape or np.abs(chosen).max() > HYPER_CLIP:
            raise UsageError(f"z of shape {chosen.shape}; {z.shape}, each within ±{HYPER_CLIP}, is needed")
        z[keep] = chosen[keep]
        tables, whole = self._hyper_parameters(header.quality, keep)
        yield Segment(z[keep].astype(np.int32).ravel(), tables, whole, header.extent)
        chunk.begin(z)
        for k in range(GROUPS):
            tables, whole = chunk.parameters(k)
            values = _step(latents, k, header)
            yield Segment(values, tables, whole, header.extent)
            chunk.place(k, values)

    def _read(self, decoder: RansDecoder, header: ChunkHeader, shape: tuple[int, int, int]) -> NDArray[np.int16]:
        chunk = self.prior.chunk(header.quality, shape, header.extent)
        keep = self._hyper_extent(header)
        tables, whole = self._hyper_parameters(header.quality, keep)
        z = np.zeros((self.config.hyper_channels, shape[1] // 4, shape[2] // 4), np.int64)
        coded = decoder.read(tables) + whole
        if coded.min() < -HYPER_CLIP or coded.max() > HYPER_CLIP:  # int32's lowest has no magnitude
            raise FormatError(f"a latent chunk holds z from {coded.min()} to {coded.max()}; beyond {HYPER_CLIP}")
        z[keep] = coded.reshape(z[keep].shape)
        chunk.begin(z)
        for k in range(GROUPS):
            tables, whole = chunk.parameters(k)
            chunk.place(k, decoder.read(tables) + whole)
        return chunk.latents

    def _hyper_extent(self, header: ChunkHeader) -> tuple[slice, slice, slice]:
        """The part of z that is coded: a z covers 2×2 cells."""
        return slice(None), slice(-(-header.cell_rows // 2)), slice(-(-header.cell_columns // 2))

    def _hyper_parameters(
        self, quality: int, keep: tuple[slice, slice, slice]
    ) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        """Table and whole mean of every z that is coded, (Cz·rows·columns,)."""
        tables, whole = self._fixed_parameters("hyper", quality)
        count = keep[1].stop * keep[2].stop
        return tables.repeat(count), whole.repeat(count)


class VaeChunkCodec(ChunkCodec):
    """Of a `vae` model: every latent with the table of its channel and quality, in C order of the extent."""

    def _segments(
        self, latents: NDArray[np.integer[Any]], header: ChunkHeader, z: NDArray[np.int64] | None
    ) -> Iterator[Segment]:
        assert z is None, "there is no z in this family"
        tables, whole = self._parameters(header)
        values = latents[_corner(header)].astype(np.int32).ravel()
        yield Segment(values, tables, whole, header.extent)

    def _read(self, decoder: RansDecoder, header: ChunkHeader, shape: tuple[int, int, int]) -> NDArray[np.int16]:
        tables, whole = self._parameters(header)
        values = decoder.read(tables) + whole.astype(np.int64)
        limits = np.iinfo(np.int16)
        if values.min() < limits.min or values.max() > limits.max:
            raise FormatError(f"a latent chunk holds values from {values.min()} to {values.max()}, beyond int16")
        latents = np.zeros(shape, np.int16)
        corner = _corner(header)
        latents[corner] = values.reshape(latents[corner].shape)
        return latents

    def _parameters(self, header: ChunkHeader) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        tables, whole = self._fixed_parameters("latent", header.quality)
        channels, count = GROUPS * header.quads, 4 * header.cell_rows * header.cell_columns
        return tables[:channels].repeat(count), whole[:channels].repeat(count)


def chunk_codec(weights: ModelWeights) -> ChunkCodec:
    """The codec of a model's family, with numpy alone."""
    return HyperChunkCodec(weights) if isinstance(weights.config, HyperConfig) else VaeChunkCodec(weights)


def fast_chunk_codec(weights: ModelWeights) -> ChunkCodec:
    """A codec for one core of this machine, by PyTorch's fastest exact means."""
    if not isinstance(weights.config, HyperConfig):
        return VaeChunkCodec(weights)
    return HyperChunkCodec(weights, prior=FastPrior(weights.config, weights.arrays, int8_product()))


def _corner(header: ChunkHeader) -> tuple[slice, slice, slice]:
    """The part of a chunk that is not zero."""
    return slice(GROUPS * header.quads), slice(2 * header.cell_rows), slice(2 * header.cell_columns)


def _extent(latents: NDArray[np.integer[Any]]) -> tuple[int, int, int]:
    """Quads, cell rows and cell columns up to the last value that is not zero."""
    used = latents != 0
    ends = []
    for axis, size in ((0, GROUPS), (1, 2), (2, 2)):
        others = tuple(a for a in range(3) if a != axis)
        where = np.flatnonzero(used.any(axis=others))
        ends.append(int(where[-1]) // size + 1 if len(where) else 0)
    return ends[0], ends[1], ends[2]


def _step(latents: NDArray[np.integer[Any]], k: int, header: ChunkHeader) -> NDArray[np.int32]:
    """What step k codes, in coding order."""
    rows, columns = header.cell_rows, header.cell_columns
    cells = [latents[p ^ k :: GROUPS, i::2, j::2] for p, (i, j) in enumerate(POSITIONS)]
    return np.stack([part[: header.quads, :rows, :columns] for part in cells]).astype(np.int32).ravel()
