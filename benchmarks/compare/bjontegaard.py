"""The Bjøntegaard rate difference: how many per cent more or fewer bytes a codec needs for the same quality.

    log bytes │   anchor ╱ ╱ test     The area between both curves, over the qualities that both
              │        ╱▒╱            reach, divided by their width, is the mean difference of the
              │      ╱▒╱              logarithms. −50 % means half the bytes.
              └────────────── PSNR

G. Bjøntegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33 (2001), with the monotone
interpolation (PCHIP) that later replaced its cubic fit.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pchip:
    """A monotone piecewise cubic through two or more points (x, y), x strictly rising; constant beyond the ends.

    F. N. Fritsch and R. E. Carlson, "Monotone piecewise cubic interpolation", SIAM J. Numer. Anal. 17 (1980); slopes at
    the ends by the three-point formula, as in SciPy's PchipInterpolator.
    """

    x: Values  # (n,)
    y: Values  # (n,)

    @property
    def slopes(self) -> Values:
        """The derivative at each point, (n,)."""
        h, delta = np.diff(self.x), np.diff(self.y) / np.diff(self.x)
        if len(delta) == 1:
            return np.repeat(delta, 2)
        slopes = np.zeros(len(self.x))
        same = delta[:-1] * delta[1:] > 0
        left, right = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
        inner = (left[same] + right[same]) / (left[same] / delta[:-1][same] + right[same] / delta[1:][same])
        slopes[1:-1][same] = inner
        slopes[0] = _end_slope(h[0], h[1], delta[0], delta[1])
        slopes[-1] = _end_slope(h[-1], h[-2], delta[-1], delta[-2])
        return slopes

    def __call__(self, at: Values) -> Values:
        """The values at `at`, of the same shape."""
        piece = np.clip(np.searchsorted(self.x, at, side="right") - 1, 0, len(self.x) - 2)
        slopes, h = self.slopes, np.diff(self.x)[piece]
        t = (np.clip(at, self.x[0], self.x[-1]) - self.x[piece]) / h
        value = (1 + 2 * t) * (1 - t) ** 2 * self.y[piece] + t**2 * (3 - 2 * t) * self.y[piece + 1]
        tangent = t * (1 - t) ** 2 * slopes[piece] - t**2 * (1 - t) * slopes[piece + 1]
        return np.asarray(value + h * tangent, np.float64)

    def mean(self, low: float, high: float) -> float:
        """The mean from `low` to `high`, by Simpson's rule from knot to knot, which is exact for cubics."""
        inner = self.x[(self.x > low) & (self.x < high)]
        ends = np.concatenate(([low], inner, [high]))
        middles = (ends[:-1] + ends[1:]) / 2
        areas = np.diff(ends) * (self(ends[:-1]) + 4 * self(middles) + self(ends[1:])) / 6
        return float(areas.sum() / (high - low))


def _end_slope(h0: float, h1: float, delta0: float, delta1: float) -> float:
    slope = ((2 * h0 + h1) * delta0 - h0 * delta1) / (h0 + h1)
    if slope * delta0 <= 0:
        return 0.0
    if delta0 * delta1 <= 0 and abs(slope) > 3 * abs(delta0):
        return 3 * delta0
    return slope


@dataclass(frozen=True, eq=False)
class Curve:
    """What a codec reaches on one image: bytes over quality, both strictly rising, at least two points."""

    log_bytes_at: Pchip  # natural logarithm of the bytes, over the quality
    quality_at: Pchip  # the quality, over that logarithm

    @classmethod
    def of(cls, points: Iterable[tuple[float, float]]) -> "Curve | None":
        """Build a curve from (bytes, quality). Points that cost more and are no better than a cheaper one are left
        out, because nobody would use them, and so are lossless ones. None where fewer than two remain."""
        useful: list[tuple[float, float]] = []
        for size, quality in sorted(points, key=lambda point: (point[0], -point[1])):
            if math.isfinite(quality) and (not useful or quality > useful[-1][1]):
                useful.append((size, quality))
        if len(useful) < 2:
            return None
        sizes, qualities = np.log(np.array(useful)[:, 0]), np.array(useful)[:, 1]
        return cls(Pchip(qualities, sizes), Pchip(sizes, qualities))

    @property
    def qualities(self) -> tuple[float, float]:
        """The lowest and the highest quality."""
        return float(self.log_bytes_at.x[0]), float(self.log_bytes_at.x[-1])


@dataclass(frozen=True)
class BdRate:
    """`percent` more bytes than the anchor (negative: fewer), as the mean over the qualities from `low` to `high`."""

    percent: float
    low: float
    high: float


def bd_rate(anchor: Curve, test: Curve, *, anchor_bytes: tuple[float, float] | None = None) -> BdRate | None:
    """Compare two curves over all qualities that both reach; with `anchor_bytes` only over those for which the anchor
    needs from so many to so many bytes. None where there are none."""
    low = max(anchor.qualities[0], test.qualities[0])
    high = min(anchor.qualities[1], test.qualities[1])
    if anchor_bytes is not None:
        ends = anchor.quality_at(np.log(np.array(anchor_bytes, np.float64)))
        low, high = max(low, float(ends[0])), min(high, float(ends[1]))
    if low >= high:
        return None
    difference = test.log_bytes_at.mean(low, high) - anchor.log_bytes_at.mean(low, high)
    return BdRate(100 * math.expm1(difference), low, high)
