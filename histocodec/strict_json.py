"""JSON that every reader understands alike: UTF-8 without a byte order mark, each name once in an object, no lone
surrogates, no NaN. What parsers disagree about is refused, not interpreted."""

import json
from itertools import pairwise


def parse_strict_json(data: bytes, *, half_surrogates: bool = False) -> object:
    """The JSON text in `data`. Raises ValueError for what is no JSON, is not UTF-8 or begins with a byte order mark,
    for an object with a name twice, and, unless `half_surrogates`, for half a
    surrogate pair; RecursionError for deeper nesting than the parser can follow."""
    text = data.decode("utf-8")  # json.loads would guess, and take UTF-16 and UTF-32 as well
    value: object = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    if "\\u" in text and not half_surrogates:  # UTF-8 itself cannot hold a surrogate, only an escape can
        refuse_half_surrogates(value)
    return value


def refuse_half_surrogates(value: object) -> None:
    """Raises ValueError for half a surrogate pair in a string or a name of a JSON value."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ValueError(f"has half a surrogate pair, {exc.object[exc.start]!a}") from exc


def well_formed(text: str) -> str:
    """`text` with U+FFFD in place of each lone surrogate, which Python has where a name was not valid UTF-8."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _refuse_constant(token: str) -> object:
    """Python's json takes NaN and Infinity, which are no JSON."""
    raise ValueError(f"{token} is no number")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(name for name, following in pairwise(names) if name == following)
        raise ValueError(f"an object has the name {twice[:80]!a} twice")
    return members
