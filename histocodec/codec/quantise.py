"""From y to integers: by rounding, or with effort by a search for integers that cost less with the same decoder."""

from collections.abc import Callable
from functools import cache

import numpy as np

from histocodec.codec.chunk import ChunkCodec, HyperChunkCodec, pad_latents
from histocodec.codec.gains import dequantise, quantise
from histocodec.codec.hyper_latent_search import search_hyper_latents
from histocodec.codec.latent_search import Latents, LatentSearch, SearchTerms
from histocodec.codec.transform import Transform
from histocodec.codec.window import Window
from histocodec.fidelity import squared_error
from histocodec.normalise import ChannelStats
from histocodec.slide import Colour

STEPS_PER_EFFORT = 9
HYPER_LATENT_EFFORT = 2  # from which z is searched, too: 0.1 % of the bits, for as long as many steps take


class Quantiser:
    """Quantises and codes chunks of one slide. Thread-safe.

    `effort` is 0 to 9, fractions included; 0 rounds, more searches (`hyper` models only). `example` returns a piece of
    the slide's tissue, on which the terms of the search are measured once for each quality. `background` is the colour
    that `stats` decode exactly, if there is one.
    """

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
        self._terms = cache(self._measured_terms)

    def without_search(self) -> "Quantiser":
        """The same quantiser with an effort of 0."""
        return Quantiser(self.transform, self.codec, self.stats, self._example, effort=0)

    def encode(self, window: Window, quality: int, side: int, dtype: np.dtype[np.signedinteger]) -> bytes:
        """The bytes of the window's chunk: `chunk`, then `coded`."""
        return self.coded(self.chunk(window, quality, side, dtype), quality)

    def chunk(self, window: Window, quality: int, side: int, dtype: np.dtype[np.signedinteger]) -> Latents:
        """The latents of the window's chunk, (C, side, side) of `dtype`, 0 beyond the level's edge."""
        latents = self.latents(window, quality, dtype)[window.inner]
        chunk = np.zeros((len(latents), side, side), dtype)
        chunk[:, : latents.shape[1], : latents.shape[2]] = latents
        return chunk

    def coded(self, chunk: Latents, quality: int) -> bytes:
        """The bytes of a chunk's latents (C, n, n). With effort, hyper-latents are sought that cost fewer."""
        if self.effort < HYPER_LATENT_EFFORT or not chunk.any():
            return self.codec.encode(chunk, quality)
        return self.codec.encode(chunk, quality, z=search_hyper_latents(self._hyper_codec, chunk, quality))

    def latents(self, window: Window, quality: int, dtype: np.dtype[np.signedinteger]) -> Latents:
        """The latents of the whole window, (C, h, w) of `dtype`: the chunk's own, searched where there is effort, and
        those around it, which are always rounded."""
        latents = quantise(window.y, self.weights.gain(quality), dtype)
        if self.effort and latents[window.inner].any():
            steps = max(1, round(STEPS_PER_EFFORT * self.effort))
            latents[window.inner] = self._search.search(latents, window, self._terms(quality), steps)
        return latents

    def rounded_cost(self, window: Window, quality: int) -> tuple[float, float]:
        """Bits and squared error of the window's chunk without search, measured on coded bytes and decoded pixels."""
        latents = quantise(window.y, self.weights.gain(quality), np.dtype(np.int16))
        scaled = dequantise(latents, self.weights.inverse_gain(quality))
        height, width, _ = window.pixels.shape
        decoded = self.transform.synthesise([scaled], window.margin, self.stats)[0][:height, :width]
        bits = 8.0 * len(self.codec.encode(pad_latents(latents[window.inner]), quality))
        return bits, squared_error(decoded, window.pixels)

    @property
    def _search(self) -> LatentSearch:
        return LatentSearch(self.transform, self._hyper_codec, self.stats, self.background)

    def _measured_terms(self, quality: int) -> SearchTerms:
        return self._search.measure(self._example(), quality)

    @property
    def _hyper_codec(self) -> HyperChunkCodec:
        assert isinstance(self.codec, HyperChunkCodec), "effort is for hyper models"
        return self.codec
