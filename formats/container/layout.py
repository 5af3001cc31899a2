"""The layout of a container of version 2: name, shape and dtype of every array in it, derived from the attributes.

    zarr.json      the attributes: all that a reader needs beside what follows
    latents/N      int8 or int16 (C, rows, columns), sharded, codec histocodec.latent
    lossless-N     uint8 (height, width, 3), sharded like the latents, where a chunk is stored losslessly
    maps-N         uint8 (planes, chunk rows, chunk columns): see `maps.py`; where they are not in the attributes
    digests        uint8 (shards, 32): SHA-256 of every shard; likewise
    overview  icc  model  associated-NAME     where the container has any

The latents have a group of their own, so that a program without their codec can open everything else. `N` is the number
of a level, counted from 0.
"""

import re

from histocodec.formats.container.arrays import Form, Json, array_metadata, group_metadata, without_defaults
from histocodec.formats.container.attributes import Attributes
from histocodec.formats.container.maps import LOSSLESS_MAPS, Widths, planes_of
from histocodec.geometry import ChunkKey, ShardKey

DIGEST_BYTES = 32
NO_SHARD = bytes(DIGEST_BYTES)  # the digest where there is no shard
LATENT_NAMES = ("channel", "row", "column")
PIXEL_NAMES = ("y", "x", "c")

# Ranges of the statistics: far beyond what any slide has, and small enough that no product of them with latents
# overflows float32, which would decode to infinity or NaN without any error.
MOST_STATISTIC = 2.0**20  # grey values, of a mean and a standard deviation …
LEAST_STD = 2.0**-20  # … which divides, so that it must not be arbitrarily small either
MOST_BACKGROUND_LATENT = 2.0**30

LATENTS, LOSSLESS_PIXELS, MAPS, DIGESTS = "latents", "lossless", "maps", "digests"
LOSSLESS_FEATURE = "lossless"
OVERVIEW, ICC, MODEL, ASSOCIATED = "overview", "icc", "model", "associated"
CRC32C: Json = {"name": "crc32c"}
LITTLE: Json = {"name": "bytes", "configuration": {"endian": "little"}}
GZIP: Json = {"name": "gzip", "configuration": {"level": 9}}


def shard_key(shard: ShardKey) -> str:
    """The file of a shard of latents, relative to the container."""
    return f"{LATENTS}/{shard.level}/c/0/{shard.row}/{shard.column}"


def lossless_key(shard: ShardKey) -> str:
    """The file of a shard of lossless pixels."""
    return f"{LOSSLESS_PIXELS}-{shard.level}/c/{shard.row}/{shard.column}/0"


def is_shard(name: str) -> bool:
    """Whether a file of a container, of any version, is a shard of latents."""
    return re.match(rf"{LATENTS}/\d+/c/", name) is not None


def is_lossless(name: str) -> bool:
    """Whether a file of a container, of any version, holds lossless chunks."""
    return re.match(rf"{LOSSLESS_PIXELS}[/-]\d+/c/", name) is not None


def chunk_number(key: ChunkKey, side: int) -> int:
    """The place of a chunk in the index of its shard of `side` × `side` chunks."""
    return key.row % side * side + key.column % side


def shards_of(attributes: Attributes, level: int) -> list[ShardKey]:
    """The shards of a level, row by row, absent ones included."""
    grid = attributes.grid(level)
    return [ShardKey(level, row, column) for row in range(grid.shard_rows) for column in range(grid.shard_columns)]


def has_lossless(attributes: Attributes) -> bool:
    """Whether some chunk may be stored losslessly."""
    return LOSSLESS_FEATURE in attributes.provenance.features


def maps_form(attributes: Attributes, level: int) -> Form:
    """The form of maps-LEVEL."""
    grid = attributes.grid(level)
    shape = (planes_of(attributes.maps.more), grid.chunk_rows, grid.chunk_columns)
    return Form(shape, "uint8", ("plane", "row", "column"))


