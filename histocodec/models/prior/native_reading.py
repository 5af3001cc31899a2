"""A chunk's stream to its latents in one kernel: prior and entropy decoder in turns, each writing where the other
looks.

It reads the stream as `histocodec.entropy.rans` defines it.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy.rans import BAD_TABLE, LOWER, NO_WORD, OK, read_rare
from histocodec.entropy.tables import PRECISION, TOTAL, TableSet
from histocodec.kernels.jit import jit
from histocodec.kernels.layers import address, clear_raised
from histocodec.kernels.pack import aligned
from histocodec.kernels.symbols import BEYOND, LOW_SHIFT, MOST, SUMS, TABLE_BITS, TABLES, put_values, read_symbols
from histocodec.models.config import GROUPS
from histocodec.models.prior.graph import HYPER_CLIP, POSITIONS
from histocodec.models.prior.native_kernels import (
    CELL_BYTES,
    HYPER,
    LATENT_QUADS,
    LATENTS,
    LISTED,
    POSITION_BYTES,
    SEEN,
    SEEN_QUADS,
    STEP,
    hyper,
    step,
)

Row = NDArray[Any]
Rows = tuple[Row, ...]
BAD_LATENT, BAD_HYPER = 5, 6  # statuses beside those of `rans`: a value does not fit


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
def _read_row(
    count: int, at: int, data: Row, cursors: Row, states: Row, looked_up: Row, tables: Rows, memory: Row, codes: int,
    layout: Row,
) -> int:  # fmt: skip
    """Reads `count` symbols over their codes, which begin at the byte `codes` of the memory; `at` is the number of the
    first in its segment. `cursors[3]` is then how many of the values are not 0, which are listed. Returns the
    status."""
    base, n = address(memory), 0
    cursors[3] = 0
    while n < count:
        n = read_symbols(
            base + codes, n, count, at, states.size - 1, address(states), address(data), data.size - 2,
            address(cursors), address(looked_up), base + layout[LISTED],
        )  # fmt: skip
        if n < count:
            code = memory[codes + 4 * n : codes + 4 * n + 4].view(np.int32)
            status = _read_rare_symbol(at + n, data, cursors, states, tables, code)
            if status != OK:
                return status
            memory[layout[LISTED] + 4 * cursors[3] :].view(np.int32)[0] = n
            cursors[3] += code[0] != 0
            n += 1
    return NO_WORD if cursors[0] > cursors[1] else OK


@jit
def _read_hyper(
    z_codes: Row, hyper_channels: int, cell_rows: int, cell_columns: int, columns: int, inputs: int, data: Row,
    cursors: Row, states: Row, looked_up: Row, tables: Rows, memory: Row, layout: Row,
) -> int:  # fmt: skip
    """Reads z, of which each channel has so many codes, into the working memory. Returns the status."""
    clear_raised(address(memory) + layout[HYPER], layout[HYPER + 1] - layout[HYPER])
    z_rows, z_columns, codes = (cell_rows + 1) // 2, (cell_columns + 1) // 2, layout[STEP]
    count = z_rows * z_columns
    values = memory[codes : codes + 4 * count].view(np.int32)
    for channel in range(hyper_channels):
        for n in range(count):
            values[n] = z_codes[channel * count + n]
        status = _read_row(
            count, channel * count, data, cursors, states, looked_up, tables, memory, codes, layout
        )  # fmt: skip
        if status != OK:
            return status
        for n in range(count):
            if values[n] < -HYPER_CLIP or values[n] > HYPER_CLIP:
                cursors[2] = values[n]
                return BAD_HYPER
            at = n // z_columns * (columns // 4) + n % z_columns
            memory[layout[HYPER] + at * inputs + channel] = 128 + values[n]
    return OK


@jit
def _read_step(
    k: int, quads: int, cell_rows: int, cell_columns: int, rows: int, columns: int, data: Row, cursors: Row,
    states: Row, looked_up: Row, tables: Rows, lifted: Row, places: Row, memory: Row, layout: Row, out: Row, size: int,
) -> int:  # fmt: skip
    """Reads the latents whose codes are in the working memory, to where the next steps look for them and to `out`.
    Returns the status."""
    base, cells, per = address(memory), cell_rows * cell_columns, layout[POSITION_BYTES]
    across, at = out.shape[1] * out.shape[2], 0
    for p in range(GROUPS):
        i, j, group = POSITIONS[p][0], POSITIONS[p][1], p ^ k
        latents = base + layout[LATENTS] + ((i + 1) * (columns + 2) + j + 1) * per + 2 * group * layout[LATENT_QUADS]
        seen = base + layout[SEEN] + p * rows * columns // 4 * layout[CELL_BYTES] + k * layout[SEEN_QUADS]
        to = address(out) + i * across + j * out.shape[2] + group * size
        for quad in range(quads):
            codes = layout[STEP] + 4 * at
            status = _read_row(cells, at, data, cursors, states, looked_up, tables, memory, codes, layout)
            if status != OK:
                return status
            if cursors[3] != 0:
                beyond = put_values(
                    base + codes, base + layout[LISTED], cursors[3], address(lifted), address(places), 4 * cells,
                    latents + 2 * quad, seen + quad, to + GROUPS * quad * size, size,
                )  # fmt: skip
                if beyond != 0:
                    return BAD_LATENT
            at += cells
    return OK


@jit
def read_chunk(
    instructions: int, quality: int, quads: int, cell_rows: int, cell_columns: int, rows: int, columns: int,
    sizes: Row, z_codes: Row, data: Row, cursors: Row, states: Row, looked_up: Row, tables: Rows, lifted: Row,
    places: Row, parameters: Row, hyper_layers: Row, layers: Row, of_contexts: Row, contexts: Row, heads: Row,
    shifts: Row, memory: Row, layout: Row, out: Row, size: int,
) -> int:  # fmt: skip
    """Reads all segments of a chunk: the latents `out` (rows, columns, bytes of channels) uint8, where there are zeros,
    of `size` bytes each, 1 or 2. Returns the status; where that is BAD_HYPER, `cursors[2]` is what is not allowed.

    `sizes` are the hyper-latents' channels and their bytes, and the channels of `h_s` and of the context, as they are
    padded; `tables` the arrays of a `TableSet` that `_read_rare_symbol` takes; `lifted` the bytes of latents from
    -LINEAR_CLIP on; `places` (3, cells) where the latents of each cell lie among LATENTS, SEEN and `out`, in bytes from
    those of the first. For the others see `native_kernels`."""
    hyper_channels, inputs, width, context = sizes[0], sizes[1], sizes[2], sizes[3]
    status = _read_hyper(
        z_codes, hyper_channels, cell_rows, cell_columns, columns, inputs, data, cursors, states, looked_up, tables,
        memory, layout,
    )  # fmt: skip
    if status != OK:
        return status
    hyper(
        instructions, parameters, hyper_layers, quality, rows, columns, width, inputs, memory, layout,
        context + width, context,
    )  # fmt: skip
    for k in range(GROUPS):
        step(
            instructions, k, parameters, layers[k], of_contexts, contexts[k], heads[k], shifts[k], quality, rows,
            columns, context, context + width, memory, layout, quads, cell_rows, cell_columns,
        )  # fmt: skip
        status = _read_step(
            k, quads, cell_rows, cell_columns, rows, columns, data, cursors, states, looked_up, tables, lifted, places,
            memory, layout, out, size,
        )  # fmt: skip
        if status != OK:
            return status
    return OK


@jit
def _read_rare_symbol(i: int, data: Row, cursors: Row, states: Row, tables: Rows, codes: Row) -> int:
    """Reads symbol number i of its segment by its table, over the first of the codes. Returns the status."""
    mode, low, size, freq, cdf, coarse = tables
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
