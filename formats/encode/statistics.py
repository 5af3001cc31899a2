"""Statistics that a slide is coded best with, found by trying: the encoder's choice, no decoder knows of it.

Standard scores make a slide look to the model like the slides it learnt from, and so they need not be exactly its
own mean and deviation: what counts is how many bits it takes and what is lost. First the slide is taken for a fainter
one coded at a lower quality, or a stronger one at a higher: mean and deviations move towards the glass in proportion,
as long as a sample of its tissue becomes cheaper at equal error. Then mean and deviations change at random, these
relative to each other, in steps that grow with success and shrink with failure (a (1+1) evolution strategy; Schumer
and Steiglitz 1968).
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
from histocodec.codec.window import PixelWindow
from histocodec.formats.encode.sampling import SampleSource, places_of, spread
from histocodec.geometry import Grid
from histocodec.models.config import CHUNK_PIXELS, QUALITIES
from histocodec.normalise import ChannelStats
from histocodec.threads import Workers

PIECES, SIDE = 12, 256  # of chunks, in pixels, that are tried: many places say more than few whole chunks
FEW = 6  # chunks, which are tried whole
LARGE = 256  # chunks: a slide to which it is worth a second or two without effort, too, but for the directions
TRIES, MOST_TRIES = 12, 24  # directions a level of effort, and at most; each is tried both ways
FIRST_STEP, LEAST_STEP, MOST_STEP = 0.05, 0.004, 0.15  # standard deviations, and octaves of them
LONGER, SHORTER = 1.3, 0.85  # so that one success balances about two failures
NEXT = 4  # qualities lower: a slide fainter by a seventh
CURVE = (-9, 0, 9)  # qualities from the wanted one, by which rate over distortion is known
LEAST_GAIN, LEAST_OF_NEXT = 1e-4, 0.01  # relative bits; the latter for another quality, which is judged less surely

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class _Cost:
    bits: float
    error: float


def refined_stats(
    source: SampleSource,
    quality: int,
    transform: Transform,
    coder: ChunkCodec,
    workers: Workers,
    *,
    effort: float,
    align: Callable[[ChannelStats, int], ChannelStats] = lambda stats, _: stats,
) -> tuple[ChannelStats, int]:
    """`source.stats` and `quality`, or better ones that exchange bits for error alike. The same in every run. What
    is tried is what `align` makes of it at its quality. A slide that shows no tissue keeps its own, and without effort
    one that is not large."""
    best, least = (source.stats, quality), 0.0
    number = source.levels[0]
    level = source.slide.levels[number]
    if not effort and level.region.area < LARGE * CHUNK_PIXELS**2:
        return best
    grid, finer = (Grid(level.height, level.width, side) for side in (CHUNK_PIXELS, SIDE))
    places = [place for place in places_of(source) if place.level == number and not place.bare]
    regions = [grid.region(place.row, place.column) for place in places]
    if len(regions) > FEW:
        regions = spread([finer.region(*piece) for region in regions for piece in finer.squares_in(region)], PIECES)
    sample = [PixelWindow.read(source.slide, number, region, transform.weights.config) for region in regions]
    if not sample:
        return best

    def cost(stats: ChannelStats, quality: int) -> _Cost:
        plain = Quantiser(transform, coder, stats, lambda: sample[0].analyse(transform, stats), effort=0)
        pairs = workers.map(lambda piece: plain.rounded_cost(piece.analyse(transform, stats), quality), sample)
        bits, errors = zip(*pairs, strict=True)
        return _Cost(sum(bits), sum(errors))

    qualities = sorted({min(max(0, quality + away), QUALITIES - 1) for away in CURVE})
    own = _curve([cost(align(source.stats, q), q) for q in qualities])
    if len(own) < 2:
        return best

    def better(tried: ChannelStats, quality: int, gain: float = LEAST_GAIN) -> bool:
        """Takes them if they are, by so much of the bits that the slide's own statistics need for the same error."""
        nonlocal best, least
        tried = align(tried, quality)
        found = cost(tried, quality)
        relative = math.log(found.bits) - _log_bits(own, found.error)
        if relative >= least - gain:
            return False
        best, least = (tried, quality), relative
        return True

    for away in (-NEXT, NEXT):
        for other in range(quality + away, -1 if away < 0 else QUALITIES, away):
            factor = transform.weights.hyper.fainter_by(quality, other)
            if not better(source.stats.fainter(source.background, factor), other, LEAST_OF_NEXT):
                break
    rng, step = np.random.default_rng(0), FIRST_STEP
    for _ in range(min(round(TRIES * effort), MOST_TRIES)):
        shift, stretch = rng.normal(0, step, 3), rng.normal(0, step, 3)
        stats, quality = best
        if any(better(_moved(stats, sign * shift, sign * stretch), quality) for sign in (1, -1)):
            step = min(MOST_STEP, step * LONGER)
        else:
            step = max(LEAST_STEP, step * SHORTER)
    return best


def _curve(costs: Sequence[_Cost]) -> list[_Cost]:
    """Those of rising qualities that err less than all before them."""
    least, curve = math.inf, []
    for cost in costs:
        if 0 < cost.error < least:
            least = cost.error
            curve.append(cost)
    return curve


def _log_bits(curve: Sequence[_Cost], error: float) -> float:
    """The logarithm of the bits that this error takes by a curve: straight, of logarithms, between its points and
    beyond them. Squared errors are whole numbers; none counts as 1."""
    error = max(error, 1.0)
    last = min(max(1, bisect_left(curve, -error, key=lambda point: -point.error)), len(curve) - 1)
    (below, bits_below), (above, bits_above) = (
        (math.log(point.error), math.log(point.bits)) for point in curve[last - 1 : last + 1]
    )
    return bits_below + (bits_above - bits_below) * (math.log(error) - below) / (above - below)


def _moved(stats: ChannelStats, shift: Numbers, stretch: Numbers) -> ChannelStats:
    """Means moved by so many deviations, deviations by so many octaves in proportion; (3,) each."""
    octaves = stretch - stretch.mean()
    mean, std = stats.mean + shift * stats.std, stats.std * 2.0**octaves
    return ChannelStats(mean.astype(np.float32), std.astype(np.float32))
