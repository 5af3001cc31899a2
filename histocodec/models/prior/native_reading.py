"""Entropy decoding of one step's latents, straight to where the prior's next step looks for them.

It reads the stream as `histocodec.entropy.rans` defines it.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy.rans import BAD_TABLE, LOWER, NO_WORD, OK, read_rare
from histocodec.entropy.tables import PRECISION, TOTAL, TableSet
from histocodec.kernels.distributions import TABLE_BITS
from histocodec.kernels.jit import jit
from histocodec.kernels.layers import address
from histocodec.kernels.pack import aligned
from histocodec.kernels.symbols import BEYOND, LOW_SHIFT, MOST, SUMS, put_values, read_symbols
from histocodec.models.config import GROUPS
from histocodec.models.prior.graph import LATENT_LIMIT, POSITIONS
from histocodec.models.prior.native_kernels import LATENTS, LATENTS_GAP, LISTED, SEEN, SEEN_GAP, STEP

Row = NDArray[Any]
BAD_LATENT = 5  # a status beside those of `rans`: a latent is not int16
TABLES = 1 << TABLE_BITS  # that a code can name


@lru_cache(maxsize=4)
def look_ups(tables: TableSet) -> NDArray[np.uint8]:
    """What `read_symbols` takes: the sums of every table that a code can name, then their limits. Tables that have too
    many symbols, or do not exist, have none that the look-ups give."""
    memory = aligned(TABLES * (2 * SUMS + 4))
    sums = memory[: 2 * TABLES * SUMS].view(np.int16).reshape(TABLES, SUMS)
    limits = memory[2 * TABLES * SUMS :].view(np.int32)
    sums[:], limits[:] = BEYOND, 0
    sums[:, 0] = 0
    for n, (first, size, low) in enumerate(zip(tables.offset, tables.size.tolist(), tables.low.tolist(), strict=True)):
        if n < TABLES and size <= MOST:
            sums[n, 1 : size + 1] = tables.cdf[first + 1 : first + size + 1]
            limits[n] = ((low - 1) << LOW_SHIFT) + size
    memory.setflags(write=False)
    return memory


@jit
def read_step(
    k: int, quads: int, cell_rows: int, cell_columns: int, rows: int, columns: int, slot: int,
    data: Row, cursors: Row, states: Row, looked_up: Row, mode: Row, low: Row, size: Row, freq: Row, cdf: Row,
    coarse: Row, lifted: Row, places: Row, memory: Row, layout: Row,
) -> int:  # fmt: skip
    """Reads the latents whose codes are in the working memory, as `rans.decode_segment` and `place` do, and returns the
    status. Where that is BAD_LATENT, `cursors[2]` is the latent. `places` (2, cells) are where latents of position 0
    lie in the two buffers, in bytes."""
    codes, listed = memory.view(np.int32), memory[layout[LISTED] :].view(np.int32)
    base, first, mask = address(memory), layout[STEP] // 4, states.size - 1
    latents, seen, bytes_of, where = base + layout[LATENTS], base + layout[SEEN], address(lifted), address(places)
    sums = address(looked_up)
    limits, cells, last = sums + 2 * TABLES * SUMS, cell_rows * cell_columns, data.size - 2
    per, positions, at = 2 * GROUPS * slot + LATENTS_GAP, rows * columns // 4, 0
    for p in range(GROUPS):
        latents_p = latents + ((POSITIONS[p][0] + 1) * (columns + 2) + POSITIONS[p][1] + 1) * per + 2 * (p ^ k) * slot
        seen_p = seen + p * positions * (GROUPS * slot + SEEN_GAP) + k * slot
        for quad in range(quads):
            here, n = base + layout[STEP] + 4 * at, 0
            cursors[3] = 0
            while n < cells:
                n = read_symbols(
                    here, n, cells, at, mask, address(states), address(data), last, address(cursors), sums, limits,
                    base + layout[LISTED],
                )  # fmt: skip
                if n < cells:
                    status = _read_rare_symbol(
                        at + n, data, cursors, states, mode, low, size, freq, cdf, coarse, codes[first + at + n :]
                    )
                    if status != OK:
                        return status
                    listed[cursors[3]] = n
                    cursors[3] += codes[first + at + n] != 0
                    n += 1
            if cursors[0] > cursors[1]:
                return NO_WORD
            if cursors[3] != 0:
                beyond = put_values(
                    here, base + layout[LISTED], cursors[3], bytes_of, latents_p + 2 * quad, where, seen_p + quad,
                    where + 4 * cells,
                )  # fmt: skip
                if beyond != 0:
                    for m in range(cells):
                        value = np.int64(codes[first + at + m])
                        if value < -LATENT_LIMIT or value >= LATENT_LIMIT:
                            cursors[2] = value
                            return BAD_LATENT
            at += cells
    return OK


@jit
def _read_rare_symbol(
    i: int, data: Row, cursors: Row, states: Row, mode: Row, low: Row, size: Row, freq: Row, cdf: Row, coarse: Row,
    codes: Row,
) -> int:  # fmt: skip
    """Reads symbol number i of its segment by its table, over the first of the codes. Returns the status."""
    position, tail, code = cursors[0], cursors[1], np.int64(codes[0])
    if position > tail:
        return NO_WORD
    t = code & (1 << TABLE_BITS) - 1
    if t >= low.size:
        return BAD_TABLE
    lane = i & states.size - 1
    x = np.int64(states[lane])
    status, symbol, f, above, tail = read_rare(
        x & TOTAL - 1, t, data, position, tail, mode, low, size, freq, cdf, coarse
    )  # fmt: skip
    if status != OK:
        return status
    rest = f * (x >> PRECISION) + above
    if rest < LOWER:
        if tail - position < 2:
            return NO_WORD
        rest = rest << 16 | np.int64(data[position]) | np.int64(data[position + 1]) << 8
        position += 2
    states[lane] = rest
    codes[0] = (code >> TABLE_BITS) + symbol
    cursors[0], cursors[1] = position, tail
    return OK
