"""The kernels of `histocodec.codec.latent_search`: passes over all latents (C, h, w) of a chunk."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy.cost import bits_of
from histocodec.kernels.jit import jit
from histocodec.models.config import GROUPS
from histocodec.models.prior.graph import POSITIONS

NEVER = np.float32(-1e30)  # bits of a latent that is not coded, so that no move of it saves any

Row = NDArray[Any]


@jit
def price(
    values: Row, tables: Row, whole_mean: Row, step: int, cell_rows: int, cell_columns: int, low: Row, size: Row,
    offset: Row, cost: Row, table_of: Row, mean_of: Row, bits: Row, by_position: Row,
) -> None:  # fmt: skip
    """Writes table, whole mean and `bits` of each element of one step, which come in coding order, into (C, h, w), and
    adds the bits to those of its position, (h, w). Elements beyond (h, w) are left out."""
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
                    if row < bits.shape[1] and column < bits.shape[2]:
                        table, mean = np.int64(tables[n]), np.int64(whole_mean[n])
                        found = np.float32(bits_of(np.int64(values[n]) - mean, table, low, size, offset, cost))
                        table_of[channel, row, column], mean_of[channel, row, column] = table, mean
                        bits[channel, row, column] = found
                        by_position[row, column] += found
                    n += 1


@jit
def choose(
    current: Row, bits: Row, table_of: Row, mean_of: Row, scaled_y: Row, slope: Row, weight: Any, curvature: Row,
    damping: Row, flat: Row, least_promise: Any, low: Row, size: Row, offset: Row, cost: Row, moves: Row,
) -> int:  # fmt: skip
    """Writes the move of -1, 0 or 1 that promises to save most bits, at least `least_promise`, for each latent. Returns
    how many move. Derivatives are in squared error, of which one is worth `weight` bits."""
    count, least_value, most_value = 0, np.iinfo(np.int16).min + 1, np.iinfo(np.int16).max
    for channel in range(current.shape[0]):
        half = weight * curvature[channel] / np.float32(2)
        for row in range(current.shape[1]):
            for column in range(current.shape[2]):
                moves[channel, row, column] = 0
                known = bits[channel, row, column]
                price_of_error = weight * slope[channel, row, column]
                bend = half * damping[row, column]
                if bend - abs(price_of_error) - known >= -least_promise or flat[row, column]:
                    continue  # no symbol is short enough
                value, y = np.int64(current[channel, row, column]), scaled_y[channel, row, column]
                if value <= least_value or value >= most_value:
                    continue
                least, best = -least_promise, 0
                for move in (-1, 1):
                    target = value + move
                    if abs(target) < abs(value) or abs(target - y) < 1:
                        change = price_of_error * move + bend - known
                        if change < least:
                            symbol = target - np.int64(mean_of[channel, row, column])
                            table = np.int64(table_of[channel, row, column])
                            change += bits_of(symbol, table, low, size, offset, cost)
                            if change < least:
                                least, best = change, move
                if best != 0:
                    moves[channel, row, column] = best
                    count += 1
    return count


@jit
def observe(
    moves: Row, slope: Row, trial_slope: Row, curvature: Row, expected: Row, foretold: Row, counts: Row, changes: Row
) -> None:
    """What the moves (C, h, w) showed: at each position the error that their slopes foretold, and how much their
    curvature alone bends it, (h, w); in each channel how many moved, and by how much their slopes changed, (C,)."""
    for channel in range(moves.shape[0]):
        for row in range(moves.shape[1]):
            for column in range(moves.shape[2]):
                move = np.float32(moves[channel, row, column])
                if move != 0:
                    foretold[row, column] += slope[channel, row, column] * move
                    expected[row, column] += curvature[channel]
                    counts[channel] += 1
                    changes[channel] += (trial_slope[channel, row, column] - slope[channel, row, column]) * move


@jit
def keep(accepted: Row, values: Row, trial: Row) -> None:
    """Writes the `trial` of each accepted position over `values`; both are (C, h, w)."""
    for channel in range(values.shape[0]):
        for row in range(values.shape[1]):
            for column in range(values.shape[2]):
                old, new = values[channel, row, column], trial[channel, row, column]
                values[channel, row, column] = new if accepted[row, column] else old
