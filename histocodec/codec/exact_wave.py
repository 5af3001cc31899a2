"""The kernels of `exact`: predict, and read or number the tables of, all rows of a time at once.

Rows lie side by side in memory: position (y, x) of a chunk is element [x + 3 y + MARGIN, y + PAD], so that the rows of
a time are neighbours, and so are those that they are predicted from. What lies outside of the chunk is 0 in k; base has
the nearest pixel there.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy.rans import decode_segment
from histocodec.kernels.jit import jit

LAG = 3  # columns that a row is behind the one above it: (y - 1, x + 2) comes before (y, x)
MARGIN, PAD = 8, 2  # times before the first, and rows above the first; a row more lies below the last
MEAN_BITS = 9  # of a sum's fraction: weights are in 1/512 of an eighth
HALF = 1 << (MEAN_BITS - 1)
ACTIVITY_BITS = 4  # likewise of the activity's
MOST_OFF = 2047  # eighths
MOST_K = 255
TERMS = 15  # of the activity
BAD_VALUE = 100  # a status beside those of `rans`

Row = NDArray[Any]


def skewed(height: int, width: int) -> NDArray[np.int16]:
    """Zeros (3, times, rows) for `height` × `width` positions, with margins."""
    return np.zeros((3, width + LAG * (height - 1) + 2 * MARGIN, height + PAD + 1), np.int16)


def unskewed(values: NDArray[np.int16], height: int, width: int) -> NDArray[np.int16]:
    """What `skew` was given, (h, w, 3), of which `values` may have changed since."""
    rows, columns = np.arange(height)[:, None], np.arange(width)
    return values[:, columns + LAG * rows + MARGIN, rows + PAD].transpose(1, 2, 0)


@jit
def skew(values: Row, out: Row, beyond: int) -> None:
    """values (h, w, 3) → out, `skewed`, with the nearest for `beyond` positions around them."""
    h, w = values.shape[0], values.shape[1]
    for y in range(-beyond, h + beyond):
        for x in range(-beyond, w + beyond):
            for c in range(3):
                out[c, x + 3 * y + MARGIN, y + PAD] = values[min(max(y, 0), h - 1), min(max(x, 0), w - 1), c]


@jit
def restore(k: Row, step: int, base: Row, out: Row) -> None:
    """base (h, w, 3) + step · k, limited to 0 … 255 → out (h, w, 3) uint8. k is `skewed`."""
    for y in range(base.shape[0]):
        for x in range(base.shape[1]):
            for c in range(3):
                value: int = base[y, x, c] + step * np.int64(k[c, x + 3 * y + MARGIN, y + PAD])
                out[y, x, c] = min(max(value, 0), 255)


# Loops over rows are written so that LLVM makes vectors of them: over the length of slices, in int32, with one array
# written.


@jit
def _add(weight: Any, values: Row, shift: int, sums: Row, first: int, last: int) -> None:
    """sums[row] += weight · values[row + shift]."""
    near, out = values[first + shift : last + shift], sums[first:last]
    for i in range(out.size):
        out[i] = np.int32(out[i] + weight * np.int32(near[i]))


@jit
def _add_difference(weight: Any, a: Row, up: int, b: Row, down: int, sums: Row, first: int, last: int) -> None:
    """sums[row] += weight · |a[row + up] - b[row + down]|."""
    one, other, out = a[first + up : last + up], b[first + down : last + down], sums[first:last]
    for i in range(out.size):
        difference = np.int32(np.int32(one[i]) - np.int32(other[i]))
        out[i] = np.int32(out[i] + weight * max(difference, np.int32(-difference)))


@jit
def _add_weighted(
    weights: Row, at: int, a: Row, up: int, b: Row, classes: Row, sums: Row, first: int, last: int
) -> None:
    """sums[row] += the weight `at` of the row's class · (a[row + up] - b[row])."""
    w0, w1, w2, w3 = weights[0, at], weights[1, at], weights[2, at], weights[3, at]
    one, other, out, groups = a[first + up : last + up], b[first:last], sums[first:last], classes[first:last]
    for i in range(out.size):
        group = groups[i]
        low = w1 if group & 1 else w0
        high = w3 if group & 1 else w2
        weight = high if group & 2 else low
        out[i] = np.int32(out[i] + weight * np.int32(np.int32(one[i]) - np.int32(other[i])))


