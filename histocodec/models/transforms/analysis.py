"""The analysis with the convolutions of its blocks in products of bytes: twice as fast as in bfloat16, and nearer to
float32, since what flows past the blocks stays float32. Unlike the synthesis it need not be exact: a reader never runs
it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from histocodec.errors import FormatError
from histocodec.geometry import Margin
from histocodec.kernels.onednn import ByteLayer, stream_bytes
from histocodec.models.transforms.network import Analysis, Residual, trim

HEADROOM = 1.1  # times what a channel was seen to reach in training is the largest byte
LEAST = 1e-6  # that it is taken to reach: some are dead

Arrays = Mapping[str, NDArray[Any]]


def reach_name(block: str, part: str) -> str:
    """The tensor of a model file that says what each channel reached: `part` is "seen" for what a block sees, "expand"
    or "depthwise" for what those layers give."""
    return f"reach.{block}.{part}"


class ByteAnalysis:
    """`Analysis.window` of a network on the CPU, of which only what is not a block is run; `exact` is the same in
    float32, and its reaches are among `arrays`."""

    def __init__(self, network: Analysis, exact: Analysis, arrays: Arrays) -> None:
        self._network = network
        self._blocks8 = [_ByteBlock(b, f"blocks8.{i}", arrays) for i, b in enumerate(_residuals(exact.blocks8))]
        self._blocks16 = [_ByteBlock(b, f"blocks16.{i}", arrays) for i, b in enumerate(_residuals(exact.blocks16))]

    def window(self, x: Tensor, margin: Margin) -> Tensor:
        network, spatial16 = self._network, sum(self._network.config.analysis16)
        x, margin = _run(self._blocks8, network.head(x).float(), margin.scaled(2), 2 * spatial16)
        x = network.down(x.to(network.down.weight.dtype)).float()
        return _run(self._blocks16, x, margin.scaled(0.5), 0)[0]


def _residuals(blocks: nn.Sequential) -> list[Residual]:
    return [block for block in blocks if isinstance(block, Residual)]


def _run(blocks: list["_ByteBlock"], x: Tensor, margin: Margin, beyond: int) -> tuple[Tensor, Margin]:
    """Over x itself; what is no longer looked at is cut away at the end alone, for each cut is a copy."""
    x = x.contiguous(memory_format=torch.channels_last)
    for block in blocks:
        x = block.over(x)
    return trim(x, margin, beyond)


class _ByteBlock:
    """One residual block."""

    def __init__(self, block: Residual, name: str, arrays: Arrays) -> None:
        channels = block.expand.in_channels

        def largest(part: str) -> NDArray[Any]:
            reach = arrays.get(reach_name(name, part))
            if reach is None or reach.shape != (channels,) or not np.isfinite(reach).all():
                raise FormatError(f"tensor {reach_name(name, part)}: ({channels},), finite, is needed")
            return np.asarray(np.maximum(HEADROOM * reach.astype(np.float32), LEAST))

        self.unit = 127 / largest("seen")
        hidden = 255 / largest("expand")
        weight, bias = _real(block.expand)
        self.expand = _byte_layer(weight / self.unit, bias, hidden, raised=True)
        self.depthwise: ByteLayer | None = None
        if block.depthwise is not None:
            deeper = 255 / largest("depthwise")
            taps, bias = _real(block.depthwise)
            self.depthwise = _byte_layer(taps / hidden[:, None, None], bias, deeper, raised=False)
            hidden = deeper
        weight, bias = _real(block.project)
        self.project = _byte_layer(weight / hidden, bias, np.ones(channels, np.float32), raised=False)

    def over(self, x: Tensor) -> Tensor:
        """The block's output, written over x, which is contiguous."""
        h = self.expand.activation(stream_bytes(x, self.unit))
        return self.project.added(x, h if self.depthwise is None else self.depthwise.activation(h))


def _real(layer: nn.Conv2d) -> tuple[NDArray[Any], NDArray[Any]]:
    assert layer.bias is not None
    weight = layer.weight[:, 0] if layer.groups > 1 else layer.weight[:, :, 0, 0]
    return weight.float().numpy(), layer.bias.float().numpy()


def _byte_layer(weight: NDArray[Any], bias: NDArray[Any], unit: NDArray[Any], *, raised: bool) -> ByteLayer:
    """A layer whose output is `unit` (O,) times as large as weight and bias say; each row has its own largest byte."""
    rows = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    step = np.maximum(rows, LEAST**2) / 127
    whole = np.rint(weight / step.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
    return ByteLayer(whole, step * unit, bias * unit, raised=raised)
