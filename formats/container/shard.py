"""The bytes of one shard: chunks back to back, each with its CRC, and at the end the index that finds them.

    offset          size    field
    0               …       the chunks that are present, in C order, back to back: payload, then crc32c (4)
    end - 16n - 4   16 n    index: for each of the n chunks uint64 offset, uint64 size (crc32c included);
                            both 2^64 - 1 where the chunk is absent
    end - 4         4       crc32c of the index

All integers are little endian. This is Zarr v3's `sharding_indexed` with the inner codecs [histocodec.latent, crc32c],
the index codecs [bytes, crc32c] and `index_location` end. It is written without zarr because the encoder has the bytes
of the chunks already.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import google_crc32c

from histocodec.errors import FormatError, UsageError
from histocodec.formats.container.abstract_store import Store
from histocodec.geometry import ShardKey

ABSENT = 2**64 - 1
CRC_BYTES = 4
PAIR_BYTES = 16
# More than the largest chunk that attributes may declare can need (1024 × 64 × 64 symbols of at most 7 bytes), and
# small enough that a hostile index cannot exhaust memory.
MAX_CHUNK_BYTES = 64 << 20


def crc32c(data: bytes | memoryview) -> bytes:
    """The CRC-32C (Castagnoli) of `data` as it is stored: 4 bytes."""
    return int(google_crc32c.value(data if isinstance(data, bytes) else bytes(data))).to_bytes(CRC_BYTES, "little")


def index_bytes(count: int) -> int:
    """The size in bytes of the index of a shard with `count` chunks, CRC included."""
    return PAIR_BYTES * count + CRC_BYTES


def pack_shard(chunks: Sequence[bytes | None]) -> bytes:
    """The bytes of a shard. `chunks` are those of all its places in C order, None where a chunk is absent. Raises
    UsageError where all are absent, since such a shard is not stored, and for a chunk that is empty or too large."""
    if all(chunk is None for chunk in chunks):
        raise UsageError("a shard without chunks is not stored")
    parts: list[bytes] = []
    index = bytearray()
    position = 0
    for number, chunk in enumerate(chunks):
        if chunk is None:
            index += struct.pack("<QQ", ABSENT, ABSENT)
            continue
        if not 1 <= len(chunk) <= MAX_CHUNK_BYTES:
            raise UsageError(f"chunk {number} has {len(chunk)} bytes; 1 to {MAX_CHUNK_BYTES} are allowed")
        index += struct.pack("<QQ", position, len(chunk) + CRC_BYTES)
        parts += (chunk, crc32c(chunk))
        position += len(chunk) + CRC_BYTES
    return b"".join((*parts, index, crc32c(bytes(index))))


@dataclass(frozen=True)
class ShardIndex:
    """Where the chunks of a shard lie: for each number (offset, size) in bytes, CRC included, or None if absent."""

    entries: tuple[tuple[int, int] | None, ...]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def present(self) -> tuple[bool, ...]:
        """Whether each chunk is in the shard."""
        return tuple(entry is not None for entry in self.entries)

    @classmethod
    def parse(cls, data: bytes, *, file_bytes: int, name: str) -> "ShardIndex":
        """The index in `data`, which are the last bytes of a file of `file_bytes` bytes. Raises FormatError, which
        begins with `name`, unless the CRC fits and every range is one to MAX_CHUNK_BYTES long, lies before the index
        and shares no byte with another. Nothing else checks the ranges."""
        body, checksum = data[:-CRC_BYTES], data[-CRC_BYTES:]
        if crc32c(body) != checksum:
            raise FormatError(f"{name}: the shard's index does not match its checksum (altered or cut short)")
        end = file_bytes - len(data)
        entries: list[tuple[int, int] | None] = []
        for number, (offset, size) in enumerate(struct.iter_unpack("<QQ", body)):
            if offset == size == ABSENT:
                entries.append(None)
                continue
            if not CRC_BYTES < size <= MAX_CHUNK_BYTES + CRC_BYTES:
                raise FormatError(
                    f"{name}: chunk {number} has size {size}; {CRC_BYTES + 1} to "
                    f"{MAX_CHUNK_BYTES + CRC_BYTES} bytes are allowed"
                )
            if offset + size > end:
                raise FormatError(
                    f"{name}: chunk {number} lies at {offset} to {offset + size}, beyond the {end} bytes "
                    "before the index"
                )
            entries.append((offset, size))
        ranges = sorted((*entry, number) for number, entry in enumerate(entries) if entry is not None)
        for (offset, size, number), (next_offset, _, next_number) in pairwise(ranges):
            if next_offset < offset + size:
                raise FormatError(f"{name}: chunks {number} and {next_number} overlap at byte {next_offset}")
        return cls(tuple(entries))


class IndexCache(Protocol):
    """Where the indices of shards are kept."""

    def get(self, key: ShardKey) -> ShardIndex | None:
        """The index of a shard, or None where it is not cached."""

    def put(self, key: ShardKey, value: ShardIndex, size: int) -> None:
        """Adds an index that takes `size` bytes."""


def read_index(store: Store, key: str, count: int) -> ShardIndex:
    """The index of a shard with `count` chunks. Only the end of the object is read. Raises FormatError where it is
    missing, too short or damaged."""
    length, where = index_bytes(count), store.where(key)
    data, size = store.read_tail(key, length)
    if size < length:
        raise FormatError(f"{where}: has {size} bytes; the index of a shard alone has {length}")
    return ShardIndex.parse(data, file_bytes=size, name=where)


def read_chunk(store: Store, key: str, index: ShardIndex, number: int) -> bytes | None:
    """The bytes of one chunk, without its CRC; None where it is absent. Raises FormatError where the CRC does not fit
    or the shard cannot be read."""
    return read_chunks(store, key, index, (number,))[0]


def read_chunks(store: Store, key: str, index: ShardIndex, numbers: Iterable[int]) -> list[bytes | None]:
    """`read_chunk` for several chunks, in their order. Neighbours are read in one go."""
    entries = [(number, index.entries[number]) for number in numbers]
    present = {number: entry for number, entry in entries if entry is not None}
    chunks: dict[int, bytes] = {}
    for number, stored in zip(present, store.read_parts(key, list(present.values())), strict=True):
        chunk = stored[:-CRC_BYTES]
        if crc32c(chunk) != stored[-CRC_BYTES:]:
            raise FormatError(f"{store.where(key)}: chunk {number} does not match its checksum (altered or cut short)")
        chunks[number] = chunk
    return [chunks.get(number) for number, _ in entries]
