"""The bits that a symbol costs with a frequency table, without coding it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy.tables import COST_UNIT, ESCAPE_BITS, TableSet
from histocodec.kernels.jit import jit

NEAR = 16  # symbols from -NEAR to NEAR - 1 have their bits side by side in `near_bits`

Row = NDArray[Any]  # for the kernels, whose types numba infers


def symbol_bits(symbols: NDArray[np.integer[Any]], tables: NDArray[np.integer[Any]], table_set: TableSet) -> Row:
    """The code length of symbols (N,) with the tables (N,) of a set: (N,) float32 bits. A symbol beyond its table is
    estimated by that of ESCAPE and `ESCAPE_BITS`."""
    t = table_set
    return _all_bits(symbols, tables, t.low, t.size, t.offset, t.cost)


def near_bits(table_set: TableSet) -> NDArray[np.float32]:
    """The code length of the symbols -NEAR … NEAR - 1 with each table, (T, 2 · NEAR) float32 bits: what `symbol_bits`
    gives, for one look-up instead of four."""
    symbols, tables = np.arange(-NEAR, NEAR), np.arange(len(table_set))
    bits = symbol_bits(np.tile(symbols, len(tables)), np.repeat(tables, len(symbols)), table_set)
    return bits.reshape(len(tables), len(symbols))


@jit
def bits_of(symbol: Any, table: Any, low: Row, size: Row, offset: Row, cost: Row) -> float:
    """The code length of one symbol in bits, as `symbol_bits`, for other kernels. The arrays are those of a
    `TableSet`."""
    entry = symbol - low[table]
    if entry < 0 or entry >= size[table]:
        return float(cost[offset[table] + size[table]]) / COST_UNIT + ESCAPE_BITS
    return float(cost[offset[table] + entry]) / COST_UNIT


@jit
def _all_bits(symbols: Row, tables: Row, low: Row, size: Row, offset: Row, cost: Row) -> Row:
    bits = np.empty(symbols.size, np.float32)
    for n in range(symbols.size):
        bits[n] = bits_of(np.int64(symbols[n]), np.int64(tables[n]), low, size, offset, cost)
    return bits
