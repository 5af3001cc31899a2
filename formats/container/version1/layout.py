"""The layout of a container of version 1: name, shape and dtype of everything in it, all derived from the attributes.

    latents/N                      int8 or int16 (C, rows, columns), sharded, codec histocodec.latent
    tiles/N  quality/N  psnr/N     a value for each chunk
    block_error/N                  likewise; containers of earlier versions lack it
    integrity/N  integrity/files   SHA-256 of each shard, and of each other file
    stats/mean  stats/std  stats/background  stats/background_latent
    overview/0  associated/NAME  metadata/icc  model/weights  lossless/N     where the container has any

`N` is the number of a level, counted from 0.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError
from histocodec.formats.container.arrays import Form, array_metadata, chunk_key
from histocodec.formats.container.attributes import Attributes
from histocodec.formats.container.layout import (
    DIGEST_BYTES,
    LATENT_NAMES,
    LEAST_STD,
    MOST_BACKGROUND_LATENT,
    MOST_STATISTIC,
    PIXEL_NAMES,
)
from histocodec.formats.container.states import LOSSLESS
from histocodec.geometry import ShardKey
from histocodec.models.config import QUALITIES

LISTING = "integrity/files"
GROUPS = ("latents", "tiles", "quality", "psnr", "stats", "integrity")  # the groups that every container has
GRID_NAMES = ("row", "column")

MOST_PSNR = 200.0  # dB; a chunk in which one sample is off by one has less than 120
MOST_BLOCK_ERROR = 255.0  # grey values


def plain_arrays(attributes: Attributes) -> dict[str, Form]:
    """The form of every array of one Zarr chunk that a container with these attributes must have, by name; all but
    `integrity/files`, whose size does not follow from the attributes."""
    forms: dict[str, Form] = {}
    for n in range(len(attributes.levels)):
        grid = attributes.grid(n)
        chunks = (grid.chunk_rows, grid.chunk_columns)
        forms[f"tiles/{n}"] = Form(chunks, "uint8", GRID_NAMES)
        forms[f"quality/{n}"] = Form(chunks, "uint8", GRID_NAMES)
        forms[f"psnr/{n}"] = Form(chunks, "float32", GRID_NAMES)
        forms[f"integrity/{n}"] = Form((grid.shards, DIGEST_BYTES), "uint8")
    forms["stats/mean"] = Form((3,), "float32")
    forms["stats/std"] = Form((3,), "float32")
    forms["stats/background"] = Form((3,), "uint8")
    forms["stats/background_latent"] = Form((attributes.model.channels,), "float32")
    if attributes.overview is not None:
        width, height = attributes.overview
        forms["overview/0"] = Form((3, height, width), "uint8", ("c", "y", "x"))
    for name, (width, height) in attributes.associated.items():
        forms[f"associated/{name}"] = Form((height, width, 3), "uint8", PIXEL_NAMES)
    if attributes.icc is not None:
        forms["metadata/icc"] = Form((attributes.icc,), "uint8")
    if attributes.model.embedded is not None:
        forms["model/weights"] = Form((attributes.model.embedded,), "uint8")
    return forms


def latent_metadata(attributes: Attributes, level: int) -> dict[str, object]:
    """The zarr.json of latents/LEVEL."""
    grid, size, channels = attributes.grid(level), attributes.levels[level], attributes.model.channels
    model = {"model": attributes.model.id, "sha256": attributes.model.sha256, "quality": size.quality}
    side = attributes.chunk
    sharding = {
        "chunk_shape": [channels, side, side],
        "codecs": [{"name": "histocodec.latent", "configuration": model}, {"name": "crc32c"}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    }
    return array_metadata(
        (channels, grid.latent_rows, grid.latent_columns),
        size.dtype,
        (channels, side * attributes.shard, side * attributes.shard),
        [{"name": "sharding_indexed", "configuration": sharding}],
        LATENT_NAMES,
    )


def lossless_form(attributes: Attributes, level: int) -> Form:
    """The form of lossless/LEVEL: the pixels of lossless chunks. Its other Zarr chunks are absent."""
    size, side = attributes.levels[level], attributes.chunk_side
    return Form((size.height, size.width, 3), "uint8", PIXEL_NAMES, chunk=(side, side, 3))


def block_error_form(attributes: Attributes, level: int) -> Form:
    """The form of block_error/LEVEL, which is not in `plain_arrays` since containers may lack it."""
    grid = attributes.grid(level)
    return Form((grid.chunk_rows, grid.chunk_columns), "float32", GRID_NAMES)


def shard_key(shard: ShardKey) -> str:
    """The key of a shard of latents."""
    return chunk_key(f"latents/{shard.level}", (0, shard.row, shard.column))


def shard_path(root: Path, shard: ShardKey) -> Path:
    """The file of a shard of latents."""
    return root / shard_key(shard)


def check_values(name: str, values: NDArray[Any], where: str) -> None:
    """Raises FormatError, which begins with `where`, where the values of a plain array are out of range."""
    group = name.partition("/")[0]
    if group == "tiles":
        low, high, others = 0.0, float(LOSSLESS), ""
    elif group == "quality":
        low, high, others = 0.0, QUALITIES - 1.0, ""
    elif group == "psnr":
        low, high, others = 0.0, MOST_PSNR, ", NaN and infinity"
    elif group == "block_error":
        low, high, others = 0.0, MOST_BLOCK_ERROR, " and NaN"
    elif name == "stats/mean":
        low, high, others = -MOST_STATISTIC, MOST_STATISTIC, ""
    elif name == "stats/std":
        low, high, others = LEAST_STD, MOST_STATISTIC, ""
    elif name == "stats/background_latent":
        low, high, others = -MOST_BACKGROUND_LATENT, MOST_BACKGROUND_LATENT, ""
    else:
        return
    sound = (values >= low) & (values <= high)  # never true of NaN
    if "NaN" in others:
        sound |= np.isnan(values)
    if "infinity" in others:
        sound |= values == np.inf
    if not sound.all():
        found = values[~sound].flat[0]
        raise FormatError(f"{where}: has {found}, which is not allowed there; {low:g} to {high:g}{others} are")
