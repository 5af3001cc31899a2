"""The latent chunk: integers (C, n, n) to bytes and back, exactly, on every machine. Follows "latent chunk" in SPEC.md.

0  1  quality index, 0 … 100
1  1  channel quads: channels of index ≥ 4·quads are 0 throughout the chunk     } if all three are 0, the chunk is
2  1  cell rows:     rows of index ≥ 2·(cell rows) are 0                        } 0, and nothing follows
3  1  cell columns:  columns likewise                                           }
4  …  one rANS stream. `hyper`: five segments, z and then the four quadtree steps. `vae`: one segment

A cell is 2 × 2 latents, a quad four channels. The context of `hyper` codes each cell and quad in four steps
(`histocodec.models.prior.graph`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy import RansDecoder, RansEncoder
from histocodec.entropy.cost import near_bits
from histocodec.errors import FormatError, UsageError
from histocodec.kernels.instructions import runs_natively
from histocodec.kernels.pack import padded
from histocodec.kernels.symbols import TABLE_BITS
from histocodec.models.config import GROUPS, QUALITIES, HyperConfig
from histocodec.models.prior.exact import RELUCTANCE, IntegerChunk, IntegerPrior, beyond
from histocodec.models.prior.fast import FastChunk, FastPrior, float_product, int8_product
from histocodec.models.prior.graph import HYPER_CLIP, MEAN_BITS, PHASE_MASK, POSITIONS
from histocodec.models.prior.native import NativePrior
from histocodec.models.weights import ModelWeights

HEADER_BYTES = 4
INT16: "np.dtype[np.signedinteger]" = np.dtype(np.int16)
AnyChunk = FastChunk | IntegerChunk  # on its way through the prior
TOGETHER = 16  # channels, of which `decode_used` gives a multiple
MAX_SIDE = 510  # a chunk's side in latents: 255 cells


@dataclass(frozen=True)
class ChunkHeader:
    """The first four bytes: the quality, and the extent, outside which all latents are 0."""

    quality: int
    quads: int
    cell_rows: int
    cell_columns: int

    @property
    def extent(self) -> tuple[int, int, int]:
        """Channel quads, cell rows and cell columns."""
        return self.quads, self.cell_rows, self.cell_columns

    @property
    def empty(self) -> bool:
        """Whether all latents of the chunk are 0."""
        return self.quads == 0

    def pack(self) -> bytes:
        """The four bytes."""
        return bytes((self.quality, self.quads, self.cell_rows, self.cell_columns))

    @classmethod
    def unpack(cls, data: bytes, shape: tuple[int, int, int]) -> "ChunkHeader":
        """The header of a chunk's bytes. Raises FormatError unless it fits a chunk of `shape` (C, n, n)."""
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
    """One segment of a chunk's stream, in coding order. The symbol that is coded is `values - whole_mean`."""

    values: NDArray[np.int32]  # (N,)
    tables: NDArray[np.uint16]  # (N,) the frequency table of each
    whole_mean: NDArray[np.int32]  # (N,) the integer part of each one's mean; the table has the fraction
    extent: tuple[int, int, int]  # channel quads, cell rows, cell columns


def pad_latents(latents: NDArray[np.signedinteger]) -> NDArray[np.signedinteger]:
    """Latents (C, h, w) with zeros added below and on the right until h and w are multiples of 4, as a chunk's are."""
    return np.pad(latents, ((0, 0), (0, -latents.shape[1] % 4), (0, -latents.shape[2] % 4)))


def quality_of(data: bytes) -> int:
    """The quality index of an encoded chunk. Raises FormatError where it begins with none."""
    if not data or data[0] >= QUALITIES:
        raise FormatError(f"a latent chunk begins with {data[:1].hex() or 'nothing'}; a quality of 0 to 100 is needed")
    return data[0]


