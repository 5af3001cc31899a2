"""The entropy coder: interleaved rANS (Duda 2013) in one stream that a CPU core or a GPU warp can read.

The stream
----------
All integers are little endian. `n` is the number of lanes: 1, 2, 4, 8, 16 or 32.

    offset      size    field
    0           4 n     states: uint32 for lane 0 … n - 1; each at least L = 2^16
    4 n         2 w     words: uint16, read forwards
    4 n + 2 w   e       escapes: bytes, read BACKWARDS from the end
    last        1       bits 0-2: log2 n, at most 5; bits 3-7: zero

Neither w nor e is stored: words are taken from the front and escape bytes from the back, and after the last
symbol the two cursors must have met. The shortest stream is 5 bytes.

Symbols come in segments, whose lengths the reader knows. Symbol i of a segment belongs to lane i mod n: each
segment starts again at lane 0, and the states of the lanes carry over. With a table's frequencies f and their
running sums c (`TableSet`), a reader takes one symbol from a lane's state x in this way:

    slot = x mod 2^14
    s    = the entry with c[s] <= slot < c[s] + f[s]
    x    = f[s] * floor(x / 2^14) + slot - c[s]
    if x < 2^16:  x = x * 2^16 + next word              (once is always enough)

Lanes take words in the order of the symbols, which within a round of n symbols is lane order. Entry s stands
for the value low + s; the last entry is ESCAPE. An escaped value lies outside [low, high] and follows in the
escape bytes as an unsigned LEB128 (7 bits a byte, lowest first, bit 7 = more follow; no needless byte, at most 5):

    u even: value = high + 1 + u / 2         u odd: value = low - 1 - (u - 1) / 2

A value that does not fit in int32 is an error. After the last symbol the state of every lane must be 2^16, where
the writer began: a check on the whole stream that costs nothing.

A writer is free to choose n. A lane costs about 3 bytes (16 bits at the start, 8 at the end); this writer spends
at most 0.4 % of the payload on lanes, which on a CPU make no difference to the speed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy.tables import COARSE_SHIFT, COST_UNIT, PRECISION, TOTAL, TableSet
from histocodec.errors import FormatError, UsageError
from histocodec.kernels.jit import jit

LOWER = 1 << 16  # L: the smallest state between symbols, and the state that the writer starts with
MAX_LANES = 32  # a GPU warp
BYTES_PER_LANE = 768  # payload that earns a lane: 3 bytes of overhead are 0.4 % of it
MAX_ESCAPE_BYTES = 5  # LEB128 of 32 bits

OK, BAD_TABLE, NO_WORD, NO_ESCAPE, BAD_ESCAPE = range(5)  # the status that a kernel returns
_MESSAGES = {
    BAD_TABLE: "a symbol names a frequency table that does not exist",
    NO_WORD: "the stream ends before its symbols do",
    NO_ESCAPE: "the stream ends within an escaped value",
    BAD_ESCAPE: "an escaped value is not written as the format demands, or does not fit in int32",
}

Row = NDArray[Any]  # for the kernels, whose types numba infers
Whole = int | np.integer[Any]


# The kernels. numba checks no bounds: the validation in TableSet, the check of each table number, and the two
# cursors, which stop at each other, keep every index inside. Arrays arrive with fixed types and read-only (see
# `_row`), since numba would compile each new combination of types anew.


@jit
def _find_entries(
    symbols: Row, tables: Row, low: Row, size: Row, offset: Row, cost: Row, entries: Row, escapes: Row
) -> tuple[int, int, int]:
    """Fill `entries` with each symbol's index in `freq`, and `escapes` with the escape bytes in reading order. Returns
    (status, total cost, number of escape bytes)."""
    total = 0
    used = 0
    for i in range(symbols.size):
        t = tables[i]
        if t >= low.size:
            return BAD_TABLE, 0, 0
        s = np.int64(symbols[i]) - low[t]
        regular = np.int64(size[t])
        if s < 0 or s >= regular:
            u = 2 * (s - regular) if s >= 0 else 2 * (-1 - s) + 1
            s = regular
            while u >= 128:
                escapes[used] = np.uint8(u & 127 | 128)
                u >>= 7
                used += 1
            escapes[used] = np.uint8(u)
            used += 1
        entry = offset[t] + s
        entries[i] = entry
        total += int(cost[entry])  # without numba, a sum of uint16 would be one
    return OK, total, used


@jit
def _encode(entries: Row, bounds: Row, freq: Row, cdf: Row, states: Row, words: Row) -> int:
    """Code all segments from the last symbol to the first, filling `words` from the end. Returns the first word's
    index."""
    position = words.size
    mask = states.size - 1
    for segment in range(bounds.size - 2, -1, -1):
        first = bounds[segment]
        for i in range(bounds[segment + 1] - 1, first - 1, -1):
            lane = (i - first) & mask
            f = np.uint32(freq[entries[i]])
            x = states[lane]
            if (x >> (32 - PRECISION)) >= f:  # else x would leave 32 bits
                position -= 1
                words[position] = np.uint16(x & 0xFFFF)
                x = np.uint32(x >> 16)
            q = np.uint32(x // f)
            states[lane] = np.uint32((q << PRECISION) + (x - q * f) + cdf[entries[i]])
    return position


@jit
def read_rare(
    slot: Whole, t: Whole, data: Row, position: Whole, tail: Whole, mode: Row, low: Row, size: Row, freq: Row, cdf: Row,
    coarse: Row,
) -> tuple[int, Whole, np.int64, Whole, Whole]:  # fmt: skip
    """The symbol at `slot` of table `t` that is not its most likely one; an escape ends before `tail`. Returns the
    status, the symbol, its frequency, how far into its slots `slot` is, and where escapes now end."""
    base = np.int64(mode[t, 3])
    s = np.int64(coarse[t, slot >> COARSE_SHIFT])
    while slot >= np.int64(cdf[base + s]) + freq[base + s]:
        s += 1
    f, above, value = np.int64(freq[base + s]), np.int64(slot - cdf[base + s]), np.int64(low[t] + s)
    if s == size[t]:
        u, shift = np.int64(0), 0
        while True:
            if tail <= position:
                return NO_ESCAPE, value, f, above, tail
            tail -= 1
            byte = np.int64(data[tail])
            u |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
            if shift == 7 * MAX_ESCAPE_BYTES:
                return BAD_ESCAPE, value, f, above, tail
        if byte == 0 and shift > 7:
            return BAD_ESCAPE, value, f, above, tail
        value = value + (u >> 1) if u & 1 == 0 else np.int64(low[t] - 1 - (u >> 1))
        if value < -(1 << 31) or value >= 1 << 31:
            return BAD_ESCAPE, value, f, above, tail
    return OK, value, f, above, tail


@jit
def decode_segment(
    data: Row, cursors: Row, states: Row, tables: Row,
    mode: Row, low: Row, size: Row, freq: Row, cdf: Row, coarse: Row, out: Row,
) -> int:  # fmt: skip
    """Read one segment into `out`, moving `cursors` (next word, end of escapes) and `states`. Returns the status."""
    position = cursors[0]
    tail = cursors[1]
    mask = states.size - 1
    for i in range(tables.size):
        t = tables[i]
        if t >= low.size:
            return BAD_TABLE
        lane = i & mask
        x = states[lane]
        slot = np.int64(x & (TOTAL - 1))
        above = slot - mode[t, 0]
        f = np.int64(mode[t, 1])
        if above >= 0 and above < f:  # most symbols are the most likely one
            out[i] = mode[t, 2]
        else:
            status, value, f, above, tail = read_rare(slot, t, data, position, tail, mode, low, size, freq, cdf, coarse)
            if status != OK:
                return status
            out[i] = value
        rest = f * np.int64(x >> PRECISION) + above
        if rest < LOWER:
            if tail - position < 2:
                return NO_WORD
            rest = rest << 16 | np.int64(data[position]) | np.int64(data[position + 1]) << 8
            position += 2
        states[lane] = rest
    cursors[0] = position
    cursors[1] = tail
    return OK


class RansEncoder:
    """Writes a stream. It collects the segments and codes them all at once, since rANS goes from the last symbol to the
    first.

    >>> encoder = RansEncoder(table_set)
    >>> encoder.write(z, z_tables)
    >>> encoder.write(y, y_tables)
    >>> data = encoder.finish()
    """

    def __init__(self, table_set: TableSet) -> None:
        self._tables = table_set
        self._segments: list[tuple[NDArray[np.int32], NDArray[np.uint16], NDArray[np.int64]]] = []

    def write(self, symbols: NDArray[np.integer[Any]], tables: NDArray[np.uint16]) -> None:
        """Add a segment: symbols (n,), any integers within int32, and the number (n,) uint16 of each one's table.
        Raises UsageError for other shapes or types."""
        if symbols.ndim != 1 or not np.can_cast(symbols.dtype, np.int32):
            raise UsageError(f"symbols must be (n,) int32 or narrower, not {symbols.shape} {symbols.dtype}")
        if tables.shape != symbols.shape or tables.dtype != np.uint16:
            raise UsageError(f"tables must be {symbols.shape} uint16, not {tables.shape} {tables.dtype}")
        self.write_segments(symbols.astype(np.int32), tables.copy(), np.array([0, len(symbols)]))

    def write_segments(self, symbols: NDArray[np.int32], tables: NDArray[np.uint16], bounds: NDArray[np.int64]) -> None:
        """Add many segments at once, which lie end to end: segment i ends before bounds[i + 1]; bounds[0] is 0."""
        self._segments.append((symbols, tables, bounds))

    def finish(self, *, lanes: int | None = None) -> bytes:
        """The stream of all segments so far. `lanes` overrides the number that suits the payload's size. Raises
        UsageError where a table does not exist, and for a number of lanes that is not 1, 2, 4, 8, 16 or 32."""
        parts = self._segments or [(np.empty(0, np.int32), np.empty(0, np.uint16), np.zeros(1, np.int64))]
        symbols = _row(np.concatenate([part for part, _, _ in parts]), np.dtype(np.int32))
        tables = _row(np.concatenate([part for _, part, _ in parts]), np.dtype(np.uint16))
        lengths = np.concatenate([np.diff(ends) for _, _, ends in parts])
        bounds = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        entries = np.empty(len(symbols), np.int32)
        escapes = np.empty(MAX_ESCAPE_BYTES * len(symbols), np.uint8)  # touched only as far as needed
        t = self._tables
        status, cost, used = _find_entries(symbols, tables, t.low, t.size, t.offset, t.cost, entries, escapes)
        if status != OK:
            raise UsageError(f"cannot encode: {_MESSAGES[status]} (there are {len(t)})")
        n = _suitable_lanes(cost // (8 * COST_UNIT) + used) if lanes is None else _checked_lanes(lanes)
        states = np.full(n, LOWER, np.uint32)
        words = np.empty(len(symbols), np.uint16)  # one a symbol at most
        first = _encode(entries, bounds, t.freq, t.cdf, states, words)
        return b"".join(
            (
                states.astype("<u4").tobytes(),
                words[first:].astype("<u2").tobytes(),
                escapes[:used][::-1].tobytes(),
                bytes([n.bit_length() - 1]),
            )
        )


class RansDecoder:
    """Reads the segments of one stream in the order in which they were written. Not thread-safe.

    Broken bytes raise FormatError here, in `read`, or in `finish` at the latest. Until `finish` has returned, do not
    trust what `read` returned.
    """

    def __init__(self, data: bytes | bytearray | memoryview, table_set: TableSet) -> None:
        self.tables = table_set
        self._data = _row(np.frombuffer(data, np.uint8), np.dtype(np.uint8))
        if not len(self._data):
            raise FormatError("an entropy-coded stream is empty; the shortest has 5 bytes")
        last = int(self._data[-1])
        if last > MAX_LANES.bit_length() - 1:
            raise FormatError(f"an entropy-coded stream ends in byte {last}; the lane count is 0 to 5 there")
        front = 4 << last
        if len(self._data) <= front:
            raise FormatError(f"an entropy-coded stream has {len(self._data)} bytes; its states need {front}")
        self._states = self._data[:front].view("<u4").astype(np.uint32)  # (lanes,)
        if (self._states < LOWER).any():
            raise FormatError(f"an entropy-coded stream has a lane state below {LOWER}")
        self._cursors = np.array([front, len(self._data) - 1, 0, 0], np.int64)

    @property
    def state(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint32]]:
        """What a kernel needs that reads a segment itself: the bytes; the next word, the end of the escapes and two
        numbers of the kernel's own; and the lanes' states. It moves the two last."""
        return self._data, self._cursors, self._states

    def read(self, tables: NDArray[np.uint16]) -> NDArray[np.int32]:
        """The next segment: one symbol (n,) int32 for each table number (n,) uint16. Raises FormatError where the
        stream is broken, and UsageError for other shapes or types."""
        if tables.ndim != 1 or tables.dtype != np.uint16:
            raise UsageError(f"tables must be (n,) uint16, not {tables.shape} {tables.dtype}")
        numbers = _row(tables, np.dtype(np.uint16))
        out = np.empty(len(numbers), np.int32)
        t = self.tables
        status = decode_segment(
            self._data, self._cursors, self._states, numbers,
            t.mode, t.low, t.size, t.freq, t.cdf, t.coarse, out,
        )  # fmt: skip
        self.check(status)
        return out

    @staticmethod
    def check(status: int) -> None:
        """Raises FormatError where the status of a kernel says that the stream is broken."""
        if status != OK:
            raise FormatError(f"cannot decode: {_MESSAGES[status]}")

    def finish(self) -> None:
        """Check that the stream ends where its symbols do and that every lane is back at its start. Raises FormatError
        otherwise."""
        unread = int(self._cursors[1] - self._cursors[0])
        if unread:
            raise FormatError(f"an entropy-coded stream has {unread} bytes left after its last symbol")
        if (self._states != LOWER).any():
            raise FormatError("an entropy-coded stream was altered: its states do not end where they began")


def encode(symbols: NDArray[np.integer[Any]], tables: NDArray[np.uint16], table_set: TableSet) -> bytes:
    """The stream of one segment; see `RansEncoder.write`."""
    encoder = RansEncoder(table_set)
    encoder.write(symbols, tables)
    return encoder.finish()


def decode(data: bytes | bytearray | memoryview, tables: NDArray[np.uint16], table_set: TableSet) -> NDArray[np.int32]:
    """The symbols of a stream of one segment; see `RansDecoder`."""
    decoder = RansDecoder(data, table_set)
    symbols = decoder.read(tables)
    decoder.finish()
    return symbols


def _suitable_lanes(payload_bytes: int) -> int:
    most = min(MAX_LANES, max(1, payload_bytes // BYTES_PER_LANE))
    return 1 << (most.bit_length() - 1)


def _checked_lanes(lanes: int) -> int:
    if lanes not in (1, 2, 4, 8, 16, 32):
        raise UsageError(f"{lanes} lanes; allowed are 1, 2, 4, 8, 16 and 32")
    return lanes


def _row(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array as the kernels were compiled for: contiguous, aligned, of native byte order and read-only."""
    row = np.require(array, dtype, ["C", "A"]).view()
    row.setflags(write=False)
    return row
