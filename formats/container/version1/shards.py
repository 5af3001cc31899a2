"""The chunks of a container of version 1: found by their shards' indices, and trusted by their shards' SHA-256."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError
from histocodec.formats.container.abstract_store import Store
from histocodec.formats.container.attributes import Attributes
from histocodec.formats.container.digests import check_digest
from histocodec.formats.container.layout import NO_SHARD
from histocodec.formats.container.shard import IndexCache, ShardIndex, read_chunks, read_index
from histocodec.formats.container.version1.layout import shard_key
from histocodec.geometry import ChunkKey, ShardKey

ENTRY_BYTES = 160  # of a chunk in a shard's index, as Python objects


class ShardReader:
    """Reads the bytes of chunks. Thread-safe. `integrity` gives the SHA-256 of every shard of a level, as
    `Container.integrity` does.

    Methods raise FormatError where a shard is missing, damaged, or not the one that was written there.
    """

    def __init__(
        self,
        store: Store,
        attributes: Attributes,
        integrity: Callable[[int], NDArray[np.uint8]],
        indices: IndexCache,
    ) -> None:
        self._store, self._attributes, self._integrity, self._indices = store, attributes, integrity, indices
        self._digests: dict[int, NDArray[np.uint8]] = {}  # by level

    def chunk_bytes(self, keys: Sequence[ChunkKey]) -> list[bytes]:
        """The bytes of chunks that are not background, in the order of the keys. Those of one shard are read together,
        on this thread."""
        shards: dict[ShardKey, list[ChunkKey]] = {}
        for key in keys:
            shards.setdefault(key.shard(self._attributes.shard), []).append(key)
        chunks: dict[ChunkKey, bytes] = {}
        for shard, members in shards.items():
            data = read_chunks(self._store, shard_key(shard), self._index(shard), map(self._number, members))
            for key, chunk in zip(members, data, strict=True):
                if chunk is None:
                    where = f"{self._store.name}: level {key.level} chunk ({key.row}, {key.column})"
                    raise FormatError(f"{where} is missing from its shard")
                chunks[key] = chunk
        return [chunks[key] for key in keys]

    def has_shard(self, key: ChunkKey) -> bool:
        """Whether there is a shard where this chunk has its place."""
        return self._store.size(shard_key(key.shard(self._attributes.shard))) is not None

    def check_absent(self, key: ChunkKey) -> None:
        """Raises FormatError where a shard holds a chunk that the map calls background: one of the two is wrong."""
        shard = key.shard(self._attributes.shard)
        name = shard_key(shard)
        if self._store.size(name) is not None and self._index(shard).entries[self._number(key)] is not None:
            raise FormatError(
                f"{self._store.where(name)}: holds level {key.level} chunk ({key.row}, {key.column}), which "
                f"tiles/{key.level} calls background"
            )

    def check_latents(self, key: ChunkKey, quality: int, y: NDArray[np.signedinteger]) -> None:
        """Nothing: the SHA-256 of the shard has said all that there is to say."""

    def checks(self, keys: Sequence[ChunkKey]) -> None:
        """None: there are no checks."""

    def _index(self, shard: ShardKey) -> ShardIndex:
        """The index of a shard, read once. The whole shard is hashed then: the CRCs inside it cannot tell a shard of
        another place or slide."""
        index = self._indices.get(shard)
        if index is None:
            index = read_index(self._store, shard_key(shard), self._attributes.shard**2)
            self._check_shard(shard)
            self._indices.put(shard, index, ENTRY_BYTES * len(index))
        return index

    def _check_shard(self, shard: ShardKey) -> None:
        """Raises FormatError unless a shard of a finished container is the one that was written there. While a
        container grows, its shards are the encoder's own and have no digests yet."""
        if self._attributes.levels[shard.level].bytes is None:
            return
        if shard.level not in self._digests:
            self._digests[shard.level] = self._integrity(shard.level)
        check_shard(self._store, self._attributes, shard, self._digests[shard.level])

    def _number(self, key: ChunkKey) -> int:
        """The place of a chunk in its shard's index."""
        side = self._attributes.shard
        return key.row % side * side + key.column % side


def check_shard(store: Store, attributes: Attributes, shard: ShardKey, digests: NDArray[np.uint8]) -> None:
    """Raises FormatError unless a shard is the one that was written there. `digests` are those of its level, as
    `Container.integrity` returns them. Hashes the shard, but no more bytes than the level has in all."""
    key, most = shard_key(shard), attributes.levels[shard.level].bytes
    where, digest = store.where(key), digests[shard.row, shard.column].tobytes()
    if digest == NO_SHARD:
        raise FormatError(f"{where}: is there, although all its chunks are background")
    size = store.size(key)
    if most is not None and size is not None and size > most:
        raise FormatError(f"{where}: has {size} bytes; all shards of level {shard.level} together have {most}")
    check_digest(store, key, digest.hex(), size)
