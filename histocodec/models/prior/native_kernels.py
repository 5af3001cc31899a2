"""The kernels of `histocodec.models.prior.native`: the prior's layers on one chunk, in whole networks.

Activations are uint8. Buffers with a border have a position of zeros all around. Arguments that are addresses or
offsets are in bytes; parameters lie at `start`, working memory at `base`, its parts at the offsets `layout` (see
`Part`). A dense layer is [w, bias, shift, quads, groups, bytes of a quality's bias].
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.kernels.distributions import CODES, codes, predict, transpose
from histocodec.kernels.epilogues import ACTIVATE_UP
from histocodec.kernels.instructions import AMX
from histocodec.kernels.jit import jit
from histocodec.kernels.layers import address, clear, clear_raised, dense
from histocodec.kernels.products import TALL_TILE, TILE, depthwise_row, products, tiles_off, tiles_on
from histocodec.models.config import GROUPS
from histocodec.models.prior.graph import LATENT_LIMIT, LINEAR_CLIP, POSITIONS

Row = NDArray[Any]

# Parts of the working memory: sums of a tile; codes of 16 cells before they are transposed, and what is predicted for
# them; what `mix` sees; the context with a border; what `mix` gives; z; `h_s` at a quarter and at half of the side,
# with a border and without; the latents' bytes (4 positions, cells, 3 steps, quads); the latents with a border, limited
# to what the predictor sees, int16 (rows, columns, 4 groups, quads); the codes of a step (4 positions, quads, cells)
# int32, which the values that are read replace; which of a row of these are not 0, int32.
SUMS, FLAT, PREDICTED, MIXED, CONTEXT, OUT, HYPER, SMALL, SMALL_OUT, HALF, HALF_OUT, SEEN, LATENTS, STEP, LISTED = (
    range(15)
)
END = 15
# What the layout says besides: how many bytes a cell has for the latents of a step, and in all; how many quads the
# latents have; and how many bytes a position has for them. Cells and positions are a little more apart than they need
# to be: with powers of two, all would share a few sets of the first-level cache.
SEEN_QUADS, CELL_BYTES, LATENT_QUADS, POSITION_BYTES = range(END + 1, END + 5)
CELLS = 16  # that are done together
GAP = 64  # bytes at least between cells


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
            layer[2], out + row * columns * stride, stride, columns, True,
        )  # fmt: skip


@jit
def _dense_up(
    instructions: int, a: int, stride: int, count: int, start: int, layer: Row, bias: int, acc: int, out: int,
    out_stride: int,
) -> None:  # fmt: skip
    """A dense layer and its activations."""
    none: Any = np.int64(0)  # a literal 0 would have its own type, and numba would compile `dense` anew for it
    dense(
        instructions, a, none, none, none, none, stride, layer[3], count, start + layer[0], start + bias, layer[2],
        layer[4], acc, np.int64(ACTIVATE_UP), out, out_stride, np.int64(64), none, none,
    )  # fmt: skip


@jit
def forget(memory: Row, layout: Row) -> None:
    """Forgets the latents placed so far, but not what `hyper` gave."""
    base = address(memory)
    clear(base + layout[LATENTS], layout[LATENTS + 1] - layout[LATENTS])
    clear_raised(base + layout[SEEN], layout[SEEN + 1] - layout[SEEN])


@jit
def _clear_border(bordered: int, rows: int, columns: int, channels: int) -> None:
    """Zeros around a buffer."""
    across = (columns + 2) * channels
    clear(bordered, across)
    for row in range(1, rows + 1):
        clear(bordered + row * across, channels)
        clear(bordered + row * across + across - channels, channels)
    clear(bordered + (rows + 1) * across, across)


@jit
def hyper(
    instructions: int, parameters: Row, layers: Row, quality: int, rows: int, columns: int, width: int, inputs: int,
    memory: Row, layout: Row, stride: int, first: int,
) -> None:  # fmt: skip
    """`h_s`: z (h/4 · w/4, inputs) uint8, 128 too high, into the bytes from `first` on of the `stride` bytes of each
    position of the mixed input. `layers` are h_s.0 to h_s.4, where that which is unfolded has four parts. It also
    forgets the latents of the chunk before."""
    start, base = address(parameters), address(memory)
    acc, mixed, z = base + layout[SUMS], base + layout[MIXED], base + layout[HYPER]
    small, small_out = base + layout[SMALL], base + layout[SMALL_OUT]
    half, half_out = base + layout[HALF], base + layout[HALF_OUT]
    if instructions == AMX:
        tiles_on(acc)
    _clear_border(small, rows // 4, columns // 4, width)
    _clear_border(half, rows // 2, columns // 2, width)
    _clear_border(base + layout[CONTEXT], rows, columns, first)
    forget(memory, layout)
    r, c = rows // 4, columns // 4
    for row in range(r):
        _dense_up(
            instructions, z + row * c * inputs, inputs, c, start, layers[0], layers[0, 1] + quality * layers[0, 5],
            acc, small + ((row + 1) * (c + 2) + 1) * width, width,
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
    if instructions == AMX:
        tiles_off(acc)


@jit
def step(
    instructions: int, k: int, parameters: Row, layers: Row, of_contexts: Row, contexts: Row, heads: Row, shifts: Row,
    quality: int, rows: int, columns: int, context: int, stride: int, memory: Row, layout: Row, quads: int,
    cell_rows: int, cell_columns: int,
) -> None:  # fmt: skip
    """The codes of what step k codes, from the latents placed so far: (4, quads, cells) int32, without gaps, into the
    working memory. `layers` are the context's neighbours and the mix; `contexts` the context's layer of each
    position, with parameters `of_contexts`; `heads` (4 groups, blocks of 32 channels) are [w, bias, quads, weights and
    bias of the predictor, base index, bytes of a quality's]; `shifts` those of means and deviations."""
    start, base = address(parameters), address(memory)
    acc, flat, predicted = base + layout[SUMS], base + layout[FLAT], base + layout[PREDICTED]
    mixed, bordered, out = base + layout[MIXED], base + layout[CONTEXT], base + layout[OUT]
    seen, latents, coded = base + layout[SEEN], base + layout[LATENTS], base + layout[STEP]
    across, cell_bytes, slot, contexts_at = columns // 2, layout[CELL_BYTES], layout[LATENT_QUADS], address(of_contexts)
    if instructions == AMX:
        tiles_on(acc)
    if k:
        for p in range(GROUPS):
            i, j = POSITIONS[p][0], POSITIONS[p][1]
            for row in range(min(rows // 2, cell_rows + 1)):
                at = seen + (p * rows // 2 + row) * across * cell_bytes
                to = bordered + ((2 * row + i + 1) * (columns + 2) + j + 1) * context
                _dense_up(
                    instructions, at, cell_bytes, across, contexts_at, contexts[p], contexts[p, 1], acc, to, 2 * context
                )  # fmt: skip
        _spatial(instructions, bordered, 2 * cell_rows, columns, context, start, layers[0], mixed, stride)
    else:
        clear(predicted, CELLS * CODES)
    source, mix = mixed if k else mixed + context, layers[1]
    _dense_up(
        instructions, source, stride, 2 * cell_rows * columns, start, mix, mix[1] + quality * mix[5], acc, out, context
    )  # fmt: skip
    tile = TALL_TILE if instructions == AMX else TILE
    position_bytes = layout[POSITION_BYTES]
    row_bytes = (columns + 2) * position_bytes
    room = -(-cell_columns // CELLS) * CELLS
    plane = 4 * cell_rows * room
    for p in range(GROUPS):
        group, i, j = p ^ k, POSITIONS[p][0], POSITIONS[p][1]
        for block in range(-(-quads // 32)):
            head = heads[group, block]
            for row in range(cell_rows):
                for cell in range(0, cell_columns, CELLS):
                    count = min(CELLS, cell_columns - cell)
                    at = out + ((2 * row + i) * columns + 2 * cell + j) * context
                    for m in range(0, count, tile):
                        products(
                            instructions, at + m * 2 * context, 2 * context, start + head[0], head[2], acc + 256 * m,
                            start + head[1],
                        )  # fmt: skip
                    if k:
                        around = latents + (2 * row + i) * row_bytes + (2 * cell + j) * position_bytes
                        here = around + 2 * (group * slot + 32 * block)
                        predict(
                            instructions, here, row_bytes, position_bytes, start + head[3], start + head[4], predicted,
                            count,
                        )  # fmt: skip
                    codes(
                        instructions, acc, start + head[5] + quality * head[6], shifts[0], shifts[1], predicted, flat,
                        count,
                    )  # fmt: skip
                    to = coded + (p * quads + 32 * block) * plane + 4 * (row * room + cell)
                    transpose(flat, to, plane)
    if instructions == AMX:
        tiles_off(acc)
    if room != cell_columns:
        numbers, first = memory.view(np.int32), layout[STEP] // 4
        for line in range(GROUPS * quads * cell_rows):
            for n in range(cell_columns):
                numbers[first + line * cell_columns + n] = numbers[first + line * room + n]


@jit
def put(
    value: Any, k: int, p: int, quad: int, cell: int, rows: int, columns: int, cell_columns: int, lifted: Row,
    memory: Row, halves: Row, layout: Row,
) -> None:  # fmt: skip
    """Writes one latent that is not 0 where the next steps look for it. `halves` is the memory as int16; `lifted` are
    the bytes of latents from -LINEAR_CLIP on."""
    row, column = cell // cell_columns, cell % cell_columns
    limited: Any = min(max(value, -LINEAR_CLIP), LINEAR_CLIP)
    at = (2 * row + POSITIONS[p][0] + 1) * (columns + 2) + 2 * column + POSITIONS[p][1] + 1
    at = (layout[LATENTS] + at * layout[POSITION_BYTES]) // 2 + (p ^ k) * layout[LATENT_QUADS] + quad
    halves[at] = limited
    at = p * rows * columns // 4 + row * (columns // 2) + column
    memory[layout[SEEN] + at * layout[CELL_BYTES] + k * layout[SEEN_QUADS] + quad] = lifted[limited + LINEAR_CLIP]


@jit
def place(
    values: Row, k: int, quads: int, cell_rows: int, cell_columns: int, rows: int, columns: int, lifted: Row,
    memory: Row, layout: Row,
) -> bool:  # fmt: skip
    """Writes one step's elements, in coding order, where `put` does; False where one is not int16."""
    halves, n = memory.view(np.int16), 0
    for p in range(GROUPS):
        for quad in range(quads):
            for cell in range(cell_rows * cell_columns):
                value = np.int64(values[n])
                n += 1
                if value != 0:
                    if value < -LATENT_LIMIT or value >= LATENT_LIMIT:
                        return False
                    put(value, k, p, quad, cell, rows, columns, cell_columns, lifted, memory, halves, layout)
    return True
