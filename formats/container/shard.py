"""The bytes of one shard: chunks end to end, each with its CRC, and the index that finds them at the end.

    offset          size    field
    0               …       the chunks that are present, in C order, back to back: payload, then crc32c (4)
    end - 16n - 4   16 n    index: for each of the n chunks uint64 offset, uint64 size (crc32c included);
                            both 2^64 - 1 where the chunk is absent
    end - 4         4       crc32c of the index

All integers are little endian. This is Zarr v3 `sharding_indexed` with the inner codecs [histocodec.latent,
crc32c], the index codecs [bytes, crc32c] and `index_location` end, written without zarr because the encoder
has the chunks' bytes already.
"""

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import google_crc32c

from histocodec.errors import FormatError, UsageError

ABSENT = 2**64 - 1
CRC_BYTES = 4
PAIR_BYTES = 16
# Above what the coder can need for the largest chunk that attributes may declare (1024 x 64 x 64 symbols of
# at most 7 bytes), and small enough that a hostile index cannot exhaust memory.
MAX_CHUNK_BYTES = 64 << 20


def crc32c(data: bytes | memoryview) -> bytes:
    """The checksum (Castagnoli) as it is stored."""
    return int(google_crc32c.value(data if isinstance(data, bytes) else bytes(data))).to_bytes(CRC_BYTES, "little")


def index_bytes(count: int) -> int:
    """The size of the index of a shard of `count` chunks, its CRC included."""
    return PAIR_BYTES * count + CRC_BYTES


def pack_shard(chunks: Sequence[bytes | None]) -> bytes:
    """The shard of these chunks, which stand in C order; None is absent. A shard without any chunk is not
    stored at all, so at least one must be present."""
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
    """Where a shard's chunks lie: (offset, size) with the CRC included, or None for an absent one."""

    entries: tuple[tuple[int, int] | None, ...]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def present(self) -> tuple[bool, ...]:
        return tuple(entry is not None for entry in self.entries)

    @classmethod
    def parse(cls, data: bytes, *, file_bytes: int, name: str) -> "ShardIndex":
        """The index in `data`, the last bytes of a file of `file_bytes`. Every range is checked once, here:
        inside the file, before the index, and sharing no byte with another."""
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
        for (offset, size, number), (following, _, other) in pairwise(ranges):
            if following < offset + size:
                raise FormatError(f"{name}: chunks {number} and {other} overlap at byte {following}")
        return cls(tuple(entries))


def read_index(path: Path, count: int) -> ShardIndex:
    """The index of a shard file of `count` chunks; nothing but its tail is read. FormatError where the file
    is missing, too short or not sound."""
    wanted = index_bytes(count)
    descriptor = _open(path)
    try:
        size = os.fstat(descriptor).st_size
        if size < wanted:
            raise FormatError(f"{path}: has {size} bytes; the index of a shard alone has {wanted}")
        return ShardIndex.parse(_pread(descriptor, wanted, size - wanted, path), file_bytes=size, name=str(path))
    finally:
        os.close(descriptor)


def read_chunk(path: Path, index: ShardIndex, number: int) -> bytes | None:
    """The bytes of one chunk without its CRC, which is verified; None where it is absent."""
    return read_chunks(path, index, (number,))[0]


def read_chunks(path: Path, index: ShardIndex, numbers: Iterable[int]) -> list[bytes | None]:
    """`read_chunk` for several, opening the file once, and reading once what lies together."""
    entries = [(number, index.entries[number]) for number in numbers]
    there = sorted((entry, number) for number, entry in entries if entry is not None)
    found: dict[int, bytes] = {}
    descriptor = _open(path)
    try:
        for run in _runs(there):
            (first, _), (last, size) = run[0][0], run[-1][0]
            data = memoryview(_pread(descriptor, last + size - first, first, path))
            for (offset, size), number in run:
                own = data[offset - first : offset - first + size]
                chunk = bytes(own[:-CRC_BYTES])
                if crc32c(chunk) != own[-CRC_BYTES:]:
                    raise FormatError(f"{path}: chunk {number} does not match its checksum")
                found[number] = chunk
    finally:
        os.close(descriptor)
    return [found.get(number) for number, _ in entries]


def _runs(entries: Sequence[tuple[tuple[int, int], int]]) -> Iterator[list[tuple[tuple[int, int], int]]]:
    """((offset, size), number) in order of the offsets, cut where one does not begin where another ends."""
    run: list[tuple[tuple[int, int], int]] = []
    for entry in entries:
        if run and (sum(run[-1][0]) != entry[0][0] or sum(entry[0]) - run[0][0][0] > MAX_CHUNK_BYTES):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


def _open(path: Path) -> int:
    try:
        if not path.is_file():
            raise FormatError(f"{path}: is missing")
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as exc:
        raise FormatError(f"{path}: cannot be read: {exc.strerror or exc}") from exc


def _pread(descriptor: int, size: int, offset: int, path: Path) -> bytes:
    """Exactly `size` bytes at `offset`."""
    parts = []
    try:
        while size:
            part = os.pread(descriptor, size, offset)
            if not part:
                raise FormatError(f"{path}: ends at byte {offset}, within a chunk or its index")
            parts.append(part)
            size, offset = size - len(part), offset + len(part)
    except OSError as exc:
        raise FormatError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    return b"".join(parts)