@jit
def _count_above(limit: Any, values: Row, counts: Row, first: int, last: int) -> None:
    """counts[row] += 1 where values[row] > limit."""
    one, out = values[first:last], counts[first:last]
    for i in range(out.size):
        out[i] = np.int32(out[i] + (np.int32(1) if one[i] > limit else np.int32(0)))


@jit
def _shift_down(values: Row, bits: int, first: int, last: int) -> None:
    """values[row] >>= bits."""
    out, by = values[first:last], np.int32(bits)
    for i in range(out.size):
        out[i] = np.int32(out[i] >> by)


@jit
def _classify(
    time: int, k: Row, base: Row, step: int, limits: Row, sums: Row, classes: Row, first: int, last: int
) -> None:
    """The class of each row first … last - 1 at a time, from how rough k and the base are there."""
    sums[first:last] = 0
    for c in range(3):
        _add_difference(np.int32(step), k[c, time - 1], 0, k[c, time - 4], -1, sums, first, last)
        _add_difference(np.int32(step), k[c, time - 3], -1, k[c, time - 4], -1, sums, first, last)
        _add_difference(np.int32(step), k[c, time - 3], -1, k[c, time - 2], -1, sums, first, last)
        _add_difference(np.int32(1), base[c, time + 1], 0, base[c, time - 1], 0, sums, first, last)
        _add_difference(np.int32(1), base[c, time + 3], 1, base[c, time - 3], -1, sums, first, last)
    classes[first:last] = 0
    for limit in limits:
        _count_above(limit, sums, classes, first, last)


@jit
def _predict(
    time: int, k: Row, base: Row, grey: Row, nothing: Row, taps: Row, count: int, weights: Row, classes: Row,
    means: Row, first: int, last: int,
) -> None:  # fmt: skip
    """The means of k in eighths. `taps` (n, 3) are (y, x, channel), of which there are `count`."""
    bias = count + 27
    groups, out = classes[first:last], means[first:last]
    for i in range(out.size):
        out[i] = weights[groups[i], bias] * 8 + HALF
    for i in range(count):
        y, x = taps[i, 0], taps[i, 1]
        _add_weighted(weights, i, k[taps[i, 2], time + x + 3 * y], y, nothing, classes, means, first, last)
    at = count
    for c in range(3):
        for y in range(-1, 2):
            for x in range(-1, 2):
                if x == 0 and y == 0:
                    _add_weighted(weights, at, base[c, time], 0, grey, classes, means, first, last)
                else:
                    _add_weighted(weights, at, base[c, time + x + 3 * y], y, base[c, time], classes, means, first, last)
                at += 1
    _shift_down(means, MEAN_BITS, first, last)


@jit
def _find_tables(
    place: int, order: Row, time: int, k: Row, base: Row, off: Row, activity: Row, thresholds: Row, scales: Row,
    means: Row, sums: Row, contexts: Row, tables: Row, first: int, last: int,
) -> None:  # fmt: skip
    """The number of each row's frequency table, from how far off the means around it were, and how rough it is."""
    c, one, two = order[place], order[(place + 1) % 3], order[(place + 2) % 3]
    sums[first:last] = activity[TERMS] * 64
    _add(activity[0], off[c, time - 1], 0, sums, first, last)
    _add(activity[1], off[c, time - 3], -1, sums, first, last)
    _add(activity[2], off[c, time - 4], -1, sums, first, last)
    _add(activity[3], off[c, time - 2], -1, sums, first, last)
    _add(activity[4], off[c, time - 2], 0, sums, first, last)
    _add(activity[5], off[c, time - 6], -2, sums, first, last)
    _add(activity[6], off[one, time - 1], 0, sums, first, last)
    _add(activity[6], off[two, time - 1], 0, sums, first, last)
    _add(activity[7], off[one, time - 3], -1, sums, first, last)
    _add(activity[7], off[two, time - 3], -1, sums, first, last)
    if place > 0:
        _add(activity[8], off[order[0], time], 0, sums, first, last)
    if place > 1:
        _add(activity[9], off[order[1], time], 0, sums, first, last)
    _add_difference(np.int32(activity[10] * 8), k[c, time - 1], 0, k[c, time - 4], -1, sums, first, last)
    _add_difference(np.int32(activity[11] * 8), k[c, time - 3], -1, k[c, time - 4], -1, sums, first, last)
    _add_difference(np.int32(activity[12] * 8), k[c, time - 3], -1, k[c, time - 2], -1, sums, first, last)
    _add_difference(np.int32(activity[13] * 8), base[c, time + 1], 0, base[c, time - 1], 0, sums, first, last)
    _add_difference(np.int32(activity[14] * 8), base[c, time + 3], 1, base[c, time - 3], -1, sums, first, last)
    _shift_down(sums, ACTIVITY_BITS, first, last)
    contexts[first:last] = 0
    for limit in thresholds:
        _count_above(limit, sums, contexts, first, last)
    chosen, phases, out = contexts[first:last], means[first:last], tables[first:last]
    for i in range(out.size):
        out[i] = np.uint16(8 * scales[chosen[i]] + (phases[i] & 7))


