"""The container on disk, written: images as they come, shards by the encoder, and `finish`, which writes everything
else and the root's attributes as the last file. What has no root `zarr.json` is no container yet.

`root` is the folder that grows. Every call writes whole files only, so that a killed writer leaves no broken one.
Every function raises OutputError where a file cannot be written.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import UsageError
from histocodec.formats.container.arrays import (
    Form,
    chunk_key,
    group_metadata,
    pack_bytes,
    pack_values,
    write_metadata,
)
from histocodec.formats.container.attributes import KEY, Attributes, Maps, Stats
from histocodec.formats.container.attributes_json import MAX_INLINE, MAX_INLINE_VALUES, from_json, to_json
from histocodec.formats.container.fields import parse_json
from histocodec.formats.container.files import write_atomically
from histocodec.formats.container.layout import (
    DIGESTS,
    LOSSLESS_FEATURE,
    MAPS,
    OVERVIEW,
    all_metadata,
    digests_form,
    maps_form,
    more_maps,
)
from histocodec.formats.container.maps import LevelMaps, planes_of
from histocodec.formats.container.ngff import ome_attributes
from histocodec.formats.container.states import BACKGROUND, LOSSLESS

FIDELITY_PLANES = 4  # of the first six maps: PSNR and block error, which do not make the pixels


def write_values(root: Path, name: str, values: NDArray[Any]) -> str:
    """Writes the one chunk of an array that is no sharded one, "overview" say; its metadata follow in `finish`. Returns
    the SHA-256 of the values, for the attributes."""
    form = Form(values.shape, values.dtype.name)
    write_atomically(root / chunk_key(name, (0,) * values.ndim), pack_values(values, form))
    return hashlib.sha256(np.ascontiguousarray(values, form.stored_dtype).tobytes()).hexdigest()


def finish(
    root: Path,
    attributes: Attributes,
    stats: Stats,
    maps: Sequence[LevelMaps],
    digests: NDArray[np.uint8],
) -> Attributes:
    """Writes the maps, the metadata and, as the last file, the root's attributes, which makes the folder a container.

    `attributes` are complete but for what the maps decide; the complete ones are returned. `digests` are those of all
    shards, (shards, 32) uint8, as `digest_rows` orders them. Raises UsageError for what could not be read again.
    """
    lossless = any((level.state == LOSSLESS).any() for level in maps)
    if not any((level.state == BACKGROUND).any() for level in maps):
        stats = replace(stats, background_latent=np.zeros_like(stats.background_latent))  # nobody will ask for it
    features = {LOSSLESS_FEATURE: "critical"} if lossless else {}
    attributes = replace(attributes, stats=stats, maps=Maps(more=more_maps(lossless)))
    attributes = replace(attributes, provenance=replace(attributes.provenance, features=features))
    values = [level.values(lossless=lossless) for level in maps]
    attributes = _with_maps(root, attributes, values, digests)
    identity = planes_of(()) - FIDELITY_PLANES
    uid = hashlib.sha256(b"".join(level[:identity].tobytes() for level in values))
    uid.update(stats.channels.mean.tobytes() + stats.channels.std.tobytes() + stats.background.tobytes())
    attributes = replace(attributes, provenance=replace(attributes.provenance, uid=uid.hexdigest()[:32]))
    for name, metadata in all_metadata(attributes).items():
        write_metadata(root / name, metadata)
    return write_root(root, attributes)


def write_root(root: Path, attributes: Attributes) -> Attributes:
    """Writes the root's metadata. Returns the attributes as they will be read. Raises UsageError or FormatError for
    attributes that could not be read again."""
    described = to_json(attributes)
    where = f"{root}: {KEY}"
    readable = from_json(parse_json(json.dumps(described).encode("ascii"), where))
    write_metadata(root, group_metadata({**ome_attributes(attributes, OVERVIEW), KEY: described}))
    return readable


def _with_maps(
    root: Path, attributes: Attributes, values: Sequence[NDArray[np.uint8]], digests: NDArray[np.uint8]
) -> Attributes:
    """The attributes with the maps in them, if these are small; else writes them as arrays."""
    form = digests_form(attributes)
    if digests.shape != form.shape:
        raise UsageError(f"{root}: {len(digests)} digests of shards; {form.shape[0]} are needed")
    raw = b"".join(level.tobytes() for level in values) + digests.tobytes()
    if len(raw) <= MAX_INLINE_VALUES and len(packed := pack_bytes(raw)) <= MAX_INLINE:
        return replace(attributes, maps=replace(attributes.maps, inline=packed))
    levels = []
    for number, (level, planes) in enumerate(zip(attributes.levels, values, strict=True)):
        assert planes.shape == maps_form(attributes, number).shape, "maps have the shape that the attributes imply"
        levels.append(replace(level, maps=write_values(root, f"{MAPS}-{number}", planes)))
    sha256 = write_values(root, DIGESTS, digests)
    return replace(attributes, levels=tuple(levels), maps=replace(attributes.maps, digests=sha256))