class ChunkCodec(ABC):
    """Encodes and decodes chunks with the prior of one model. Thread-safe. Made by `chunk_codec` and
    `fast_chunk_codec`."""

    def __init__(self, weights: ModelWeights) -> None:
        self.weights = weights

    def encode(self, latents: NDArray[np.integer[Any]], quality: int, *, z: NDArray[np.int64] | None = None) -> bytes:
        """Latents (C, n, n) int8 or int16 → the bytes of a chunk.

        Any values can be coded; the prior only decides how many bytes they take, and so does `z` (Cz, n/4, n/4) of a
        `hyper` model, by default `HyperChunkCodec.hyper_latents`. Raises UsageError for a wrong shape, quality or z.
        """
        self._checked_shape(latents.shape)
        if not 0 <= quality < QUALITIES:
            raise UsageError(f"quality {quality}; 0 to {QUALITIES - 1} are allowed")
        header = ChunkHeader(quality, *extent_of(latents))
        if header.empty:
            return header.pack()
        encoder = RansEncoder(self.weights.tables)
        for segment in self._segments(latents, header, z):
            encoder.write(segment.values - segment.whole_mean, segment.tables)
        return header.pack() + encoder.finish()

    def segments(
        self,
        latents: NDArray[np.integer[Any]],
        quality: int,
        *,
        z: NDArray[np.int64] | None = None,
        extent: tuple[int, int, int] | None = None,
    ) -> Iterator[Segment]:
        """The segments that `encode` would write, or would with a larger `extent`; none for a chunk that is 0."""
        header = ChunkHeader(quality, *(extent or extent_of(latents)))
        if not header.empty:
            yield from self._segments(latents, header, z)

    def decode(
        self, data: bytes, shape: tuple[int, ...], dtype: "np.dtype[np.signedinteger]" = INT16
    ) -> NDArray[np.signedinteger]:
        """The bytes of a chunk → latents of `shape` (C, n, n), int16 or what else `dtype` is. Raises FormatError for
        anything that `encode` cannot have written, or that `dtype` does not hold, and UsageError for a shape that the
        model does not have."""
        full = self._checked_shape(shape)
        header = ChunkHeader.unpack(data, full)
        if header.empty:
            return np.zeros(full, dtype)
        return self._read(data, header, full, dtype)

    def decode_used(
        self, data: bytes, shape: tuple[int, ...], dtype: "np.dtype[np.signedinteger]" = INT16
    ) -> NDArray[np.signedinteger]:
        """`decode` without the last channels that are 0, and with the channels last: (n, n, c), c a multiple of
        TOGETHER above 0, or C."""
        full = self._checked_shape(shape)
        header = ChunkHeader.unpack(data, full)
        if header.empty:
            return np.zeros((*full[1:], _used(header, full[0])), dtype)
        return self._read_used(data, header, full, dtype)

    def _read_used(
        self, data: bytes, header: ChunkHeader, shape: tuple[int, int, int], dtype: "np.dtype[np.signedinteger]"
    ) -> NDArray[np.signedinteger]:
        """As `decode_used`, for a chunk that is not 0."""
        y = self._read(data, header, shape, dtype).transpose(1, 2, 0)
        return y[:, :, : _used(header, shape[0])].copy(order="C")

    def _decoder(self, data: bytes) -> RansDecoder:
        """The decoder of a chunk's stream."""
        return RansDecoder(memoryview(data)[HEADER_BYTES:], self.weights.tables)

    @abstractmethod
    def _segments(
        self, latents: NDArray[np.integer[Any]], header: ChunkHeader, z: NDArray[np.int64] | None
    ) -> Iterator[Segment]:
        """The segments of a chunk that is not 0."""

    @abstractmethod
    def _read(
        self, data: bytes, header: ChunkHeader, shape: tuple[int, int, int], dtype: "np.dtype[np.signedinteger]"
    ) -> NDArray[np.signedinteger]:
        """The latents (C, n, n) of a chunk that is not 0."""

    def _checked_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        channels = self.weights.config.latent_channels
        if len(shape) != 3 or shape[0] != channels or any(n % 4 or not 4 <= n <= MAX_SIDE for n in shape[1:]):
            raise UsageError(
                f"a chunk of shape {tuple(shape)}; ({channels}, n, n) with n a multiple of 4 up to {MAX_SIDE} is needed"
            )
        return (shape[0], shape[1], shape[2])

    def _fixed_parameters(self, name: str, quality: int) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        """Table and whole mean of each channel of z or of the latents of a `vae`, which are stored in the model as
        `prior.<name>_mean` (in eighths) and `prior.<name>_index`."""
        mean = self.weights.arrays[f"prior.{name}_mean"][quality].astype(np.int32)
        index = self.weights.arrays[f"prior.{name}_index"][quality].astype(np.int32)
        return ((index << MEAN_BITS) + (mean & PHASE_MASK)).astype(np.uint16), mean >> MEAN_BITS


