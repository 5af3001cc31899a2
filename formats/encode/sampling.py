"""A bounded sample of a slide's chunks, on which every choice before the first shard is based."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from histocodec.codec.transform import Transform
from histocodec.codec.window import PixelWindow, Window, read_window
from histocodec.formats.encode.scope import Scope
from histocodec.geometry import ChunkKey
from histocodec.models.config import CHUNK_PIXELS
from histocodec.normalise import ChannelStats
from histocodec.threads import Workers
from histocodec.tissue import background_mask, busiest_region, coarse_view, mask_part

# Of 512 × 512 pixels; of smaller ones, more.
TISSUE_CHUNKS = 80  # 20 megapixels: their mean is within two or three per cent of a slide's
BACKGROUND_CHUNKS = 60  # of those that look like background from afar: cheap, but on many slides the most

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class SampledChunk:
    """A chunk that stands for `weight` chunks of its level."""

    key: ChunkKey
    weight: float
    blank: bool  # seen from afar, it shows only background


@dataclass(frozen=True)
class Sample:
    """A sampled chunk that will be coded, read and analysed."""

    chunk: SampledChunk
    window: Window


def sampled_chunks(scope: Scope) -> list[SampledChunk]:
    """At most about the pixels of TISSUE_CHUNKS with tissue and of BACKGROUND_CHUNKS without, spread evenly over all
    levels in proportion to how many chunks of each kind a level has."""
    share = CHUNK_PIXELS**2 // scope.draft.chunk_side**2
    background = background_mask(coarse_view(scope.slide), scope.background)
    strata: dict[bool, list[list[ChunkKey]]] = {False: [], True: []}  # blank or not: the chunks of each level
    for number in range(len(scope.source_levels)):
        size = scope.level(number)
        kinds: dict[bool, list[ChunkKey]] = {False: [], True: []}
        for key in scope.draft.chunks_in(number, size.region):
            kinds[bool(mask_part(background, size, scope.region(key)).all())].append(key)
        for blank, keys in kinds.items():
            strata[blank].append(keys)
    sampled = []
    for blank, count in ((False, TISSUE_CHUNKS), (True, BACKGROUND_CHUNKS)):
        total = sum(len(keys) for keys in strata[blank])
        for keys in strata[blank]:
            chosen = spread(keys, max(1, round(share * count * len(keys) / max(1, total))))
            sampled += [SampledChunk(key, len(keys) / len(chosen), blank) for key in chosen]
    return sampled


def analysed_samples(scope: Scope, transform: Transform, stats: ChannelStats, workers: Workers) -> list[Sample]:
    """The sampled chunks that are not skipped as background, analysed with these statistics."""

    def sample(chunk: SampledChunk) -> Sample | None:
        region, source_level = scope.region(chunk.key), scope.source_levels[chunk.key.level]
        if scope.skips(scope.read(region, chunk.key.level)):
            return None
        return Sample(chunk, read_window(scope.slide, source_level, region, transform, stats))

    return [found for found in workers.map(sample, sampled_chunks(scope)) if found is not None]


def tissue_example(scope: Scope, transform: Transform, stats: ChannelStats) -> Window:
    """The part of level 0 that shows the most tissue, as large as a chunk, analysed without a halo for the
    synthesis."""
    level, config = scope.level(0).region, transform.weights.config
    chunk = busiest_region(scope.slide, CHUNK_PIXELS)
    read = chunk.expanded(config.analysis_halo * config.stride).intersect(level)
    return PixelWindow(scope.read(read, 0), chunk, synthesis_region=chunk, analysis_region=read).analyse(
        transform, stats
    )


def spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """At most `count` items, evenly spaced over the whole sequence."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]
