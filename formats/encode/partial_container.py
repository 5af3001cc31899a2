"""The container while it is written: shards, shards written anew with some chunks changed, and the maps that follow.

It can be read like a finished one, from the journal's records instead of maps.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histocodec.codec.chunk import quality_of
from histocodec.errors import FormatError, UsageError
from histocodec.formats.container.abstract_container import ChunkSource
from histocodec.formats.container.arrays import Form, pack_values, unpack_values
from histocodec.formats.container.attributes import Attributes, Stats
from histocodec.formats.container.check import latents_check
from histocodec.formats.container.files import read_bounded, write_atomically
from histocodec.formats.container.layout import DIGEST_BYTES, chunk_number, lossless_key, shard_key, shards_of
from histocodec.formats.container.maps import LevelMaps
from histocodec.formats.container.shard import CRC_BYTES, IndexCache, crc32c, pack_shard, read_chunks, read_index
from histocodec.formats.container.states import BACKGROUND, CODED, LOSSLESS
from histocodec.formats.container.store import FolderStore
from histocodec.formats.decode.fidelity import LevelFidelity
from histocodec.formats.encode.journal import Journal
from histocodec.formats.encode.records import ShardRecord
from histocodec.geometry import ChunkKey, ShardKey
from histocodec.slide import Pixels

STAGED = ".lossless"  # the folder of lossless chunks, one file each, until they are packed into shards


@dataclass(frozen=True)
class StoredChunk:
    """How a chunk is stored: its tile state, the bytes of its latents, None where it is background, and the check of
    the latents."""

    state: int
    data: bytes | None
    check: int = 0

    @classmethod
    def of(cls, state: int, data: bytes, latents: NDArray[np.signedinteger]) -> "StoredChunk":
        """A chunk with these bytes, which hold these latents (C, n, n)."""
        return cls(state, data, latents_check(latents, quality_of(data)))


SKIPPED = StoredChunk(BACKGROUND, None)


@dataclass(frozen=True, eq=False)
class ShardMaps:
    """What the journal says of a level: its maps but for fidelity, (chunk rows, chunk columns) each, the SHA-256 of its
    shards, (shards, 32), and the bytes of these together."""

    tiles: NDArray[np.uint8]
    quality: NDArray[np.uint8]
    size: NDArray[np.uint32]
    check: NDArray[np.uint32]
    digests: NDArray[np.uint8]
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

    Every method that writes raises OutputError where the disk is full or gone. For readers it is a container like any
    other, whose shards the encoder itself has just written.
    """

    journal: Journal
    attributes: Attributes
    decoding: Stats

    @property
    def root(self) -> Path:
        """The folder that becomes the container."""
        return self.journal.partial

    @property
    def name(self) -> str:
        """The folder's path, as errors name it."""
        return str(self.root)

    # Reading.

    def stats(self) -> Stats:
        """The normalisation's statistics and what stands for background."""
        return self.decoding

    def tiles(self, level: int) -> NDArray[np.uint8]:
        """The tile state of every chunk of a level, all of whose shards are written: (rows, columns) uint8."""
        return self.maps(level).tiles

    def shard_reader(self, indices: IndexCache) -> ChunkSource:
        """The container itself: its shards change, so no index is kept."""
        return self

    def chunk_bytes(self, keys: Sequence[ChunkKey]) -> list[bytes]:
        """The bytes of chunks that are not background, without their CRC, in the order of the keys."""
        chunks = []
        for key in keys:
            side = self.attributes.shard_side(key.level)
            name = shard_key(key.shard(side))
            (chunk,) = read_chunks(self._store, name, read_index(self._store, name, side**2), [chunk_number(key, side)])
            if chunk is None:
                raise FormatError(f"{self.root / name}: chunk ({key.row}, {key.column}) is missing")
            chunks.append(chunk)
        return chunks

    def has_shard(self, key: ChunkKey) -> bool:
        """False: no shard says anything about chunks of background."""
        return False

    def check_absent(self, key: ChunkKey) -> None:
        """Nothing: the journal alone says which chunks there are."""

    def check_latents(self, key: ChunkKey, quality: int, y: NDArray[np.signedinteger]) -> None:
        """Nothing: the encoder has just written them."""

    def checks(self, keys: Sequence[ChunkKey]) -> None:
        """None: there are no checks."""

    def lossless(self, key: ChunkKey) -> Pixels:
        """The pixels of a chunk that is stored losslessly, cut at the level's edge: (h, w, 3) uint8."""
        file, region = self._staged(key), self.attributes.chunk_region(key)
        pixels = unpack_values(read_bounded(file, 2 * self._lossless_form.chunk_bytes), self._lossless_form, str(file))
        return np.ascontiguousarray(pixels[: region.height, : region.width])

    # Writing.

    def write_shard(self, shard: ShardKey, chunks: Mapping[ChunkKey, StoredChunk]) -> None:
        """Writes a shard's file, then its line in the journal. Chunks that are missing from `chunks` are background."""
        stored = [chunks.get(key, SKIPPED) for key in shard.chunks(self.attributes.shard_side(shard.level))]
        tiles = bytes(chunk.state for chunk in stored)
        quality = bytes(0 if chunk.data is None else quality_of(chunk.data) for chunk in stored)
        sizes = [0 if chunk.data is None else len(chunk.data) + CRC_BYTES for chunk in stored]
        data = b""
        if any(tiles):
            data = pack_shard([chunk.data for chunk in stored])
            write_atomically(self.root / shard_key(shard), data)
        checks = [chunk.check for chunk in stored]
        self.journal.append(ShardRecord.of(shard, data, tiles, quality, _packed(sizes), _packed(checks)))

    def change_shard(self, shard: ShardKey, changed: Mapping[ChunkKey, StoredChunk]) -> None:
        """Writes a shard anew with other chunks in some places. A reader, or a resumed encode, sees the old file or the
        new one."""
        name, keys, record = (
            shard_key(shard),
            shard.chunks(self.attributes.shard_side(shard.level)),
            self.journal.records[shard],
        )
        data = read_chunks(self._store, name, read_index(self._store, name, len(keys)), range(len(keys)))
        before = map(StoredChunk, record.tiles, data, _unpacked(record.checks).tolist())
        self.write_shard(shard, {**dict(zip(keys, before, strict=True)), **changed})

    def write_lossless(self, key: ChunkKey, pixels: Pixels) -> None:
        """Keeps the pixels (h, w, 3) uint8 of a chunk, cut at the level's edge, for `pack_lossless`. Raises UsageError
        for another shape."""
        region = self.attributes.chunk_region(key)
        if pixels.shape != (region.height, region.width, 3):
            raise UsageError(f"chunk {key} of shape {pixels.shape}; ({region.height}, {region.width}, 3) is needed")
        padded = np.zeros(self._lossless_form.chunk_shape, np.uint8)  # Zarr's chunks have their full size at the edge
        padded[: pixels.shape[0], : pixels.shape[1]] = pixels
        write_atomically(self._staged(key), pack_values(padded, self._lossless_form))

    def maps(self, level: int) -> ShardMaps:
        """The maps of a level, all of whose shards are written."""
        grid, side = self.attributes.grid(level), self.attributes.shard_side(level)
        shape = (grid.shard_rows * side, grid.shard_columns * side)
        tiles, quality = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        size, check = np.zeros(shape, np.uint32), np.zeros(shape, np.uint32)
        digests = np.zeros((grid.shards, DIGEST_BYTES), np.uint8)
        total = 0
        for row, column in np.ndindex(grid.shard_rows, grid.shard_columns):
            record = self.journal.records[ShardKey(level, row, column)]
            part = slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
            tiles[part] = np.frombuffer(record.tiles, np.uint8).reshape(side, side)
            quality[part] = np.frombuffer(record.quality, np.uint8).reshape(side, side)
            size[part] = _unpacked(record.sizes).reshape(side, side)
            check[part] = _unpacked(record.checks).reshape(side, side)
            if record.sha256:
                digests[row * grid.shard_columns + column] = np.frombuffer(bytes.fromhex(record.sha256), np.uint8)
            total += record.file_bytes
        inside = slice(grid.chunk_rows), slice(grid.chunk_columns)
        return ShardMaps(
            np.ascontiguousarray(tiles[inside]),
            np.ascontiguousarray(quality[inside]),
            np.ascontiguousarray(size[inside]),
            np.ascontiguousarray(check[inside]),
            digests,
            total,
        )

    def level_maps(self, fidelity: LevelFidelity) -> LevelMaps:
        """The maps of a level as they are stored, with what was measured of it. Those of lossless chunks are zero until
        `pack_lossless`."""
        maps = self.maps(fidelity.level)
        nothing = np.zeros(maps.tiles.shape, np.uint32)
        error = fidelity.block_error.astype(np.float32)
        return LevelMaps(maps.tiles, maps.quality, maps.size, maps.check, fidelity.psnr, error, nothing, nothing.copy())

    def pack_lossless(self, level: int, maps: LevelMaps) -> NDArray[np.uint8]:
        """Packs the lossless chunks of a level into shards, and notes their sizes and checks in `maps`. Returns the
        SHA-256 of the shards, (shards, 32) uint8, zeros where there is none."""
        side, digests = self.attributes.shard_side(level), []
        for shard in shards_of(self.attributes, level):
            keys = shard.chunks(side)
            inside = [key.row < maps.state.shape[0] and key.column < maps.state.shape[1] for key in keys]
            chunks: list[bytes | None] = []
            for key, within in zip(keys, inside, strict=True):
                if not within or maps.state[key.row, key.column] != LOSSLESS:
                    chunks.append(None)
                    continue
                data = read_bounded(self._staged(key), 2 * self._lossless_form.chunk_bytes)
                pixels = unpack_values(data, self._lossless_form, str(self._staged(key)))
                maps.lossless_size[key.row, key.column] = len(data) + CRC_BYTES
                maps.lossless_check[key.row, key.column] = int.from_bytes(crc32c(pixels.tobytes()), "little")
                chunks.append(data)
            data = pack_shard(chunks) if any(chunks) else b""
            if data:
                write_atomically(self.root / lossless_key(shard), data)
            digests.append(ShardRecord.of(shard, data, b"", b"", b"", b"").sha256 or "00" * DIGEST_BYTES)
        return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, DIGEST_BYTES)

    def remove_staged(self) -> None:
        """Removes the lossless chunks that were packed."""
        shutil.rmtree(self.root / STAGED, ignore_errors=True)

    @property
    def _store(self) -> FolderStore:
        return FolderStore(self.root)

    @property
    def _lossless_form(self) -> Form:
        side = self.attributes.chunk_side
        return Form((side, side, 3), "uint8")

    def _staged(self, key: ChunkKey) -> Path:
        return self.root / STAGED / f"{key.level}.{key.row}.{key.column}"


def _packed(values: Sequence[int]) -> bytes:
    return np.array(values, "<u4").tobytes()


def _unpacked(data: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(data, "<u4").astype(np.uint32)
