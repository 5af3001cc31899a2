"""The container while it is written: shards, shards written anew with some chunks changed, and the maps that follow."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histocodec.codec.chunk import quality_of
from histocodec.formats.container import write as files
from histocodec.formats.container.attributes import Attributes
from histocodec.formats.container.files import write_atomically
from histocodec.formats.container.layout import BACKGROUND, CODED, LOSSLESS, shard_key, shard_path
from histocodec.formats.container.shard import pack_shard, read_chunks, read_index
from histocodec.formats.container.store import FolderStore
from histocodec.formats.encode.journal import Journal
from histocodec.formats.encode.records import ShardRecord
from histocodec.geometry import ChunkKey, ShardKey


@dataclass(frozen=True)
class StoredChunk:
    """How a chunk is stored: its tile state, and the bytes of its latents; None where it is background."""

    state: int
    data: bytes | None


SKIPPED = StoredChunk(BACKGROUND, None)


@dataclass(frozen=True, eq=False)
class Maps:
    """What the journal says of a level. `bytes` are those of its shards."""

    tiles: NDArray[np.uint8]  # (chunk rows, chunk columns)
    quality: NDArray[np.uint8]  # (chunk rows, chunk columns)
    digests: NDArray[np.uint8]  # (shards, 32)
    bytes: int

    def raised(self, quality: int) -> int:
        """The number of coded chunks with a higher quality than this."""
        return int((self.quality[self.tiles == CODED] > quality).sum())

    @property
    def lossless(self) -> int:
        """The number of chunks that are stored losslessly."""
        return int((self.tiles == LOSSLESS).sum())

    @property
    def stored(self) -> int:
        """The number of chunks that are not background."""
        return int((self.tiles != BACKGROUND).sum())


@dataclass(frozen=True)
class PartialContainer:
    """The container in a journal's partial folder. Takes the memory of one shard.

    Every method that writes raises OutputError where the disk is full or gone.
    """

    journal: Journal
    attributes: Attributes

    @property
    def root(self) -> Path:
        """The folder that becomes the container."""
        return self.journal.partial

    def write_shard(self, shard: ShardKey, chunks: Mapping[ChunkKey, StoredChunk]) -> None:
        """Writes a shard's file, then its line in the journal. Chunks that are missing from `chunks` are background."""
        stored = [chunks.get(key, SKIPPED) for key in shard.chunks(self.attributes.shard)]
        tiles = bytes(chunk.state for chunk in stored)
        quality = bytes(0 if chunk.data is None else quality_of(chunk.data) for chunk in stored)
        data = b""
        if any(tiles):
            data = pack_shard([chunk.data for chunk in stored])
            write_atomically(self._path(shard), data)
        self.journal.append(ShardRecord.of(shard, data, tiles, quality))

    def change_shard(self, shard: ShardKey, changed: Mapping[ChunkKey, StoredChunk]) -> None:
        """Writes a shard anew with other chunks in some places. A reader, or a resumed encode, sees the old file or the
        new one."""
        store, name, keys = FolderStore(self.root), shard_key(shard), shard.chunks(self.attributes.shard)
        data = read_chunks(store, name, read_index(store, name, len(keys)), range(len(keys)))
        states = self.journal.records[shard].tiles
        before = {key: StoredChunk(state, part) for key, state, part in zip(keys, states, data, strict=True)}
        self.write_shard(shard, {**before, **changed})

    def maps(self, level: int) -> Maps:
        """The maps of a level, all of whose shards are written."""
        grid, side = self.attributes.grid(level), self.attributes.shard
        shape = (grid.shard_rows * side, grid.shard_columns * side)
        tiles, quality = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        digests = np.zeros((grid.shards, 32), np.uint8)
        total = 0
        for row, column in np.ndindex(grid.shard_rows, grid.shard_columns):
            record = self.journal.records[ShardKey(level, row, column)]
            part = slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
            tiles[part] = np.frombuffer(record.tiles, np.uint8).reshape(side, side)
            quality[part] = np.frombuffer(record.quality, np.uint8).reshape(side, side)
            if record.sha256:
                digests[row * grid.shard_columns + column] = np.frombuffer(bytes.fromhex(record.sha256), np.uint8)
            total += record.file_bytes
        inside = slice(grid.chunk_rows), slice(grid.chunk_columns)
        return Maps(np.ascontiguousarray(tiles[inside]), np.ascontiguousarray(quality[inside]), digests, total)

    def write_maps(self, level: int) -> None:
        """Writes `tiles`, `quality` and `integrity` of a level, as the journal has them."""
        maps = self.maps(level)
        files.write_array(self.root, self.attributes, f"tiles/{level}", maps.tiles)
        files.write_array(self.root, self.attributes, f"quality/{level}", maps.quality)
        files.write_array(self.root, self.attributes, f"integrity/{level}", maps.digests)

    def _path(self, shard: ShardKey) -> Path:
        return shard_path(self.root, shard)
