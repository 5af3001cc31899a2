"""The stream of a network as bytes: the float32 values that flow past its residual blocks, rounded and limited for
layers of int8 products. All bytes are signed and held 128 too high, as uint8."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histocodec.kernels.jit import jit

NO_CHANNELS = np.empty(0, np.int64)


def channels_last(x: Tensor) -> NDArray[Any]:
    """A tensor (B, C, h, w) as an array (B, h, w, C) of the same memory."""
    array: NDArray[Any] = x.permute(0, 2, 3, 1).numpy()
    return array


def channels_first(x: NDArray[Any]) -> Tensor:
    """An array (B, h, w, C) as a tensor (B, C, h, w) of the same memory."""
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def stream_bytes(x: Tensor, unit: NDArray[Any]) -> Tensor:
    """clip(round(x · unit), -128, 127) + 128 of x (B, C, h, w) float32 and unit (C,) float32, uint8"""
    return channels_first(wide_stream_bytes(channels_last(x), unit, NO_CHANNELS)[0])


@jit
def wide_stream_bytes(
    x: NDArray[np.float32], coarse: NDArray[np.float32], fine: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], bool]:
    """The bytes of a stream x (B, h, w, C) times `coarse` (C,), and more of the channels `fine` (F,).

    Returns (B, h, w, C + 2F) uint8 and whether any value lies beyond a byte. After the C rounded values follow, of each
    fine channel, what rounding leaves, in sixteenths; then the rounded value, limited to ±1024, in units of sixteen.
    """
    batch, rows, columns, channels = x.shape
    count = fine.size
    out, beyond = np.empty((batch, rows, columns, channels + 2 * count), np.uint8), 0
    low, high, wide = np.float32(-128), np.float32(127), np.float32(1024)
    values = np.empty(count, np.float32)
    for b in range(batch):
        for i in range(rows):
            for j in range(columns):
                for c in range(channels):
                    rounded = np.rint(x[b, i, j, c] * coarse[c])
                    limited = min(max(rounded, low), high)
                    beyond += limited != rounded
                    out[b, i, j, c] = np.uint8(limited - low)
                for n in range(count):
                    values[n] = x[b, i, j, fine[n]] * coarse[fine[n]]
                parts, wholes = out[b, i, j, channels : channels + count], out[b, i, j, channels + count :]
                for n in range(count):  # through views, which numba vectorises
                    whole = min(max(np.rint(values[n]), -wide), wide - np.float32(1))
                    parts[n] = np.uint8(min(max(np.rint((values[n] - whole) * np.float32(16)), low), high) - low)
                    wholes[n] = np.uint8(np.rint(whole / np.float32(16)) - low)
    return out, beyond > 0
