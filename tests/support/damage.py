"""Ways to damage a container that carries the tiny model."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from histocodec.codec.chunk import quality_of
from histocodec.errors import UsageError
from histocodec.formats.container.attributes_json import digest_of
from histocodec.formats.container.layout import shard_key
from histocodec.formats.container.shard import CRC_BYTES, pack_shard
from histocodec.geometry import ShardKey
from tests.support.tiny import tiny_weights
from tests.support.version2 import Contents


def largest_shard(path: Path) -> Path:
    """The largest file of latents in a container."""
    return max(path.glob("latents/*/c/*/*/*"), key=lambda file: file.stat().st_size)


def fill_shard(path: Path, chunk: bytes, *, check: int = 0) -> None:
    """Writes the only shard of level 0, with the same chunk everywhere, and what is recorded of it, as somebody who
    forges a container would. `check` is that of the latents in the chunk."""
    contents = Contents.of(path)
    grid, side = contents.attributes.grid(0), range(contents.attributes.shard_side(0))
    inside = [r < grid.chunk_rows and c < grid.chunk_columns for r in side for c in side]
    name = shard_key(ShardKey(0, 0, 0))
    (path / name).write_bytes(pack_shard([chunk if there else None for there in inside]))
    maps = contents.maps[0]
    maps.state[...], maps.quality[...], maps.size[...], maps.check[...] = 1, quality_of(chunk), len(chunk) + 4, check
    maps.psnr[...], maps.block_error[...] = np.float32(30), np.float32(1)
    assert len(chunk) + CRC_BYTES == maps.size[0, 0]
    contents.digest(path)
    contents.write(path)


def foreign_weights() -> bytes:
    """The tiny model's weights, but for the last bit of one number."""
    data = bytearray(tiny_weights().data)
    body = 8 + int.from_bytes(data[:8], "little")
    data[body + json.loads(data[8:body])["inverse_gain"]["data_offsets"][0]] ^= 1
    return bytes(data)


def edited(*changes: tuple[str, object], seal: bool = True) -> Callable[[Path], object]:
    """A change to a container that sets fields of the root's metadata, named as in `levels.0.width`, and unless `seal`
    is false recomputes the digest, where the new values have one."""

    def change(path: Path) -> None:
        written = json.loads((path / "zarr.json").read_text())
        for name, value in changes:
            *parents, last = name.split(".")
            node = written
            for key in parents:
                node = node[int(key) if isinstance(node, list) else key]
            node[last] = value
        described = written["attributes"]["histocodec"]
        if seal and isinstance(described, dict) and "digest" in described:
            with suppress(UsageError):  # NaN, say, has none
                described["digest"] = digest_of(described)
        (path / "zarr.json").write_text(json.dumps(written))

    return change
