"""Small complete containers of version 1, without a slide or a model, for tests that decode nothing."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from histocodec.formats.container import read as module
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.attributes import (
    Attributes,
    BackgroundAttributes,
    LevelAttributes,
    ModelReference,
    SourceAttributes,
)
from histocodec.formats.container.digests import file_digest
from histocodec.formats.container.files import write_atomically
from histocodec.formats.container.read import open_container
from histocodec.formats.container.shard import pack_shard
from histocodec.formats.container.version1.layout import plain_arrays, shard_path
from histocodec.geometry import ShardKey
from histocodec.models.weights import load_model
from tests.support.version1 import create_skeleton, finish, write_array, write_block_error

SCHEMA = json.loads((Path(module.__file__).parents[1] / "schema-1.json").read_text())


def attributes(**changes: Any) -> Attributes:
    """Two levels, 2 x 3 and 1 x 1 chunks of 4 latents, in shards of 2 x 2."""
    plain = Attributes(
        generator="histocodec 0.1.0",
        model=ModelReference("tiny", "0" * 64, channels=8),
        levels=(
            LevelAttributes(150, 100, 1.0, "int8", 50, bytes=156, psnr=math.inf),
            LevelAttributes(38, 25, 3.97, "int16", 60, bytes=73, psnr=31.25),
        ),
        background=BackgroundAttributes("skip", (240, 241, 242)),
        source=SourceAttributes("a.svs", 12345, "aperio"),
        mpp=(0.25, 0.26),
        objective_power=40.0,
        properties={"aperio.AppMag": "40", "tiff.Artist": "é\ufffd"},
        icc=5,
        overview=(15, 10),
        associated={"thumbnail": (7, 6)},
        dropped=("label", "macro"),
        chunk=4,
        shard=2,
        version=1,
    )
    return replace(plain, **changes)


def values_of(described: Attributes, name: str) -> np.ndarray[Any, Any]:
    """What `written` stores in the array of this name: random values in its range."""
    form = plain_arrays(described)[name]
    rng = np.random.default_rng(len(name))
    if name.startswith("tiles"):
        return rng.integers(0, 2, form.shape, dtype=np.uint8)
    if name.startswith("integrity"):
        return np.zeros(form.shape, np.uint8)
    if form.dtype == "uint8":
        return rng.integers(0, 101, form.shape, dtype=np.uint8)
    return rng.uniform(0.5, 50, form.shape).astype(np.float32)


def written(root: Path, described: Attributes | None = None) -> Container:
    """Write a complete container whose chunks are single bytes, which no decoder would accept."""
    described = described or attributes()
    create_skeleton(root, described)
    for name in plain_arrays(described):
        if not name.startswith("integrity"):
            write_array(root, described, name, values_of(described, name))
    for level in range(len(described.levels)):
        grid, side = described.grid(level), described.shard
        tiles = values_of(described, f"tiles/{level}")
        digests = np.zeros((grid.shards, 32), np.uint8)
        for shard, (row, column) in enumerate(np.ndindex(grid.shard_rows, grid.shard_columns)):
            part = np.zeros((side, side), np.uint8)
            inside = tiles[row * side : (row + 1) * side, column * side : (column + 1) * side]
            part[: inside.shape[0], : inside.shape[1]] = inside
            if part.any():
                path = shard_path(root, ShardKey(level, row, column))
                write_atomically(path, pack_shard([b"x" if tile else None for tile in part.ravel()]))
                digests[shard] = np.frombuffer(file_digest(path), np.uint8)
        write_array(root, described, f"integrity/{level}", digests)
    finish(root, described)
    return open_container(root)


def claiming(root: Path, width: int, height: int, model_file: Path, **changes: Any) -> Container:
    """Write a complete container of one level of bare background, in chunks of 64 pixels, with its model."""
    model = load_model(model_file)
    reference = ModelReference(model.id, model.sha256, model.config.latent_channels, embedded=len(model.data))
    level = LevelAttributes(width, height, 1.0, "int8", 50, bytes=0)
    plain = attributes(model=reference, levels=(level,), icc=None, overview=None, associated={}, chunk=4, shard=32)
    described = replace(plain, mpp=(0.25, 0.25), **changes)
    create_skeleton(root, described)
    for name, form in plain_arrays(described).items():
        values = np.full(form.shape, {"psnr": np.nan, "stats": 1}.get(name.split("/", maxsplit=1)[0], 0), form.dtype)
        if name == "model/weights":
            values = np.frombuffer(model.data, np.uint8)
        write_array(root, described, name, values)
    grid = described.grid(0)
    write_block_error(root, described, 0, np.full((grid.chunk_rows, grid.chunk_columns), np.nan, np.float32))
    finish(root, described)
    return open_container(root)