@jit
def _place(symbols: Row, means: Row, k: Row, first: int, last: int) -> bool:
    """k[row] = symbols[row] + the integer part of its mean. False where one is beyond ±MOST_K."""
    one, other, out, beyond = symbols[first:last], means[first:last], k[first:last], 0
    for i in range(out.size):
        value = np.int64(one[i]) + (np.int64(other[i]) >> 3)
        beyond |= int(value > MOST_K) | int(value < -MOST_K)
        out[i] = value
    return bool(beyond == 0)


@jit
def _note(k: Row, means: Row, off: Row, first: int, last: int) -> None:
    """off[row] = how far k is from its mean, in eighths, at most MOST_OFF."""
    one, other, out = k[first:last], means[first:last], off[first:last]
    for i in range(out.size):
        missed = np.int32(np.int32(one[i]) * np.int32(8) - other[i])
        out[i] = np.int16(min(max(missed, np.int32(-missed)), np.int32(MOST_OFF)))


@jit
def walk(
    decode: int, k: Row, base: Row, step: int, height: int, width: int, order: Row, taps: Row, counts: Row,
    weights: Row, limits: Row, activity: Row, thresholds: Row, scales: Row,
    data: Row, cursors: Row, states: Row, mode: Row, low: Row, size: Row, freq: Row, cdf: Row, coarse: Row,
    symbols: Row, tables: Row, bounds: Row, off: Row,
) -> int:  # fmt: skip
    """Go through a chunk in the order of coding. With `decode`, fill k (`skewed`) from the stream, and return the
    status. Without, k is known: write the symbols, the numbers of their tables, and where segments end, (n,) each.
    `off`, zeros of k's shape, is filled with how far k is from its means."""
    rows = height + PAD + 1
    sums, classes, means, contexts = (
        np.zeros(rows, np.int32), np.zeros(rows, np.int32), np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    )  # fmt: skip
    nothing, grey = np.zeros(rows, np.int16), np.zeros(rows, np.int16)
    grey[:] = 128
    numbers, values = np.zeros(rows, np.uint16), np.zeros(rows, np.int32)
    used, segment = 0, 0
    for at in range(width + LAG * (height - 1)):
        time = at + MARGIN
        first = max(0, (at - width + LAG) // LAG) + PAD
        last = min(height - 1, at // LAG) + 1 + PAD
        _classify(time, k, base, step, limits, sums, classes, first, last)
        for place in range(3):
            c = order[place]
            _predict(
                time, k, base, grey, nothing, taps[place], counts[place], weights[place], classes, means, first, last
            )
            _find_tables(
                place, order, time, k, base, off, activity[place], thresholds[place], scales[place], means, sums,
                contexts, numbers, first, last,
            )  # fmt: skip
            here = k[c, time]
            if decode:
                status = decode_segment(
                    data, cursors, states, numbers[first:last], mode, low, size, freq, cdf, coarse, values[first:last]
                )
                if status != 0:
                    return status
                if not _place(values, means, here, first, last):
                    return BAD_VALUE
            else:
                for row in range(first, last):
                    symbols[used] = np.int32(here[row]) - (means[row] >> 3)
                    tables[used] = numbers[row]
                    used += 1
                segment += 1
                bounds[segment] = used
            _note(here, means, off[c, time], first, last)
    return 0
