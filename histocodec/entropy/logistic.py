"""Frequency tables of logistic distributions, made in whole numbers alone, so that no file need store them.

Table 8 i + p has the scale 2^((i - 17) / 5) and the mean p / 8: like a model's tables, for a caller that subtracts the
integer part of the mean. The bytes of `histocodec.codec.exact` are coded with them.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy.tables import TOTAL, TableSet

SCALES, PHASES = 48, 8
MOST_REACH = 255
ONE = 1 << 48  # of the odds
# round(2^32 · exp(-1 / (8 · 2^((i - 17) / 5)))): what the odds of the tail fall by in an eighth.
FALLOFF = (
    1147902117, 1361715887, 1580030169, 1798392801, 2012918497, 2220405830, 2418372428, 2605029347,
    2779215405, 2940309357, 3088133809, 3222860606, 3344923893, 3454944178, 3553664662, 3641899740,
    3720494712, 3790295335, 3852125680, 3906772774, 3954976647, 3997424560, 4034748382, 4067524286,
    4096274075, 4121467622, 4143526005, 4162825044, 4179699006, 4194444324, 4207323216, 4218567136,
    4228380000, 4236941177, 4244408227, 4250919385, 4256595809, 4261543595, 4265855576, 4269612925,
    4272886581, 4275738509, 4278222805, 4280386687, 4282271346, 4283912712, 4285342117, 4286586875,
)  # fmt: skip
# The largest value of a table is the least from which on the tail has less than 2^-12 of all, and at most 255.
RARE = 12


@lru_cache(maxsize=1)
def logistic_tables() -> TableSet:
    """The 384 tables."""
    rows = [
        (reach, _table(shares, reach, phase))
        for shares, reach in map(_shares, range(SCALES))
        for phase in range(PHASES)
    ]
    return TableSet(
        low=np.array([-reach for reach, _ in rows], np.int16),
        size=np.array([len(row) - 1 for _, row in rows], np.uint16),
        freq=np.concatenate([row for _, row in rows]),
    )


@lru_cache(maxsize=1)
def costs() -> NDArray[np.float64]:
    """What a value costs whose mean is n eighths away, in bits: (48, 2048) by scale and n."""
    n = np.arange(2048)
    scales = 8 * 2 ** ((np.arange(SCALES)[:, None] - 17) / 5)  # in eighths
    near, far = np.exp(-(n - 4) / scales), np.exp(-(n + 4) / scales)
    likely = 1 / (1 + far) - 1 / (1 + near)
    cost: NDArray[np.float64] = -np.log2(np.maximum(likely, 2.0**-22))
    return cost


def _shares(scale: int) -> tuple[tuple[int, ...], int]:
    """The share of all, in 2^-48, of what lies above the mean by less than n - 1/2 eighths, for n = 0 … ; and the reach
    of the scale's tables."""
    odds, shares = ONE, []
    for _ in range(8 * (MOST_REACH + 2)):
        shares.append(ONE * ONE // (ONE + odds))
        odds = odds * FALLOFF[scale] >> 32
    beyond = next((n for n in range(1, MOST_REACH) if ONE - shares[8 * n] < ONE >> RARE), MOST_REACH)
    return tuple(shares), beyond


def _table(shares: tuple[int, ...], reach: int, phase: int) -> NDArray[np.uint16]:
    """The frequencies of the values -reach … reach, and of ESCAPE, for a mean of `phase` eighths."""

    def below(eighths: int) -> int:
        return shares[eighths] if eighths >= 0 else ONE - shares[-eighths]

    edges = [below(8 * value - phase - 4) for value in range(-reach, reach + 2)]
    free = TOTAL - len(edges)  # each value and ESCAPE have 1 at least
    starts = [number + ((edge - edges[0]) * free >> 48) for number, edge in enumerate(edges)]
    return np.diff([*starts, TOTAL]).astype(np.uint16)
