"""The bytes of a shard: what is written, what zarr reads, and what a hostile file may not do."""

import struct
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from histocodec.errors import FormatError, OutputError, UsageError
from histocodec.formats.container import shard
from histocodec.formats.container.files import read_bounded, write_atomically
from histocodec.formats.container.shard import (
    ABSENT,
    ShardIndex,
    crc32c,
    pack_shard,
    read_chunk,
    read_chunks,
    read_index,
)
from histocodec.formats.container.store import FolderStore

# Four chunks, of which 0 ("ab") and 3 ("c") are present.
GOLDEN = bytes.fromhex(
    "6162" "3629a2e2"
    "63" "c733eb20"
    "0000000000000000" "0600000000000000"
    "ffffffffffffffff" "ffffffffffffffff"
    "ffffffffffffffff" "ffffffffffffffff"
    "0600000000000000" "0500000000000000"
    "315f2ba1"
)  # fmt: skip


def stored(folder: Path, data: bytes) -> tuple[FolderStore, str]:
    (folder / "shard").write_bytes(data)
    return FolderStore(folder), "shard"


def with_index(body: bytes, *pairs: tuple[int, int]) -> bytes:
    index = b"".join(struct.pack("<QQ", *pair) for pair in pairs)
    return body + index + crc32c(index)


def test_crc32c_is_castagnoli() -> None:
    assert crc32c(b"123456789") == bytes.fromhex("839206e3")


def test_a_packed_shard_has_these_bytes() -> None:
    assert pack_shard([b"ab", None, None, b"c"]) == GOLDEN


def test_chunks_come_back_as_they_were_packed(tmp_path: Path) -> None:
    shard_at = stored(tmp_path, GOLDEN)
    index = read_index(*shard_at, 4)
    assert index.present == (True, False, False, True)
    assert read_chunks(*shard_at, index, range(4)) == [b"ab", None, None, b"c"]
    assert read_chunk(*shard_at, index, 3) == b"c"


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_zarr_reads_what_was_packed(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-100, 100, (4, 10, 16), dtype=dtype)  # the last rows of chunks are cut
    codec = ShardingCodec(
        chunk_shape=(4, 4, 4),
        codecs=[BytesCodec(endian="little"), Crc32cCodec()],
        index_codecs=[BytesCodec(endian="little"), Crc32cCodec()],
    )
    array = zarr.create_array(
        tmp_path / "a", shape=values.shape, chunks=(4, 8, 8), dtype=dtype, serializer=codec, compressors=None
    )
    for R in range(2):
        for C in range(2):
            chunks: list[bytes | None] = []
            for r, c in np.ndindex(2, 2):
                part = np.zeros((4, 4, 4), dtype)
                inside = values[:, (y := 8 * R + 4 * r) : y + 4, (x := 8 * C + 4 * c) : x + 4]
                part[:, : inside.shape[1], : inside.shape[2]] = inside
                chunks.append(part.astype(part.dtype.newbyteorder("<")).tobytes() if inside.size else None)
            write_atomically(tmp_path / "a" / "c" / "0" / str(R) / str(C), pack_shard(chunks))
    assert np.array_equal(np.asarray(array[:]), values)


def test_what_zarr_writes_can_be_read(tmp_path: Path) -> None:
    codec = ShardingCodec(chunk_shape=(1, 4, 4), codecs=[BytesCodec(), Crc32cCodec()])
    array = zarr.create_array(
        tmp_path / "a",
        shape=(1, 16, 16),
        chunks=(1, 16, 16),
        dtype="int8",
        serializer=codec,
        compressors=None,
    )
    values = np.arange(256, dtype=np.int16).astype(np.int8).reshape(1, 16, 16)
    values[:, 4:8, 4:8] = 0  # the fill value, which zarr leaves out
    array[:] = values
    shard_at = FolderStore(tmp_path / "a"), "c/0/0/0"
    index = read_index(*shard_at, 16)
    assert index.present == tuple(number != 5 for number in range(16))
    assert read_chunk(*shard_at, index, 6) == values[0, 4:8, 8:12].tobytes()


