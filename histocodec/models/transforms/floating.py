"""The synthesis `g_s` in floating point, described: name, shape and dtype of each tensor that a model file has for it.

Torch builds the networks; these lists are what lets a file be checked where torch is not installed. SPEC.md has them as
tables.
"""

from collections.abc import Iterator
from itertools import pairwise

from histocodec.models.config import BLOCK, HyperConfig, ModelConfig, VaeConfig

Tensors = Iterator[tuple[str, tuple[tuple[int, ...], str]]]
DTYPE = "float16"


def float_synthesis_tensors(config: ModelConfig) -> Tensors:
    """Name, shape and dtype of every tensor of a `g_s` in floating point, in the order in which they are used."""
    described = _hyper(config) if isinstance(config, HyperConfig) else _vae(config)
    for layer, weight, outputs in described:
        yield f"g_s.{layer}.weight", (weight, DTYPE)
        if outputs:
            yield f"g_s.{layer}.bias", ((outputs,), DTYPE)


Layers = Iterator[tuple[str, tuple[int, ...], int]]  # name, shape of the weight, length of the bias, 0 without one


def _hyper(config: HyperConfig) -> Layers:
    channels, width = config.latent_channels, config.width8
    yield from _blocks("blocks16", config.synthesis16, channels, config.hidden16 or channels)
    yield "up", (channels, width, 2, 2), width  # of a transposed convolution, whose weights begin with the inputs
    yield from _blocks("blocks8", config.synthesis8, width, width)
    yield "tail", (192, width, 1, 1), 192


def _blocks(kind: str, blocks: tuple[bool, ...], channels: int, hidden: int) -> Layers:
    for number, spatial in enumerate(blocks):
        yield f"{kind}.{number}.expand", (hidden, channels, 1, 1), hidden
        if spatial:
            yield f"{kind}.{number}.depthwise", (hidden, 1, 3, 3), hidden
        yield f"{kind}.{number}.project", (channels, hidden, 1, 1), channels


def _vae(config: VaeConfig) -> Layers:
    widths = config.widths[::-1]
    yield "dense", (config.features, config.latent_channels), config.features
    yield "expand", (widths[0], config.bottleneck, 1, 1), widths[0]
    around = [width for width in widths for _ in range(2)]
    for number, (inputs, outputs) in enumerate(pairwise([*around, widths[-1]])):
        if inputs != outputs:
            yield f"stages.{number}.shortcut", (outputs, inputs, 1, 1), outputs
        yield f"stages.{number}.first", (outputs, inputs, 3, 3), outputs
        yield f"stages.{number}.second", (outputs, outputs, 3, 3), outputs
    yield "tail", (12, widths[-1], 3, 3), 12
    if config.shortcut:
        yield "shortcut", (3 * BLOCK**2, config.bottleneck, 1, 1), 0
