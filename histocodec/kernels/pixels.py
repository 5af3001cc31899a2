"""Pixels to the input of the networks and back, in one pass each: normalise and unshuffle, shuffle and denormalise.

Unshuffled pixels have one position for every 8 × 8 pixels and 192 channels: 64 of red, 64 of green, 64 of blue, each
row by row. This is `torch.nn.functional.pixel_unshuffle` by 8, with channels last.
"""

import numpy as np
from numpy.typing import NDArray

from histocodec.kernels.jit import jit


@jit
def unshuffled(pixels: NDArray[np.uint8], mean: NDArray[np.float32], std: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalise and unshuffle pixels (H, W, 3) uint8: (H/8, W/8, 192) float32. H and W are multiples of 8; `mean` and
    `std` (3,) are those of `ChannelStats`."""
    rows, columns = pixels.shape[0] // 8, pixels.shape[1] // 8
    out = np.empty((rows, columns, 192), np.float32)
    scale = 1 / std
    for row in range(rows):
        for column in range(columns):
            for i in range(8):
                for j in range(8):
                    for colour in range(3):
                        value = pixels[8 * row + i, 8 * column + j, colour]
                        out[row, column, 64 * colour + 8 * i + j] = (value - mean[colour]) * scale[colour]
    return out


@jit
def shuffled(planes: NDArray[np.float32], mean: NDArray[np.float32], std: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Shuffle and denormalise unshuffled pixels (h, w, 192) float32: (8h, 8w, 3) uint8, rounded to nearest, ties to
    even, and clipped."""
    rows, columns = planes.shape[:2]
    out = np.empty((8 * rows, 8 * columns, 3), np.uint8)
    values = np.empty(192, np.uint8)
    for row in range(rows):
        for column in range(columns):
            for colour in range(3):  # a loop of its own, so that numba vectorises it
                for n in range(64 * colour, 64 * colour + 64):
                    value = np.rint(planes[row, column, n] * std[colour] + mean[colour])
                    values[n] = np.uint8(min(max(value, np.float32(0)), np.float32(255)))
            for i in range(8):
                for j in range(8):
                    for colour in range(3):
                        out[8 * row + i, 8 * column + j, colour] = values[64 * colour + 8 * i + j]
    return out


@jit
def squared_errors(
    planes: NDArray[np.float32],
    pixels: NDArray[np.uint8],
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    per: int,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """The squared error, in grey values, of unshuffled pixels (h, w, 192) float32, denormalised but neither rounded
    nor clipped, against pixels (H, W, 3) uint8, which may end before them at the bottom and on the right.

    Returns the sums over `per` × `per` positions each, (⌈h / per⌉, ⌈w / per⌉), and the derivative of the whole sum in
    every element of `planes`, (h, w, 192)."""
    rows, columns = planes.shape[:2]
    error, slope = np.zeros((-(-rows // per), -(-columns // per))), np.zeros_like(planes)
    for row in range(rows):
        for column in range(columns):
            total = np.float32(0)
            for i in range(min(8, pixels.shape[0] - 8 * row)):
                for j in range(min(8, pixels.shape[1] - 8 * column)):
                    for colour in range(3):
                        n = 64 * colour + 8 * i + j
                        value = np.float32(pixels[8 * row + i, 8 * column + j, colour])
                        difference = planes[row, column, n] * std[colour] + mean[colour] - value
                        total += difference * difference
                        slope[row, column, n] = 2 * difference * std[colour]
            error[row // per, column // per] += total
    return error, slope
