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
from histocodec.kernels.layers import address, clear, dense
from histocodec.kernels.products import TALL_TILE, TILE, depthwise_row, products, tiles_off, tiles_on
from histocodec.models.config import GROUPS
from histocodec.models.prior.graph import LATENT_LIMIT, LINEAR_CLIP, POSITIONS

Row = NDArray[Any]

# Parts of the working memory: sums of a tile; codes of 16 cells before they are transposed, and what is predicted for
# them; what `mix` sees; the context with a border; what `mix` gives; z; `h_s` at a quarter and at half of the side,
# with a border and without; the latents' bytes (4 positions, cells, 4 steps, quads); the latents with a border, int16
# (rows, columns, 4 groups, quads); the codes of a step (4 positions, quads, cells) int32, which the values that are
# read replace; which cells of a row of these are not 0, int32. Cells of the latents are a little more apart than they
# need to be: with powers of two, all cells would share a few sets of the first-level cache.
SUMS, FLAT, PREDICTED, MIXED, CONTEXT, OUT, HYPER, SMALL, SMALL_OUT, HALF, HALF_OUT, SEEN, LATENTS, STEP, LISTED = (
    range(15)
)
END = 15
CELLS = 16  # that are done together
SEEN_GAP, LATENTS_GAP = 64, 32  # bytes between cells, and between positions


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
    """Has the context see no latents."""
    words = memory.view(np.uint64)
    for n in range(layout[SEEN] // 8, layout[SEEN + 1] // 8):
        words[n] = np.uint64(0x8080808080808080)  # zeros, 128 too high


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
    for part in (SMALL, HALF, LATENTS):
        clear(base + layout[part], layout[part + 1] - layout[part])
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
    instructions: int, k: int, parameters: Row, layers: Row, contexts: Row, heads: Row, shifts: Row, quality: int,
    rows: int, columns: int, context: int, stride: int, slot: int, memory: Row, layout: Row, quads: int,
    cell_rows: int, cell_columns: int,
) -> None:  # fmt: skip
    """The codes of what step k codes, from the latents placed so far: (4, quads, cells) int32, without gaps, into the
    working memory's last part. `layers` are the context's neighbours and the mix; `contexts` the context's layer of
    each position; `heads` (4 groups, blocks of 32 channels) are [w, bias, quads, weights and bias of the predictor,
    base index, bytes of a quality's]; `shifts` those of means and deviations. `slot` is how many bytes a position has
    for a step."""
    start, base = address(parameters), address(memory)
    acc, flat, predicted = base + layout[SUMS], base + layout[FLAT], base + layout[PREDICTED]
    mixed, bordered, out = base + layout[MIXED], base + layout[CONTEXT], base + layout[OUT]
    seen, latents, coded = base + layout[SEEN], base + layout[LATENTS], base + layout[STEP]
    across, cell_bytes = columns // 2, GROUPS * slot + SEEN_GAP
    if instructions == AMX:
        tiles_on(acc)
    if k:
        clear(bordered, layout[CONTEXT + 1] - layout[CONTEXT])
        for p in range(GROUPS):
            i, j = POSITIONS[p][0], POSITIONS[p][1]
            for row in range(min(rows // 2, cell_rows + 1)):
                at = seen + (p * rows // 2 + row) * across * cell_bytes
                to = bordered + ((2 * row + i + 1) * (columns + 2) + j + 1) * context
                _dense_up(
                    instructions, at, cell_bytes, across, start, contexts[p], contexts[p, 1], acc, to, 2 * context
                )  # fmt: skip
        _spatial(instructions, bordered, 2 * cell_rows, columns, context, start, layers[0], mixed, stride)
    else:
        clear(predicted, CELLS * CODES)
    source, mix = mixed if k else mixed + context, layers[1]
    for row in range(2 * cell_rows):
        _dense_up(
            instructions, source + row * columns * stride, stride, columns, start, mix, mix[1] + quality * mix[5], acc,
            out + row * columns * context, context,
        )  # fmt: skip
    tile = TALL_TILE if instructions == AMX else TILE
    position_bytes = 2 * GROUPS * slot + LATENTS_GAP
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
    value: Any, k: int, p: int, quad: int, cell: int, columns: int, cell_columns: int, positions: int, slot: int,
    compress: Row, memory: Row, halves: Row, seen: int, latents: int,
) -> None:  # fmt: skip
    """Writes one latent that is not 0 where the next steps look for it, and `finish`. `positions` are cells at each
    position of a cell; `halves` is the memory as int16; `seen` and `latents` are indices in the two."""
    row, column = cell // cell_columns, cell % cell_columns
    place = (2 * row + POSITIONS[p][0] + 1) * (columns + 2) + 2 * column + POSITIONS[p][1] + 1
    halves[latents + place * (GROUPS * slot + LATENTS_GAP // 2) + (p ^ k) * slot + quad] = value
    small = np.int64(compress[min(abs(value), LINEAR_CLIP)])
    at = p * positions + row * (columns // 2) + column
    memory[seen + at * (GROUPS * slot + SEEN_GAP) + k * slot + quad] = 128 + (small if value > 0 else -small)


@jit
def place(
    values: Row, k: int, quads: int, cell_rows: int, cell_columns: int, rows: int, columns: int, slot: int,
    compress: Row, memory: Row, layout: Row,
) -> bool:  # fmt: skip
    """Writes one step's elements, in coding order, where `put` does; False where one is not int16."""
    halves, seen, latents, n = memory.view(np.int16), layout[SEEN], layout[LATENTS] // 2, 0
    positions = rows * columns // 4
    for p in range(GROUPS):
        for quad in range(quads):
            for cell in range(cell_rows * cell_columns):
                value = np.int64(values[n])
                n += 1
                if value != 0:
                    if value < -LATENT_LIMIT or value >= LATENT_LIMIT:
                        return False
                    put(
                        value, k, p, quad, cell, columns, cell_columns, positions, slot, compress, memory, halves, seen,
                        latents,
                    )  # fmt: skip
    return True


@jit
def collect(memory: Row, layout: Row, slot: int, quads: int, y: Row) -> bool:
    """The latents placed so far, of which the first `quads` may be other than 0 → y (rows, columns, channels), int8 or
    int16, where there are zeros; False where it does not hold them."""
    lost = np.int16(0)
    halves, per = memory.view(np.int16), GROUPS * slot + LATENTS_GAP // 2
    for row in range(y.shape[0]):
        for column in range(y.shape[1]):
            first = layout[LATENTS] // 2 + ((row + 1) * (y.shape[1] + 2) + column + 1) * per
            a, b, c, d = (
                halves[first : first + quads],
                halves[first + slot : first + slot + quads],
                halves[first + 2 * slot : first + 2 * slot + quads],
                halves[first + 3 * slot : first + 3 * slot + quads],
            )
            out = y[row, column]
            for quad in range(quads):
                out[4 * quad] = a[quad]
                out[4 * quad + 1] = b[quad]
                out[4 * quad + 2] = c[quad]
                out[4 * quad + 3] = d[quad]
            for quad in range(quads):
                at = 4 * quad
                lost |= (
                    (out[at] ^ a[quad]) | (out[at + 1] ^ b[quad]) | (out[at + 2] ^ c[quad]) | (out[at + 3] ^ d[quad])
                )
    return bool(lost == 0)
