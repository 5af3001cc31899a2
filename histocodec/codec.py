"""The latent chunk: integers (C, n, n) to bytes and back, exactly, on every machine. Follows SPEC's "latent chunk".

    0  1  quality index, 0 … 100
    1  1  channel quads: channels of index ≥ 4·quads are zero throughout the chunk     } all three zero: the chunk
    2  1  cell rows:     rows of index ≥ 2·(cell rows) are zero                        } is zero, and nothing
    3  1  cell columns:  likewise                                                      } follows
    4  …  one rANS stream of five segments: z, then the four quadtree steps
"""

import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy import Decoder, Encoder
from histocodec.errors import FormatError, UsageError
from histocodec.models.config import GROUPS, QUALITIES
from histocodec.models.integer import Array, IntegerPrior
from histocodec.models.prior import MEAN_BITS, POSITIONS
from histocodec.models.weights import ModelWeights

HEADER_BYTES = 4
PHASE_MASK = (1 << MEAN_BITS) - 1
MAX_SIDE = 510  # a chunk's side in latents: 255 cells


@dataclass(frozen=True)
class ChunkHeader:
    """What the first four bytes say: the quality, and the corner of the chunk that is not zero."""

    quality: int
    quads: int
    cell_rows: int
    cell_columns: int

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
        extent = (header.quads, header.cell_rows, header.cell_columns)
        if header.quality >= QUALITIES:
            raise FormatError(f"a latent chunk has quality {header.quality}; 0 to {QUALITIES - 1} are allowed")
        if any(e > limit for e, limit in zip(extent, limits, strict=True)) or (0 in extent and any(extent)):
            raise FormatError(f"a latent chunk has the extent {extent}; 1 to {limits}, or all zero, is allowed")
        if header.empty and len(data) > HEADER_BYTES:
            raise FormatError(f"a latent chunk that is zero has {len(data) - HEADER_BYTES} bytes too many")
        return header


def quality_of(data: bytes) -> int:
    """The quality index of an encoded chunk."""
    if not data or data[0] >= QUALITIES:
        raise FormatError(f"a latent chunk begins with {data[:1].hex() or 'nothing'}; a quality of 0 to 100 is needed")
    return data[0]


