"""The statistics search: which mean and deviation a slide is coded best with. No decoder knows of it.

Standard scores make a slide look to the model like the slides it learnt from. They need not be exactly the slide's own
mean and deviation: what counts is the bits and the error. The search has two parts:

1. The slide is taken for a fainter one at a lower quality, or for a stronger one at a higher: mean and deviations move
   towards the background in proportion, or away from it, as long as a sample of the tissue costs less at equal error.
2. Means, and deviations relative to each other, move along one direction after the other: both ways, then to where a
   parabola through the costs is lowest. What a small move does to y is measured once for each direction; the y of every
   other move is extrapolated from that, since analysing is dear.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
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
STEP = 0.08  # standard deviations, and octaves of them, along each direction; half of it the second time
MOST_STEPS = 2.0  # how far a parabola may lead
LEAST_SHARE = 0.1  # of a step: nearer to the middle, a parabola's lowest point is not tried
PASSES, MOST_PASSES = 2, 3  # over all directions, for each level of effort, and at most
QUALITY_STEP = 4  # makes a slide fainter by a seventh
CURVE_OFFSETS = (-9, 0, 9)  # qualities around the given one, by which rate over distortion is known
LEAST_GAIN = 1e-4  # relative bits
LEAST_GAIN_OF_QUALITY = 0.01  # the same for another quality, which is judged less surely

Numbers = NDArray[np.float64]
Analysed = list[NDArray[np.float32]]  # y of each chunk or strip of the sample

# Moves of the three means and of the three deviations: first all means alike, and contrasts between colours.
DIRECTIONS: Numbers = np.array(
    [
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 2, -1, -1],
        [0, 0, 0, 0, 1, -1],
        [1, -1, 0, 0, 0, 0],
        [1, 1, -2, 0, 0, 0],
    ],
    np.float64,
)
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)


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
    best, least = start, 0.0
    if not effort and scope.level(0).region.area < LARGE * CHUNK_PIXELS**2:
        return best
    sample = _sample(scope)
    if not sample:
        return best

    def analysed(stats: ChannelStats) -> Analysed:
        stride = transform.weights.config.stride
        return list(workers.map(lambda piece: transform.analyse(pad_pixels(piece, stride), Margin(), stats), sample))

    def cost(point: OperatingPoint, y: Analysed) -> _Cost:
        windows = [Window(each, Margin(), piece) for each, piece in zip(y, sample, strict=True)]
        plain = Quantiser(transform, codec, point.stats, lambda: windows[0], effort=0)
        bits, errors = zip(*workers.map(lambda window: plain.rounded_cost(window, point.quality), windows), strict=True)
        return _Cost(sum(bits), sum(errors))

    first_y, costs = analysed(start.stats), []
    for quality in sorted({min(max(0, start.quality + offset), QUALITIES - 1) for offset in CURVE_OFFSETS}):
        stats = align(start.stats, quality)
        costs.append(cost(OperatingPoint(stats, quality), first_y if stats is start.stats else analysed(stats)))
    curve = _curve(costs)
    if len(curve) < 2:
        return best

    def relative(point: OperatingPoint, y: Analysed) -> float:
        """The logarithm of this point's bits over those that `start` needs for the same error."""
        costs = cost(point, y)
        return math.log(costs.bits) - _log_bits(curve, costs.error)

    best_y = first_y
    for step in (-QUALITY_STEP, QUALITY_STEP):
        for quality in range(start.quality + step, -1 if step < 0 else QUALITIES, step):
            factor = transform.weights.hyper.fainter_by(start.quality, quality)
            stats = align(start.stats.fainter(scope.background, factor), quality)
            y = analysed(stats)
            found = relative(OperatingPoint(stats, quality), y)
            if found >= least - LEAST_GAIN_OF_QUALITY:
                break
            best, best_y, least = OperatingPoint(stats, quality), y, found
    count = min(round(PASSES * len(DIRECTIONS) * effort), MOST_PASSES * len(DIRECTIONS))
    return _moved_along(best, best_y, least, count, analysed, relative, align)


def _moved_along(
    start: OperatingPoint,
    start_y: Analysed,
    least: float,
    count: int,
    analysed: Callable[[ChannelStats], Analysed],
    relative: Callable[[OperatingPoint, Analysed], float],
    align: Callable[[ChannelStats, int], ChannelStats],
) -> OperatingPoint:
    """`start`, or a point that `count` directions, one after the other, lead to and that costs less. Its own cost is
    `least`, its y `start_y`."""

    def at(moves: Numbers) -> OperatingPoint:
        move = moves @ DIRECTIONS
        return OperatingPoint(align(_moved(start.stats, move[:3], move[3:]), start.quality), start.quality)

    changes: dict[int, Analysed] = {}  # of y, for a move of 1 along each direction

    # Background that is decoded exactly hangs on how its y is rounded: then every candidate is analysed.
    extrapolates = align(start.stats, start.quality) is start.stats

    def cost(moves: Numbers) -> float:
        if not extrapolates:
            point = at(moves)
            return relative(point, analysed(point.stats))
        y = start_y
        for n in np.flatnonzero(moves):
            share = np.float32(moves[n])
            y = [each + share * change for each, change in zip(y, changes[int(n)], strict=True)]
        return relative(at(moves), y)

    best, lowest = np.zeros(len(DIRECTIONS)), least
    for turn in range(count):
        n, size = turn % len(DIRECTIONS), STEP / 2 ** (turn // len(DIRECTIONS))
        unit = np.eye(len(DIRECTIONS))[n]
        if n not in changes:
            there = at(size * unit)
            if np.allclose(there.stats.mean, start.stats.mean) and np.allclose(there.stats.std, start.stats.std):
                continue  # aligning undoes it
            y = analysed(there.stats) if extrapolates else start_y
            changes[n] = [(new - old) / np.float32(size) for new, old in zip(y, start_y, strict=True)]
        tried = {0.0: lowest, **{step: cost(best + step * size * unit) for step in (1.0, -1.0)}}
        bend = tried[1.0] + tried[-1.0] - 2 * lowest
        step = (
            (tried[-1.0] - tried[1.0]) / (2 * bend) if bend > 0 else math.copysign(math.inf, tried[-1.0] - tried[1.0])
        )
        step = min(max(step, -MOST_STEPS), MOST_STEPS)
        if min(abs(step - known) for known in tried) > LEAST_SHARE:
            tried[step] = cost(best + step * size * unit)
        chosen = min(tried, key=lambda step: tried[step])
        if tried[chosen] < lowest - LEAST_GAIN:
            best, lowest = best + chosen * size * unit, tried[chosen]
    found = at(best)
    if not best.any() or relative(found, analysed(found.stats)) > least - LEAST_GAIN:
        return start
    return found


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
