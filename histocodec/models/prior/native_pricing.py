"""What latents that are known cost, by the kernels of the native prior: the search asks it after every step."""

import numpy as np

from histocodec.entropy.cost import NEAR, bits_of
from histocodec.kernels.distributions import TABLE_BITS
from histocodec.kernels.jit import jit
from histocodec.models.config import GROUPS
from histocodec.models.prior.graph import POSITIONS
from histocodec.models.prior.native_kernels import STEP, Row, put


@jit
def price_step(
    latents: Row, k: int, quads: int, cell_rows: int, cell_columns: int, rows: int, columns: int, lifted: Row,
    memory: Row, layout: Row, near: Row, low: Row, size: Row, offset: Row, cost: Row, codes: Row,
    bits: Row, by_position: Row,
) -> None:  # fmt: skip
    """Of the latents (h, w, C) int16 that step k codes: writes code and bits of each, (h, w, C) int32 and float32, adds
    the bits to those of its position, (h, w), and places them for the next steps. Elements beyond (h, w) are 0, and
    cost nothing. `near` is what `near_bits` gives."""
    numbers, halves, first = memory.view(np.int32), memory.view(np.int16), layout[STEP] // 4
    cells = cell_rows * cell_columns
    for p in range(GROUPS):
        i, j = POSITIONS[p][0], POSITIONS[p][1]
        for cell in range(cells):
            row, column = 2 * (cell // cell_columns) + i, 2 * (cell % cell_columns) + j
            if row >= latents.shape[0] or column >= latents.shape[1]:
                continue
            values, found_codes, found_bits = latents[row, column], codes[row, column], bits[row, column]
            at, channel, total = first + p * quads * cells + cell, p ^ k, np.float64(0)
            for quad in range(quads):
                code, value = np.int64(numbers[at]), np.int64(values[channel])
                table = code & ((1 << TABLE_BITS) - 1)
                symbol = value - (code >> TABLE_BITS)
                if -NEAR <= symbol < NEAR:
                    found = near[table, symbol + NEAR]
                else:
                    found = np.float32(bits_of(symbol, table, low, size, offset, cost))
                found_codes[channel], found_bits[channel] = code, found
                total += found
                if value != 0 and k + 1 < GROUPS:
                    put(value, k, p, quad, cell, rows, columns, cell_columns, lifted, memory, halves, layout)
                at += cells
                channel += GROUPS
            by_position[row, column] += total
