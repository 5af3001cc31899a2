"""Exact pixels: what synthesised pixels lack, so that no sample is off by more than a bound, or by nothing at all.

    pixels - base ── rounded to multiples of 2 N + 1 ──▶ k ── predicted, rANS ──▶ the bytes of a chunk
    base + (2 N + 1) · k, limited to 0 … 255 ──▶ pixels, each sample off by at most N; with N = 0 by nothing

k (h, w, 3) is coded without loss, green first, then red, then blue, in a wave (`exact_wave`): position (y, x) has the
time x + 3 y, and all positions of a time are predicted at once, from the k around them that came before, and from the
base. A mean and a scale choose the frequency table (`logistic`). Sums are of whole numbers, so that all machines agree;
their weights are fitted to the chunk by the encoder (`exact_fit`) and stored in it.

    offset  size  field
    0       1     N, 0 to 127
    1       1     classes: 0 (all of k is 0, and nothing follows), 1, 2 or 4
    2       6     the scale index of the table of each group of parameters
    8       2     bits that the weights of k, and of the base, are shifted up by
    10      …     one rANS stream: the parameters, then a segment for each time and channel, rows from the top
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from histocodec.codec.exact_fit import (
    BASE_TERMS,
    CLASSES,
    CONTEXTS,
    COUNTS,
    MOST_ACTIVITY,
    MOST_LIMIT,
    MOST_SHIFT,
    MOST_TERMS,
    MOST_WEIGHT,
    ORDER,
    TAPS,
    Fitter,
    Scales,
    Weights,
)
from histocodec.codec.exact_wave import BAD_VALUE, LAG, MOST_K, TERMS, restore, skew, skewed, unskewed, walk
from histocodec.entropy.logistic import SCALES, costs, logistic_tables
from histocodec.entropy.rans import RansDecoder, RansEncoder
from histocodec.errors import FormatError, UsageError
from histocodec.slide import Pixels

Coded = tuple[NDArray[np.int32], NDArray[np.uint16], NDArray[np.int64]]  # symbols, tables and bounds of segments

MOST_ERROR = 127
EIGHTHS = 8
GROUPS = 6  # of parameters, each with a scale of its own in the header
HEADER_BYTES = 2 + GROUPS + 2
PIXELS_A_CLASS = 1 << 14  # fewer are not worth the weights of another class

_ORDER = np.array(ORDER, np.int64)


def encode(pixels: Pixels, base: Pixels, max_error: int) -> bytes:
    """The bytes that turn base (h, w, 3) uint8 into what differs from pixels (h, w, 3) uint8 by at most `max_error`
    grey values. Raises UsageError for other shapes, and for an error that is not 0 to 127."""
    if pixels.shape != base.shape or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UsageError(f"pixels {pixels.shape} and their base {base.shape} must be (h, w, 3), and not empty")
    if not 0 <= max_error <= MOST_ERROR:
        raise UsageError(f"an error of at most {max_error} grey values; allowed are 0 to {MOST_ERROR}")
    step = 2 * max_error + 1
    k = ((pixels.astype(np.int16) - base + max_error) // step).astype(np.int16)
    if not k.any():
        return bytes([max_error, 0])
    classes = 4 if k[:, :, 0].size >= 4 * PIXELS_A_CLASS else 2 if k[:, :, 0].size >= 2 * PIXELS_A_CLASS else 1
    fitter, wave = Fitter(k, base, step), _Wave(base, step)
    skew(k, wave.k, 0)
    symbols, tables = np.empty(k.size, np.int32), np.empty(k.size, np.uint16)
    bounds = np.zeros(3 * wave.times + 1, np.int64)
    weights = fitter.weights(classes)
    wave.walk(weights, _NO_SCALES, (symbols, tables, bounds))
    scales = fitter.scales(wave.off())
    wave.walk(weights, scales, (symbols, tables, bounds))
    groups = _groups(weights, scales, classes)
    chosen = [_cheapest(group) for group in groups]
    encoder = RansEncoder(logistic_tables())
    encoder.write(np.concatenate(groups), _tables_of(chosen, _lengths(classes)))
    encoder.write_segments(symbols, tables, bounds)
    return bytes([max_error, classes, *chosen, *weights.shifts]) + encoder.finish()


def decode(data: bytes, base: Pixels) -> Pixels:
    """Pixels (h, w, 3) uint8 from their bytes and base (h, w, 3) uint8. Raises FormatError for bytes that are not
    written as the format demands."""
    bound, classes = header(data)
    if not classes:
        return base.copy()
    scales, shifts = list(data[2 : 2 + GROUPS]), data[2 + GROUPS : HEADER_BYTES]
    if len(shifts) < 2 or max(scales) >= SCALES or max(shifts) > MOST_SHIFT:
        raise FormatError(
            f"an exact chunk begins with {data[:HEADER_BYTES].hex()}; after 2 bytes, {GROUPS} are at most "
            f"{SCALES - 1}, and 2 at most {MOST_SHIFT}"
        )
    decoder = RansDecoder(data[HEADER_BYTES:], logistic_tables())
    lengths = _lengths(classes)
    values = decoder.read(_tables_of(scales, lengths)).astype(np.int64)
    groups = np.split(values, np.cumsum(lengths)[:-1])
    wave = _Wave(base, 2 * bound + 1)
    wave.walk(_weights_of(groups, classes, (shifts[0], shifts[1])), _scales_of(groups, classes), decoder)
    decoder.finish()
    return wave.pixels()


def header(data: bytes) -> tuple[int, int]:
    """The largest error that a chunk's bytes allow, and its classes: 0 where all of k is 0. Raises FormatError for
    values that are not allowed."""
    if len(data) < 2:
        raise FormatError(f"an exact chunk has {len(data)} bytes; the shortest has 2")
    if data[0] > MOST_ERROR or data[1] not in (0, 1, 2, 4):
        found = f"{data[0]}, {data[1]}"
        raise FormatError(f"an exact chunk begins with {found}; allowed are 0 to {MOST_ERROR}, and 0, 1, 2 or 4")
    if not data[1] and len(data) > 2:
        raise FormatError(f"an exact chunk of zeros has {len(data)} bytes; it has 2")
    return data[0], data[1]


class _Wave:
    """The memory in which a chunk is coded over its base, and the calls of the kernels."""

    def __init__(self, base: Pixels, step: int) -> None:
        self._base, self._step = np.ascontiguousarray(base), step
        self.height, self.width = base.shape[:2]
        self.times = self.width + LAG * (self.height - 1)
        self.k, self._skewed_base, self._off = (skewed(self.height, self.width) for _ in range(3))
        skew(self._base, self._skewed_base, 1)

    def walk(self, weights: Weights, scales: Scales, what: RansDecoder | Coded) -> None:
        """Fill k from a decoder; or, where it is known, write what codes it."""
        t, decodes = logistic_tables(), isinstance(what, RansDecoder)
        stream, coded = (what.state, _NOTHING) if isinstance(what, RansDecoder) else (_NO_STREAM, what)
        status = walk(
            int(decodes), self.k, self._skewed_base, self._step, self.height, self.width, _ORDER, TAPS, COUNTS,
            weights.weights, weights.limits, scales.activity, scales.thresholds, scales.scales,
            *stream, t.mode, t.low, t.size, t.freq, t.cdf, t.coarse, *coded, self._off,
        )  # fmt: skip
        if status == BAD_VALUE:
            raise FormatError(f"an exact chunk has a value beyond ±{MOST_K}")
        RansDecoder.check(status)

    def off(self) -> NDArray[np.int16]:
        """How far k is from the means of the last walk, (h, w, 3) in eighths."""
        return unskewed(self._off, self.height, self.width)

    def pixels(self) -> Pixels:
        """What k makes of the base."""
        out = np.empty_like(self._base)
        restore(self.k, self._step, self._base, out)
        return out


# The parameters of a chunk, in six groups: weights of k; of the base; constants; limits and weights of the activity;
# thresholds, each less the one before it; scales, likewise. A class has those of the three channels.


def _groups(weights: Weights, scales: Scales, classes: int) -> list[NDArray[np.int32]]:
    of_k, of_base, constants = [], [], []
    for count, of_classes in zip(COUNTS.tolist(), weights.weights, strict=True):
        for row in of_classes[:classes]:
            of_k.append(row[:count] >> weights.shifts[0])
            of_base.append(row[count : count + BASE_TERMS - 1] >> weights.shifts[1])
            constants.append(row[count + BASE_TERMS - 1 : count + BASE_TERMS])
    few = [weights.limits[: classes - 1], scales.activity.ravel()]
    steps = ([np.diff(row, axis=1, prepend=0).ravel()] for row in (scales.thresholds, scales.scales))
    return [np.concatenate(group).astype(np.int32) for group in (of_k, of_base, constants, few, *steps)]


def _lengths(classes: int) -> list[int]:
    """The number of parameters of each group."""
    few = classes - 1 + 3 * (TERMS + 1)
    return [
        classes * int(COUNTS.sum()),
        3 * classes * (BASE_TERMS - 1),
        3 * classes,
        few,
        3 * (CONTEXTS - 1),
        3 * CONTEXTS,
    ]


def _weights_of(groups: list[NDArray[np.int64]], classes: int, shifts: tuple[int, int]) -> Weights:
    of_k, of_base = iter(groups[0] << shifts[0]), iter(groups[1] << shifts[1])
    weights = np.zeros((3, CLASSES, MOST_TERMS), np.int64)
    for place, count in enumerate(COUNTS.tolist()):
        for number in range(classes):
            row = weights[place, number]
            row[:count] = [next(of_k) for _ in range(count)]
            row[count : count + BASE_TERMS - 1] = [next(of_base) for _ in range(BASE_TERMS - 1)]
            row[count + BASE_TERMS - 1] = groups[2][place * classes + number]
    limits = np.full(CLASSES - 1, MOST_LIMIT)
    limits[: classes - 1] = groups[3][: classes - 1]
    _check("weight", weights, -MOST_WEIGHT, MOST_WEIGHT)
    _check("limit", limits, 0, MOST_LIMIT)
    return Weights(weights.astype(np.int32), shifts, limits.astype(np.int32))


def _scales_of(groups: list[NDArray[np.int64]], classes: int) -> Scales:
    activity = groups[3][classes - 1 :].reshape(3, TERMS + 1)
    thresholds, scales = (np.cumsum(group.reshape(3, -1), axis=1) for group in groups[4:])
    _check("weight of the activity", activity, 0, MOST_ACTIVITY)
    _check("threshold", thresholds, 0, MOST_LIMIT)
    _check("scale", scales, 0, SCALES - 1)
    return Scales(activity.astype(np.int32), thresholds.astype(np.int32), scales.astype(np.int32))


def _check(what: str, values: NDArray[np.int64], low: int, high: int) -> None:
    if (values < low).any() or (values > high).any():
        raise FormatError(f"an exact chunk has a {what} that is not {low} to {high}")


def _cheapest(group: NDArray[np.int32]) -> int:
    """The scale whose table codes the values in the fewest bits."""
    far = np.minimum(EIGHTHS * abs(group.astype(np.int64)), costs().shape[1] - 1)
    return int(costs()[:, far].sum(axis=1).argmin())


def _tables_of(scales: Sequence[int], lengths: Sequence[int]) -> NDArray[np.uint16]:
    return np.repeat(EIGHTHS * np.array(scales, np.uint16), lengths)


_NOTHING = np.empty(0, np.int32), np.empty(0, np.uint16), np.empty(0, np.int64)
_NO_STREAM = np.empty(0, np.uint8), np.zeros(3, np.int64), np.empty(0, np.uint32)
_NO_SCALES = Scales(
    np.zeros((3, TERMS + 1), np.int32), np.zeros((3, CONTEXTS - 1), np.int32), np.zeros((3, CONTEXTS), np.int32)
)
