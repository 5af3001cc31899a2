"""The statistics search: which mean and deviation a slide is coded best with. No decoder knows of it.

Standard scores make a slide look to the model like the slides it learnt from. They need not be exactly the slide's own
mean and deviation: what counts is the bits and the error. The search has two parts:

1. The slide is taken for a fainter one at a lower quality, or for a stronger one at a higher: mean and deviations move
   towards the background in proportion, or away from it, as long as a sample of the tissue costs less at equal error.
2. Mean and deviations change at random, these relative to each other, in steps that grow with success and shrink with
   failure (a (1+1) evolution strategy; Schumer and Steiglitz 1968).
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.codec.chunk import ChunkCodec
from histocodec.codec.quantise import Quantiser
from histocodec.codec.transform import Transform
from histocodec.codec.window import Window, pad_pixels
from histocodec.formats.encode.sampling import sampled_chunks, spread
from histocodec.formats.encode.scope import Scope
from histocodec.geometry import Grid, Margin
from histocodec.models.config import CHUNK_PIXELS, QUALITIES
from histocodec.normalise import ChannelStats
from histocodec.slide import Pixels
from histocodec.threads import Workers

PIECES, PIECE_PIXELS = 12, 256  # parts of chunks, and a side of each: many places say more than few whole chunks
LEAST_PIECES, PIECES_OF_A_CHUNK = 6, 0.4  # on slides so small that 12 would be most of the work: a tenth of the tissue
STRIP = 3  # pieces that are coded side by side, as one: what lies between kernels takes a third of the time
FEW_CHUNKS = 6  # up to so many are tried whole
LARGE = 256  # chunks: a slide on which the first part is worth a second or two without effort, too
TRIES, MOST_TRIES = 12, 24  # random directions for each level of effort, and at most; each is tried both ways
FIRST_STEP, LEAST_STEP, MOST_STEP = 0.05, 0.004, 0.15  # standard deviations, and octaves of them
GROWTH, SHRINKAGE = 1.3, 0.85  # of the step, so that one success balances about two failures
QUALITY_STEP = 4  # makes a slide fainter by a seventh
CURVE_OFFSETS = (-9, 0, 9)  # qualities around the given one, by which rate over distortion is known
LEAST_GAIN = 1e-4  # relative bits
CLEAR_LOSS = 0.01  # of bits on a part of the sample, with which a candidate is given up before the rest is tried
LEAST_GAIN_OF_QUALITY = 0.01  # the same for another quality, which is judged less surely

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class OperatingPoint:
    """Statistics and the quality that goes with them: together they decide rate and distortion."""

    stats: ChannelStats
    quality: int


@dataclass(frozen=True)
class _Cost:
    """What the sample takes: bits, and the sum of squared errors."""

    bits: float
    error: float


def search_statistics(
    scope: Scope,
    start: OperatingPoint,
    transform: Transform,
    codec: ChunkCodec,
    workers: Workers,
    *,
    effort: float,
    align: Callable[[ChannelStats, int], ChannelStats] = lambda stats, _: stats,
) -> OperatingPoint:
    """`start`, or an operating point that costs less at equal error. The same in every run.

    Every candidate is first passed through `align` with its quality. A slide without tissue keeps `start`, and so does
    one without effort unless it is large.
    """
    best = start
    if not effort and scope.level(0).region.area < LARGE * CHUNK_PIXELS**2:
        return best
    sample = _sample(scope)
    if not sample:
        return best

    stride = transform.weights.config.stride

    def costs(point: OperatingPoint) -> Iterator[_Cost]:
        """What the first part of the sample takes, then the first two, and so on."""

        def window(piece: Pixels) -> Window:
            return Window(transform.analyse(pad_pixels(piece, stride), Margin(), point.stats), Margin(), piece)

        plain = Quantiser(transform, codec, point.stats, lambda: window(sample[0]), effort=0)
        bits, error = 0.0, 0.0
        for more_bits, more_error in workers.map(
            lambda piece: plain.rounded_cost(window(piece), point.quality), sample
        ):
            bits, error = bits + more_bits, error + more_error
            yield _Cost(bits, error)

    qualities = sorted({min(max(0, start.quality + offset), QUALITIES - 1) for offset in CURVE_OFFSETS})
    of_qualities = [list(costs(OperatingPoint(align(start.stats, quality), quality))) for quality in qualities]
    curves = [_curve(part) for part in zip(*of_qualities, strict=True)]
    if len(curves[-1]) < 2:
        return best
    least_of_parts = [0.0] * len(curves)  # relative bits of the best point

    def relative(candidate: OperatingPoint) -> list[float] | None:
        """The logarithm of its bits relative to what `start` needs for the same error, on the first part of the sample,
        the first two, and so on; None where it loses clearly on one of these."""
        found = []
        for curve, so_far, now in zip(curves, least_of_parts, costs(candidate), strict=False):
            found.append(math.log(now.bits) - _log_bits(curve, now.error) if len(curve) > 1 else so_far)
            if found[-1] > so_far + CLEAR_LOSS:
                return None
        return found

    def improves(stats: ChannelStats, quality: int, gain: float = LEAST_GAIN) -> bool:
        """Makes them the best point if they save `gain` of the bits that `start` needs for the same error."""
        nonlocal best, least_of_parts
        candidate = OperatingPoint(align(stats, quality), quality)
        # With one thread, on it: there the next part of the sample does not begin before this one is judged.
        parts = workers.run(lambda: relative(candidate)) if workers.count == 1 else relative(candidate)
        if parts is None or parts[-1] >= least_of_parts[-1] - gain:
            return False
        best, least_of_parts = candidate, parts
        return True

    for step in (-QUALITY_STEP, QUALITY_STEP):
        for quality in range(start.quality + step, -1 if step < 0 else QUALITIES, step):
            factor = transform.weights.hyper.fainter_by(start.quality, quality)
            if not improves(start.stats.fainter(scope.background, factor), quality, LEAST_GAIN_OF_QUALITY):
                break
    rng, size = np.random.default_rng(0), FIRST_STEP
    for _ in range(min(round(TRIES * effort), MOST_TRIES)):
        shift, stretch = rng.normal(0, size, 3), rng.normal(0, size, 3)
        before = best
        if any(improves(_moved(before.stats, sign * shift, sign * stretch), before.quality) for sign in (1, -1)):
            size = min(MOST_STEP, size * GROWTH)
        else:
            size = max(LEAST_STEP, size * SHRINKAGE)
    return best


def _sample(scope: Scope) -> list[Pixels]:
    """Tissue of level 0 to try statistics on: few whole chunks, or strips of pieces of many. Without what lies around
    them, which all candidates lack alike."""
    size = scope.level(0)
    regions = [scope.region(c.key) for c in sampled_chunks(scope) if c.key.level == 0 and not c.blank]
    if len(regions) <= FEW_CHUNKS:
        return [scope.read(region, 0) for region in regions]
    count = min(max(LEAST_PIECES, round(PIECES_OF_A_CHUNK * len(regions))), PIECES)
    grid = Grid(size.height, size.width, PIECE_PIXELS)
    pieces = [grid.region(*piece) for region in regions for piece in grid.squares_in(region)]
    whole = [piece for piece in pieces if min(piece.width, piece.height) == PIECE_PIXELS]
    read = [scope.read(region, 0) for region in spread(whole, count)]
    return [np.concatenate(read[n : n + STRIP], axis=1) for n in range(0, len(read), STRIP)]


def _curve(costs: Sequence[_Cost]) -> list[_Cost]:
    """Of costs at rising qualities, those that err less than all before them."""
    least, curve = math.inf, []
    for cost in costs:
        if 0 < cost.error < least:
            least = cost.error
            curve.append(cost)
    return curve


def _log_bits(curve: Sequence[_Cost], error: float) -> float:
    """The logarithm of the bits that this error takes by a curve, which is straight in logarithms between its points
    and beyond them. Squared errors are integers; 0 counts as 1."""
    error = max(error, 1.0)
    last = min(max(1, bisect_left(curve, -error, key=lambda point: -point.error)), len(curve) - 1)
    (below, bits_below), (above, bits_above) = (
        (math.log(point.error), math.log(point.bits)) for point in curve[last - 1 : last + 1]
    )
    return bits_below + (bits_above - bits_below) * (math.log(error) - below) / (above - below)


def _moved(stats: ChannelStats, shift: Numbers, stretch: Numbers) -> ChannelStats:
    """Means moved by so many deviations, and deviations by so many octaves relative to each other; (3,) each."""
    octaves = stretch - stretch.mean()
    mean, std = stats.mean + shift * stats.std, stats.std * 2.0**octaves
    return ChannelStats(mean.astype(np.float32), std.astype(np.float32))
