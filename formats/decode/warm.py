"""Compiling ahead what decodes pixels on a CPU."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.codec.chunk import ChunkHeader, HyperChunkCodec, fast_chunk_codec
from histocodec.codec.native import NativeTransform
from histocodec.entropy import reference
from histocodec.formats.container.check import latents_check
from histocodec.formats.decode.chunks import scaled_into
from histocodec.geometry import Margin
from histocodec.kernels.instructions import NAMES, fastest
from histocodec.kernels.jit import compiled_kernels
from histocodec.models.prior.exact import IntegerPrior
from histocodec.models.weights import DEFAULT_MODEL, ModelWeights, find_model
from histocodec.normalise import ChannelStats

SIDE = 8  # latents of the chunk that is decoded; kernels do not depend on it
QUALITY = 50


@dataclass(frozen=True)
class WarmReport:
    """What `warm` did: the instructions that this processor uses, and how many kernels it compiled that were not
    there."""

    instructions: str
    compiled: int


def warm() -> WarmReport:
    """Compiles, or loads where they were compiled before, the kernels that decode pixels of `hyper` models with an
    integer synthesis: it decodes a small chunk by the default model."""
    before, weights = compiled_kernels(), find_model(DEFAULT_MODEL)
    config, codec = weights.hyper, fast_chunk_codec(weights)
    y = np.zeros((config.latent_channels, SIDE, SIDE), np.int16)
    y[0] = 1
    z = np.zeros((config.hyper_channels, SIDE // 4, SIDE // 4), np.int64)
    data = _encoded(weights, y, z)
    window = np.empty((SIDE, SIDE, config.latent_channels), np.float32)
    for dtype in (np.int8, np.int16):  # the types that a level's latents can have
        latents = codec.decode(data, y.shape, np.dtype(dtype))
        latents_check(latents, QUALITY)
        scaled_into(
            np.ascontiguousarray(latents.transpose(1, 2, 0)),
            (0, 0),
            (SIDE, SIDE),
            weights.inverse_gain(QUALITY),
            window,
            (0, 0),
        )
    stats = ChannelStats(np.zeros(3, np.float32), np.ones(3, np.float32))
    NativeTransform(weights).synthesise([window.transpose(2, 0, 1)], Margin(), stats)
    return WarmReport(NAMES[fastest()], compiled_kernels() - before)


def _encoded(weights: ModelWeights, y: NDArray[np.int16], z: NDArray[np.int64]) -> bytes:
    """A chunk by the oracles of prior and entropy coder, so that no kernel is compiled that only encodes."""
    codec = HyperChunkCodec(weights, prior=IntegerPrior(weights.hyper, weights.arrays))
    segments = list(codec.segments(y, QUALITY, z=z))
    header = ChunkHeader(QUALITY, *segments[0].extent)
    symbols = [(segment.values - segment.whole_mean, segment.tables) for segment in segments]
    return header.pack() + reference.encode(symbols, weights.tables, lanes=1)
