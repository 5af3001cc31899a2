"""Statistics that a slide is coded best with, found by trying: the encoder's choice, no decoder knows of it.

Standard scores make a slide look to the model like the slides it learnt from, and so they need not be exactly its
own mean and deviation: what counts is how many bits it takes and what is lost. Mean and deviations (in proportion; a
common factor would only be another quality) are changed at random, and kept where a sample of chunks becomes cheaper at
equal error, in steps that grow with success and shrink with failure (a (1+1) evolution strategy; Schumer and Steiglitz
1968).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.codec import LatentCoder
from histocodec.formats.sampling import SampleSource, places_of, spread
from histocodec.geometry import Grid
from histocodec.models.config import CHUNK_PIXELS, QUALITIES
from histocodec.normalise import ChannelStats
from histocodec.quantiser import Quantiser
from histocodec.transform import Transform
from histocodec.window import Surroundings
from histocodec.workers import Workers

CHUNKS = 6  # of tissue, that are tried
TRIES, MOST_TRIES = 12, 24  # directions a level of effort, and at most; each is tried both ways
FIRST_STEP, LEAST_STEP, MOST_STEP = 0.05, 0.004, 0.15  # standard deviations, and octaves of them
LONGER, SHORTER = 1.3, 0.85  # so that one success balances about two failures
NEIGHBOUR = 6  # qualities up and down, between which the slope of rate over distortion is taken
SLOPES = (0.7, 2.5)  # relative bits a relative squared error, between which it must lie
LEAST_GAIN = 1e-4  # relative bits

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class _Cost:
    bits: float
    error: float


def refined_stats(
    source: SampleSource,
    quality: int,
    transform: Transform,
    coder: LatentCoder,
    workers: Workers,
    *,
    effort: int,
    align: Callable[[ChannelStats], ChannelStats] | None = None,
) -> ChannelStats:
    """`source.stats`, or better ones for this quality. The same in every run. Where `align` says which mean belongs to
    other deviations, it is taken. A slide that shows no tissue keeps its own."""
    number = source.levels[0]
    grid = Grid(source.slide.levels[number].height, source.slide.levels[number].width, CHUNK_PIXELS)
    places = [place for place in places_of(source) if place.level == number and not place.bare]
    regions = [grid.region(place.row, place.column) for place in spread(places, CHUNKS)]
    chunks = [Surroundings.of(source.slide, number, region, transform.weights.config) for region in regions]

    def cost(stats: ChannelStats, quality: int) -> _Cost:
        plain = Quantiser(transform, coder, stats, lambda: chunks[0].analysed(transform, stats), effort=0)
        pairs = workers.map(lambda chunk: plain.rounded_cost(chunk.analysed(transform, stats), quality), chunks)
        bits, errors = zip(*pairs, strict=True)
        return _Cost(sum(bits), sum(errors))

    if not chunks:
        return source.stats
    best, first = source.stats, cost(source.stats, quality)
    if not first.error:
        return source.stats
    slope = _slope(*(cost(best, q) for q in (max(0, quality - NEIGHBOUR), min(QUALITIES - 1, quality + NEIGHBOUR))))
    rng, step, least = np.random.default_rng(0), FIRST_STEP, 0.0
    for _ in range(min(TRIES * effort, MOST_TRIES)):
        shift, stretch = rng.normal(0, step, 3), rng.normal(0, step, 3)
        for sign in (1, -1):
            tried = _moved(best, sign * shift, sign * stretch)
            tried = tried if align is None else align(tried)
            found = cost(tried, quality)
            relative = math.log(found.bits / first.bits) + slope * math.log(found.error / first.error)
            if relative < least - LEAST_GAIN:
                best, least, step = tried, relative, min(MOST_STEP, step * LONGER)
                break
        else:
            step = max(LEAST_STEP, step * SHORTER)
    return best


def _slope(below: _Cost, above: _Cost) -> float:
    """Relative bits that a relative squared error is worth, along the model's own curve."""
    if above.bits <= below.bits or above.error >= below.error:
        return 1.0
    return min(max(math.log(above.bits / below.bits) / math.log(below.error / above.error), SLOPES[0]), SLOPES[1])


def _moved(stats: ChannelStats, shift: Numbers, stretch: Numbers) -> ChannelStats:
    """Means moved by so many deviations, deviations by so many octaves in proportion; (3,) each."""
    octaves = stretch - stretch.mean()
    mean, std = stats.mean + shift * stats.std, stats.std * 2.0**octaves
    return ChannelStats(mean.astype(np.float32), std.astype(np.float32))
