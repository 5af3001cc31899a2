"""What the encoder of `exact` fits to a chunk: weights by least squares, scales by what they cost."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.codec.exact_wave import ACTIVITY_BITS, MEAN_BITS, MOST_OFF, TERMS
from histocodec.entropy.logistic import costs

ORDER = (1, 0, 2)  # channels as they are coded, each from those before it: green, red, blue
NEAR = ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, 2), (-2, -1), (-2, 1), (-1, -2))  # (y, x)
EARLIER, LATER = 10, 6  # of NEAR, for channels that were coded before, and that will be after
CLASSES, CONTEXTS = 4, 16
BASE_TERMS = 28
MOST_WEIGHT, MOST_ACTIVITY, MOST_LIMIT = 32767, 1023, 1 << 24
LOSS = 0.003  # of the variance of what is predicted, that rounding the weights may add
MOST_SHIFT = 12
LARGE = 1 << 16  # positions
RIDGE = 1e-3  # times the number of positions

Floats = NDArray[np.float32]
Whole = NDArray[np.int32]


def taps_of(place: int) -> list[tuple[int, int, int]]:
    """The values of k that the channel at this place of the order is predicted from: (y, x, channel)."""
    found = [(y, x, ORDER[place]) for y, x in NEAR]
    for other in ORDER[:place]:
        found += [(0, 0, other), *((y, x, other) for y, x in NEAR[:EARLIER])]
    for other in ORDER[place + 1 :]:
        found += [(y, x, other) for y, x in NEAR[:LATER]]
    return found


COUNTS = np.array([len(taps_of(place)) for place in range(3)])
TAPS = np.zeros((3, COUNTS.max(), 3), np.int64)
for _place in range(3):
    TAPS[_place, : COUNTS[_place]] = taps_of(_place)
MOST_TERMS = int(COUNTS.max()) + BASE_TERMS


@dataclass(frozen=True, eq=False)
class Weights:
    """What means are predicted with, int32: weights (3, CLASSES, MOST_TERMS), of k, then of the base, then a constant,
    of which those of k and of the base are multiples of 2^shifts; and the limits (CLASSES - 1,) of roughness between
    classes."""

    weights: Whole
    shifts: tuple[int, int]
    limits: Whole


@dataclass(frozen=True, eq=False)
class Scales:
    """What scales are found with, int32: the activity's weights (3, TERMS + 1); the thresholds (3, CONTEXTS - 1) of it
    between contexts, and their scales (3, CONTEXTS)."""

    activity: Whole
    thresholds: Whole
    scales: Whole


class Fitter:
    """Fits k (h, w, 3), to be coded over its base (h, w, 3). Looks at every position of a small chunk, and at every
    third row of a large one."""

    def __init__(self, k: NDArray[np.int16], base: NDArray[np.uint8], step: int) -> None:
        self.height, self.width = k.shape[:2]
        self.step = step
        self.every = 3 if self.height * self.width >= LARGE else 1
        self._k = np.pad(k.astype(np.float32), ((2, 0), (2, 2), (0, 0)))
        self._base = np.pad(base.astype(np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")

    def _near(self, values: Floats, pad: int, y: int, x: int, channel: int) -> Floats:
        """The values (n,) at (y, x) from each position that is looked at."""
        y, x = y + pad, x + pad
        return values[y : y + self.height : self.every, x : x + self.width, channel].ravel()

    def _around(self, y: int, x: int, channel: int) -> Floats:
        return self._near(self._base, 1, y, x, channel)

    def _slopes(self, values: Floats, channel: int) -> list[Floats]:
        west, corner, north, east = (
            self._near(values, 2, y, x, channel) for y, x in ((0, -1), (-1, -1), (-1, 0), (-1, 1))
        )
        return [abs(west - corner), abs(north - corner), abs(north - east)]

    def _base_slopes(self, channel: int) -> list[Floats]:
        return [
            abs(self._around(0, 1, channel) - self._around(0, -1, channel)),
            abs(self._around(1, 0, channel) - self._around(-1, 0, channel)),
        ]

    def weights(self, classes: int) -> Weights:
        """Fit the means, with 1, 2 or 4 classes."""
        slopes = [self.step * slope for c in range(3) for slope in self._slopes(self._k, c)]
        rough = np.sum([*slopes, *(slope for c in range(3) for slope in self._base_slopes(c))], axis=0)
        cuts = np.quantile(rough, np.arange(1, classes) / classes, method="lower").astype(np.int32)
        limits = np.full(CLASSES - 1, MOST_LIMIT, np.int32)
        limits[: classes - 1] = cuts
        group = np.searchsorted(cuts, rough, side="left")
        of_base = []
        for c in range(3):
            here = self._around(0, 0, c)
            of_base += [self._around(y, x, c) - (128 if y == x == 0 else here) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        of_base.append(np.full(len(rough), 8, np.float32))
        solved, blur = [], np.zeros(2)  # what steps of 1 of the weights of k, and of the base, add to the variance
        for place, channel in enumerate(ORDER):
            terms = np.stack([self._near(self._k, 2, *tap) for tap in taps_of(place)] + of_base)
            target, count = 8 * self._near(self._k, 2, 0, 0, channel), int(COUNTS[place])
            for number in range(classes):
                members = np.flatnonzero(group == number)
                rows, wanted = terms[:, members], target[members]
                gram = (rows @ rows.T).astype(np.float64)
                power, n = gram.diagonal().copy(), max(1, len(members))
                gram[np.diag_indices(len(gram))] += RIDGE * n
                best = np.linalg.solve(gram, (rows @ wanted).astype(np.float64))
                variance = max(1.0, float(((best.astype(np.float32) @ rows - wanted) ** 2).sum()) / n)
                blur += np.array([power[:count].sum(), power[count:-1].sum()]) / (12 * 4**MEAN_BITS * variance)
                solved.append(best * 2**MEAN_BITS)
        samples = 3 * len(rough)
        shifts = np.clip(np.floor(np.log2(LOSS * samples / np.maximum(blur, 1e-9)) / 2), 0, MOST_SHIFT).astype(int)
        weights = np.zeros((3, CLASSES, MOST_TERMS), np.int32)
        for index, best in enumerate(solved):
            place, number = divmod(index, classes)
            steps = 1 << np.repeat([shifts[0], shifts[1], 0], [COUNTS[place], BASE_TERMS - 1, 1])
            most = MOST_WEIGHT // steps
            weights[place, number, : len(best)] = np.clip(np.rint(best / steps), -most, most) * steps
        return Weights(weights, (int(shifts[0]), int(shifts[1])), limits)

    def scales(self, off: NDArray[np.int16]) -> Scales:
        """Fit the scales to how far off the means are, (h, w, 3) in eighths."""
        missed = np.pad(off.astype(np.float32), ((2, 0), (2, 2), (0, 0)))

        def at(y: int, x: int, channel: int) -> Floats:
            return self._near(missed, 2, y, x, channel)

        activity = np.zeros((3, TERMS + 1), np.int32)
        thresholds, scales = np.zeros((3, CONTEXTS - 1), np.int32), np.zeros((3, CONTEXTS), np.int32)
        for place, c in enumerate(ORDER):
            one, two = ORDER[(place + 1) % 3], ORDER[(place + 2) % 3]
            target = at(0, 0, c)
            terms = [at(y, x, c) for y, x in NEAR[:6]] + [at(y, x, one) + at(y, x, two) for y, x in NEAR[:2]]
            terms += [at(0, 0, other) if number < place else 0 * target for number, other in enumerate(ORDER[:2])]
            terms += [8 * slope for slope in (*self._slopes(self._k, c), *self._base_slopes(c))]
            matrix = np.stack([*terms, np.full(len(target), 64, np.float32)])
            best = _non_negative(matrix, target)
            activity[place] = np.clip(np.rint(best * 2 ** (ACTIVITY_BITS + 2)), 0, MOST_ACTIVITY)
            total = (activity[place].astype(np.float32) @ matrix).astype(np.int32) >> ACTIVITY_BITS
            thresholds[place] = np.quantile(total, np.arange(1, CONTEXTS) / CONTEXTS, method="lower")
            context = np.searchsorted(thresholds[place], total, side="left")
            counts = np.bincount(
                context * (MOST_OFF + 1) + target.astype(np.int64), minlength=CONTEXTS * (MOST_OFF + 1)
            )
            scales[place] = (counts.reshape(CONTEXTS, -1) @ costs().T).argmin(axis=1)
        return Scales(activity, thresholds, scales)


def _non_negative(terms: Floats, target: Floats) -> NDArray[np.float64]:
    """Weights ≥ 0 of the terms (t, n) with which their sums come near to `target` (n,), in proportion to them."""
    guess = np.full(len(target), max(float(target.mean()), 1.0), np.float32)
    for _ in range(3):
        scaled = terms / guess
        gram, right = (scaled @ scaled.T).astype(np.float64), (scaled @ (target / guess)).astype(np.float64)
        gram[np.diag_indices(len(gram))] += 1e-4 * len(target)
        active = np.ones(len(right), bool)
        while True:
            best = np.zeros(len(right))
            best[active] = np.linalg.solve(gram[np.ix_(active, active)], right[active])
            if (best >= 0).all():
                break
            active &= best >= 0
        guess = np.maximum(best.astype(np.float32) @ terms, np.float32(1))
    return best
