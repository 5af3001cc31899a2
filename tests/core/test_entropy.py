"""The entropy coder: round trips, the reference, the size, and what broken bytes may do (raise, no more)."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from histocodec.entropy import (
    RansDecoder,
    RansEncoder,
    TableSet,
    decode,
    encode,
    fit_tables,
    gaussian_tables,
    quantise_pmf,
    rans,
    reference,
)
from histocodec.errors import FormatError, UsageError

SCALES = np.geomspace(0.1, 256, 48)
PHASES = 8
TABLES = gaussian_tables(SCALES, PHASES)
SMALL = TableSet(
    low=np.array([0, -1, -2], np.int16),
    size=np.array([1, 3, 4], np.uint16),
    freq=np.array([16383, 1, 1, 16381, 1, 1, 4000, 4000, 8000, 383, 1], np.uint16),
)
INT32 = np.iinfo(np.int32)
Segment = tuple[NDArray[np.int32], NDArray[np.uint16]]


def drawn(count: int, *, seed: int = 0) -> Segment:
    """Symbols that follow their tables, mostly of small scale."""
    rng = np.random.default_rng(seed)
    scale = np.minimum(rng.exponential(7, count).astype(np.int64), len(SCALES) - 1)
    phase = rng.integers(0, PHASES, count)
    symbols = np.rint(phase / PHASES + SCALES[scale] * rng.standard_normal(count))
    return symbols.astype(np.int32), (scale * PHASES + phase).astype(np.uint16)


def written(segments: list[Segment], table_set: TableSet, lanes: int | None = None) -> bytes:
    encoder = RansEncoder(table_set)
    for symbols, tables in segments:
        encoder.write(symbols, tables)
    return encoder.finish(lanes=lanes)


def assert_reads(data: bytes, segments: list[Segment], table_set: TableSet) -> None:
    decoder = RansDecoder(data, table_set)
    for symbols, tables in segments:
        np.testing.assert_array_equal(decoder.read(tables), symbols)
    decoder.finish()


values = st.one_of(st.integers(-4, 4), st.integers(-300, 300), st.integers(INT32.min, INT32.max))


@st.composite
def segments_of(draw: st.DrawFn, table_count: int) -> list[Segment]:
    pairs = st.lists(st.tuples(values, st.integers(0, table_count - 1)), max_size=70)
    drawn_segments = draw(st.lists(pairs, max_size=4))
    return [
        (np.array([v for v, _ in part], np.int32), np.array([t for _, t in part], np.uint16)) for part in drawn_segments
    ]


lane_counts = st.sampled_from([1, 2, 4, 8, 16, 32])


@given(segments_of(len(TABLES)), lane_counts)
@settings(deadline=None)
def test_what_was_written_is_read(segments: list[Segment], lanes: int) -> None:
    assert_reads(written(segments, TABLES), segments, TABLES)
    assert_reads(written(segments, TABLES, lanes), segments, TABLES)


@given(segments_of(len(SMALL)), lane_counts)
@settings(deadline=None)
def test_the_fast_coder_equals_the_reference(segments: list[Segment], lanes: int) -> None:
    data = written(segments, SMALL, lanes)
    assert data == reference.encode(segments, SMALL, lanes=lanes)
    for read, (symbols, _) in zip(
        reference.decode(data, [tables for _, tables in segments], SMALL), segments, strict=True
    ):
        np.testing.assert_array_equal(read, symbols)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 1000])
def test_the_reference_reads_and_writes_typical_symbols(count: int) -> None:
    segments = [drawn(count), drawn(5, seed=1), drawn(count, seed=2)]
    data = written(segments, TABLES)
    assert data == reference.encode(segments, TABLES, lanes=1 << data[-1])
    assert_reads(data, segments, TABLES)
    for read, (symbols, _) in zip(
        reference.decode(data, [tables for _, tables in segments], TABLES), segments, strict=True
    ):
        np.testing.assert_array_equal(read, symbols)


GOLDEN = "048001102dc00350ff7f00060fffffffff01c40101"  # states, words, three escapes, lanes


def test_the_bytes_of_a_stream_are_these() -> None:
    symbols = np.array([0, 0, 1, -3, 100, INT32.min, 0, -2, 0], np.int32)
    tables = np.array([0, 1, 1, 2, 2, 0, 1, 2, 0], np.uint16)
    assert written([(symbols, tables)], SMALL, 2).hex() == GOLDEN


def test_any_int32_can_be_escaped_in_any_table() -> None:
    extremes = np.array([INT32.min, INT32.min + 1, -1, 0, 1, INT32.max - 1, INT32.max], np.int32)
    tables = np.repeat(np.arange(len(TABLES), dtype=np.uint16), len(extremes))
    symbols = np.tile(extremes, len(TABLES))
    np.testing.assert_array_equal(decode(encode(symbols, tables, TABLES), tables, TABLES), symbols)


def test_narrow_symbols_need_no_cast() -> None:
    tables = np.zeros(4, np.uint16)
    symbols = np.array([-128, 127, 0, 1], np.int8)
    np.testing.assert_array_equal(decode(encode(symbols, tables, SMALL), tables, SMALL), symbols)


def test_no_symbols_cost_five_bytes() -> None:
    data = RansEncoder(SMALL).finish()
    assert data == bytes([0, 0, 1, 0, 0])
    assert_reads(data, [], SMALL)


def test_a_chunk_of_certain_zeros_costs_five_bytes() -> None:
    zeros = np.zeros(100_000, np.int32)
    assert len(encode(zeros, zeros.astype(np.uint16), SMALL)) == 5


@pytest.mark.parametrize(("count", "lanes"), [(100, 1), (12_000, 2), (260_000, 32)])
def test_the_size_is_near_the_ideal_and_larger_streams_have_more_lanes(count: int, lanes: int) -> None:
    symbols, tables = drawn(count)
    data = encode(symbols, tables, TABLES)
    entry = symbols - TABLES.low[tables]
    escaped = (entry < 0) | (entry >= TABLES.size[tables])
    entry = TABLES.offset[tables] + np.where(escaped, TABLES.size[tables], entry)
    ideal = float(np.sum(14 - np.log2(TABLES.freq[entry]))) / 8 + escaped.sum()
    assert 1 << data[-1] == lanes
    assert ideal < len(data) < 1.003 * ideal + 4 * lanes + 2  # 5 bytes at the least


def test_segments_start_at_lane_zero() -> None:
    one, other = drawn(5), drawn(40, seed=3)
    together = (np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]]))
    assert written([one, other], TABLES, 32) != written([together], TABLES, 32)
    assert written([one, other], TABLES, 1) == written([together], TABLES, 1)


def test_threads_read_the_same() -> None:
    symbols, tables = drawn(50_000)
    data = encode(symbols, tables, TABLES)
    with ThreadPoolExecutor(8) as pool:
        for read in pool.map(lambda _: decode(data, tables, TABLES), range(32)):
            np.testing.assert_array_equal(read, symbols)
        assert set(pool.map(lambda _: encode(symbols, tables, TABLES), range(32))) == {data}


@pytest.mark.parametrize("view", [bytes, bytearray, memoryview])
def test_any_buffer_is_read_without_compiling_again(view: Callable[[bytes], Any]) -> None:
    symbols, tables = drawn(100)
    before = len(rans.decode_segment.codes)  # type: ignore[attr-defined]  # of a Kernel
    np.testing.assert_array_equal(decode(view(encode(symbols, tables, TABLES)), tables, TABLES), symbols)
    copy = pickle.loads(pickle.dumps(TABLES))
    np.testing.assert_array_equal(decode(encode(symbols, tables, copy), tables, copy), symbols)
    assert len(rans.decode_segment.codes) <= max(before, 1)  # type: ignore[attr-defined]  # as above


def escaping() -> tuple[bytes, Segment]:
    symbols, tables = drawn(200, seed=5)
    symbols[::20] += 100_000
    return encode(symbols, tables, TABLES), (symbols, tables)


def test_a_stream_cut_anywhere_is_refused() -> None:
    data, (_, tables) = escaping()
    for length in range(len(data)):
        with pytest.raises(FormatError):
            decode(data[:length], tables, TABLES)


def test_a_flipped_bit_is_refused_or_gives_as_many_symbols() -> None:
    data, (_, tables) = escaping()
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        try:
            read = decode(broken, tables, TABLES)
        except FormatError:
            continue
        assert read.shape == tables.shape


@given(st.binary(max_size=200), segments_of(len(SMALL)))
@settings(deadline=None)
def test_arbitrary_bytes_are_refused_exactly_where_the_reference_refuses(data: bytes, segments: list[Segment]) -> None:
    tables = [numbers for _, numbers in segments]

    def fast() -> list[NDArray[np.int32]]:
        decoder = RansDecoder(data, SMALL)
        read = [decoder.read(numbers) for numbers in tables]
        decoder.finish()
        return read

    try:
        expected = reference.decode(data, tables, SMALL)
    except FormatError:
        with pytest.raises(FormatError):
            fast()
    else:
        for read, symbols in zip(fast(), expected, strict=True):
            np.testing.assert_array_equal(read, symbols)


@pytest.mark.parametrize(
    "tail",
    [
        [0x80, 0x80, 0x80, 0x80, 0x80, 0x01],  # six bytes
        [0x80, 0x00],  # a needless byte
        [0xFE, 0xFF, 0xFF, 0xFF, 0x0F],  # 2^31 - 1 above high + 1
        [0xFF, 0xFF, 0xFF, 0xFF, 0x7F],  # 35 bits
        [0x80],  # unfinished
        [],
    ],
)
def test_an_escaped_value_has_one_spelling(tail: list[int]) -> None:
    good = encode(np.array([5], np.int32), np.zeros(1, np.uint16), SMALL)
    broken = good[:-2] + bytes(reversed(tail)) + good[-1:]
    with pytest.raises(FormatError):
        decode(broken, np.zeros(1, np.uint16), SMALL)
    with pytest.raises(FormatError):
        reference.decode(broken, [np.zeros(1, np.uint16)], SMALL)


def test_too_many_symbols_are_refused() -> None:
    symbols, tables = drawn(500)
    data = encode(symbols, tables, TABLES)
    with pytest.raises(FormatError):
        decode(data, np.tile(tables, 10), TABLES)
    with pytest.raises(FormatError, match="left after"):
        decode(data, tables[:100], TABLES)


def test_a_table_that_does_not_exist_is_refused() -> None:
    data = encode(np.zeros(3, np.int32), np.zeros(3, np.uint16), SMALL)
    with pytest.raises(FormatError, match="table"):
        decode(data, np.array([0, 3, 0], np.uint16), SMALL)
    with pytest.raises(UsageError, match="table"):
        encode(np.zeros(1, np.int32), np.array([65535], np.uint16), SMALL)


def test_wrong_types_are_refused() -> None:
    encoder = RansEncoder(SMALL)
    with pytest.raises(UsageError):
        encoder.write(np.zeros(2, np.int64), np.zeros(2, np.uint16))
    with pytest.raises(UsageError):
        encoder.write(np.zeros(2, np.int32), np.zeros(3, np.uint16))
    with pytest.raises(UsageError):
        encoder.finish(lanes=3)
    with pytest.raises(UsageError):
        RansDecoder(encoder.finish(), SMALL).read(np.zeros(2, np.int64))


@pytest.mark.parametrize(
    ("low", "size", "freq"),
    [
        ([], [], []),
        ([0, 0], [1], [16383, 1]),
        ([0], [0], [16384]),
        ([1], [1], [16383, 1]),  # 0 below
        ([-1], [1], [16383, 1]),  # 0 above
        ([0], [1], [16384, 0]),
        ([0], [1], [16383, 2]),
        ([0], [2], [16383, 1]),
        ([0, 0], [1, 1], [16383, 2, 16382, 1]),  # right only in sum
        ([0], [65535], [16383, 1]),
        ([-32768], [65535], [1] * 65536),
    ],
)
def test_a_broken_table_is_refused(low: list[int], size: list[int], freq: list[int]) -> None:
    with pytest.raises(FormatError, match="table"):
        TableSet(np.array(low, np.int16), np.array(size, np.uint16), np.array(freq, np.uint16))


def test_a_table_of_another_type_is_refused() -> None:
    with pytest.raises(FormatError, match="low is int64"):
        TableSet(np.zeros(1, np.int64), SMALL.size, SMALL.freq)


def test_a_table_set_cannot_be_altered() -> None:
    with pytest.raises(ValueError, match="read-only"):
        TABLES.freq[0] = 3


def test_the_largest_tables_hold() -> None:
    uniform = TableSet(np.array([-16382, 0], np.int16), np.array([16383, 16383], np.uint16), np.ones(32768, np.uint16))
    symbols = np.array([-16382, 0, 1, -1, 0, 16382, 16383, -1], np.int32)
    tables = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.uint16)
    np.testing.assert_array_equal(decode(encode(symbols, tables, uniform), tables, uniform), symbols)


def test_lookups_agree_with_the_frequencies() -> None:
    for t in range(len(TABLES)):
        start, size = int(TABLES.offset[t]), int(TABLES.size[t])
        freq = TABLES.freq[start : start + size + 1].astype(np.int64)
        np.testing.assert_array_equal(TABLES.cdf[start : start + size + 1], np.cumsum(freq) - freq)
        owner = np.repeat(np.arange(size + 1), freq)  # (2^14,) the entry of each slot
        np.testing.assert_array_equal(TABLES.coarse[t], owner[::64])
        best = int(np.argmax(freq[:size]))
        expected = (TABLES.cdf[start + best], freq[best], TABLES.low[t] + best, start)
        assert tuple(TABLES.mode[t]) == expected


@pytest.mark.parametrize("t", [100, 203, 300, 383])
def test_gaussian_tables_have_their_mean_and_scale(t: int) -> None:
    sigma, mean = SCALES[t // PHASES], (t % PHASES) / PHASES
    start, size = int(TABLES.offset[t]), int(TABLES.size[t])
    symbols = np.arange(size) + TABLES.low[t]
    p = TABLES.freq[start : start + size] / 16384
    assert abs(float(p @ symbols) - mean) < 0.01 * sigma
    deviation = np.sqrt(float(p @ (symbols - mean) ** 2))
    assert deviation == pytest.approx(np.sqrt(sigma**2 + 1 / 12), rel=0.03)  # rounding adds 1/12


def test_a_narrow_gaussian_is_certain_of_its_mean() -> None:
    narrow = gaussian_tables([0.01], 2)
    assert narrow.low.tolist() == [0, 0]
    assert narrow.freq[:2].tolist() == [16383, 1]
    assert sorted(narrow.freq[2:].tolist()) == [1, 8191, 8192]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300).filter(lambda weights: sum(weights) > 0))
@settings(deadline=None)
def test_quantised_weights_sum_and_are_close(weights: list[float]) -> None:
    freq = quantise_pmf(np.array(weights))
    assert freq.min() >= 1
    assert freq.sum(dtype=np.int64) == 16384
    ideal = 16384 * np.array(weights) / sum(weights)
    assert (np.abs(freq - ideal) <= 1 + len(weights) + 0.02 * ideal).all()


def test_quantised_weights_are_refused_when_they_are_none() -> None:
    for weights in ([], [0.0], [np.nan, 1.0], [-1.0, 2.0], [np.inf]):
        with pytest.raises(UsageError):
            quantise_pmf(np.array(weights))


def test_fitting_keeps_the_base_without_counts_and_shortens_the_code_with_them() -> None:
    base = gaussian_tables([0.5, 2.0], 1)
    np.testing.assert_array_equal(fit_tables(base, np.zeros(base.freq.shape, np.int64)).freq, base.freq)
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 1000, base.freq.shape)
    fitted = fit_tables(base, counts, strength=16)
    assert counts @ np.log2(fitted.freq) > counts @ np.log2(base.freq)
    with pytest.raises(UsageError):
        fit_tables(base, counts[:-1])
    with pytest.raises(UsageError):
        fit_tables(base, counts, strength=0)


@pytest.mark.parametrize(("scales", "phases"), [([0.0], 1), ([float("nan")], 1), ([1.0], 0), ([], 1)])
def test_nonsensical_scales_are_refused(scales: list[float], phases: int) -> None:
    with pytest.raises(UsageError):
        gaussian_tables(scales, phases)
