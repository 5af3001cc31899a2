"""The kernel of `histocodec.models.transforms.native_analysis`: the layers of the analysis, a row at a time.

Arguments that are addresses are those of rows of bytes (columns, channels), of streams (columns, channels) float32, or
of parameters. A layer of products is [w, bias, factor].
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.kernels.epilogues import ACTIVATE, ADD, PUT
from histocodec.kernels.instructions import AMX
from histocodec.kernels.jit import jit
from histocodec.kernels.layers import EXTRA_ROWS, address, clear, dense
from histocodec.kernels.products import depthwise_row, tiles_off, tiles_on
from histocodec.models.transforms.native_gradient_kernels import unit_bytes

# Fields of a block: spatial, channels, hidden; units of the stream that it sees; weight, bias and factor of expand,
# depthwise and project.
BLOCK_FIELDS = 13
# Rows and columns that a block takes, those that it gives, and where its activations are. In the last line: the rows
# and columns at 1/8 and at 1/16 that `down` takes and gives.
RANGE_FIELDS = 9

Row = NDArray[Any]


@jit
def _block(
    instructions: int, row: int, x: int, columns: int, kept: int, block: Row, span: Row, base: int, zeros: int,
    seen: int, active: int, acc: int, parameters: int,
) -> int:  # fmt: skip
    """One residual block, for a new row of its stream, whose rows lie at `x`, `kept` of them, `columns` positions each.
    Returns the row that is done, in place."""
    spatial, channels, hidden = block[0], block[1], block[2]
    none: Any = np.int64(0)
    top, bottom, left, right = span[0], span[1], span[2], span[3]
    ring, width = base + span[8], right - left
    row_bytes = (width + 2 + EXTRA_ROWS) * hidden
    if top <= row < bottom:
        here = x + (row % kept * columns + left) * channels * 4
        unit_bytes(instructions, here, channels, width, parameters + block[3], seen)
        to = ring + row % 4 * row_bytes + hidden if spatial else active
        dense(
            instructions, seen, none, none, none, none, channels, channels // 4, width, parameters + block[4],
            parameters + block[5], parameters + block[6], hidden // 64, acc, np.int64(ACTIVATE), to, hidden,
            np.int64(64), none, none,
        )  # fmt: skip
    if spatial:
        row -= 1
    if not span[4] <= row < span[5]:
        return row
    count, a = span[7] - span[6], active + (span[6] - left) * hidden
    if spatial:
        first = (span[6] - left) * hidden
        above = ring + (row - 1) % 4 * row_bytes + first if row > top else zeros
        below = ring + (row + 1) % 4 * row_bytes + first if row + 1 < bottom else zeros
        a = active
        depthwise_row(
            instructions, above, ring + row % 4 * row_bytes + first, below, hidden, parameters + block[7],
            parameters + block[8], parameters + block[9], a, hidden, count, False,
        )  # fmt: skip
    dense(
        instructions, a, none, none, none, none, hidden, hidden // 4, count, parameters + block[10],
        parameters + block[11], parameters + block[12], channels // 64, acc, np.int64(ADD),
        x + (row % kept * columns + span[6]) * channels * 4, channels * 4, np.int64(256), none, none,
    )  # fmt: skip
    return row


@jit
def _unshuffle(pixels: Row, row: int, memory: Row, at: int) -> None:
    """Eight rows of pixels (H, W, 3) as one of unshuffled ones, (W / 8, 192) bytes from `at` on."""
    for column in range(pixels.shape[1] // 8):
        out = memory[at + 192 * column : at + 192 * column + 192]
        for i in range(8):
            values = pixels[8 * row + i, 8 * column : 8 * column + 8]
            for colour in range(3):
                for j in range(8):
                    out[64 * colour + 8 * i + j] = values[j, colour]


@jit
def _two_bytes(
    x: int, count: int, channels: int, unit: Row, fine: Any, memory: Row, whole: int, rest: int
) -> None:  # fmt: skip
    """A stream, `count` positions, in two bytes, 128 too high: rounded, and `fine` times what rounding leaves."""
    floats, size = memory.view(np.float32), channels
    low, high = np.float32(-128), np.float32(127)
    for p in range(count):
        values = floats[x + p * size : x + (p + 1) * size]
        wholes, rests = (
            memory[whole + p * size : whole + (p + 1) * size],
            memory[rest + p * size : rest + (p + 1) * size],
        )
        for c in range(size):
            value = values[c] * unit[c]
            rounded = min(max(np.rint(value), low), high)
            left = min(max(np.rint((value - rounded) * fine), low), high)
            wholes[c] = np.uint8(np.int32(rounded) + 128)
            rests[c] = np.uint8(np.int32(left) + 128)


@jit
def analyse(
    instructions: int, pixels: Row, head: Row, head_parameters: Row, blocks: Row, blocks8: int, down: Row,
    down_unit: Row, fine: Any, parameters: Row, ranges: Row, layout: Row, memory: Row, out: Row,
) -> None:  # fmt: skip
    """A window of pixels (H, W, 3) uint8 → y, `out` (C, h, w) float32. `NativeAnalysis` makes the other arguments."""
    rows, columns = pixels.shape[0] // 8, pixels.shape[1] // 8
    none: Any = np.int64(0)
    start, base, head_start = address(parameters), address(memory), address(head_parameters)
    floats = memory.view(np.float32)
    zeros, x8, x16, seen, rest, active, acc = (
        base + layout[0], base + layout[1], base + layout[2], base + layout[3], base + layout[4], base + layout[5],
        base + layout[6],
    )  # fmt: skip
    kept8, kept16, padded8, padded16 = layout[7], layout[8], layout[9], layout[10]
    last = ranges[ranges.shape[0] - 1]
    width8, width16 = columns + EXTRA_ROWS, columns // 2 + EXTRA_ROWS
    if instructions == AMX:
        tiles_on(acc)
    clear(zeros, layout[1] - layout[0])
    for n in range(blocks.shape[0]):
        hidden, width = blocks[n, 2], ranges[n, 3] - ranges[n, 2]
        for row in range(4):
            first = base + ranges[n, 8] + row * (width + 2 + EXTRA_ROWS) * hidden
            clear(first, hidden)
            clear(first + (width + 1) * hidden, hidden)
    behind = 0
    for n in range(blocks.shape[0]):
        behind += blocks[n, 0] if n < blocks8 else 2 * blocks[n, 0]
    for entering in range(rows + behind + 1):
        if entering < rows:
            _unshuffle(pixels, entering, memory, layout[3])
            for part in range(2):  # the weights in two bytes
                dense(
                    instructions, seen, none, none, none, none, np.int64(192), np.int64(48), columns,
                    head_start + head[3 * part], head_start + head[3 * part + 1], head_start + head[3 * part + 2],
                    padded8 // 64, acc, np.int64(ADD if part else PUT),
                    x8 + entering % kept8 * width8 * padded8 * 4, padded8 * 4, np.int64(256), none, none,
                )  # fmt: skip
        row8 = entering
        for n in range(blocks8):
            row8 = _block(
                instructions, row8, x8, width8, kept8, blocks[n], ranges[n], base, zeros, seen, active, acc, start
            )  # fmt: skip
        if row8 % 2 == 0:
            continue
        row = row8 // 2
        if last[0] <= row8 < last[1]:
            count = last[7] - last[6]
            to = x16 + (row % kept16 * width16 + last[6]) * padded16 * 4
            for second in range(2):
                at = (x8 - base) // 4 + ((row8 - 1 + second) % kept8 * width8 + last[2]) * padded8
                _two_bytes(at, 2 * count, padded8, down_unit, fine, memory, layout[3], layout[4])
                for column in range(2):
                    for part in range(3):  # whole · coarse, rest · coarse, whole · fine
                        layer = 3 * (3 * (2 * second + column) + part)
                        dense(
                            instructions, (rest if part == 1 else seen) + column * padded8, none, none, none,
                            none, 2 * padded8, padded8 // 4, count, start + down[layer], start + down[layer + 1],
                            start + down[layer + 2], padded16 // 64, acc,
                            np.int64(PUT if second + column + part == 0 else ADD), to, padded16 * 4, np.int64(256),
                            none, none,
                        )  # fmt: skip
        for n in range(blocks8, blocks.shape[0]):
            row = _block(
                instructions, row, x16, width16, kept16, blocks[n], ranges[n], base, zeros, seen, active, acc, start
            )  # fmt: skip
        final = ranges[ranges.shape[0] - 2]
        if final[4] <= row < final[5]:
            first = (x16 - base) // 4 + (row % kept16 * width16 + final[6]) * padded16
            for c in range(out.shape[0]):
                for column in range(out.shape[2]):
                    out[c, row - final[4], column] = floats[first + column * padded16 + c]
    if instructions == AMX:
        tiles_off(acc)
