"""Which quality meets a target: bisection on a sample of a slide's chunks, analysed once and coded at each try."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np

from histocodec.codec.quantise import Quantiser
from histocodec.codec.transform import Transform
from histocodec.codec.window import PixelWindow, Window, read_window
from histocodec.errors import UsageError
from histocodec.fidelity import psnr, squared_error
from histocodec.formats.container.attributes import Attributes
from histocodec.formats.encode.options import DEFAULT_QUALITY, EncodeOptions
from histocodec.geometry import Grid
from histocodec.models.config import CHUNK_PIXELS, QUALITIES, HyperConfig
from histocodec.normalise import ChannelStats
from histocodec.slide import Colour, Pixels, Slide
from histocodec.threads import Workers
from histocodec.tissue import bare, busiest_region, cell_of, coarse_view

TISSUE_CHUNKS = 80  # 20 megapixels: their mean is within two or three per cent of a slide's
GLASS_CHUNKS = 60  # of those that look like bare glass from afar: cheap, but on many slides the most
EFFORT_CHUNKS = 6  # with effort: what it changes is much the same on all chunks, and takes seconds on each
LIKELY_SEARCHES = 3  # after which most targets are met; then by bisection
SPARE = 0.1  # quality, between two whole ones, that is not trusted: what lies there is not tried
OVERHEAD = 1.01  # overview and thumbnail, as a share of the latents
# Bytes beside the shards, measured on small containers: what all levels share, each level's metadata, and a chunk's
# share of its maps. Within a shard, each chunk has a CRC, and each place a line of the index.
LEAST_BYTES, LEVEL_BYTES, MAP_BYTES, CRC_BYTES, PLACE_BYTES = 2650, 2800, 10, 4, 16

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class SampleSource:
    """What a sample is drawn from: these levels of a slide, its background colour and statistics, which chunks are
    left out as background, and the container's attributes as far as they are known."""

    slide: Slide
    levels: tuple[int, ...]
    background: Colour
    stats: ChannelStats
    skips: Callable[[Pixels], bool]
    attributes: Attributes


@dataclass(frozen=True)
class _Sample:
    """A chunk that will be coded. It stands for `weight` chunks of its level."""

    window: Window
    level: int
    weight: float
    bare: bool


_Total = Callable[[Sequence[_Sample], int, Quantiser, Workers], float]


def choose_quality(options: EncodeOptions, source: SampleSource, quantiser: Quantiser, workers: Workers) -> float:
    """The quality that the options name, or the one whose sample meets their target: the highest within a rate, the
    lowest that reaches a PSNR; of a `vae` a whole one. Raises UsageError where none does."""
    config = quantiser.weights.config
    wanted_bpp, nominal = options.wanted_bpp, config.ratio
    parts = isinstance(config, HyperConfig)
    if not options.has_target:
        if options.quality is not None:
            if options.quality % 1 and not parts:
                raise UsageError(f"--quality {options.quality:g}: of model {quantiser.weights.id} only whole ones")
            return options.quality
        if nominal is None:
            return DEFAULT_QUALITY
        wanted_bpp = 24 / nominal
    found = workers.map(lambda place: _analysed(place, source, quantiser.transform), places_of(source))
    samples = [sample for sample in found if sample is not None]
    if not samples:
        return DEFAULT_QUALITY  # nothing but glass: any quality gives the same
    rounding = quantiser.rounding()
    few = spread([sample for sample in samples if not sample.bare] or samples, EFFORT_CHUNKS)

    def bracket(holds: Callable[[int, float], bool], total: _Total) -> tuple[int, int, float]:
        """The last quality for which `holds` does, and the next, for which it does not, given by what factor effort
        changes the total there, which is the third; -1 and QUALITIES were not tried."""
        quality = _last(lambda quality: holds(quality, 1.0))
        if not quantiser.effort:
            return quality, quality + 1, 1.0
        below, above, tries, factor = -1, QUALITIES, 0, 1.0
        while above - below > 1:
            quality, tries = min(max(quality, below + 1), above - 1), tries + 1
            rounded = total(few, quality, rounding, workers)
            factor = total(few, quality, quantiser, workers) / rounded if rounded else 1.0
            below, above = (quality, above) if holds(quality, factor) else (below, quality)
            quality = (below + above) // 2
            if tries < LIKELY_SEARCHES:  # the factor of one quality tells about those around it
                quality = _last(lambda quality, factor=factor: holds(quality, factor))  # type: ignore[misc]
                above = below + 1 if quality == below else above
        return below, above, factor

    if wanted_bpp is None:
        wanted_psnr = options.target_psnr or 0.0
        finest = [sample for sample in samples if sample.level == source.levels[0]]
        area = sum(sample.weight * sample.window.pixels.size for sample in finest)
        rounded_error = cache(lambda quality: _error(finest, quality, rounding, workers))

        def reached(quality: int, factor: float) -> float:
            return psnr(rounded_error(quality) * factor, area)

        below, above, factor = bracket(lambda quality, factor: reached(quality, factor) < wanted_psnr, _error)
        if above == QUALITIES:
            raise UsageError(f"--target-psnr {wanted_psnr:g} dB is beyond quality {QUALITIES - 1} on this slide")
        if below < 0 or not parts:
            return above
        part = _part(reached(below, factor), wanted_psnr, reached(above, factor))
        return min(below + part + SPARE, above)
    pixels = source.slide.levels[source.levels[0]].region.area
    least_bits = 8 * _bytes_beside_chunks(source)
    rounded_bits = cache(lambda quality: _bits(samples, quality, rounding, workers))

    def bpp(quality: int, factor: float = 1.0) -> float:
        return (rounded_bits(quality) * factor * OVERHEAD + least_bits) / pixels

    below, above, factor = bracket(lambda quality, factor: bpp(quality, factor) <= wanted_bpp, _bits)
    if below < 0:
        asked = "" if options.wanted_bpp is not None else f", at which model {quantiser.weights.id} aims,"
        raise UsageError(
            f"{wanted_bpp:.4g} bpp{asked} is less than quality 0 needs on this slide, about {bpp(0):.3g} bpp; "
            "--quality takes what it needs"
        )
    if above == QUALITIES or not parts:
        return below
    part = _part(*(math.log(rate) for rate in (bpp(below, factor), wanted_bpp, bpp(above, factor))))
    return max(below + part - SPARE, below)


