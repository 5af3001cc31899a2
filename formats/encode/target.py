"""Which quality meets a target: bisection on a sample of the slide's chunks, analysed once and coded at each try.

Coding without the latent search takes milliseconds a chunk, with it seconds. So the whole sample is only ever rounded,
and a few chunks say by what factor the search changes its bits or its error.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from histocodec.codec.quantise import Quantiser
from histocodec.errors import UsageError
from histocodec.fidelity import psnr, squared_error
from histocodec.formats.container.shard import CRC_BYTES, PAIR_BYTES
from histocodec.formats.encode.options import DEFAULT_QUALITY, EncodeOptions
from histocodec.formats.encode.overview import least_bytes, least_side
from histocodec.formats.encode.sampling import Sample, analysed_samples, spread
from histocodec.formats.encode.scope import Scope
from histocodec.models.config import QUALITIES, HyperConfig
from histocodec.threads import Workers

SEARCHED_CHUNKS = 6  # with effort: what it changes is much the same on all chunks, and takes seconds on each
LIKELY_TRIES = 3  # with effort: after these most targets are met; then by bisection
SPARE = 0.1  # quality, between two integers, that is not trusted: what lies there is not tried
OVERHEAD = 1.01  # overview and thumbnail, as a share of the latents
# Bytes beside the shards, measured on small containers: what all levels share, each level's metadata, and a chunk's
# share of its maps.
SHARED_BYTES, LEVEL_BYTES, MAP_BYTES = 1400, 900, 15

_Total = Callable[[Sequence[Sample], int, Quantiser, Workers], float]


def choose_quality(options: EncodeOptions, scope: Scope, quantiser: Quantiser, workers: Workers) -> float:
    """The quality that the options name, or the one whose sample meets their target: the highest within a rate, the
    lowest that reaches a PSNR. It has a fraction only where the model is a `hyper`.

    Raises UsageError where no quality meets the target, or the model does not know the one that is named.
    """
    weights, target_bpp = quantiser.weights, options.wanted_bpp
    if not options.has_target:
        if options.quality is not None:
            if options.quality % 1 and not isinstance(weights.config, HyperConfig):
                raise UsageError(
                    f"--quality {options.quality:g}: model {weights.id} is of the family {weights.config.family}, "
                    "which allows integers only"
                )
            return options.quality
        if weights.config.ratio is None:
            return DEFAULT_QUALITY
        target_bpp = 24 / weights.config.ratio
    samples = analysed_samples(scope, quantiser.transform, quantiser.stats, workers)
    if not samples:
        return DEFAULT_QUALITY  # nothing but background: any quality gives the same
    if target_bpp is None:
        return _lowest_with_psnr(options.target_psnr or 0.0, samples, quantiser, workers)
    return _highest_within_rate(target_bpp, options, scope, samples, quantiser, workers)


def _lowest_with_psnr(target: float, samples: Sequence[Sample], quantiser: Quantiser, workers: Workers) -> float:
    """The lowest quality at which level 0 has `target` dB."""
    finest = [sample for sample in samples if sample.chunk.key.level == 0]
    values = sum(sample.chunk.weight * sample.window.pixels.size for sample in finest)
    rounding = quantiser.without_search()
    rounded_error = cache(lambda quality: _squared_error(finest, quality, rounding, workers))

    def reached(quality: int, factor: float) -> float:
        return psnr(rounded_error(quality) * factor, values)

    bracket = _bracket(
        lambda quality, factor: reached(quality, factor) < target,
        _effect_of_effort(_squared_error, samples, quantiser, workers),
    )
    if bracket.above == QUALITIES:
        raise UsageError(f"--target-psnr {target:g} dB is beyond quality {QUALITIES - 1} on this slide")
    if bracket.below < 0 or not isinstance(quantiser.weights.config, HyperConfig):
        return bracket.above
    part = _part(reached(bracket.below, bracket.factor), target, reached(bracket.above, bracket.factor))
    return min(bracket.below + part + SPARE, bracket.above)


def _highest_within_rate(
    target: float,
    options: EncodeOptions,
    scope: Scope,
    samples: Sequence[Sample],
    quantiser: Quantiser,
    workers: Workers,
) -> float:
    """The highest quality with which the container has at most `target` bits per pixel of level 0. The overview counts
    where the user asked for a rate, and not where the model aims at one."""
    pixels, asked = scope.level(0).region.area, options.wanted_bpp is not None
    origin = "" if asked else f", at which model {quantiser.weights.id} aims,"
    overview_bits = 8 * least_bytes(scope.slide, least_side(scope.draft, options))
    fixed_bits = 8 * _bytes_beside_chunks(scope) + (overview_bits if asked else 0)
    rounding = quantiser.without_search()
    rounded_bits = cache(lambda quality: _bits(samples, quality, rounding, workers))

    def bpp(quality: int, factor: float = 1.0) -> float:
        return (rounded_bits(quality) * factor * OVERHEAD + fixed_bits) / pixels

    bracket = _bracket(
        lambda quality, factor: bpp(quality, factor) <= target, _effect_of_effort(_bits, samples, quantiser, workers)
    )
    if bracket.below < 0:
        needed, overview = max(bpp(0), bpp(0, bracket.factor)), overview_bits / pixels
        fitting = needed if asked else needed + overview  # a ratio that is given counts the overview
        raise UsageError(
            _too_low_a_rate(target, origin, needed, fitting, fixed_bits / pixels, overview if asked else 0)
        )
    if bracket.above == QUALITIES or not isinstance(quantiser.weights.config, HyperConfig):
        return bracket.below
    rates = (bpp(bracket.below, bracket.factor), target, bpp(bracket.above, bracket.factor))
    return max(bracket.below + _part(*(math.log(rate) for rate in rates)) - SPARE, bracket.below)


def _too_low_a_rate(
    target: float, origin: str, needed: float, fitting_bpp: float, fixed: float, overview: float
) -> str:
    """The message for a target, in bits per pixel, that is below what quality 0 needs; `fixed` of that the container
    takes whatever its quality, and `overview` of these its overview. `fitting_bpp` could be asked for."""
    ratio = _rounded_down(24 / fitting_bpp)
    fitting = f"--ratio {ratio:g} or less fits, or " if ratio > 1 else ""
    smaller = f"--overview none saves {overview:.3g} bpp, " if overview else ""
    return (
        f"{target:.4g} bpp (1:{24 / target:.4g}){origin} is less than quality 0 needs on this slide: about "
        f"{needed:.3g} bpp, of which {fixed:.3g} bpp are the container's own files, however small the slide. {smaller}"
        f"{fitting}--quality {DEFAULT_QUALITY:g} takes what it needs"
    )


def _rounded_down(ratio: float) -> float:
    """A ratio with two digits, not above `ratio`."""
    digit = 10.0 ** (math.floor(math.log10(ratio)) - 1)
    return math.floor(ratio / digit) * digit


@dataclass(frozen=True)
class _Bracket:
    """Two neighbouring qualities: a condition holds at `below` and fails at `above`. There, effort changes the total
    by `factor`. -1 and QUALITIES lie outside and were not tried."""

    below: int
    above: int
    factor: float


def _bracket(holds: Callable[[int, float], bool], effect: Callable[[int], float] | None) -> _Bracket:
    """Where `holds(quality, factor)` ends, which is true up to some quality and false beyond. `effect` measures the
    factor at a quality; None without effort, when it is 1."""
    quality = _last(lambda quality: holds(quality, 1.0))
    if effect is None:
        return _Bracket(quality, quality + 1, 1.0)
    below, above, tries, factor = -1, QUALITIES, 0, 1.0
    while above - below > 1:
        quality, tries = min(max(quality, below + 1), above - 1), tries + 1
        factor = effect(quality)
        below, above = (quality, above) if holds(quality, factor) else (below, quality)
        quality = (below + above) // 2
        if tries < LIKELY_TRIES:  # the factor of one quality tells about those around it
            quality = _last(lambda quality, factor=factor: holds(quality, factor))  # type: ignore[misc]
            above = below + 1 if quality == below else above
    return _Bracket(below, above, factor)


def _last(holds: Callable[[int], bool]) -> int:
    """The last quality for which `holds` is true, which is true up to some quality and false beyond; -1 where it
    never is."""
    low, high = -1, QUALITIES - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _effect_of_effort(
    total: _Total, samples: Sequence[Sample], quantiser: Quantiser, workers: Workers
) -> Callable[[int], float] | None:
    """By what factor effort changes a total at a quality, measured on few chunks; None without effort."""
    if not quantiser.effort:
        return None
    few = spread([sample for sample in samples if not sample.chunk.blank] or samples, SEARCHED_CHUNKS)
    rounding = quantiser.without_search()

    def factor(quality: int) -> float:
        rounded = total(few, quality, rounding, workers)
        return total(few, quality, quantiser, workers) / rounded if rounded else 1.0

    return factor


def _part(low: float, value: float, high: float) -> float:
    """How far `value` lies from `low` to `high`, from 0 to 1."""
    return min(max(0.0, (value - low) / (high - low)), 1.0) if high > low else 0.0


def _bytes_beside_chunks(scope: Scope) -> int:
    """What a container has besides its chunks and what takes a share of their bytes."""
    attributes = scope.draft
    grids = [attributes.grid(level) for level in range(len(attributes.levels))]
    index_entries = sum(grid.shards * attributes.shard_side(level) ** 2 for level, grid in enumerate(grids))
    chunks = sum(grid.chunk_rows * grid.chunk_columns for grid in grids)
    described = len(json.dumps(dict(attributes.properties))) + len(scope.slide.icc_profile or b"")
    shared = SHARED_BYTES + 4 * attributes.model.channels * 4 // 3  # float32 in base64, of background
    return shared + described + LEVEL_BYTES * len(grids) + MAP_BYTES * chunks + PAIR_BYTES * index_entries


def _bits(samples: Sequence[Sample], quality: int, quantiser: Quantiser, workers: Workers) -> float:
    """Estimated bits of all that the samples stand for."""

    def bits(sample: Sample) -> float:
        coded = quantiser.encode(sample.window, quality, quantiser.weights.config.chunk, np.dtype(np.int16))
        return 8 * sample.chunk.weight * (len(coded) + CRC_BYTES)

    return sum(workers.map(bits, samples))


def _squared_error(samples: Sequence[Sample], quality: int, quantiser: Quantiser, workers: Workers) -> float:
    """Estimated squared error of all that the samples stand for."""
    transform = quantiser.transform

    def error(sample: Sample) -> float:
        y = quantiser.latents(sample.window, quality, np.dtype(np.int16))
        scaled = (y * transform.weights.inverse_gain(quality)[:, None, None]).astype(np.float32)
        decoded = transform.synthesise([scaled], sample.window.margin, quantiser.stats)[0]
        height, width, _ = sample.window.pixels.shape
        return sample.chunk.weight * squared_error(decoded[:height, :width], sample.window.pixels)

    return sum(workers.map(error, samples))