class HyperChunkCodec(ChunkCodec):
    """The chunk codec of a `hyper` model: a hyperprior z (Ballé et al. 2018) and a quadtree context in four steps
    (Li et al. 2023).

    `prior` evaluates the model's prior: by default a `FastPrior` with numpy alone; `fast_chunk_codec` has PyTorch
    multiply; an `IntegerPrior` runs on any device. All write the same bytes.
    """

    def __init__(self, weights: ModelWeights, *, prior: FastPrior | IntegerPrior | None = None) -> None:
        super().__init__(weights)
        self.config = weights.hyper
        self.prior = prior or FastPrior(self.config, weights.arrays, float_product)
        self._coded_hyper_parameters = lru_cache(maxsize=256)(self._hyper_parameters)
        self._hyper_codes = lru_cache(maxsize=256)(self._codes_of_hyper)

    def hyper_latents(
        self, latents: NDArray[np.integer[Any]], quality: int, *, reluctance: int = RELUCTANCE
    ) -> NDArray[np.int64]:
        """The z (Cz, n/4, n/4) that `encode` takes by default. `reluctance` is how strongly a z prefers the value that
        its table expects; with 0, z is exactly what `h_a` gives."""
        shape, header = self._checked_shape(latents.shape), ChunkHeader(quality, *extent_of(latents))
        return self.prior.chunk(quality, shape, header.extent).hyper_latents(latents, reluctance=reluctance)

    def _segments(
        self, latents: NDArray[np.integer[Any]], header: ChunkHeader, z: NDArray[np.int64] | None
    ) -> Iterator[Segment]:
        chunk, z = self._begun(latents, header, z)
        coded = self._coded_part(header)
        tables, whole_mean = self._coded_hyper_parameters(header.quality, coded[1].stop * coded[2].stop)
        yield Segment(z[coded].astype(np.int32).ravel(), tables, whole_mean, header.extent)
        for k in range(GROUPS):
            tables, whole_mean = chunk.parameters(k)
            values = _step(latents, k, header)
            yield Segment(values, tables, whole_mean, header.extent)
            chunk.place(k, values)

    @cached_property
    def near_bits(self) -> NDArray[np.float32]:
        """What near symbols cost with each frequency table (`entropy.cost`)."""
        return near_bits(self.weights.tables)

    def begun(self, latents: NDArray[np.integer[Any]], quality: int, z: NDArray[np.int64]) -> AnyChunk:
        """The prior of a chunk with the latents (C, n, n), which are not all 0, and z, ready for the first step."""
        return self._begun(latents, ChunkHeader(quality, *extent_of(latents)), z)[0]

    def _begun(
        self, latents: NDArray[np.integer[Any]], header: ChunkHeader, z: NDArray[np.int64] | None
    ) -> tuple[AnyChunk, NDArray[np.int64]]:
        """See `begun`; and z as it is coded, 0 beyond the extent."""
        shape = self._checked_shape(latents.shape)
        chunk = self.prior.chunk(header.quality, shape, header.extent)
        coded = self._coded_part(header)
        given = chunk.hyper_latents(latents) if z is None else z
        z = np.zeros((self.config.hyper_channels, shape[1] // 4, shape[2] // 4), np.int64)
        if given.shape != z.shape or np.abs(given).max() > HYPER_CLIP:
            raise UsageError(f"z of shape {given.shape}; {z.shape}, each within ±{HYPER_CLIP}, is needed")
        z[coded] = given[coded]
        chunk.begin(z)
        return chunk, z

    def _read(
        self, data: bytes, header: ChunkHeader, shape: tuple[int, int, int], dtype: "np.dtype[np.signedinteger]"
    ) -> NDArray[np.signedinteger]:
        if isinstance(self.prior, NativePrior):
            used = self._read_used(data, header, shape, dtype)
            y = np.zeros((*shape[1:], shape[0]), dtype)
            y[:, :, : used.shape[2]] = used
            return y.transpose(2, 0, 1)
        decoder = self._decoder(data)
        chunk = self.prior.chunk(header.quality, shape, header.extent)
        coded = self._coded_part(header)
        tables, whole_mean = self._coded_hyper_parameters(header.quality, coded[1].stop * coded[2].stop)
        z = np.zeros((self.config.hyper_channels, shape[1] // 4, shape[2] // 4), np.int64)
        values = decoder.read(tables) + whole_mean
        if values.min() < -HYPER_CLIP or values.max() > HYPER_CLIP:  # int32's lowest has no magnitude
            raise FormatError(f"a latent chunk holds z from {values.min()} to {values.max()}; beyond {HYPER_CLIP}")
        z[coded] = values.reshape(z[coded].shape)
        chunk.begin(z)
        for k in range(GROUPS):
            tables, whole_mean = chunk.parameters(k)
            chunk.place(k, decoder.read(tables) + whole_mean)
        decoder.finish()
        return narrowed(chunk.latents, dtype)

    def _read_used(
        self, data: bytes, header: ChunkHeader, shape: tuple[int, int, int], dtype: "np.dtype[np.signedinteger]"
    ) -> NDArray[np.signedinteger]:
        if not isinstance(self.prior, NativePrior):
            return super()._read_used(data, header, shape, dtype)
        decoder = self._decoder(data)
        _, rows, columns = self._coded_part(header)
        codes = self._hyper_codes(header.quality, rows.stop * columns.stop)
        y = np.zeros((*shape[1:], _used(header, shape[0])), dtype)
        fits = self.prior.read(decoder, codes, header.quality, header.extent, y)
        if not fits:
            return narrowed(self._read_used(data, header, shape, INT16), dtype)  # which says what does not fit
        decoder.finish()
        return y

    def _coded_part(self, header: ChunkHeader) -> tuple[slice, slice, slice]:
        """The part of z that is coded, as an index. One z covers 2 × 2 cells."""
        return slice(None), slice(-(-header.cell_rows // 2)), slice(-(-header.cell_columns // 2))

    def _hyper_parameters(self, quality: int, count: int) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        """Table and whole mean of every z that is coded, (Cz·count,)."""
        tables, whole_mean = self._fixed_parameters("hyper", quality)
        return tables.repeat(count), whole_mean.repeat(count)

    def _codes_of_hyper(self, quality: int, count: int) -> NDArray[np.int32]:
        """Likewise their codes, as native kernels take them."""
        tables, whole_mean = self._hyper_parameters(quality, count)
        return (whole_mean << TABLE_BITS) + tables


class VaeChunkCodec(ChunkCodec):
    """The chunk codec of a `vae` model: one table for each channel and quality, latents in C order of the extent."""

    def _segments(
        self, latents: NDArray[np.integer[Any]], header: ChunkHeader, z: NDArray[np.int64] | None
    ) -> Iterator[Segment]:
        assert z is None, "there is no z in this family"
        tables, whole_mean = self._parameters(header)
        values = latents[_corner(header)].astype(np.int32).ravel()
        yield Segment(values, tables, whole_mean, header.extent)

    def _read(
        self, data: bytes, header: ChunkHeader, shape: tuple[int, int, int], dtype: "np.dtype[np.signedinteger]"
    ) -> NDArray[np.signedinteger]:
        tables, whole_mean = self._parameters(header)
        decoder = self._decoder(data)
        values = decoder.read(tables) + whole_mean.astype(np.int64)
        decoder.finish()
        limits = np.iinfo(np.int16)
        if values.min() < limits.min or values.max() > limits.max:
            raise FormatError(f"a latent chunk holds values from {values.min()} to {values.max()}, beyond int16")
        latents = np.zeros(shape, np.int16)
        corner = _corner(header)
        latents[corner] = values.reshape(latents[corner].shape)
        return narrowed(latents, dtype)

    def _parameters(self, header: ChunkHeader) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        tables, whole_mean = self._fixed_parameters("latent", header.quality)
        channels, count = GROUPS * header.quads, 4 * header.cell_rows * header.cell_columns
        return tables[:channels].repeat(count), whole_mean[:channels].repeat(count)


def narrowed(latents: NDArray[np.int16], dtype: "np.dtype[np.signedinteger]") -> NDArray[np.signedinteger]:
    """Latents as `dtype`. Raises FormatError where it does not hold them."""
    limits = np.iinfo(dtype)
    if latents.min() < limits.min or latents.max() > limits.max:
        raise beyond(latents, dtype)
    return latents.astype(dtype, copy=False)


def chunk_codec(weights: ModelWeights) -> ChunkCodec:
    """The chunk codec of a model's family, with numpy alone."""
    return HyperChunkCodec(weights) if isinstance(weights.config, HyperConfig) else VaeChunkCodec(weights)


def fast_chunk_codec(weights: ModelWeights) -> ChunkCodec:
    """The chunk codec of a model's family, for one core, by native kernels where this processor has the
    instructions for them, else with the fastest exact products that PyTorch has here."""
    if not isinstance(weights.config, HyperConfig):
        return VaeChunkCodec(weights)
    prior: FastPrior
    if runs_natively():
        prior = NativePrior(weights.config, weights.arrays, _product_when_needed)
    else:
        prior = FastPrior(weights.config, weights.arrays, int8_product())
    return HyperChunkCodec(weights, prior=prior)


def _product_when_needed(a: NDArray[np.int8], b: NDArray[np.int8]) -> NDArray[np.int32]:
    """The product of `int8_product`, which loads PyTorch when an encoder first multiplies."""
    return int8_product()(a, b)


def _corner(header: ChunkHeader) -> tuple[slice, slice, slice]:
    """The part of a chunk outside which all latents are 0, as an index."""
    return slice(GROUPS * header.quads), slice(2 * header.cell_rows), slice(2 * header.cell_columns)


def _used(header: ChunkHeader, channels: int) -> int:
    """How many channels `decode_used` gives."""
    return min(channels, padded(max(1, GROUPS * header.quads), TOGETHER))


def extent_of(latents: NDArray[np.integer[Any]]) -> tuple[int, int, int]:
    """Channel quads, cell rows and cell columns up to the last latent that is not 0."""
    nonzero = latents != 0
    ends = []
    for axis, size in ((0, GROUPS), (1, 2), (2, 2)):
        other_axes = tuple(a for a in range(3) if a != axis)
        indices = np.flatnonzero(nonzero.any(axis=other_axes))
        ends.append(int(indices[-1]) // size + 1 if len(indices) else 0)
    return ends[0], ends[1], ends[2]


def _step(latents: NDArray[np.integer[Any]], k: int, header: ChunkHeader) -> NDArray[np.int32]:
    """The latents that step k codes, (N,) in coding order: position by position, then (quads, rows, columns)."""
    rows, columns = header.cell_rows, header.cell_columns
    cells = [latents[p ^ k :: GROUPS, i::2, j::2] for p, (i, j) in enumerate(POSITIONS)]
    return np.stack([part[: header.quads, :rows, :columns] for part in cells]).astype(np.int32).ravel()
