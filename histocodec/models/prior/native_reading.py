"""Entropy decoding of one step's latents, straight to where the prior's next step looks for them.

It reads the stream as `histocodec.entropy.rans` defines it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy.rans import BAD_TABLE, LOWER, NO_WORD, OK, read_rare
from histocodec.entropy.tables import PRECISION, TOTAL
from histocodec.kernels.distributions import TABLE_BITS
from histocodec.kernels.jit import jit
from histocodec.models.config import GROUPS
from histocodec.models.prior.graph import LATENT_LIMIT
from histocodec.models.prior.native_kernels import LATENTS, SEEN, STEP, put

Row = NDArray[Any]
BAD_LATENT = 5  # a status beside those of `rans`: a latent is not int16


@jit
def read_step(
    k: int, quads: int, cell_rows: int, cell_columns: int, rows: int, columns: int, slot: int,
    data: Row, cursors: Row, states: Row, mode: Row, low: Row, size: Row, freq: Row, cdf: Row, coarse: Row,
    compress: Row, memory: Row, layout: Row,
) -> int:  # fmt: skip
    """Reads the latents whose codes are in the working memory, as `rans._decode` and `place` do, and returns the
    status. Where that is BAD_LATENT, `cursors[2]` is the latent."""
    codes, first = memory.view(np.int32), layout[STEP] // 4
    halves, seen, latents = memory.view(np.int16), layout[SEEN], layout[LATENTS] // 2
    position, tail, mask = cursors[0], cursors[1], states.size - 1
    cells, positions, i = cell_rows * cell_columns, rows * columns // 4, 0
    for p in range(GROUPS):
        for quad in range(quads):
            for cell in range(cells):
                code = np.int64(codes[first + i])
                t, value = code & (1 << TABLE_BITS) - 1, code >> TABLE_BITS
                if t >= low.size:
                    return BAD_TABLE
                lane = i & mask
                x = np.int64(states[lane])
                slot_of = x & (TOTAL - 1)
                above, f = slot_of - mode[t, 0], np.int64(mode[t, 1])
                if above >= 0 and above < f:
                    value += mode[t, 2]
                else:
                    status, symbol, f, above, tail = read_rare(
                        slot_of, t, data, position, tail, mode, low, size, freq, cdf, coarse
                    )
                    if status != OK:
                        return status
                    value += symbol
                rest = f * (x >> PRECISION) + above
                if rest < LOWER:
                    if tail - position < 2:
                        return NO_WORD
                    rest = rest << 16 | np.int64(data[position]) | np.int64(data[position + 1]) << 8
                    position += 2
                states[lane] = rest
                if value != 0:
                    if value < -LATENT_LIMIT or value >= LATENT_LIMIT:
                        cursors[2] = value
                        return BAD_LATENT
                    put(
                        value, k, p, quad, cell, columns, cell_columns, positions, slot, compress, memory, halves,
                        seen, latents,
                    )  # fmt: skip
                i += 1
    cursors[0], cursors[1] = position, tail
    return OK
