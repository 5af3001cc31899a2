"""Containers of version 1, written: the package only reads them, and the tests damage them in every way.

`create_skeleton`, then shards and arrays in any order, then `finish`. `golden` is one that decodes.
"""

import gzip
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError, UsageError
from histocodec.formats.container.arrays import (
    METADATA,
    chunk_path,
    group_metadata,
    pack_values,
    write_metadata,
    write_plain,
)
from histocodec.formats.container.attributes import KEY, Attributes, Stats
from histocodec.formats.container.fields import parse_json
from histocodec.formats.container.files import write_atomically
from histocodec.formats.container.ngff import ome_attributes
from histocodec.formats.container.version1.attributes import from_json
from histocodec.formats.container.version1.integrity import write_listing
from histocodec.formats.container.version1.layout import (
    GROUPS,
    block_error_form,
    check_values,
    latent_metadata,
    lossless_form,
    plain_arrays,
)
from histocodec.geometry import ChunkKey
from histocodec.slide import Pixels

GOLDEN = Path(__file__).parents[1] / "golden/v1"


def golden(folder: Path) -> Path:
    """Unpacks the golden container of version 1, and beside it its model, which HISTOCODEC_MODELS has to name."""
    model = "golden-1.safetensors"
    (folder / model).write_bytes(gzip.decompress((GOLDEN / f"{model}.gz").read_bytes()))
    with zipfile.ZipFile(GOLDEN / "slide.zarr.zip") as archive:
        archive.extractall(folder / "a.zarr")
    return folder / "a.zarr"


def create_skeleton(root: Path, attributes: Attributes) -> None:
    """Writes the groups, the attributes and the latents' metadata. From here on zarr opens `root`, and shards can be
    added. Raises UsageError or FormatError for attributes that could not be read again."""
    described: dict[str, object] = {KEY: _checked(attributes, f"{root}: {KEY}")}
    write_metadata(root, group_metadata({**ome_attributes(attributes, "overview/0"), **described}))
    for name in GROUPS:
        write_metadata(root / name, group_metadata())
    for level in range(len(attributes.levels)):
        write_metadata(root / "latents" / str(level), latent_metadata(attributes, level))


def write_array(root: Path, attributes: Attributes, name: str, values: NDArray[Any]) -> None:
    """Writes one of the `plain_arrays`, "tiles/0" say. Raises UsageError unless `values` have the shape, the dtype and
    the range that `Container` accepts."""
    form = plain_arrays(attributes).get(name)
    if form is None:
        raise UsageError(f"{name}: is no array of a container with these attributes")
    if values.shape != form.shape or values.dtype != np.dtype(form.dtype):
        raise UsageError(f"{name}: {values.dtype} {values.shape}; {form.dtype} {form.shape} is needed")
    try:
        check_values(name, values, name)
    except FormatError as exc:
        raise UsageError(str(exc)) from exc
    _write_group_of(root, name, attributes)
    write_plain(root / name, form, values)


def write_stats(root: Path, attributes: Attributes, stats: Stats) -> None:
    """Writes the four arrays of stats/. Raises UsageError as `write_array` does."""
    write_array(root, attributes, "stats/mean", stats.channels.mean)
    write_array(root, attributes, "stats/std", stats.channels.std)
    write_array(root, attributes, "stats/background", stats.background)
    write_array(root, attributes, "stats/background_latent", stats.background_latent)


def write_block_error(root: Path, attributes: Attributes, level: int, values: NDArray[np.float32]) -> None:
    """Writes the map of block errors, (rows, columns) float32 in grey values, NaN for background. Containers of earlier
    versions lack it. Raises UsageError for another shape or a value out of range."""
    name, form = f"block_error/{level}", block_error_form(attributes, level)
    if values.shape != form.shape:
        raise UsageError(f"{name}: {values.shape}; {form.shape} is needed")
    try:
        check_values(name, values, name)
    except FormatError as exc:
        raise UsageError(str(exc)) from exc
    write_plain(root / name, form, values)
    _write_group_of(root, name, attributes)


def write_lossless(root: Path, attributes: Attributes, key: ChunkKey, pixels: Pixels) -> None:
    """Writes the pixels (h, w, 3) uint8 of one chunk, cut at the level's edge. Raises UsageError for another shape."""
    form, region, name = lossless_form(attributes, key.level), attributes.chunk_region(key), f"lossless/{key.level}"
    if pixels.shape != (region.height, region.width, 3):
        raise UsageError(
            f"{name}: chunk ({key.row}, {key.column}) of shape {pixels.shape}; ({region.height}, {region.width}, 3) is "
            "needed"
        )
    padded = np.zeros(form.chunk_shape, np.uint8)  # Zarr's chunks have their full size at the edge, too
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    write_atomically(chunk_path(root / name, (key.row, key.column, 0)), pack_values(padded, form))
    _write_group_of(root, name, attributes)
    if not (root / name / METADATA).exists():
        write_metadata(root / name, form.metadata())


def finish(root: Path, attributes: Attributes) -> None:
    """The last step: writes the metadata for the attributes as they are now, and the digests of all files but shards.
    Raises UsageError where an array has not been written."""
    create_skeleton(root, attributes)
    missing = [name for name in plain_arrays(attributes) if not (root / name / METADATA).is_file()]
    if missing:
        raise UsageError(f"{root}: cannot be finished without {', '.join(missing)}")
    write_listing(root)


def _write_group_of(root: Path, name: str, attributes: Attributes) -> None:
    """The metadata of the group that an array is in, unless every container has that group."""
    group = name.split("/", maxsplit=1)[0]
    if group in GROUPS or (root / group / METADATA).exists():
        return
    write_metadata(root / group, group_metadata(ome_attributes(attributes, "0") if group == "overview" else None))


def _checked(attributes: Attributes, where: str) -> dict[str, object]:
    written = to_json(attributes)
    from_json(parse_json(json.dumps(written).encode("ascii"), where))
    return written


def to_json(attributes: Attributes) -> dict[str, object]:
    """The attribute of version 1, ready for JSON; the inverse of `attributes_v1.from_json`."""
    return {
        "version": 1,
        "generator": attributes.generator,
        "model": {
            "id": attributes.model.id,
            "sha256": attributes.model.sha256,
            "family": attributes.model.family,
            "stride": attributes.model.stride,
            "channels": attributes.model.channels,
            "embedded": attributes.model.embedded,
        },
        "chunk": attributes.chunk,
        "shard": attributes.shard,
        "levels": [
            {
                "width": level.width,
                "height": level.height,
                "downsample": level.downsample,
                "dtype": level.dtype,
                "quality": level.quality,
                "bytes": level.bytes,
                "psnr": "Infinity" if level.psnr == math.inf else level.psnr,  # as Zarr writes it in JSON
            }
            for level in attributes.levels
        ],
        "mpp": None if attributes.mpp is None else list(attributes.mpp),
        "objective_power": attributes.objective_power,
        "background": {"mode": attributes.background.mode, "colour": list(attributes.background.colour)},
        "source": {
            "name": attributes.source.name,
            "bytes": attributes.source.bytes,
            "vendor": attributes.source.vendor,
        },
        "properties": dict(attributes.properties),
        "icc": attributes.icc,
        "overview": None if attributes.overview is None else list(attributes.overview),
        "associated": [{"name": name, "width": w, "height": h} for name, (w, h) in attributes.associated.items()],
        "dropped": list(attributes.dropped),
    }
