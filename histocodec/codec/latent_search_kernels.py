"""The kernels of `histocodec.codec.latent_search`: passes over all latents (h, w, C) of a chunk."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy.cost import bits_of
from histocodec.kernels.distributions import TABLE_BITS
from histocodec.kernels.jit import jit
from histocodec.models.config import GROUPS
from histocodec.models.prior.graph import POSITIONS

NEVER = np.float32(-1e30)  # bits of a latent that is not coded, so that no move of it saves any

Row = NDArray[Any]


@jit
def price(
    values: Row, tables: Row, whole_mean: Row, step: int, cell_rows: int, cell_columns: int, low: Row, size: Row,
    offset: Row, cost: Row, codes: Row, bits: Row, by_position: Row,
) -> None:  # fmt: skip
    """Writes code and `bits` of each element of one step, which come in coding order, into (h, w, C), and adds the bits
    to those of its position, (h, w). Elements beyond (h, w) are left out."""
    per_position = values.size // GROUPS
    for p in range(GROUPS):
        i, j = POSITIONS[p][0], POSITIONS[p][1]
        n = p * per_position
        for quad in range(per_position // (cell_rows * cell_columns)):
            channel = GROUPS * quad + (p ^ step)
            for cell_row in range(cell_rows):
                row = 2 * cell_row + i
                for cell in range(cell_columns):
                    column = 2 * cell + j
                    if row < bits.shape[0] and column < bits.shape[1]:
                        table, mean = np.int64(tables[n]), np.int64(whole_mean[n])
                        found = np.float32(bits_of(np.int64(values[n]) - mean, table, low, size, offset, cost))
                        codes[row, column, channel] = (mean << TABLE_BITS) + table
                        bits[row, column, channel] = found
                        by_position[row, column] += found
                    n += 1


@jit
def choose(
    current: Row, bits: Row, codes: Row, scaled_y: Row, slope: Row, weight: Any, curvature: Row, damping: Row,
    flat: Row, least_promise: Any, least_value: int, most_value: int, low: Row, size: Row, offset: Row, cost: Row,
    channels: int, worth: Row, trial: Row, moved: Row,
) -> int:  # fmt: skip
    """Writes `current`, of which each latent of the first `channels` is moved by -1, 0 or 1, whatever promises to save
    most bits, at least `least_promise`, into `trial`, and whether any moves at a position into `moved` (h, w). Returns
    how many move. Derivatives are in squared error, of which one is worth `weight` bits. `worth` is memory to work
    with: zeros, uint8, at least `channels` of them, in whole eights."""
    count, eights = 0, worth.view(np.uint64)
    for row in range(current.shape[0]):
        for column in range(current.shape[1]):
            values, known, slopes, to = current[row, column], bits[row, column], slope[row, column], trial[row, column]
            moved[row, column] = False
            for channel in range(current.shape[2]):
                to[channel] = values[channel]
            if flat[row, column]:
                continue
            half = weight * damping[row, column] / np.float32(2)
            for channel in range(channels):  # a pass without branches, which LLVM vectorises
                bend = half * curvature[channel]
                worth[channel] = abs(weight * slopes[channel]) + known[channel] > bend + least_promise
            for eight in range((channels + 7) // 8):
                if eights[eight] == 0:
                    continue  # no symbol is short enough
                for channel in range(8 * eight, min(8 * eight + 8, channels)):
                    if worth[channel] == 0:
                        continue
                    value, code = np.int64(values[channel]), np.int64(codes[row, column, channel])
                    move = _best_move(
                        value, scaled_y[row, column, channel], code, known[channel], weight * slopes[channel],
                        half * curvature[channel], least_promise, least_value, most_value, low, size, offset, cost,
                    )  # fmt: skip
                    if move != 0:
                        to[channel] = value + move
                        moved[row, column] = True
                        count += 1
    return count


@jit
def _best_move(
    value: Any, y: Any, code: Any, known: Any, price_of_error: Any, bend: Any, least_promise: Any, least_value: int,
    most_value: int, low: Row, size: Row, offset: Row, cost: Row,
) -> int:  # fmt: skip
    """The move of one latent that promises most."""
    table, mean = code & ((1 << TABLE_BITS) - 1), code >> TABLE_BITS
    least, best = -np.float64(least_promise), 0
    for move in (-1, 1):
        target = value + move
        if least_value <= target <= most_value and (value * move < 0 or abs(target - y) < 1):
            change = np.float64(price_of_error * move + bend - known)
            if change < least:
                change += bits_of(target - mean, table, low, size, offset, cost)
                if change < least:
                    least, best = change, move
    return best


@jit
def observe(
    current: Row, trial: Row, moved: Row, slope: Row, trial_slope: Row, curvature: Row, channels: int, expected: Row,
    foretold: Row, counts: Row, changes: Row,
) -> None:  # fmt: skip
    """What the moves from `current` to `trial` (h, w, C), of the first `channels`, showed: at each position the error
    that their slopes foretold, and how much their curvature alone bends it, (h, w); in each channel how many moved, and
    by how much their slopes changed, (C,)."""
    for row in range(current.shape[0]):
        for column in range(current.shape[1]):
            if not moved[row, column]:
                continue
            for channel in range(channels):
                move = np.float32(trial[row, column, channel] - current[row, column, channel])
                if move != 0:
                    foretold[row, column] += slope[row, column, channel] * move
                    expected[row, column] += curvature[channel]
                    counts[channel] += 1
                    changes[channel] += (trial_slope[row, column, channel] - slope[row, column, channel]) * move


@jit
def damp(
    damping: Row, bend: Row, expected_bend: Row, accepted: Row, least: float, most: float, damped: float,
    relieved: float, updated: Row,
) -> None:  # fmt: skip
    """The damping (h, w) after a step, within `least` … `most`: see `latent_search._updated_damping`."""
    rows, columns = damping.shape
    for row in range(rows):
        for column in range(columns):
            shown, expected, value = 0.0, 0.0, np.float64(damping[row, column])
            for i in range(max(row - 1, 0), min(row + 2, rows)):
                for j in range(max(column - 1, 0), min(column + 2, columns)):
                    shown += bend[i, j]
                    expected += expected_bend[i, j]
            if expected > 0:
                value = np.sqrt(value * min(max(max(shown, 0.0) / expected, least), most))
            value *= relieved if accepted[row, column] else damped
            updated[row, column] = min(max(value, least), most)


@jit
def take_back(accepted: Row, before: Row, trial: Row) -> None:
    """Writes what was there `before` over the `trial` of each position that is not accepted; both are (h, w, C)."""
    for row in range(trial.shape[0]):
        for column in range(trial.shape[1]):
            if not accepted[row, column]:
                old, new = before[row, column], trial[row, column]
                for channel in range(trial.shape[2]):
                    new[channel] = old[channel]


@jit
def ranges(pixels: Row, stride: int, low: Row, high: Row, out: Row) -> None:
    """The largest range of any colour in each square of `stride` pixels: (H, W, 3) uint8 → (H / stride, W / stride).
    `low` and `high` (3 · W,) uint8 are memory to work with."""
    width = low.size
    flat = pixels.reshape(pixels.shape[0], width)
    for row in range(out.shape[0]):
        low[:] = 255
        high[:] = 0
        for line in range(stride * row, stride * (row + 1)):
            values = flat[line]
            for n in range(width):
                low[n] = min(low[n], values[n])
                high[n] = max(high[n], values[n])
        for column in range(out.shape[1]):
            most = np.int64(0)
            for colour in range(3):
                least, largest = np.int64(255), np.int64(0)
                for n in range(3 * stride * column + colour, 3 * stride * (column + 1), 3):
                    least, largest = min(least, np.int64(low[n])), max(largest, np.int64(high[n]))
                most = max(most, largest - least)
            out[row, column] = most