class LatentCoder:
    """Codes chunks with one model's prior. Thread-safe; numpy unless told otherwise (see `IntegerPrior`)."""

    def __init__(
        self, weights: ModelWeights, *, xp: ModuleType = np, dtype: str = "float32", device: str = "cpu"
    ) -> None:
        self.weights = weights
        self.prior = IntegerPrior(weights.config, weights.arrays, xp=xp, dtype=dtype, device=device)
        self._masks: dict[tuple[int, ...], list[NDArray[np.bool_]]] = {}
        self._lock = threading.Lock()

    def encode(self, latents: NDArray[np.integer[Any]], quality: int) -> bytes:
        """latents (C, n, n) int8 or int16 → bytes. Any values are coded; the prior only decides how briefly."""
        shape = self._checked_shape(latents.shape)
        if not 0 <= quality < QUALITIES:
            raise UsageError(f"quality {quality}; 0 to {QUALITIES - 1} are allowed")
        header = ChunkHeader(quality, *_extent(latents))
        if header.empty:
            return header.pack()
        graph, ops = self.prior.graph, self.prior.ops(np.array([quality]))
        integers = np.ascontiguousarray(latents, dtype=np.int32)
        y = self.prior.array(integers[None])
        z = graph.h_a(ops, y)
        keep = self._hyper_extent(header)
        z = self._only(z, keep)

        encoder = Encoder(self.weights.tables)
        mean, index = self._hyper_parameters(quality, keep)
        _write(encoder, _integers(z)[0][keep], mean, index)
        h = graph.h_s(ops, z)
        for k, mask in enumerate(self._earlier(shape)):
            so_far = self.prior.array(np.where(mask, integers, 0)[None])
            mean_k, index_k = graph.step(ops, k, so_far, h)
            coded = self._coded(header)
            symbols = np.stack([integers[p ^ k :: GROUPS, i::2, j::2] for p, (i, j) in enumerate(POSITIONS)])
            _write(encoder, symbols[coded], _integers(mean_k)[0][coded], _integers(index_k)[0][coded])
        return header.pack() + encoder.finish()

    def decode(self, data: bytes, shape: tuple[int, ...]) -> NDArray[np.int16]:
        """bytes → latents (C, n, n) int16. Raises FormatError for anything that `encode` cannot have written."""
        chunk = self._checked_shape(shape)
        header = ChunkHeader.unpack(data, chunk)
        latents = np.zeros(chunk, np.int16)
        if header.empty:
            return latents
        graph, ops = self.prior.graph, self.prior.ops(np.array([header.quality]))
        decoder = Decoder(memoryview(data)[HEADER_BYTES:], self.weights.tables)
        keep = self._hyper_extent(header)
        mean, index = self._hyper_parameters(header.quality, keep)
        z = np.zeros((self.prior.config.hyper_channels, chunk[1] // 4, chunk[2] // 4), np.int64)
        z[keep] = _read(decoder, mean, index, limit=127)
        h = graph.h_s(ops, self.prior.array(z[None]))
        y = self.prior.zeros(1, *chunk)
        coded = self._coded(header)
        for k in range(GROUPS):
            mean_k, index_k = graph.step(ops, k, y, h)
            values = _read(decoder, _integers(mean_k)[0][coded], _integers(index_k)[0][coded], limit=32768)
            cells = np.zeros((GROUPS, chunk[0] // GROUPS, chunk[1] // 2, chunk[2] // 2), np.int64)
            cells[coded] = values
            ops.place(y, self.prior.array(cells[None]), k)
            for p, (i, j) in enumerate(POSITIONS):
                latents[p ^ k :: GROUPS, i::2, j::2] = cells[p]
        decoder.finish()
        return latents

    def _checked_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        channels = self.prior.config.latent_channels
        if len(shape) != 3 or shape[0] != channels or any(n % 4 or not 4 <= n <= MAX_SIDE for n in shape[1:]):
            raise UsageError(
                f"a chunk of shape {tuple(shape)}; ({channels}, n, n) with n a multiple of 4 up to {MAX_SIDE} is needed"
            )
        return (shape[0], shape[1], shape[2])

    def _hyper_extent(self, header: ChunkHeader) -> tuple[slice, slice, slice]:
        """The part of z that is coded: a z covers 2×2 cells."""
        return slice(None), slice(-(-header.cell_rows // 2)), slice(-(-header.cell_columns // 2))

    def _coded(self, header: ChunkHeader) -> tuple[slice, slice, slice, slice]:
        """The part of a step's (4, C/4, n/2, n/2) elements that is coded."""
        return slice(None), slice(header.quads), slice(header.cell_rows), slice(header.cell_columns)

    def _hyper_parameters(
        self, quality: int, keep: tuple[slice, slice, slice]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Mean in eighths and scale index of every z that is coded, (Cz, rows, columns)."""
        mean = self.weights.arrays["prior.hyper_mean"][quality].astype(np.int64)
        index = self.weights.arrays["prior.hyper_index"][quality].astype(np.int64)
        shape = (len(mean), keep[1].stop, keep[2].stop)
        return np.broadcast_to(mean[:, None, None], shape), np.broadcast_to(index[:, None, None], shape)

    def _only(self, z: Array, keep: tuple[slice, slice, slice]) -> Array:
        kept = self.prior.zeros(*z.shape)
        kept[(slice(None), *keep)] = z[(slice(None), *keep)]
        return kept

    def _earlier(self, shape: tuple[int, int, int]) -> list[NDArray[np.bool_]]:
        """For each step, where in a chunk the elements of earlier steps are."""
        with self._lock:
            if shape not in self._masks:
                mask = np.zeros(shape, bool)
                self._masks[shape] = []
                for k in range(GROUPS):
                    self._masks[shape].append(mask.copy())
                    for p, (i, j) in enumerate(POSITIONS):
                        mask[p ^ k :: GROUPS, i::2, j::2] = True
            return self._masks[shape]


def _extent(latents: NDArray[np.integer[Any]]) -> tuple[int, int, int]:
    """Quads, cell rows and cell columns up to the last value that is not zero."""
    used = latents != 0
    ends = []
    for axis, size in ((0, GROUPS), (1, 2), (2, 2)):
        others = tuple(a for a in range(3) if a != axis)
        where = np.flatnonzero(used.any(axis=others))
        ends.append(int(where[-1]) // size + 1 if len(where) else 0)
    return ends[0], ends[1], ends[2]


def _integers(values: Array) -> NDArray[np.int64]:
    """Integers held in this library's floats, as numpy integers."""
    as_numpy: NDArray[Any] = values if isinstance(values, np.ndarray) else values.cpu().numpy()
    return as_numpy.astype(np.int64)


def _write(
    encoder: Encoder, values: NDArray[np.integer[Any]], mean: NDArray[np.int64], index: NDArray[np.int64]
) -> None:
    symbols = (values - (mean >> MEAN_BITS)).astype(np.int32)
    encoder.write(symbols.ravel(), ((index << MEAN_BITS) + (mean & PHASE_MASK)).astype(np.uint16).ravel())


def _read(
    decoder: Decoder, mean: NDArray[np.int64], index: NDArray[np.int64], *, limit: int
) -> NDArray[np.int64]:
    """The values of one segment, in the shape of their parameters."""
    tables = ((index << MEAN_BITS) + (mean & PHASE_MASK)).astype(np.uint16)
    values = decoder.read(tables.ravel()).reshape(mean.shape) + (mean >> MEAN_BITS)
    if values.size and not (-limit <= int(values.min()) and int(values.max()) < limit + (limit == 127)):
        raise FormatError(f"a latent chunk holds values from {values.min()} to {values.max()}; beyond {limit}")
    return values
