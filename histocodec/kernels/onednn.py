"""Convolutions by oneDNN's products of bytes on a CPU, as PyTorch's own compiler calls them. Memory: channels last."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histocodec.kernels.jit import jit

TYPICAL_SIDE = 64  # of what a convolution sees: oneDNN chooses by it how weights lie, and is slow where it is not told
NO_CHANNELS = np.empty(0, np.int64)


class ByteLayer:
    """scale · (weight · a) + bias, with weight (O, C) or of a depthwise layer (C, 3, 3) int8, scale and bias (O,)
    float32, and a (B, C, h, w) uint8: activations, or where `raised` signed bytes that are held 128 too high."""

    def __init__(self, weight: NDArray[np.int8], scale: NDArray[Any], bias: NDArray[Any], *, raised: bool) -> None:
        depthwise = weight.ndim == 3
        self._groups, self._padding = (len(weight), [1, 1]) if depthwise else (1, [0, 0])
        shaped = torch.from_numpy(np.array(weight[:, None] if depthwise else weight[:, :, None, None]))
        self._scales = torch.from_numpy(np.array(scale, np.float32))
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)  # zero points: oneDNN asks for them
        size = [1, len(weight) if depthwise else weight.shape[1], TYPICAL_SIDE, TYPICAL_SIDE]
        self._weight = torch.ops.onednn.qconv_prepack(
            shaped, self._scales, 1.0, 0, [1, 1], self._padding, [1, 1], self._groups, size
        )
        sums = torch.from_numpy(weight.astype(np.int64).reshape(len(weight), -1).sum(axis=1))
        self._raised = -128 * sums * self._scales  # what makes up for bytes that are too high
        self._bias = torch.from_numpy(np.array(bias, np.float32)) + (self._raised if raised else 0)

    def activation(self, a: Tensor) -> Tensor:
        """clip(round(layer), 0, 255), uint8"""
        return self._run(a, torch.uint8, "relu")

    def output(self, a: Tensor) -> Tensor:
        """The layer, float32."""
        return self._run(a, torch.float32, "none")

    def added(self, x: Tensor, a: Tensor) -> Tensor:
        """x + layer, over x"""
        return self._add(x, a, 1.0, self._bias)

    def rest(self, x: Tensor, a: Tensor, unit: float, *, raised: bool) -> Tensor:
        """x + scale · (weight · unit · a), over x"""
        return self._add(x, a, unit, unit * self._raised if raised else None)

    def _run(self, a: Tensor, dtype: torch.dtype, then: str) -> Tensor:
        result: Tensor = torch.ops.onednn.qconv_pointwise(
            a, 1.0, 0, self._weight, self._scales, self._zeros, self._bias, [1, 1], self._padding, [1, 1], self._groups,
            1.0, 0, dtype, then, [], "",
        )  # fmt: skip
        return result

    def _add(self, x: Tensor, a: Tensor, unit: float, bias: Tensor | None) -> Tensor:
        result: Tensor = torch.ops.onednn.qconv2d_pointwise.binary(
            a, unit, 0, self._weight, self._scales, self._zeros, x, bias, [1, 1], self._padding, [1, 1], self._groups,
            1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip
        return result


def stream_bytes(x: Tensor, unit: NDArray[Any]) -> Tensor:
    """clip(round(x · unit), -128, 127) + 128 of x (B, C, h, w) float32, uint8"""
    return channels_first(raised_bytes(channels_last(x), unit, NO_CHANNELS)[0])


def channels_last(x: Tensor) -> NDArray[Any]:
    """(B, C, h, w) → (B, h, w, C), of the same memory"""
    array: NDArray[Any] = x.permute(0, 2, 3, 1).numpy()
    return array


def channels_first(x: NDArray[Any]) -> Tensor:
    """The other way round."""
    return torch.from_numpy(x).permute(0, 3, 1, 2)


@jit
def raised_bytes(
    x: NDArray[np.float32], coarse: NDArray[np.float32], fine: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], bool]:
    """The bytes of a stream (B, h, w, C) times `coarse` (C,), and beside them those of its `fine` channels: what
    rounding leaves, in sixteenths, and sixteenths of the whole. All are 128 too high. And whether any value lies beyond
    bytes."""
    batch, rows, columns, channels = x.shape
    count = fine.size
    raised, beyond = np.empty((batch, rows, columns, channels + 2 * count), np.uint8), 0
    low, high, wide = np.float32(-128), np.float32(127), np.float32(1024)
    some = np.empty(count, np.float32)
    for b in range(batch):
        for i in range(rows):
            for j in range(columns):
                for c in range(channels):
                    rounded = np.rint(x[b, i, j, c] * coarse[c])
                    limited = min(max(rounded, low), high)
                    beyond += limited != rounded
                    raised[b, i, j, c] = np.uint8(limited - low)
                for n in range(count):
                    some[n] = x[b, i, j, fine[n]] * coarse[fine[n]]
                parts, wholes = raised[b, i, j, channels : channels + count], raised[b, i, j, channels + count :]
                for n in range(count):  # through views, which numba makes into vectors
                    whole = min(max(np.rint(some[n]), -wide), wide - np.float32(1))
                    parts[n] = np.uint8(min(max(np.rint((some[n] - whole) * np.float32(16)), low), high) - low)
                    wholes[n] = np.uint8(np.rint(whole / np.float32(16)) - low)
    return raised, beyond > 0