def test_a_shard_without_chunks_is_not_stored() -> None:
    with pytest.raises(UsageError, match="not stored"):
        pack_shard([None, None])


def test_an_empty_chunk_is_refused() -> None:
    with pytest.raises(UsageError, match="chunk 1 has 0 bytes"):
        pack_shard([b"a", b""])


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    for bit in range(8 * len(GOLDEN)):
        data = bytearray(GOLDEN)
        data[bit // 8] ^= 1 << bit % 8
        shard_at = stored(tmp_path, bytes(data))
        with pytest.raises(FormatError, match="shard"):
            read_chunks(*shard_at, read_index(*shard_at, 4), range(4))


@pytest.mark.parametrize("size", range(0, len(GOLDEN), 5))
def test_a_shard_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    shard_at = stored(tmp_path, GOLDEN[:size])
    with pytest.raises(FormatError):
        read_index(*shard_at, 4)


def test_a_file_cut_after_its_index_was_read_is_noticed(tmp_path: Path) -> None:
    shard_at = stored(tmp_path, GOLDEN)
    index = read_index(*shard_at, 4)
    (tmp_path / "shard").write_bytes(GOLDEN[:8])
    with pytest.raises(FormatError, match="ends at byte 8"):
        read_chunk(*shard_at, index, 3)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (((0, 2**63), (ABSENT, ABSENT)), "chunk 0 has size"),
        (((0, 4), (ABSENT, ABSENT)), "chunk 0 has size 4"),
        (((ABSENT, 6), (ABSENT, ABSENT)), "beyond the 20 bytes"),
        (((0, ABSENT), (ABSENT, ABSENT)), "chunk 0 has size"),
        (((15, 6), (ABSENT, ABSENT)), "chunk 0 lies at 15 to 21, beyond the 20 bytes"),
        (((0, 10), (9, 6)), "chunks 0 and 1 overlap at byte 9"),
        (((8, 6), (8, 6)), "overlap"),
        (((2**64 - 6, 6), (0, 6)), "beyond"),
    ],
)
def test_hostile_ranges_are_refused(tmp_path: Path, pairs: tuple[tuple[int, int], ...], message: str) -> None:
    shard_at = stored(tmp_path, with_index(bytes(20), *pairs))
    with pytest.raises(FormatError, match=message):
        read_index(*shard_at, 2)


def test_chunks_may_lie_in_any_order_with_gaps(tmp_path: Path) -> None:
    body = b"-" + b"b" + crc32c(b"b") + b"--" + b"a" + crc32c(b"a")
    shard_at = stored(tmp_path, with_index(body, (8, 5), (1, 5)))
    assert read_chunks(*shard_at, read_index(*shard_at, 2), (0, 1)) == [b"a", b"b"]


def test_a_chunk_larger_than_any_can_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "MAX_CHUNK_BYTES", 3)
    with pytest.raises(FormatError, match="5 to 7 bytes are allowed"):
        ShardIndex.parse(with_index(b"", (0, 8)), file_bytes=100, name="x")


def test_a_missing_shard_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is missing"):
        read_index(FolderStore(tmp_path), "none", 4)
    with pytest.raises(FormatError, match="is missing"):
        read_index(FolderStore(tmp_path.parent), tmp_path.name, 4)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "out").write_bytes(b"before")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="out: cannot be written: No space left on device"):
        write_atomically(tmp_path / "out", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_bytes() == b"before"


def test_a_file_larger_than_allowed_is_not_read(tmp_path: Path) -> None:
    stored(tmp_path, b"12345")
    assert read_bounded(tmp_path / "shard", 5) == b"12345"
    with pytest.raises(FormatError, match="more than 4 bytes"):
        read_bounded(tmp_path / "shard", 4)
