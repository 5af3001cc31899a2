"""The container as it grows: shards written, and written anew with some chunks changed, and the maps that follow."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.codec.chunk import quality_of
from histocodec.formats.container import write as files
from histocodec.formats.container.attributes import Attributes
from histocodec.formats.container.files import write_atomically
from histocodec.formats.container.layout import BACKGROUND, CODED, LOSSLESS, shard_path
from histocodec.formats.container.shard import pack_shard, read_chunks, read_index
from histocodec.formats.encode.journal import Journal, ShardRecord
from histocodec.geometry import ShardKey

Place = tuple[int, int]  # row and column


@dataclass(frozen=True)
class StoredChunk:
    """How a chunk is stored: its value in `tiles`, and the bytes of its latents; none where it is background."""

    tile: int
    data: bytes | None


BARE = StoredChunk(BACKGROUND, None)


@dataclass(frozen=True, eq=False)
class Maps:
    """What the journal says of a level: (rows, columns) uint8 each, its shards' digests, and their bytes."""

    tiles: NDArray[np.uint8]
    quality: NDArray[np.uint8]
    digests: NDArray[np.uint8]  # (shards, 32)
    bytes: int

    def raised(self, quality: int) -> int:
        """Chunks with more than that quality."""
        return int((self.quality[self.tiles == CODED] > quality).sum())

    @property
    def lossless(self) -> int:
        return int((self.tiles == LOSSLESS).sum())

    @property
    def stored(self) -> int:
        """Chunks that are not background."""
        return int((self.tiles != BACKGROUND).sum())


class Growing:
    """The container in a journal's partial folder. Memory is that of one shard."""

    def __init__(self, journal: Journal, attributes: Attributes) -> None:
        self.journal, self.attributes, self.root = journal, attributes, journal.partial

    def shard_of(self, place: Place) -> Place:
        return place[0] // self.attributes.shard, place[1] // self.attributes.shard

    def write_shard(self, level: int, shard: Place, chunks: Mapping[Place, StoredChunk]) -> None:
        """The shard's file, and its note in the journal. What `chunks` lacks is background."""
        stored = [chunks.get(place, BARE) for place in self._places(shard)]
        tiles = bytes(chunk.tile for chunk in stored)
        quality = bytes(0 if chunk.data is None else quality_of(chunk.data) for chunk in stored)
        data = b""
        if any(tiles):
            data = pack_shard([chunk.data for chunk in stored])
            write_atomically(shard_path(self.root, ShardKey(level, *shard)), data)
        self.journal.append(ShardRecord.of(level, shard, data, tiles, quality))

    def change_shard(self, level: int, shard: Place, changed: Mapping[Place, StoredChunk]) -> None:
        """The same shard with some other chunks. A reader, or a resumed encode, sees the old file or the new one."""
        path, places = shard_path(self.root, ShardKey(level, *shard)), self._places(shard)
        present = read_chunks(path, read_index(path, len(places)), range(len(places)))
        tiles = self.journal.records[level, *shard].tiles
        before = {place: StoredChunk(tile, data) for place, tile, data in zip(places, tiles, present, strict=True)}
        self.write_shard(level, shard, {**before, **changed})

    def maps(self, level: int) -> Maps:
        grid, across = self.attributes.grid(level), self.attributes.shard
        shape = (grid.shard_rows * across, grid.shard_columns * across)
        tiles, quality = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        digests = np.zeros((grid.shards, 32), np.uint8)
        total = 0
        for row, column in np.ndindex(grid.shard_rows, grid.shard_columns):
            record = self.journal.records[level, row, column]
            part = slice(row * across, (row + 1) * across), slice(column * across, (column + 1) * across)
            tiles[part] = np.frombuffer(record.tiles, np.uint8).reshape(across, across)
            quality[part] = np.frombuffer(record.quality, np.uint8).reshape(across, across)
            if record.sha256:
                digests[row * grid.shard_columns + column] = np.frombuffer(bytes.fromhex(record.sha256), np.uint8)
            total += record.file_bytes
        inside = slice(grid.chunk_rows), slice(grid.chunk_columns)
        return Maps(np.ascontiguousarray(tiles[inside]), np.ascontiguousarray(quality[inside]), digests, total)

    def write_maps(self, level: int) -> None:
        """tiles, quality and integrity of a level, as the journal has them."""
        maps = self.maps(level)
        files.write_array(self.root, self.attributes, f"tiles/{level}", maps.tiles)
        files.write_array(self.root, self.attributes, f"quality/{level}", maps.quality)
        files.write_array(self.root, self.attributes, f"integrity/{level}", maps.digests)

    def _places(self, shard: Place) -> list[Place]:
        across = self.attributes.shard
        return [(shard[0] * across + i, shard[1] * across + j) for i in range(across) for j in range(across)]
