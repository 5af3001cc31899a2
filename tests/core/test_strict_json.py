"""JSON that parsers understand differently is refused, in containers as in models."""

import json

import pytest

from histocodec.strict_json import parse_strict_json, well_formed

AMBIGUOUS = {
    "a name twice": b'{"a": 1, "b": {"c": 1, "d": 2, "c": 1}}',
    "a name twice, once escaped": b'{"a": 1, "\\u0061": 2}',
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-16 without a mark": '{"a": 1}'.encode("utf-16-le"),
    "UTF-32": '{"a": 1}'.encode("utf-32-be"),
    "Latin-1": b'{"a": "\xe9"}',
    "a surrogate in UTF-8": b'{"a": "\xed\xb2\x80"}',
    "half a surrogate pair": b'{"a": ["\\udc80"]}',
    "half a surrogate pair as a name": b'{"\\ud83d": 1}',
    "a pair the wrong way round": b'{"a": "\\ude00\\ud83d"}',
    "NaN": b'{"a": NaN}',
    "Infinity": b"[-Infinity]",
    "an integer without end": b"9" * 5000,
    "a control character": b'{"a": "\n"}',
    "two documents": b"{} {}",
    "nothing": b"",
}


@pytest.mark.parametrize("data", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_parsers_understand_differently_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_strict_json(data)


def test_an_error_names_the_name_that_occurs_twice() -> None:
    with pytest.raises(ValueError, match="has the name 'chunk' twice"):
        parse_strict_json(b'{"shard": 1, "chunk": 4, "chunk": 8}')


@pytest.mark.parametrize("ascii_only", [True, False])
def test_every_other_text_is_taken_escaped_or_not(ascii_only: bool) -> None:
    value = {"é": ["😀", "\u0000", "\ufffd", "\ufeff"], "b": {"é": 1e300}, "c": {"é": -(2**70)}, "d": None}
    assert parse_strict_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


def test_deep_nesting_ends_in_an_error() -> None:
    with pytest.raises(RecursionError):
        parse_strict_json(b"[" * 100_000)


def test_names_that_are_not_unicode_become_so() -> None:
    assert well_formed("é\udc80😀.svs") == "é\ufffd😀.svs"
    assert well_formed("é😀") == "é😀"