def _part(low: float, wanted: float, high: float) -> float:
    """How far `wanted` lies between, from 0 to 1."""
    return min(max(0.0, (wanted - low) / (high - low)), 1.0) if high > low else 0.0


def _bytes_beside_chunks(source: SampleSource) -> int:
    """What a container has besides its chunks, overview and thumbnail."""
    attributes = source.attributes
    grids = [attributes.grid(level) for level in range(len(attributes.levels))]
    places = sum(grid.shards for grid in grids) * attributes.shard**2
    chunks = sum(grid.chunk_rows * grid.chunk_columns for grid in grids)
    described = len(json.dumps(attributes.to_json())) + len(source.slide.icc_profile or b"")
    shared = LEAST_BYTES + 4 * attributes.model.channels  # float32, of bare glass
    return shared + described + LEVEL_BYTES * len(grids) + MAP_BYTES * chunks + PLACE_BYTES * places


def _last(holds: Callable[[int], bool]) -> int:
    """The last quality for which `holds` does, true up to some quality and false beyond; -1 where there is none."""
    low, high = -1, QUALITIES - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


@dataclass(frozen=True)
class Place:
    """A chunk of a level. It stands for `weight` chunks."""

    level: int
    row: int
    column: int
    weight: float
    bare: bool  # from afar, it shows nothing but glass


def places_of(source: SampleSource) -> list[Place]:
    """Chunks spread over all levels in proportion to how many there are: so many of tissue, so many of glass."""
    glass = bare(coarse_view(source.slide), source.background)
    strata: dict[bool, list[tuple[int, list[tuple[int, int]]]]] = {False: [], True: []}
    for number in source.levels:
        level = source.slide.levels[number]
        grid = Grid(level.height, level.width, CHUNK_PIXELS)
        found: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        for place in grid.squares_in(level.region):
            found[bool(cell_of(glass, level, grid.region(*place)).all())].append(place)
        for empty, chunks in found.items():
            strata[empty].append((number, chunks))
    places = []
    for empty, count in ((False, TISSUE_CHUNKS), (True, GLASS_CHUNKS)):
        levels = strata[empty]
        total = sum(len(chunks) for _, chunks in levels)
        for number, chunks in levels:
            chosen = spread(chunks, max(1, round(count * len(chunks) / max(1, total))))
            places += [Place(number, row, column, len(chunks) / len(chosen), empty) for row, column in chosen]
    return places


def spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """At most `count` items, evenly spaced over the whole sequence."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _analysed(place: Place, source: SampleSource, transform: Transform) -> _Sample | None:
    """The sample at a place; None where the encoder will skip the chunk as background."""
    level = source.slide.levels[place.level].region
    chunk = Grid(level.height, level.width, CHUNK_PIXELS).region(place.row, place.column)
    if source.skips(source.slide.read(chunk, place.level)):
        return None
    window = read_window(source.slide, place.level, chunk, transform, source.stats)
    return _Sample(window, place.level, place.weight, place.bare)


def tissue_example(source: SampleSource, transform: Transform) -> Window:
    """The most tissue that a chunk of the first level shows."""
    level, config = source.slide.levels[0].region, transform.weights.config
    chunk = busiest_region(source.slide, CHUNK_PIXELS)
    window = chunk.expanded(config.analysis_halo * config.stride).intersect(level)
    alone = PixelWindow(source.slide.read(window, 0), chunk, synthesis_region=chunk, analysis_region=window)
    return alone.analyse(transform, source.stats)


def _bits(samples: Sequence[_Sample], quality: int, quantiser: Quantiser, workers: Workers) -> float:
    """Estimated bits of all that the samples stand for."""

    def bits(sample: _Sample) -> float:
        coded = quantiser.coded(sample.window, quality, quantiser.weights.config.chunk, np.dtype(np.int16))
        return 8 * sample.weight * (len(coded) + CRC_BYTES)

    return sum(workers.map(bits, samples))


def _error(samples: Sequence[_Sample], quality: int, quantiser: Quantiser, workers: Workers) -> float:
    """Estimated squared error of all that the samples stand for."""
    transform = quantiser.transform

    def error(sample: _Sample) -> float:
        y = quantiser.window(sample.window, quality, np.dtype(np.int16))
        scaled = (y * transform.weights.inverse_gain(quality)[:, None, None]).astype(np.float32)
        decoded = transform.synthesise([scaled], sample.window.margin, quantiser.stats)[0]
        height, width, _ = sample.window.pixels.shape
        return sample.weight * squared_error(decoded[:height, :width], sample.window.pixels)

    return sum(workers.map(error, samples))
