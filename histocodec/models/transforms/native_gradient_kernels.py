"""The kernels of `histocodec.models.transforms.native_gradient`: the synthesis forwards, with all activations kept, and
its derivative back, a row at a time.

Arguments are as in `histocodec.models.transforms.native_kernels`. Derivatives in activations are signed bytes, 128 too
high; those in the stream, which flow back past the residual blocks, are float32.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.kernels.epilogues import ACTIVATE, ADD, PUT, stream_bytes, wide_bytes
from histocodec.kernels.errors import enter_integers, squared_errors
from histocodec.kernels.instructions import AMX
from histocodec.kernels.jit import jit
from histocodec.kernels.layers import EXTRA_ROWS, address, clear, dense, fill
from histocodec.kernels.products import depthwise_row, tiles_off, tiles_on
from histocodec.models.transforms.native_kernels import wide_input

# Of a block: rows and columns that it takes, those that it gives, where its activations are kept after `expand` and
# after the 3×3 layer, and bytes from one row of each to the next. In the last line: those that `up` and `tail` take.
KEPT_FIELDS = 12
# Of a block on the way back: rows and columns whose activations have a derivative, those of the stream that it gives,
# and where it keeps three rows of derivatives.
BACK_FIELDS = 9
# Of a block's parameters on the way back: what it sees of the stream in bytes; weight, bias and factor of the
# transposed `project`, 3×3 layer and `expand`.
BACK_BLOCK_FIELDS = 10
BORDER = 2  # positions beside a row of derivatives before a 3×3 layer: it gives one more than it takes on each side

Row = NDArray[Any]


@jit
def unit_bytes(instructions: int, x: int, channels: int, count: int, unit: int, out: int) -> None:
    """A stream, `count` positions, times the unit of each channel → bytes, 128 too high."""
    for c in range(0, channels, 64):
        wide_bytes(instructions, x + 4 * c, 4 * channels, unit + 4 * c, out + c, channels, count)


@jit
def _block(
    instructions: int, row: int, x: int, columns: int, kept: int, block: Row, span: Row, base: int, zeros: int,
    seen: int, acc: int, parameters: int,
) -> int:  # fmt: skip
    """One residual block for a new row of its stream, as `native_kernels` has it; all activations stay where they are.
    Returns the row that is done, in place."""
    spatial, channels, hidden = block[0], block[1], block[2]
    none: Any = np.int64(0)
    top, bottom, left, right = span[0], span[1], span[2], span[3]
    if top <= row < bottom:
        here = x + (row % kept * columns + left) * channels * 4
        stream_bytes(instructions, here, seen, (right - left) * channels // 64)
        dense(
            instructions, seen, none, none, none, none, channels, channels // 4, right - left, parameters + block[3],
            parameters + block[4], parameters + block[5], hidden // 64, acc, np.int64(ACTIVATE),
            base + span[8] + (row - top) * span[9] + hidden, hidden, np.int64(64), none, none,
        )  # fmt: skip
    if spatial:
        row -= 1
    if not span[4] <= row < span[5]:
        return row
    count, first = span[7] - span[6], base + span[8] + (row - top) * span[9] + (span[6] - left) * hidden
    a = first + hidden
    if spatial:
        above = first - span[9] if row > top else zeros
        below = first + span[9] if row + 1 < bottom else zeros
        a = base + span[10] + (row - span[4]) * span[11]
        depthwise_row(
            instructions, above, first, below, hidden, parameters + block[6], parameters + block[7],
            parameters + block[8], a, hidden, count, False,
        )  # fmt: skip
    dense(
        instructions, a, none, none, none, none, hidden, hidden // 4, count, parameters + block[9],
        parameters + block[10], parameters + block[11], channels // 64, acc, np.int64(ADD),
        x + (row % kept * columns + span[6]) * channels * 4, channels * 4, np.int64(256), none, none,
    )  # fmt: skip
    return row


@jit
def _add_errors(floats: Row, at: int, row: int, per: int, error: Row) -> None:
    """Adds the sums (w, 16) at `at`, of one row of unshuffled pixels, to `error`."""
    for p in range(per * error.shape[1]):
        total = np.float32(0)
        for k in range(16):
            total += floats[at + 16 * p + k]
        error[row // per, p // per] += total


@jit
def record(
    instructions: int, latents: Row, inverse_gain: Row, scale: int, parameters: Row, none_at: int, blocks: Row,
    blocks16: int, wide: Row, kept: Row, layout: Row, memory: Row, mean: Row, std: Row, target: Row, slope_unit: Row,
    slopes: Row, error: Row,
) -> None:  # fmt: skip
    """A window of latents (h, w, C) int16, C in whole groups → `error` at each latent's position, and with `slopes`
    (rows, columns, 192) uint8 the derivative in the unshuffled pixels; all activations stay in `memory`."""
    rows, columns = latents.shape[:2]
    none: Any = np.int64(0)
    start, base = address(parameters), address(memory)
    floats = memory.view(np.float32)
    zeros, x16, x8, seen, low, high, planes, acc = (
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
        hidden, width = blocks[n, 2], kept[n, 3] - kept[n, 2]
        for row in range(kept[n, 1] - kept[n, 0]):
            first = base + kept[n, 8] + row * kept[n, 9]
            clear(first, hidden)
            clear(first + (width + 1) * hidden, hidden)
    last, latents_at, gains = kept[kept.shape[0] - 1], address(latents), address(inverse_gain)
    behind = 0
    for n in range(blocks.shape[0]):
        behind += 2 * blocks[n, 0] if n < blocks16 else blocks[n, 0]
    for entering in range(rows + (behind + 1) // 2):
        if entering < rows:
            to_row = x16 + entering % kept16 * width16 * padded16 * 4
            for c in range(0, padded16, 64):
                enter_integers(
                    instructions, latents_at + 2 * (entering * columns * padded16 + c), 2 * padded16, gains + 4 * c,
                    start + scale + 4 * c, to_row + 4 * c, 4 * padded16, columns,
                )  # fmt: skip
        row = entering
        for n in range(blocks16):
            row = _block(
                instructions, row, x16, width16, kept16, blocks[n], kept[n], base, zeros, seen, acc, start
            )  # fmt: skip
        if last[0] <= row < last[1]:
            count, here = last[3] - last[2], x16 + (row % kept16 * width16 + last[2]) * padded16 * 4
            beyond = wide_input(instructions, here, padded16, count, wide[0], seen, low, high, memory, parameters)
            for part in range(4):
                at = x8 + ((2 * row + part // 2) % kept8 * width8 + 2 * last[2] + part % 2) * padded8 * 4
                groups = padded8 // 64
                dense(
                    instructions, seen, low if beyond else none, high, start + wide[0, 10] + 256 * groups * part,
                    start + none_at,
                    wide[0, 8], wide[0, 8] // 4, count, start + wide[0, 0] + groups * part * wide[0, 8] * 64,
                    start + wide[0, 1] + 256 * groups * part, start + wide[0, 2] + 256 * groups * part, groups, acc,
                    np.int64(PUT), at, 2 * padded8 * 4, np.int64(256), none, none,
                )  # fmt: skip
        for second in range(2):
            row8 = 2 * row + second
            for n in range(blocks16, blocks.shape[0]):
                row8 = _block(
                    instructions, row8, x8, width8, kept8, blocks[n], kept[n], base, zeros, seen, acc, start,
                )  # fmt: skip
            if last[4] <= row8 < last[5]:
                count, here = last[7] - last[6], x8 + (row8 % kept8 * width8 + last[6]) * padded8 * 4
                beyond = wide_input(instructions, here, padded8, count, wide[1], seen, low, high, memory, parameters)
                dense(
                    instructions, seen, low if beyond else none, high, start + wide[1, 10], start + none_at,
                    wide[1, 8], wide[1, 8] // 4,
                    count, start + wide[1, 0], start + wide[1, 1], start + wide[1, 2], np.int64(3), acc,
                    np.int64(PUT), planes, np.int64(768), np.int64(256), none, none,
                )  # fmt: skip
                to = address(slopes) + (row8 - last[4]) * count * 192 if slopes.size else seen
                squared_errors(
                    instructions, planes, address(target) + (row8 - last[4]) * count * 384, address(mean), address(std),
                    address(slope_unit), to, low, count,
                )  # fmt: skip
                _add_errors(floats, (low - base) // 4, row8 - last[4], 2, error)
    if instructions == AMX:
        tiles_off(acc)


@jit
def _mask(bytes_at: Row, first: int, active: int, size: int) -> None:
    """Sets the derivatives from `first` on to 0, held as 128, where the activations from `active` on are 0."""
    derivatives, activations = bytes_at[first : first + size], bytes_at[active : active + size]
    for n in range(size):  # in arithmetic, which LLVM vectorises: a choice of two becomes a jump here
        derivatives[n] = ((derivatives[n] ^ 128) & -np.int64(activations[n] != 0)) ^ 128


@jit
def _block_back(
    instructions: int, row: int, g: int, columns: int, ring_rows: int, block: Row, back: Row, kept: Row, span: Row,
    base: int, memory: Row, middle: int, seen: int, active: int, acc: int, parameters: int,
) -> int:  # fmt: skip
    """The derivative of one block for a new row of that in its output, whose rows lie at `g`. Returns the row that is
    done, in place. `middle` is a row of derivatives of 0."""
    spatial, channels, hidden = block[0], block[1], block[2]
    none: Any = np.int64(0)
    top, bottom, left, right = span[0], span[1], span[2], span[3]
    width = right - left
    row_bytes = (width + 2 * BORDER + EXTRA_ROWS) * hidden
    if top <= row < bottom:
        here = g + (row % ring_rows * columns + left) * channels * 4
        unit_bytes(instructions, here, channels, width, parameters + back[0], seen)
        to = base + span[8] + row % 4 * row_bytes + BORDER * hidden if spatial else active
        dense(
            instructions, seen, none, none, none, none, channels, channels // 4, width, parameters + back[1],
            parameters + back[2], parameters + back[3], hidden // 64, acc, np.int64(ACTIVATE), to, hidden, np.int64(64),
            none, none,
        )  # fmt: skip
        if spatial:
            passed = kept[10] + (row - kept[4]) * kept[11] + (left - kept[6]) * hidden
        else:
            passed = kept[8] + (row - kept[0]) * kept[9] + (left - kept[2] + 1) * hidden
        _mask(memory, to - base, passed, width * hidden)
    if spatial:
        row -= 1
    if not span[4] <= row < span[5]:
        return row
    count, a = span[7] - span[6], active + (span[6] - left) * hidden
    if spatial:
        first = base + span[8] + (span[6] - left + BORDER - 1) * hidden
        above = first + (row - 1) % 4 * row_bytes if top <= row - 1 < bottom else middle
        here = first + row % 4 * row_bytes if top <= row < bottom else middle
        below = first + (row + 1) % 4 * row_bytes if top <= row + 1 < bottom else middle
        a = active
        depthwise_row(
            instructions, above, here, below, hidden, parameters + back[4], parameters + back[5], parameters + back[6],
            a, hidden, count, False,
        )  # fmt: skip
        passed = kept[8] + (row - kept[0]) * kept[9] + (span[6] - kept[2] + 1) * hidden
        _mask(memory, a - base, passed, count * hidden)
    dense(
        instructions, a, none, none, none, none, hidden, hidden // 4, count, parameters + back[7], parameters + back[8],
        parameters + back[9], channels // 64, acc, np.int64(ADD),
        g + (row % ring_rows * columns + span[6]) * channels * 4, channels * 4, np.int64(256), none, none,
    )  # fmt: skip
    return row


@jit
def _clear_around(row: int, first: int, end: int, width: int, size: int) -> None:
    """Zeros in a row of `width` positions, of `size` bytes each, before `first` and from `end` on."""
    if first > 0:
        clear(row, first * size)
    if end < width:
        clear(row + end * size, (width - end) * size)


@jit
def pull_back(
    instructions: int, slopes: Row, inverse_gain: Row, parameters: Row, blocks: Row, blocks16: int, back: Row,
    ends: Row, kept: Row, spans: Row, layout: Row, memory: Row, columns: int, out: Row,
) -> None:  # fmt: skip
    """What `record` left → the derivative in the chunk's latents, `out` (h, w, C). `ends` are weight, bias and factor
    of the transposed `tail`, what `up` sees in bytes, and weight, bias and factor of the transposed `up`."""
    none: Any = np.int64(0)
    start, base = address(parameters), address(memory)
    floats = memory.view(np.float32)
    middle, g16, g8, seen, active, acc = (
        base + layout[0], base + layout[1], base + layout[2], base + layout[3], base + layout[4], base + layout[5],
    )  # fmt: skip
    ring16, ring8, padded16, padded8 = layout[6], layout[7], layout[8], layout[9]
    width16, width8, chunk = columns + EXTRA_ROWS, 2 * columns + EXTRA_ROWS, kept[kept.shape[0] - 1]
    if instructions == AMX:
        tiles_on(acc)
    fill(memory, layout[0], layout[1], 128)
    for n in range(blocks.shape[0]):
        size = (spans[n, 3] - spans[n, 2] + 2 * BORDER + EXTRA_ROWS) * blocks[n, 2]
        if blocks[n, 0]:
            fill(memory, spans[n, 8], spans[n, 8] + 4 * size, 128)
    last = spans[spans.shape[0] - 1]  # rows and columns of `up` at 1/16, and of the chunk's latents
    delay = 0
    for n in range(blocks.shape[0]):
        delay += 2 * blocks[n, 0] if n < blocks16 else blocks[n, 0]
    for entering in range(2 * last[0], max(2 * last[1], 2 * last[5]) + delay + 2):
        here8 = g8 + entering % ring8 * width8 * padded8 * 4
        if chunk[4] <= entering < chunk[5]:
            count = chunk[7] - chunk[6]
            _clear_around(here8, chunk[6], chunk[7], width8, 4 * padded8)
            dense(
                instructions, address(slopes) + (entering - chunk[4]) * count * 192, none, none, none, none,
                np.int64(192), np.int64(48), count, start + ends[0], start + ends[1], start + ends[2], padded8 // 64,
                acc, np.int64(PUT), here8 + chunk[6] * padded8 * 4, padded8 * 4, np.int64(256), none, none,
            )  # fmt: skip
        else:
            clear(here8, width8 * padded8 * 4)
        row8 = entering
        for m in range(blocks.shape[0] - blocks16):
            n = blocks.shape[0] - 1 - m
            row8 = _block_back(
                instructions, row8, g8, width8, ring8, blocks[n], back[n], kept[n], spans[n], base, memory, middle,
                seen, active, acc, start,
            )  # fmt: skip
        if row8 % 2 == 0:
            continue
        row = row8 // 2
        if row < last[0]:
            continue
        here = g16 + row % ring16 * width16 * padded16 * 4
        if row >= last[1]:
            clear(here, width16 * padded16 * 4)
        else:
            _clear_around(here, last[2], last[3], width16, 4 * padded16)
            count = last[3] - last[2]
            for second in range(2):
                at = g8 + ((2 * row + second) % ring8 * width8 + 2 * last[2]) * padded8 * 4
                unit_bytes(instructions, at, padded8, 2 * count, start + ends[3], seen)
                for part in range(2):
                    at_part = 3 * (2 * second + part) + 4
                    dense(
                        instructions, seen + part * padded8, none, none, none, none, 2 * padded8, padded8 // 4, count,
                        start + ends[at_part], start + ends[at_part + 1], start + ends[at_part + 2], padded16 // 64,
                        acc, np.int64(ADD if second + part else PUT), here + last[2] * padded16 * 4, padded16 * 4,
                        np.int64(256), none, none,
                    )  # fmt: skip
        for m in range(blocks16):
            n = blocks16 - 1 - m
            row = _block_back(
                instructions, row, g16, width16, ring16, blocks[n], back[n], kept[n], spans[n], base, memory, middle,
                seen, active, acc, start,
            )  # fmt: skip
        if last[4] <= row < last[5]:
            first = (g16 - base) // 4 + (row % ring16 * width16 + last[6]) * padded16
            for column in range(last[7] - last[6]):
                at16 = first + column * padded16
                slope, stream = out[row - last[4], column], floats[at16 : at16 + padded16]
                for c in range(padded16):
                    slope[c] = stream[c] * inverse_gain[c]
    if instructions == AMX:
        tiles_off(acc)
