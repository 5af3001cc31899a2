"""The kernels of `histocodec.models.prior.fast`: loops over one chunk, compiled by numba.

Positions are rows and channels columns, but y is (channels, rows, columns). Activations are int8, 128 too low. A right
shift of a negative integer rounds down, as the floor of the format does. What a kernel fills are its last arguments.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.kernels.jit import jit
from histocodec.models.config import GROUPS
from histocodec.models.prior.graph import (
    LATENT_LIMIT,
    LINEAR_BITS,
    LINEAR_CLIP,
    MEAN_BITS,
    PHASE_MASK,
    POSITIONS,
    SCALES,
)

Row = NDArray[Any]  # an argument of a kernel, whose dtype numba infers


@jit
def activated(accumulator: Row, bias: Row, shift: int) -> Row:
    """clip(floor((accumulator + bias) / 2^shift + 1/2), 0, 255) - 128, int8"""
    out = np.empty(accumulator.shape, np.int8)
    half = np.int32(1 << shift >> 1)
    for i in range(accumulator.shape[0]):
        for j in range(accumulator.shape[1]):
            value = (accumulator[i, j] + bias[j] + half) >> shift
            out[i, j] = min(max(value, 0), 255) - 128
    return out


@jit
def activated_cells(accumulator: Row, bias: Row, shift: int, across: int) -> Row:
    """`activated` of (h·w, n) as (4, h·w/4, n), by position in the 2×2 cells, of which `across` lie side by side."""
    positions, width = accumulator.shape
    out = np.empty((GROUPS, positions // GROUPS, width), np.int8)
    half = np.int32(1 << shift >> 1)
    for p in range(GROUPS):
        for cell in range(positions // GROUPS):
            row, column = 2 * (cell // across) + POSITIONS[p][0], 2 * (cell % across) + POSITIONS[p][1]
            values, active = accumulator[2 * across * row + column], out[p, cell]
            for j in range(width):
                active[j] = min(max((values[j] + bias[j] + half) >> shift, 0), 255) - 128
    return out


@jit
def depthwise(x: Row, rows: int, columns: int, weight: Row, bias: Row, shift: int, out: Row) -> None:
    """A 3×3 layer, padded with zeros, from activations (rows·columns, c) into the first c columns of `out`."""
    channels = x.shape[1]
    half = np.int32(1 << shift >> 1)
    total = np.empty(channels, np.int32)
    for row in range(rows):
        for column in range(columns):
            for c in range(channels):
                total[c] = bias[c] + half
            for i in range(max(0, row - 1), min(rows, row + 2)):
                for j in range(max(0, column - 1), min(columns, column + 2)):
                    tap = 3 * (i - row + 1) + j - column + 1
                    at = i * columns + j
                    for c in range(channels):
                        total[c] += weight[tap, c] * (np.int32(x[at, c]) + 128)
            at = row * columns + column
            for c in range(channels):
                out[at, c] = min(max(total[c] >> shift, 0), 255) - 128


@jit
def accumulate(nonzero: Row, weight: Row, accumulator: Row) -> None:
    """Adds the layer's products with the latents that `nonzero` lists."""
    for n in range(nonzero.shape[0]):
        position, channel, value = nonzero[n, 0], nonzero[n, 1], nonzero[n, 2]
        for j in range(weight.shape[1]):
            accumulator[position, j] += value * weight[channel, j]


@jit
def _compressed(value: Any, compress: Row) -> Any:
    """`Ops.compress` of one latent."""
    at = min(abs(value), LINEAR_CLIP)
    return compress[at] if value > 0 else -compress[at]


@jit
def list_nonzero(y: Row, compress: Row, nonzero: Row) -> None:
    """Lists position, channel and compressed value of the latents that are not 0."""
    count = 0
    for channel in range(y.shape[0]):
        for row in range(y.shape[1]):
            for column in range(y.shape[2]):
                value = np.int64(y[channel, row, column])
                if value != 0:
                    nonzero[count, 0] = row * y.shape[2] + column
                    nonzero[count, 1] = channel
                    nonzero[count, 2] = _compressed(value, compress)
                    count += 1


@jit
def distributions(
    accumulators: Any, bias: Row, mean_shift: int, scale_shift: int, base: Row, y: Row, live: Row, weight: Row,
    linear_bias: Row, step: int, across: int, cell_rows: int, cell_columns: int, tables: Row, offset: Row,
) -> None:  # fmt: skip
    """`FastChunk.parameters` of one step, from the accumulators of each position, (2·quads, cells): mean and deviation
    of each channel in turn."""
    mean_half, scale_half = 1 << mean_shift >> 1, 1 << scale_shift >> 1
    predictions, low, high = np.empty(cell_columns, np.int32), np.int32(-LINEAR_CLIP), np.int32(LINEAR_CLIP)
    linear, linear_half = weight.shape[0] > 0, 1 << (LINEAR_BITS - MEAN_BITS) >> 1
    n = 0
    for p in range(GROUPS):
        group, i, j = p ^ step, POSITIONS[p][0], POSITIONS[p][1]
        accumulator, first = accumulators[p], group * base.size // 2
        for quad in range(accumulator.shape[0] // 2):
            channel = GROUPS * quad + group
            mean_bias, scale_bias = bias[first + 2 * quad] + mean_half, bias[first + 2 * quad + 1] + scale_half
            for row in range(cell_rows):
                first_cell, end = row * across, n + cell_columns  # slices, whose loops numba vectorises
                means = accumulator[2 * quad, first_cell : first_cell + cell_columns]
                deviations = accumulator[2 * quad + 1, first_cell : first_cell + cell_columns]
                predictions[:] = linear_bias[channel] + linear_half if linear else 0
                if linear and live[channel]:
                    for tap in range(9):
                        share, values = weight[tap, channel], y[channel, 2 * row + i + tap // 3, j + tap % 3 :]
                        for column in range(cell_columns):
                            predictions[column] += share * min(max(np.int32(values[2 * column]), low), high)
                table, integer = tables[n:end], offset[n:end]
                for column in range(cell_columns):
                    mean = (means[column] + mean_bias) >> mean_shift
                    mean += predictions[column] >> (LINEAR_BITS - MEAN_BITS)
                    scale = base[channel] + ((deviations[column] + scale_bias) >> scale_shift)
                    table[column] = (min(max(scale, 0), SCALES - 1) << MEAN_BITS) + (mean & PHASE_MASK)
                    integer[column] = mean >> MEAN_BITS
                n = end


@jit
def place(
    values: Row,
    step: int,
    cell_rows: int,
    cell_columns: int,
    compress: Row,
    y: Row,
    live: Row,
    nonzero: Row,
    count: Row,
) -> bool:
    """Writes one step's elements into y and the list of latents that are not 0; False where one is not int16."""
    columns = y.shape[2] - 2
    listed = count[0]
    n = 0
    for p in range(GROUPS):
        i, j = POSITIONS[p][0], POSITIONS[p][1]
        for quad in range(values.size // (GROUPS * cell_rows * cell_columns)):
            channel = GROUPS * quad + (p ^ step)
            for row in range(cell_rows):
                for column in range(cell_columns):
                    value = values[n]
                    n += 1
                    if value != 0:
                        if value < -LATENT_LIMIT or value >= LATENT_LIMIT:
                            return False
                        y[channel, 2 * row + i + 1, 2 * column + j + 1] = value
                        live[channel] = 1
                        nonzero[listed, 0] = (2 * row + i) * columns + 2 * column + j
                        nonzero[listed, 1] = channel
                        nonzero[listed, 2] = _compressed(value, compress)
                        listed += 1
    count[0] = listed
    return True
