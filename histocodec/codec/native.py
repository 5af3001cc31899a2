"""Latents to pixels on a CPU without torch, for models with an integer synthesis."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from histocodec.geometry import Margin
from histocodec.kernels.instructions import runs_natively
from histocodec.models.config import HyperConfig
from histocodec.models.transforms.native import NativeSynthesis
from histocodec.models.weights import ModelWeights
from histocodec.normalise import ChannelStats


def decodes_natively(weights: ModelWeights) -> bool:
    """Whether a CPU decodes pixels of this model by native kernels, and so without torch."""
    return isinstance(weights.config, HyperConfig) and weights.config.integer_synthesis and runs_natively()


class NativeTransform:
    """What a reader needs of `histocodec.codec.transform.Transform`. Thread-safe."""

    exact = True
    by_kernels = False  # of a GPU

    def __init__(self, weights: ModelWeights) -> None:
        self._synthesis = NativeSynthesis(weights.hyper, weights.arrays)

    def synthesise(
        self, windows: Sequence[NDArray[np.float32]], margin: Margin, stats: ChannelStats
    ) -> list[NDArray[np.uint8]]:
        """See `Transform.synthesise`."""
        return [self._synthesis.pixels(window, margin, stats.mean, stats.std) for window in windows]

    def synthesise_side_by_side(
        self, window: NDArray[np.float32], margin: Margin, stats: ChannelStats, width: int
    ) -> list[NDArray[np.uint8]]:
        """See `Transform.synthesise_side_by_side`."""
        return self._synthesis.images(window, margin, stats.mean, stats.std, width)
