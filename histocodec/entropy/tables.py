"""Integer frequency tables: the only probabilities that the entropy coder ever sees.

A table gives every symbol in [low, low + size) and a final ESCAPE a frequency of at least 1; the frequencies sum to
2^14. Tables are made in floating point once, when a model is exported. From then on they are stored as integers, so
that two machines cannot disagree about them.
"""

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError, UsageError

PRECISION = 14  # bits: fine enough for a zero that costs 1e-4 bit, and any symbol costs at most one word
TOTAL = 1 << PRECISION
MAX_TABLES = 1 << 16  # a table index is a uint16
MAX_SIZE = TOTAL - 1  # regular symbols in a table: each has frequency 1 or more, and so has ESCAPE
COARSE_BITS = 8  # the lookup's resolution: 512 bytes a table, so that hundreds of tables stay in cache
COARSE_SHIFT = PRECISION - COARSE_BITS
COST_UNIT = 1 << 10  # `cost` counts 1/1024 bit
ESCAPE_BITS = 12  # of a value beyond its table, besides the escape symbol: about a byte and a half


@dataclass(frozen=True, eq=False)
class TableSet:
    """T frequency tables, laid end to end. The first three fields are what a model file stores.

        freq:   | table 0: size[0] symbols, ESCAPE | table 1: size[1] symbols, ESCAPE | …
        symbol:   low[0], low[0] + 1, …              low[1], …

    The arrays are copied and made read-only. Raises FormatError for arrays that are not such a set. The other fields
    are derived, for fast look-ups.
    """

    low: NDArray[np.int16]  # (T,) the smallest regular symbol; 0 is always regular
    size: NDArray[np.uint16]  # (T,) the number of regular symbols, ESCAPE not counted
    freq: NDArray[np.uint16]  # (sum(size + 1),)

    offset: NDArray[np.int32] = field(init=False, repr=False)  # (T,) where a table starts in `freq`
    cdf: NDArray[np.uint16] = field(init=False, repr=False)  # like freq: the sum of the frequencies before it
    cost: NDArray[np.uint16] = field(init=False, repr=False)  # like freq: code length in 1/1024 bit
    mode: NDArray[np.int32] = field(init=False, repr=False)  # (T, 4) likeliest symbol: cdf, freq, value, offset
    coarse: NDArray[np.uint16] = field(init=False, repr=False)  # (T, 256) first entry that ends above 64 slots each

    def __post_init__(self) -> None:
        for name, dtype in (("low", np.int16), ("size", np.uint16), ("freq", np.uint16)):
            self._keep(name, _checked(getattr(self, name), name, np.dtype(dtype)))
        entries = self.size.astype(np.int64) + 1  # (T,)
        starts = np.cumsum(entries) - entries  # (T,)
        self._check(entries, starts)
        count = len(entries)
        ends = np.cumsum(self.freq, dtype=np.int64)  # over all tables: table t ends at (t + 1) * TOTAL
        cdf = ends - self.freq - np.repeat(np.arange(count) * TOTAL, entries)
        slots = np.arange(count << COARSE_BITS, dtype=np.int64) << COARSE_SHIFT
        coarse = np.searchsorted(ends, slots, side="right").reshape(count, -1) - starts[:, None]
        self._keep("offset", starts.astype(np.int32))
        self._keep("cdf", cdf.astype(np.uint16))
        self._keep("cost", np.rint(COST_UNIT * (PRECISION - np.log2(self.freq))).astype(np.uint16))
        self._keep("mode", self._modes(starts))
        self._keep("coarse", coarse.astype(np.uint16))

    def __len__(self) -> int:
        return len(self.low)

    def __reduce__(self) -> tuple[type["TableSet"], tuple[NDArray[Any], ...]]:
        return TableSet, (self.low, self.size, self.freq)  # a plain pickle would lose the read-only flags

    def _check(self, entries: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        if not 1 <= len(self.low) <= MAX_TABLES:
            raise FormatError(f"{len(self.low)} frequency tables; allowed are 1 to {MAX_TABLES}")
        if len(self.size) != len(self.low):
            raise FormatError(f"frequency tables: {len(self.low)} lows but {len(self.size)} sizes")
        _refuse((self.size < 1) | (self.size > MAX_SIZE), self.size, f"size is not 1 to {MAX_SIZE}")
        high = self.low + self.size.astype(np.int64) - 1
        _refuse((self.low > 0) | (high < 0), self.low, "symbol 0 is outside it; low")
        if int(entries.sum()) != len(self.freq):
            raise FormatError(f"frequency tables: {len(self.freq)} frequencies where the sizes ask for {entries.sum()}")
        _refuse(np.minimum.reduceat(self.freq, starts) < 1, self.low, "a symbol has frequency 0; low")
        sums = np.add.reduceat(self.freq.astype(np.int64), starts)
        _refuse(sums != TOTAL, sums, f"frequencies do not sum to {TOTAL}: sum")

    def _modes(self, starts: NDArray[np.int64]) -> NDArray[np.int32]:
        regular = self.freq.astype(np.int64)
        regular[starts + self.size] = 0  # ESCAPE needs the slow path, so it is never the mode
        best = np.maximum.reduceat(regular, starts)
        table = np.repeat(np.arange(len(starts)), self.size.astype(np.int64) + 1)
        hits = np.flatnonzero(regular == best[table])
        at = hits[np.unique(table[hits], return_index=True)[1]]  # the first of equals
        ends = np.cumsum(self.freq, dtype=np.int64)
        cdf = ends[at] - self.freq[at] - np.arange(len(starts)) * TOTAL
        return np.stack([cdf, self.freq[at], self.low + at - starts, starts], axis=1).astype(np.int32)

    def _keep(self, name: str, array: NDArray[Any]) -> None:
        array.setflags(write=False)
        object.__setattr__(self, name, array)


def _checked(array: NDArray[Any], name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    if array.dtype != dtype or array.ndim != 1:
        raise FormatError(f"frequency tables: {name} is {array.dtype} {array.shape}, not a row of {dtype}")
    return array.copy()


def _refuse(broken: NDArray[np.bool_], values: NDArray[Any], what: str) -> None:
    if broken.any():
        at = int(np.argmax(broken))
        raise FormatError(f"frequency table {at}: {what} (found {values[at]})")


def quantise_pmf(pmf: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """Frequencies (N,) uint16 in proportion to the weights `pmf` (N,) of any positive sum: each at least 1, together
    2^14.

    They are rounded down first. The remainder then goes, unit by unit, where it shortens the code most, or is taken
    where that lengthens it least. Ties go to the lower index, so that the same weights give the same table. Raises
    UsageError for weights that are negative, not finite or all zero.
    """
    weight = np.asarray(pmf, dtype=np.float64)
    if weight.ndim != 1 or not 1 <= len(weight) <= TOTAL:
        raise UsageError(f"a table has 1 to {TOTAL} weights in one row, not shape {weight.shape}")
    if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.sum() > 0):
        raise UsageError("weights must be finite, not negative, and not all zero")
    weight = weight / weight.sum()
    freq: NDArray[np.int64] = np.maximum(np.floor(weight * TOTAL).astype(np.int64), 1)
    missing = TOTAL - int(freq.sum())
    step = 1 if missing > 0 else -1

    def price(i: int) -> float:  # what the next unit at i costs, in nats; minus infinity never occurs
        before = int(freq[i])
        return math.inf if before + step < 1 else float(weight[i]) * math.log(before / (before + step))

    heap = [(price(i), i) for i in range(len(freq))]
    heapq.heapify(heap)
    for _ in range(abs(missing)):
        i = heap[0][1]
        freq[i] += step
        heapq.heapreplace(heap, (price(i), i))
    return freq.astype(np.uint16)


def gaussian_tables(scales: Iterable[float], phases: int, *, smallest: float = 2.0**-15) -> TableSet:
    """The tables of normal distributions, rounded to integers. Table `i * phases + p` has standard deviation
    `scales[i]` and mean `p / phases`, for a caller that subtracts the integer part of the mean from the symbol.

    Symbols less likely than `smallest` are left to ESCAPE, which gets their probability. Raises UsageError for a scale
    that is not positive and finite, and where there is no scale or phase.
    """
    if phases < 1:
        raise UsageError(f"{phases} phases; at least 1 is needed")
    rows = [_gaussian(sigma, p / phases, smallest) for sigma in scales for p in range(phases)]
    if not rows:
        raise UsageError("no scale was given")
    return TableSet(
        low=np.array([low for low, _ in rows], dtype=np.int16),
        size=np.array([len(freq) - 1 for _, freq in rows], dtype=np.uint16),
        freq=np.concatenate([freq for _, freq in rows]),
    )


def _gaussian(sigma: float, mean: float, smallest: float) -> tuple[int, NDArray[np.uint16]]:
    """The lowest symbol of one table, and its frequencies, ESCAPE last."""
    if not (sigma > 0 and math.isfinite(sigma)):
        raise UsageError(f"scale {sigma}: a standard deviation is positive and finite")
    reach = math.ceil(5 * sigma) + 2  # 2^-15 lies within 4.6 standard deviations
    edges = (np.arange(-reach, reach + 2) - 0.5 - mean) / (sigma * math.sqrt(2))
    pmf = np.diff([0.5 * math.erf(edge) for edge in edges])  # of the symbols -reach … reach
    likely = np.flatnonzero(pmf >= smallest)
    first = min(int(likely[0]), reach) if len(likely) else reach
    last = max(int(likely[-1]), reach) if len(likely) else reach
    regular = pmf[first : last + 1]
    return first - reach, quantise_pmf(np.append(regular, max(0.0, 1.0 - float(regular.sum()))))


def fit_tables(base: TableSet, counts: NDArray[np.integer[Any]], *, strength: float = 1024.0) -> TableSet:
    """The tables `base`, refitted to `counts`: how often each entry of `base.freq` was coded, ESCAPE included.

    Each table is the posterior mean under a Dirichlet prior, in which `base` counts for `strength` symbols. Raises
    UsageError for counts of another shape or below 0, and for a strength that is not above 0.
    """
    if counts.shape != base.freq.shape or (counts < 0).any():
        raise UsageError(f"counts must be {base.freq.shape} and not negative, not {counts.shape}")
    if not strength > 0:
        raise UsageError(f"strength {strength}: the prior must count for something")
    weights = counts + base.freq * (strength / TOTAL)
    rows = np.split(weights, base.offset[1:])
    return TableSet(low=base.low, size=base.size, freq=np.concatenate([quantise_pmf(row) for row in rows]))
