"""What a symbol costs, in bits, before anything is coded."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy.tables import COST_UNIT, ESCAPE_BITS, TableSet
from histocodec.kernels.jit import jit

Row = NDArray[Any]  # for the kernels, whose types numba infers


def symbol_bits(symbols: NDArray[np.integer[Any]], tables: NDArray[np.integer[Any]], of: TableSet) -> Row:
    """The length of each symbol with its table, (N,) float32 bits; of one beyond its table about so many."""
    return _all_bits(symbols, tables, of.low, of.size, of.offset, of.cost)


@jit
def bits_of(symbol: Any, table: Any, low: Row, size: Row, offset: Row, cost: Row) -> float:
    """One symbol's, for other kernels."""
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
