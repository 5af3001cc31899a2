"""The kernels of `histocodec.models.transforms.native`: the layers of the synthesis, a row at a time.

Arguments are addresses: of rows of bytes (columns, channels), of streams (columns, channels) float32, of parameters.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.kernels.epilogues import ACTIVATE, ADD, COLOUR, PUT, enter, fine_bytes, stream_bytes, wide_bytes
from histocodec.kernels.instructions import AMX
from histocodec.kernels.jit import jit
from histocodec.kernels.layers import EXTRA_ROWS, address, clear, dense, fill, interleave
from histocodec.kernels.products import depthwise_row, tiles_off, tiles_on

# Fields of a block: spatial, channels, hidden; weight, bias and factor of expand, depthwise and project.
BLOCK_FIELDS = 12
# Fields of a wide layer: weight, bias, factor, coarse factors, fine channels and their factors, how many, room for
# them, inputs, inputs before them, and 1024 times the sum of each output's weights.
WIDE_FIELDS = 11
# Rows and columns that a block takes, those that it gives, and where its activations are. In the last line: those that
# `up` and `tail` take.
RANGE_FIELDS = 9

Row = NDArray[Any]


@jit
def _block(
    instructions: int, row: int, x: int, columns: int, kept: int, block: Row, span: Row, base: int,
    zeros: int, seen: int, active: int, acc: int, parameters: int,
) -> int:  # fmt: skip
    """One residual block, for a new row of its stream, whose rows lie at `x`, `kept` of them, `columns` positions each.
    Returns the row that is done, in place."""
    spatial, channels, hidden = block[0], block[1], block[2]
    none: Any = np.int64(0)  # a literal 0 would have its own type, and numba would compile `dense` anew for it
    top, bottom, left, right = span[0], span[1], span[2], span[3]
    ring, width = base + span[8], right - left
    row_bytes = (width + 2 + EXTRA_ROWS) * hidden
    if top <= row < bottom:
        here = x + (row % kept * columns + left) * channels * 4
        stream_bytes(instructions, here, seen, width * channels // 64)
        to = ring + row % 4 * row_bytes + hidden if spatial else active
        dense(
            instructions, seen, none, none, none, none, channels, channels // 4, width, parameters + block[3],
            parameters + block[4], parameters + block[5], hidden // 64, acc, np.int64(ACTIVATE), to, hidden,
            np.int64(64), none, none,
        )  # fmt: skip
    skipped = span[6] - left  # columns that are not needed any more
    if spatial:
        row -= 1
    if not span[4] <= row < span[5]:
        return row
    count = span[7] - span[6]
    if spatial:
        first = skipped * hidden
        above = ring + (row - 1) % 4 * row_bytes + first if row > top else zeros
        below = ring + (row + 1) % 4 * row_bytes + first if row + 1 < bottom else zeros
        here = ring + row % 4 * row_bytes + first
        depthwise_row(
            instructions, above, here, below, hidden, parameters + block[6], parameters + block[7],
            parameters + block[8], active, hidden, count, False,
        )  # fmt: skip
        a = active
    else:
        a = active + skipped * hidden
    dense(
        instructions, a, none, none, none, none, hidden, hidden // 4, count, parameters + block[9],
        parameters + block[10], parameters + block[11], channels // 64, acc, np.int64(ADD),
        x + (row % kept * columns + span[6]) * channels * 4, channels * 4, np.int64(256), none, none,
    )  # fmt: skip
    return row


@jit
def wide_input(
    instructions: int, x: int, channels: int, count: int, wide: Row, seen: int, low: int, high: int, memory: Row,
    parameters: Row,
) -> bool:  # fmt: skip
    """What a wide layer sees of `count` positions of a stream: bytes at `seen`; where one is beyond a byte, the rest at
    `low` and `high`, and True."""
    base, start = address(memory), address(parameters)
    inputs, first, room, stride = wide[8], wide[9], wide[7], 4 * channels
    beyond = 0
    for c in range(0, channels, 64):
        beyond |= wide_bytes(instructions, x + 4 * c, stride, start + wide[3] + 4 * c, seen + c, inputs, count)
    for n in range(0, room, 16):
        fine_bytes(
            instructions, x, stride, start + wide[4] + 4 * n, start + wide[5] + 4 * n, seen + first + n, room, inputs,
            count,
        )  # fmt: skip
    if beyond == 0:
        return False
    floats, factors = memory.view(np.float32), parameters.view(np.float32)
    low_at, high_at, coarse = low - base, high - base, wide[3] // 4
    fill(memory, low_at, low_at + count * inputs, 0)
    fill(memory, high_at, high_at + count * inputs, 128)
    for p in range(count):
        for c in range(channels):
            rounded = np.rint(floats[(x - base) // 4 + p * channels + c] * factors[coarse + c])
            byte = min(max(rounded, np.float32(-128)), np.float32(127))
            rest = np.int32(min(max(rounded, np.float32(-1024)), np.float32(1023)) - byte)
            memory[low_at + p * inputs + c] = rest & 7
            memory[high_at + p * inputs + c] = (rest >> 3) + 128
    return True


@jit
def synthesise(
    instructions: int, latents: Row, scale: int, parameters: Row, none_at: int, blocks: Row, blocks16: int, wide: Row,
    ranges: Row, layout: Row, memory: Row, mean: Row, std: Row, outs: Row, across: int,
) -> None:  # fmt: skip
    """A window of latents (h, w, C) float32, C in whole groups, → pixels: images side by side, at the addresses `outs`,
    `across` positions wide each but the last. `NativeSynthesis` makes the other arguments."""
    rows, columns = latents.shape[:2]
    none: Any = np.int64(0)
    start, base = address(parameters), address(memory)
    means, stds = address(mean), address(std)
    zeros, x16, x8, seen, low, high, active, acc = (
        base + layout[0], base + layout[1], base + layout[2], base + layout[3], base + layout[4], base + layout[5],
        base + layout[6], base + layout[7],
    )  # fmt: skip
    kept16, kept8 = layout[8], layout[9]
    width16, width8 = columns + EXTRA_ROWS, 2 * columns + EXTRA_ROWS
    padded16, padded8 = wide[0, 9], wide[1, 9]
    if instructions == AMX:
        tiles_on(acc)
    clear(zeros, layout[1] - layout[0])
    for n in range(blocks.shape[0]):  # zeros on the left and right of the activations before a 3×3 layer
        hidden, width = blocks[n, 2], ranges[n, 3] - ranges[n, 2]
        for row in range(4):
            first = base + ranges[n, 8] + row * (width + 2 + EXTRA_ROWS) * hidden
            clear(first, hidden)
            clear(first + (width + 1) * hidden, hidden)
    latents_at, last = address(latents), ranges[ranges.shape[0] - 1]
    behind = 0
    for n in range(blocks.shape[0]):
        behind += 2 * blocks[n, 0] if n < blocks16 else blocks[n, 0]
    for entering in range(rows + (behind + 1) // 2):
        if entering < rows:
            to_row = x16 + entering % kept16 * width16 * padded16 * 4
            for c in range(0, padded16, 64):
                enter(
                    instructions, latents_at + 4 * (entering * columns * padded16 + c), 4 * padded16,
                    start + scale + 4 * c, to_row + 4 * c, 4 * padded16, columns,
                )  # fmt: skip
        row = entering
        for n in range(blocks16):
            row = _block(
                instructions, row, x16, width16, kept16, blocks[n], ranges[n], base, zeros, seen, active, acc,
                start,
            )  # fmt: skip
        if last[0] <= row < last[1]:
            count, here = last[3] - last[2], x16 + (row % kept16 * width16 + last[2]) * padded16 * 4
            beyond = wide_input(instructions, here, padded16, count, wide[0], seen, low, high, memory, parameters)
            for part in range(4):  # the rows and columns of what each position becomes
                at = x8 + ((2 * row + part // 2) % kept8 * width8 + 2 * last[2] + part % 2) * padded8 * 4
                groups = padded8 // 64
                dense(
                    instructions, seen, low if beyond else none, high, start + wide[0, 10] + 256 * groups * part,
                    start + none_at, wide[0, 8], wide[0, 8] // 4, count,
                    start + wide[0, 0] + groups * part * wide[0, 8] * 64, start + wide[0, 1] + 256 * groups * part,
                    start + wide[0, 2] + 256 * groups * part, groups, acc, np.int64(PUT), at, 2 * padded8 * 4,
                    np.int64(256), none, none,
                )  # fmt: skip
        for second in range(2):
            row8 = 2 * row + second
            for n in range(blocks16, blocks.shape[0]):
                row8 = _block(
                    instructions, row8, x8, width8, kept8, blocks[n], ranges[n], base, zeros, seen, active, acc,
                    start,
                )  # fmt: skip
            if last[4] <= row8 < last[5]:
                count, here = last[7] - last[6], x8 + (row8 % kept8 * width8 + last[6]) * padded8 * 4
                beyond = wide_input(instructions, here, padded8, count, wide[1], seen, low, high, memory, parameters)
                dense(
                    instructions, seen, low if beyond else none, high, start + wide[1, 10], start + none_at,
                    wide[1, 8], wide[1, 8] // 4, count, start + wide[1, 0], start + wide[1, 1], start + wide[1, 2],
                    np.int64(3), acc, np.int64(COLOUR), active, np.int64(192), np.int64(64), means, stds,
                )  # fmt: skip
                for n in range(outs.size):
                    wide8 = min(across, count - n * across)
                    line = outs[n] + (row8 - last[4]) * 8 * wide8 * 24
                    interleave(active + n * across * 192, line, wide8 * 24, wide8)
    if instructions == AMX:
        tiles_off(acc)
