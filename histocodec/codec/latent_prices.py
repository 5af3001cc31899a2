"""What each latent of a chunk costs, and with which frequency table: what the latent search weighs against error."""

from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from histocodec.codec.chunk import HyperChunkCodec, extent_of, pad_latents
from histocodec.codec.latent_search_kernels import NEVER, price
from histocodec.models.config import GROUPS
from histocodec.models.prior.native import NativeChunk


@dataclass(frozen=True, eq=False)
class Prices:
    """What a chunk's latents cost: code (`kernels.distributions`: table and whole mean) and bits of each, (h, w, C),
    and the bits at each position, (h, w). A latent beyond the chunk's extent costs NEVER."""

    codes: NDArray[np.int32]
    bits: NDArray[np.float32]
    by_position: NDArray[np.float64]

    @classmethod
    def room(cls, shape: tuple[int, ...]) -> "Prices":
        """Room for those of latents (h, w, C)."""
        return cls(np.zeros(shape, np.int32), np.full(shape, NEVER), np.zeros(shape[:2]))


class Pricer:
    """Prices the latents of one chunk again and again, with one z: that which `latents` (h, w, C), not all 0, propose.
    A new one would hide what moves do. Latents beyond the extent of these must stay 0."""

    def __init__(self, codec: HyperChunkCodec, latents: NDArray[np.signedinteger], quality: int) -> None:
        self._codec, self._quality = codec, quality
        padded = pad_latents(latents.transpose(2, 0, 1))
        self._extent = extent_of(padded)
        self.channels = GROUPS * self._extent[0]  # that are coded
        self._z = codec.hyper_latents(padded, quality)
        chunk = codec.begun(padded, quality, self._z)
        self._chunk = chunk if isinstance(chunk, NativeChunk) else None

    def __call__(self, latents: NDArray[np.int16], prices: Prices) -> None:
        """Writes what the latents (h, w, C) cost, without z, over `prices`, which is `Prices.room` or prices of this
        chunk."""
        tables = self._codec.weights.tables
        if self._chunk is not None:
            near = self._codec.near_bits
            self._chunk.price(latents, tables, near, prices.codes, prices.bits, prices.by_position)
            return
        prices.bits[:], prices.by_position[:] = NEVER, 0
        padded = pad_latents(latents.transpose(2, 0, 1))
        segments = self._codec.segments(padded, self._quality, z=self._z, extent=self._extent)
        for step, segment in enumerate(islice(segments, 1, None)):  # the first is that of z, which stays
            price(
                segment.values, segment.tables, segment.whole_mean, step, segment.extent[1], segment.extent[2],
                tables.low, tables.size, tables.offset, tables.cost, prices.codes, prices.bits, prices.by_position,
            )  # fmt: skip

    def done(self) -> None:
        """Gives working memory back. Call it last."""
        if self._chunk is not None:
            self._chunk.done()
