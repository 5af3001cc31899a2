"""Groups of chunks, 1024 × 1024 pixels that the encoder analyses together: from their pixels to their bytes.

    read        pixels of the group, and the halos of g_s and g_a around it             (H, W, 3) uint8
    analysed    latents of the group, and the halo of g_s that the latent search needs  (C, h, w) float32
    window      the part of these that one chunk needs

The halos are a smaller share of a group's window than of a chunk's. A group is always computed on one thread from the
same window, so its bytes depend neither on the number of workers nor on resuming.
"""

from collections.abc import Iterator, Sequence

from histocodec.codec.quantise import Quantiser
from histocodec.codec.window import Window, latent_slices, margin_of, pad_pixels
from histocodec.formats.container.attributes import Attributes
from histocodec.formats.container.states import CODED
from histocodec.formats.encode.partial_container import StoredChunk
from histocodec.formats.encode.plan import Plan
from histocodec.geometry import ChunkKey, ShardKey

GROUP_PIXELS = 1024  # a side


def groups_of(shard: ShardKey, attributes: Attributes) -> Iterator[list[ChunkKey]]:
    """The groups of a shard, row by row, and the keys of each from its upper left chunk to its lower right one. Groups
    at the level's edge are smaller."""
    grid, side, group = (
        attributes.grid(shard.level),
        attributes.shard_side(shard.level),
        max(1, GROUP_PIXELS // attributes.chunk_side),
    )
    rows = range(shard.row * side, min((shard.row + 1) * side, grid.chunk_rows))
    columns = range(shard.column * side, min((shard.column + 1) * side, grid.chunk_columns))
    for i in range(0, len(rows), group):
        for j in range(0, len(columns), group):
            yield [ChunkKey(shard.level, r, c) for r in rows[i : i + group] for c in columns[j : j + group]]


def encode_group(keys: Sequence[ChunkKey], plan: Plan, quantiser: Quantiser) -> dict[ChunkKey, StoredChunk]:
    """The chunks of a group that are not background, computed on this thread. Raises SourceError."""
    scope, transform, level = plan.scope, quantiser.transform, keys[0].level
    config = transform.weights.config
    stride, whole, group = config.stride, scope.level(level).region, scope.bounds(keys)
    analysed = group.expanded(config.synthesis_halo * stride).intersect(whole) if quantiser.effort else group
    read = analysed.expanded(config.analysis_halo * stride).intersect(whole)
    pixels = scope.read(read, level)
    coded = [key for key in keys if not scope.skips(pixels[scope.region(key).within(read)])]
    if not coded:
        return {}
    y = transform.analyse(pad_pixels(pixels, stride), margin_of(analysed, read, stride), plan.stats)
    chunks = {}
    for key in coded:
        chunk = scope.region(key)
        seen = chunk.expanded(config.synthesis_halo * stride).intersect(analysed)
        window = Window(
            y[latent_slices(seen, analysed, stride)], margin_of(chunk, seen, stride), pixels[chunk.within(read)]
        )
        latents = quantiser.chunk(window, plan.quality, scope.draft.chunk, plan.dtype)
        chunks[key] = StoredChunk.of(CODED, quantiser.coded(latents, plan.quality), latents)
    return chunks
