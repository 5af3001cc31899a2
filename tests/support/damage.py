"""Ways to damage a container that carries the tiny model."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from histocodec.formats.container.arrays import write_plain
from histocodec.formats.container.layout import plain_arrays, shard_path
from histocodec.formats.container.read import Container
from histocodec.formats.container.shard import pack_shard
from histocodec.geometry import ShardKey
from tests.support.tiny import tiny_weights


def largest_shard(path: Path) -> Path:
    """The largest file of latents in a container."""
    return max((path / "latents").rglob("c/*/*/*"), key=lambda file: file.stat().st_size)


def fill_shard(path: Path, chunk: bytes, *, absent: tuple[int, int] | None = None) -> None:
    """Write the only shard of level 0, with the same chunk everywhere but at `absent`, and what is recorded of it, as
    somebody who forges a container would."""
    attributes = Container.open(path).attributes
    grid, side = attributes.grid(0), range(attributes.shard)
    there = [(r, c) for r in range(grid.chunk_rows) for c in range(grid.chunk_columns) if (r, c) != absent]
    slots = [chunk if (r, c) in there else None for r in side for c in side]
    shard = pack_shard(slots)
    shard_path(path, ShardKey(0, 0, 0)).write_bytes(shard)
    edited(("attributes.histocodec.levels.0.bytes", len(shard)))(path)
    form = plain_arrays(attributes)["integrity/0"]
    digest = np.frombuffer(hashlib.sha256(shard).digest(), np.uint8).reshape(form.shape)
    write_plain(path / "integrity/0", form, digest)


def foreign_weights() -> bytes:
    """The tiny model's weights, but for the last bit of one number."""
    data = bytearray(tiny_weights().data)
    body = 8 + int.from_bytes(data[:8], "little")
    data[body + json.loads(data[8:body])["inverse_gain"]["data_offsets"][0]] ^= 1
    return bytes(data)


def edited(*changes: tuple[str, object]) -> Callable[[Path], object]:
    """A change to a container that sets fields of the root's metadata, named as in `levels.0.width`."""

    def change(path: Path) -> None:
        written = json.loads((path / "zarr.json").read_text())
        for name, value in changes:
            *parents, last = name.split(".")
            node = written
            for key in parents:
                node = node[int(key) if isinstance(node, list) else key]
            node[last] = value
        (path / "zarr.json").write_text(json.dumps(written))

    return change