def digest_rows(attributes: Attributes) -> int:
    """The number of digests: one for each shard of latents, then as many for those of lossless pixels, if there are
    any."""
    shards = sum(attributes.grid(level).shards for level in range(len(attributes.levels)))
    return shards * (2 if has_lossless(attributes) else 1)


def digests_form(attributes: Attributes) -> Form:
    """The form of the array `digests`."""
    return Form((digest_rows(attributes), DIGEST_BYTES), "uint8")


def small_arrays(attributes: Attributes) -> dict[str, Form]:
    """The form of every array that is a single Zarr chunk and whose SHA-256 the attributes name, by name; all but the
    maps and their digests."""
    forms: dict[str, Form] = {}
    if attributes.overview is not None:
        width, height = attributes.overview
        forms[OVERVIEW] = Form((3, height, width), "uint8", ("c", "y", "x"))
    for name, (width, height) in attributes.associated.items():
        forms[f"{ASSOCIATED}-{name}"] = Form((height, width, 3), "uint8", PIXEL_NAMES)
    if attributes.icc is not None:
        forms[ICC] = Form((attributes.icc,), "uint8")
    if attributes.model.embedded is not None:
        forms[MODEL] = Form((attributes.model.embedded,), "uint8")
    return forms


def plain_forms(attributes: Attributes) -> dict[str, Form]:
    """The form of every array but the sharded ones, by name."""
    forms = small_arrays(attributes)
    if attributes.maps.inline is None:
        forms[DIGESTS] = digests_form(attributes)
        forms |= {f"{MAPS}-{level}": maps_form(attributes, level) for level in range(len(attributes.levels))}
    return forms


def latents_metadata(attributes: Attributes, level: int) -> Json:
    """The zarr.json of latents-LEVEL, as short as can be: who reads it has our codec, so knows what is left out."""
    grid, size, model = attributes.grid(level), attributes.levels[level], attributes.model
    side = attributes.chunk * attributes.shard_side(level)
    codec: Json = {
        "name": "histocodec.latent",
        "configuration": {"model": model.id, "sha256": model.sha256, "quality": size.quality},
    }
    metadata = array_metadata(
        (model.channels, grid.latent_rows, grid.latent_columns),
        size.dtype,
        (model.channels, side, side),
        [_sharding([model.channels, attributes.chunk, attributes.chunk], [codec, CRC32C])],
        LATENT_NAMES,
    )
    return {key: without_defaults(member) for key, member in metadata.items()}


def lossless_metadata(attributes: Attributes, level: int) -> Json:
    """The zarr.json of lossless-LEVEL."""
    size, side, shard = attributes.levels[level], attributes.chunk_side, attributes.shard_side(level)
    return array_metadata(
        (size.height, size.width, 3),
        "uint8",
        (side * shard, side * shard, 3),
        [_sharding([side, side, 3], [{"name": "bytes"}, GZIP, CRC32C])],
        PIXEL_NAMES,
    )


def all_metadata(attributes: Attributes) -> dict[str, Json]:
    """The zarr.json of every array, and of the group of the latents, by name."""
    found = {LATENTS: group_metadata()} | {name: form.metadata() for name, form in plain_forms(attributes).items()}
    for level in range(len(attributes.levels)):
        found[f"{LATENTS}/{level}"] = latents_metadata(attributes, level)
        if has_lossless(attributes):
            found[f"{LOSSLESS_PIXELS}-{level}"] = lossless_metadata(attributes, level)
    return found


def more_maps(lossless: bool) -> Widths:
    """The maps after the first six, with or without lossless chunks."""
    return LOSSLESS_MAPS if lossless else ()


def _sharding(chunk: list[int], codecs: list[Json]) -> Json:
    configuration: Json = {
        "chunk_shape": chunk,
        "codecs": codecs,
        "index_codecs": [LITTLE, CRC32C],
        "index_location": "end",
    }
    return {"name": "sharding_indexed", "configuration": configuration}
