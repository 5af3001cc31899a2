"""The oracle of the entropy coder: the stream of `rans` written out in plain Python, for tests to compare with.

It uses only the three stored fields of a `TableSet`, and no code of the fast coder.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy.tables import TableSet
from histocodec.errors import FormatError

Segment = tuple[NDArray[np.integer[Any]], NDArray[np.uint16]]  # symbols (n,), table numbers (n,)


def encode(segments: Sequence[Segment], table_set: TableSet, *, lanes: int) -> bytes:
    """The stream of the segments with this number of lanes: 1, 2, 4, 8, 16 or 32."""
    states = [1 << 16] * lanes
    words: list[int] = []  # last word first
    escapes: list[int] = []  # last byte first
    for symbols, tables in reversed(segments):
        for i in reversed(range(len(symbols))):
            low, freq = _table(table_set, int(tables[i]))
            s, escape = _entry(int(symbols[i]), low, len(freq) - 1)
            escapes += reversed(escape)
            x = states[i % lanes]
            if x >= freq[s] << 18:
                words.append(x & 0xFFFF)
                x >>= 16
            states[i % lanes] = (x // freq[s] << 14) + x % freq[s] + sum(freq[:s])
    return b"".join(
        (
            *(state.to_bytes(4, "little") for state in states),
            *(word.to_bytes(2, "little") for word in reversed(words)),
            bytes(escapes),
            bytes([lanes.bit_length() - 1]),
        )
    )


def decode(data: bytes, segments: Sequence[NDArray[np.uint16]], table_set: TableSet) -> list[NDArray[np.int32]]:
    """The symbols (n,) int32 of each segment, given the table numbers of each segment. Raises FormatError for a stream
    that is broken."""
    if not data or data[-1] > 5 or len(data) <= 4 << data[-1]:
        raise FormatError("not an entropy-coded stream")
    lanes = 1 << data[-1]
    states = [int.from_bytes(data[4 * lane : 4 * lane + 4], "little") for lane in range(lanes)]
    if min(states) < 1 << 16:
        raise FormatError("a lane state is too small")
    body = list(data[4 * lanes : -1])  # words are taken from its front, escapes from its back
    result = []
    for tables in segments:
        symbols = []
        for i in range(len(tables)):
            low, freq = _table(table_set, int(tables[i]))
            x = states[i % lanes]
            slot, s = x % (1 << 14), 0
            while slot >= sum(freq[: s + 1]):
                s += 1
            symbols.append(low + s if s < len(freq) - 1 else _unescape(body, low, len(freq) - 1))
            x = freq[s] * (x >> 14) + slot - sum(freq[:s])
            if x < 1 << 16:
                if len(body) < 2:
                    raise FormatError("no word is left")
                x = x << 16 | body.pop(0) | body.pop(0) << 8
            states[i % lanes] = x
        result.append(np.array(symbols, dtype=np.int32))
    if body or any(state != 1 << 16 for state in states):
        raise FormatError("the stream does not end as it should")
    return result


def _table(table_set: TableSet, number: int) -> tuple[int, list[int]]:
    if number >= len(table_set.low):
        raise FormatError(f"there is no table {number}")
    start = int(np.sum(table_set.size[:number].astype(np.int64) + 1))
    freq = table_set.freq[start : start + int(table_set.size[number]) + 1]
    return int(table_set.low[number]), [int(f) for f in freq]


def _entry(value: int, low: int, size: int) -> tuple[int, list[int]]:
    """A value's entry in its table, and the escape bytes that follow where the entry is ESCAPE, in reading order."""
    if low <= value < low + size:
        return value - low, []
    u = 2 * (value - low - size) if value > 0 else 2 * (low - 1 - value) + 1
    escape = []
    while u >= 128:
        escape.append(u % 128 + 128)
        u //= 128
    return size, [*escape, u]


def _unescape(body: list[int], low: int, size: int) -> int:
    u = 0
    for byte_number in range(5):
        if not body:
            raise FormatError("no escape byte is left")
        byte = body.pop()
        u += byte % 128 << (7 * byte_number)
        if byte < 128:
            break
    else:
        raise FormatError("an escaped value has more than 5 bytes")
    if byte == 0 and byte_number > 0:
        raise FormatError("an escaped value has a needless byte")
    value = low + size + u // 2 if u % 2 == 0 else low - 1 - u // 2
    if not -(1 << 31) <= value < 1 << 31:
        raise FormatError("an escaped value does not fit in int32")
    return value
