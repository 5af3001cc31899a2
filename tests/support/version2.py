"""Containers of version 2, forged: changed on purpose, and sealed again so that nothing but the change is wrong.

`written` makes a small complete one without a slide or a model, for tests that decode nothing. `resealed` changes the
attributes as they are stored, `rewritten` the maps, `change_shard` the chunks of one shard.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.formats.container.arrays import Form, pack_values
from histocodec.formats.container.attributes import (
    KEY,
    Attributes,
    BackgroundAttributes,
    LevelAttributes,
    ModelReference,
    Provenance,
    SourceAttributes,
    Stats,
)
from histocodec.formats.container.attributes_json import digest_of
from histocodec.formats.container.container import ContainerV2
from histocodec.formats.container.files import write_atomically
from histocodec.formats.container.layout import DIGEST_BYTES, DIGESTS, MAPS, lossless_key, shard_key, shards_of
from histocodec.formats.container.maps import LevelMaps
from histocodec.formats.container.read import open_container
from histocodec.formats.container.shard import CRC_BYTES, crc32c, pack_shard, read_chunks, read_index
from histocodec.formats.container.states import BACKGROUND, LOSSLESS
from histocodec.formats.container.write import finish, write_values
from histocodec.geometry import ChunkKey
from histocodec.normalise import ChannelStats
from histocodec.slide import BaseSlide

Json = dict[str, Any]


STATES = ([[1, 0, 2], [1, 1, 0]], [[1]])  # of `written`


def attributes(**changes: Any) -> Attributes:
    """Two levels, 2 x 3 and 1 x 1 chunks of 4 latents, in shards of 2 x 2 and 1 x 1; without what `written` decides."""
    plain = Attributes(
        generator="histocodec 0.2.0",
        model=ModelReference("tiny", "0" * 64, channels=8),
        levels=(
            LevelAttributes(150, 100, 1.0, "int8", 50, bytes=156, psnr=np.inf, shard=2),
            LevelAttributes(38, 25, 3.97, "int16", 60, bytes=73, psnr=31.25, derived=True, shard=1),
        ),
        background=BackgroundAttributes("skip", (240, 241, 242)),
        source=SourceAttributes("a.svs", 12345, "aperio", "1" * 64),
        mpp=(0.25, 0.26),
        objective_power=40.0,
        properties={"aperio.AppMag": "40", "tiff.Artist": "é\ufffd"},
        dropped=("label", "macro"),
        chunk=4,
        stats=Stats(
            ChannelStats(np.array([180.1, 140.2, 170.3], np.float32), np.array([41.7, 37.1, 29.9], np.float32)),
            np.array([240, 241, 242], np.uint8),
            np.arange(8, dtype=np.float32) / 3,
        ),
        provenance=Provenance(
            created="2025-12-01T00:00:00Z",
            settings={"quality": 50, "min_psnr": None},
            extensions={"org.example.study": {"arm": 2, "of": [1.5, "x", None, True]}},
        ),
    )
    return replace(plain, **changes)


def written(root: Path, described: Attributes | None = None, states: Sequence[Any] = STATES) -> ContainerV2:
    """Writes a complete container whose chunks hold a few bytes each, which no decoder would accept."""
    described = described or attributes()
    rng = np.random.default_rng(0)
    images = {
        "overview": rng.integers(0, 256, (3, 10, 15), dtype=np.uint8),
        "associated-thumbnail": rng.integers(0, 256, (6, 7, 3), dtype=np.uint8),
        "icc": rng.integers(0, 256, 5, dtype=np.uint8),
    }
    sha256 = {name: write_values(root, name, values) for name, values in images.items()}
    described = replace(described, overview=(15, 10), associated={"thumbnail": (7, 6)}, icc=5, sha256=sha256)
    maps = [_made_maps(level, np.array(state, np.uint8), rng) for level, state in enumerate(states)]
    contents = Contents(described, maps, np.zeros((0, DIGEST_BYTES), np.uint8))
    for level, level_maps in enumerate(maps):
        for shard in shards_of(described, level):
            keys = shard.chunks(described.shard_side(shard.level))
            _write_shard(root, shard_key(shard), keys, level_maps.size, chunk_data)
            _write_shard(root, lossless_key(shard), keys, level_maps.lossless_size, lossless_data)
    contents.digest(root)
    contents.write(root)
    return opened(root)


def chunk_data(key: ChunkKey) -> bytes:
    """What `written` stores of a chunk."""
    return b"chunk %d %d %d" % (key.level, key.row, key.column)


def lossless_pixels(key: ChunkKey) -> NDArray[np.uint8]:
    """The pixels of a lossless chunk in `written`, with the padding: (64, 64, 3) uint8."""
    return np.full((64, 64, 3), 16 * key.level + 4 * key.row + key.column, np.uint8)


def lossless_data(key: ChunkKey) -> bytes:
    """The same as it is stored."""
    return pack_values(lossless_pixels(key), Form((64, 64, 3), "uint8"))


def _made_maps(level: int, state: NDArray[np.uint8], rng: np.random.Generator) -> LevelMaps:
    stored, nothing = state != BACKGROUND, np.zeros(state.shape, np.uint32)
    size, lossless_size, lossless_check = nothing.copy(), nothing.copy(), nothing.copy()
    for row, column in np.argwhere(stored).tolist():
        key = ChunkKey(level, row, column)
        size[row, column] = len(chunk_data(key)) + CRC_BYTES
        if state[row, column] == LOSSLESS:
            lossless_size[row, column] = len(lossless_data(key)) + CRC_BYTES
            lossless_check[row, column] = int.from_bytes(crc32c(lossless_pixels(key).tobytes()), "little")
    psnr = np.where(stored, rng.uniform(20, 60, state.shape), np.nan).round(2).astype(np.float32)
    error = np.where(stored, rng.uniform(0, 99, state.shape), np.nan).round(2).astype(np.float32)
    return LevelMaps(
        state=state,
        quality=np.where(stored, rng.integers(0, 101, state.shape), 0).astype(np.uint8),
        size=size,
        check=np.where(stored, rng.integers(0, 2**32, state.shape, dtype=np.uint32), nothing),
        psnr=np.where(state == LOSSLESS, np.float32(np.inf), psnr),
        block_error=np.where(state == LOSSLESS, np.float32(0), error),
        lossless_size=lossless_size,
        lossless_check=lossless_check,
    )


def _write_shard(
    root: Path, name: str, keys: Sequence[ChunkKey], sizes: NDArray[np.uint32], data: Callable[[ChunkKey], bytes]
) -> None:
    rows, columns = sizes.shape
    present = [key.row < rows and key.column < columns and sizes[key.row, key.column] > 0 for key in keys]
    if any(present):
        chunks = [data(key) if there else None for key, there in zip(keys, present, strict=True)]
        write_atomically(root / name, pack_shard(chunks))


def opened(path: Path) -> ContainerV2:
    """The container, which has version 2."""
    container = open_container(path)
    assert isinstance(container, ContainerV2)
    return container


def stored_json(path: Path) -> Json:
    """The attribute "histocodec" as it is stored."""
    value = json.loads((path / "zarr.json").read_text())["attributes"][KEY]
    assert isinstance(value, dict)
    return value


def resealed(path: Path, change: Callable[[Json], object]) -> None:
    """Changes the attribute "histocodec" as it is stored, and its digest with it."""
    root = json.loads((path / "zarr.json").read_text())
    value = root["attributes"][KEY]
    change(value)
    value["digest"] = digest_of(value)
    (path / "zarr.json").write_text(json.dumps(root))


@dataclass
class Contents:
    """What a container says of its chunks, to be changed."""

    attributes: Attributes
    maps: list[LevelMaps]
    digests: NDArray[np.uint8]

    @classmethod
    def of(cls, path: Path) -> "Contents":
        """What a sound container says; nothing of it is shared."""
        container = opened(path)
        maps = []
        for level in range(len(container.attributes.levels)):
            found = container.maps(level)
            maps.append(LevelMaps(**{name: getattr(found, name).copy() for name in LevelMaps.__dataclass_fields__}))
        return cls(container.attributes, maps, container.digests().copy())

    def write(self, path: Path) -> None:
        """Writes the maps, the metadata and the attributes of the container anew."""
        for stale in (*path.glob(f"{MAPS}-*"), path / DIGESTS):
            shutil.rmtree(stale, ignore_errors=True)
        assert self.attributes.stats is not None
        levels = tuple(replace(level, maps=None) for level in self.attributes.levels)
        finish(path, replace(self.attributes, levels=levels), self.attributes.stats, self.maps, self.digests)

    def digest(self, path: Path) -> None:
        """Takes the digests of all shards from their files."""
        levels = range(len(self.attributes.levels))
        names = [shard_key(shard) for level in levels for shard in shards_of(self.attributes, level)]
        if any((maps.state == LOSSLESS).any() for maps in self.maps):
            names += [lossless_key(shard) for level in levels for shard in shards_of(self.attributes, level)]
        rows = [
            hashlib.sha256((path / name).read_bytes()).digest() if (path / name).is_file() else bytes(DIGEST_BYTES)
            for name in names
        ]
        self.digests = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, DIGEST_BYTES)


def rewritten(path: Path, change: Callable[[Contents], object]) -> None:
    """Changes the attributes, maps or digests of a container, and writes what follows from them."""
    contents = Contents.of(path)
    change(contents)
    contents.write(path)


def shard_chunks(path: Path, name: str) -> list[bytes | None]:
    """The chunks of a shard by its own index, without CRCs, None where one is absent."""
    container = opened(path)
    level = int(re.split("[-/]", name)[1])  # latents/N/… or lossless-N/…
    count = container.attributes.shard_side(level) ** 2
    return read_chunks(container.store, name, read_index(container.store, name, count), range(count))


def change_shard(path: Path, name: str, change: Callable[[list[bytes | None]], object]) -> None:
    """Writes a shard anew after `change` to its chunks, and nothing else."""
    chunks = shard_chunks(path, name)
    change(chunks)
    (path / name).write_bytes(pack_shard(chunks))


def reversed_shard(chunks: Sequence[bytes | None]) -> bytes:
    """A shard whose chunks lie in the opposite order, with gaps: sound, but not as we write it."""
    body, index = bytearray(b"gap"), [b"\xff" * 16] * len(chunks)
    for number, chunk in reversed(list(enumerate(chunks))):
        if chunk is not None:
            size = len(chunk) + CRC_BYTES
            index[number] = len(body).to_bytes(8, "little") + size.to_bytes(8, "little")
            body += chunk + crc32c(chunk) + b"gap"
    return bytes(body) + b"".join(index) + crc32c(b"".join(index))


def make_lossless(path: Path, source: BaseSlide, level: int, row: int, column: int) -> None:
    """Stores one chunk of a finished container as pixels, as the encoder does where a minimum PSNR wants it."""
    contents, key = Contents.of(path), ChunkKey(level, row, column)
    attributes, maps = contents.attributes, contents.maps[level]
    region, side = attributes.chunk_region(key), attributes.chunk_side
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[: region.height, : region.width] = source.read(region, level)
    data = pack_values(pixels, Form(pixels.shape, "uint8"))
    shard = key.shard(attributes.shard_side(key.level))
    name, number = lossless_key(shard), shard.chunks(attributes.shard_side(key.level)).index(key)
    chunks = shard_chunks(path, name) if (path / name).is_file() else [None] * attributes.shard_side(key.level) ** 2
    chunks[number] = data
    write_atomically(path / name, pack_shard(chunks))
    maps.state[row, column], maps.psnr[row, column], maps.block_error[row, column] = LOSSLESS, np.inf, 0
    maps.lossless_size[row, column] = len(data) + CRC_BYTES
    maps.lossless_check[row, column] = int.from_bytes(crc32c(pixels.tobytes()), "little")
    contents.digest(path)
    contents.write(path)


def shards(path: Path, level: int = 0) -> list[str]:
    """The files of the shards of latents of a level that are there, row by row."""
    named = map(shard_key, shards_of(opened(path).attributes, level))
    return [name for name in named if (path / name).is_file()]


def lossless_shards(path: Path, level: int = 0) -> list[str]:
    """Likewise of the shards of lossless pixels."""
    named = map(lossless_key, shards_of(opened(path).attributes, level))
    return [name for name in named if (path / name).is_file()]
