"""The kernels of `histocodec.models.prior.native`: the prior's layers on one chunk, in whole networks.

Activations are uint8. Buffers with a border have a position of zeros all around. Arguments that are addresses or
offsets are in bytes; parameters lie at `start`, working memory at `base`. A dense layer is [w, bias, factor, quads,
groups].
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.kernels.jit import jit
from histocodec.kernels.layers import ACTIVATE_UP, address, dense
from histocodec.kernels.products import activate_up, add_multiple, clear, depthwise_row, products
from histocodec.models.config import GROUPS
from histocodec.models.prior.fast_kernels import distributions
from histocodec.models.prior.graph import POSITIONS

Row = NDArray[Any]


@jit
def _spatial(
    instructions: int, bordered: int, rows: int, columns: int, channels: int, start: int, layer: Row, out: int,
    stride: int,
) -> None:  # fmt: skip
    """A 3×3 layer on a buffer with a border."""
    across = (columns + 2) * channels
    for row in range(rows):
        above = bordered + row * across
        depthwise_row(
            instructions, above, above + across, above + 2 * across, channels, start + layer[0], start + layer[1],
            start + layer[2], out + row * columns * stride, stride, columns, True,
        )  # fmt: skip


@jit
def _dense_up(
    instructions: int, a: int, stride: int, count: int, start: int, layer: Row, bias: int, acc: int, out: int,
    out_stride: int,
) -> None:  # fmt: skip
    """A dense layer and its activations."""
    none: Any = np.int64(0)  # a literal 0 would have its own type, and numba would compile `dense` anew for it
    dense(
        instructions, a, none, none, none, stride, layer[3], count, start + layer[0], start + bias, start + layer[2],
        layer[4], acc, np.int64(ACTIVATE_UP), out, out_stride, np.int64(64), none, none,
    )  # fmt: skip


@jit
def hyper(
    instructions: int, z: Row, parameters: Row, layers: Row, quality: int, rows: int, columns: int, width: int,
    memory: Row, layout: Row, stride: int, first: int,
) -> None:  # fmt: skip
    """`h_s`: z (h/4 · w/4 and more, inputs) uint8, 128 too high, into the bytes from `first` on of the `stride` bytes
    of each position of the mixed input. `layers` are h_s.0 to h_s.4, where that which is unfolded has four parts."""
    start, base = address(parameters), address(memory)
    acc, mixed = base + layout[0], base + layout[1]
    small, small_out, half, half_out = base + layout[5], base + layout[6], base + layout[7], base + layout[8]
    clear(small, layout[6] - layout[5])
    clear(half, layout[8] - layout[7])
    r, c = rows // 4, columns // 4
    for row in range(r):
        _dense_up(
            instructions, address(z) + row * c * z.shape[1], z.shape[1], c, start, layers[0],
            layers[0, 1] + quality * layers[0, 5], acc, small + ((row + 1) * (c + 2) + 1) * width, width,
        )  # fmt: skip
    _spatial(instructions, small, r, c, width, start, layers[1], small_out, width)
    for row in range(r):
        for part in range(4):
            layer = layers[2 + part]
            at = half + ((2 * row + part // 2 + 1) * (2 * c + 2) + part % 2 + 1) * width
            _dense_up(
                instructions, small_out + row * c * width, width, c, start, layer, layer[1], acc, at, 2 * width
            )  # fmt: skip
    _spatial(instructions, half, 2 * r, 2 * c, width, start, layers[6], half_out, width)
    for row in range(2 * r):
        for part in range(4):
            layer = layers[7 + part]
            at = mixed + ((2 * row + part // 2) * columns + part % 2) * stride + first
            _dense_up(
                instructions, half_out + row * 2 * c * width, width, 2 * c, start, layer, layer[1], acc, at, 2 * stride
            )  # fmt: skip


@jit
def step(
    instructions: int, k: int, nonzero: Row, weight: Row, parameters: Row, layers: Row, quality: int, rows: int,
    columns: int, context: int, stride: int, memory: Row, layout: Row, accumulators: Row, bias: Row, mean_shift: int,
    scale_shift: int, index: Row, y: Row, live: Row, linear: Row, linear_bias: Row, cell_rows: int, cell_columns: int,
    tables: Row, offset: Row,
) -> None:  # fmt: skip
    """`FastChunk.parameters`, from the latents that `nonzero` lists. `layers` are the context's bias and factor, the
    neighbours, the mix and the heads of each group; `accumulators` is (4, 2·quads and more, cells) int32."""
    start, base = address(parameters), address(memory)
    acc, mixed, bordered, out = base + layout[0], base + layout[1], base + layout[2], base + layout[3]
    if k:
        sums, weights = base + layout[4], address(weight)
        clear(sums, 4 * rows * columns * context)
        for n in range(nonzero.shape[0]):
            at, taps, value = sums + 4 * nonzero[n, 0] * context, weights + 2 * nonzero[n, 1] * context, nonzero[n, 2]
            for c in range(0, context, 64):
                add_multiple(at + 4 * c, taps + 2 * c, value)
        clear(bordered, layout[3] - layout[2])
        for row in range(rows):
            for column in range(columns):
                at = base + layout[4] + (row * columns + column) * context * 4
                to = bordered + ((row + 1) * (columns + 2) + column + 1) * context
                for n in range(0, context, 64):
                    activate_up(at + 4 * n, start + layers[0, 1] + 4 * n, start + layers[0, 2] + 4 * n, to + n)
        _spatial(instructions, bordered, rows, columns, context, start, layers[1], mixed, stride)
    seen, mix = mixed if k else mixed + context, layers[2]
    for row in range(2 * cell_rows):
        _dense_up(
            instructions, seen + row * columns * stride, stride, columns, start, mix, mix[1] + quality * mix[5], acc,
            out + row * columns * context, context,
        )  # fmt: skip
    sums_of = memory.view(np.int32)[layout[0] // 4 : layout[0] // 4 + 384]
    across = columns // 2
    for p in range(GROUPS):
        heads, i, j = layers[3 + (p ^ k)], POSITIONS[p][0], POSITIONS[p][1]
        for group in range(-(-accumulators.shape[1] // 64)):
            last = min(64, accumulators.shape[1] - 64 * group)
            w = start + heads[0] + group * heads[3] * 256
            for row in range(cell_rows):
                for cell in range(0, cell_columns, 6):
                    at = out + ((2 * row + i) * columns + 2 * cell + j) * context
                    products(instructions, at, 2 * context, w, heads[3], acc)
                    to, count = row * across + cell, min(6, cell_columns - cell)
                    for n in range(last):
                        for m in range(count):
                            accumulators[p, 64 * group + n, to + m] = sums_of[64 * m + n]
    distributions(
        (accumulators[0], accumulators[1], accumulators[2], accumulators[3]), bias, mean_shift, scale_shift, index, y,
        live, linear, linear_bias, k, across, cell_rows, cell_columns, tables, offset,
    )  # fmt: skip
