"""From y to integers: plain rounding, or with some effort a better choice for the same decoder."""

from collections.abc import Callable
from functools import cache

import numpy as np

from histocodec.codec.chunk import ChunkCodec, HyperChunkCodec, pad_latents
from histocodec.codec.gains import dequantise, quantise
from histocodec.codec.hyper_latent_search import cheapest_hyper_latents
from histocodec.codec.latent_search import Latents, LatentSearch, Terms
from histocodec.codec.transform import Transform
from histocodec.codec.window import Window
from histocodec.fidelity import squared_error
from histocodec.normalise import ChannelStats
from histocodec.slide import Colour

STEPS = 10  # a level of effort
WHOLE = 1  # effort, from which on z is searched, too: 0.1 % of the bits, for as long as two to four steps take


class Quantiser:
    """Quantises chunks of a slide. Thread-safe. `effort` is 0 … 9, in parts too; 0 rounds.

    `example` gives a piece of the slide's tissue, which is asked once a quality for the curvature and for what a bit is
    worth; `background` is the colour that the statistics decode exactly, if there is one."""

    def __init__(
        self,
        transform: Transform,
        codec: ChunkCodec,
        stats: ChannelStats,
        example: Callable[[], Window],
        *,
        effort: float,
        background: Colour | None = None,
    ) -> None:
        self.transform, self.codec, self.stats = transform, codec, stats
        self.effort, self.background = effort, background
        self.weights = transform.weights
        self._example = cache(example)
        self._terms = cache(self._probed)

    def rounding(self) -> "Quantiser":
        """The same without effort."""
        return Quantiser(self.transform, self.codec, self.stats, self._example, effort=0)

    def coded(self, window: Window, quality: int, side: int, dtype: np.dtype[np.signedinteger]) -> bytes:
        """The chunk's bytes; its latents are (C, side, side) of `dtype`, zero beyond the level's edge."""
        whole = self.window(window, quality, dtype)[window.inner]
        chunk = np.zeros((len(whole), side, side), dtype)
        chunk[:, : whole.shape[1], : whole.shape[2]] = whole
        if self.effort < WHOLE or not chunk.any():
            return self.codec.encode(chunk, quality)
        return self.codec.encode(chunk, quality, z=cheapest_hyper_latents(self._hyper_codec, chunk, quality))

    def window(self, window: Window, quality: int, dtype: np.dtype[np.signedinteger]) -> Latents:
        """(C, h, w) of `dtype`; around the chunk itself rounded, however great the effort"""
        rounded = quantise(window.y, self.weights.gain(quality), dtype)
        if self.effort and rounded[window.inner].any():
            terms = self._terms(quality)
            rounded[window.inner] = self._descent.cheaper(rounded, window, terms, max(1, round(STEPS * self.effort)))
        return rounded

    @property
    def _descent(self) -> LatentSearch:
        return LatentSearch(self.transform, self._hyper_codec, self.stats, self.background)

    def _probed(self, quality: int) -> Terms:
        return self._descent.terms(self._example(), quality)

    @property
    def _hyper_codec(self) -> HyperChunkCodec:
        assert isinstance(self.codec, HyperChunkCodec), "effort is for hyper models"
        return self.codec

    def rounded_cost(self, window: Window, quality: int) -> tuple[float, float]:
        """Bits and squared error of a chunk whose latents are rounded."""
        latents = quantise(window.y, self.weights.gain(quality), np.dtype(np.int16))
        scaled = dequantise(latents, self.weights.inverse_gain(quality))
        height, width, _ = window.pixels.shape
        decoded = self.transform.synthesise([scaled], window.margin, self.stats)[0][:height, :width]
        bits = 8.0 * len(self.codec.encode(pad_latents(latents[window.inner]), quality))
        return bits, squared_error(decoded, window.pixels)
