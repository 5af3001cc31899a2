"""The two orders in which a region may be named: OpenSlide's, and one of four numbers.

    read_array((x, y), level, (width, height))        as `openslide.OpenSlide.read_region`
    read_array(x, y, width, height, level=level)

In both, x and y are in pixels of level 0, width and height in pixels of the level.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Pair = tuple[int, int]

OPENSLIDE, NUMBERS = ("location", "level", "size"), ("x", "y", "width", "height")


def asked(name: str, values: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[Pair, int, Pair]:
    """Location, level (0 where none is given) and size of a call of the method `name` in either order. Raises
    TypeError, as Python does, for arguments that are none or are missing."""
    first = values[0] if values else keywords.get("location")
    names = OPENSLIDE if "size" in keywords or _is_pair(first) else NUMBERS
    given = _bound(name, names, values, keywords)
    unknown = [key for key in given if key not in (*names, "level")]
    if unknown:
        raise TypeError(f"{name}() got an unexpected argument {unknown[0]!r}")
    level = given.pop("level", None)
    missing = [key for key in names if key != "level" and key not in given]
    if missing:
        raise TypeError(
            f"{name}() misses {', '.join(missing)}; it takes (location, level, size) or (x, y, width, height)"
        )
    if names is NUMBERS:
        return (given["x"], given["y"]), level or 0, (given["width"], given["height"])
    return tuple(given["location"]), level or 0, tuple(given["size"])


def level_and_size(name: str, values: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[int, Pair]:
    """Level (0 where none is given) and size of a call with `(level, size)` or `(size, level=…)`. Raises TypeError as
    `asked` does."""
    names = ("size", "level") if values and _is_pair(values[0]) else ("level", "size")
    _, level, size = asked(name, (), {"location": (0, 0), **_bound(name, names, values, keywords)})
    return level, size


def _bound(name: str, names: Sequence[str], values: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name."""
    if len(values) > len(names):
        raise TypeError(f"{name}() got {len(values) - len(names)} positional arguments too many")
    given = dict(zip(names, values, strict=False))
    twice = [key for key in keywords if key in given]
    if twice:
        raise TypeError(f"{name}() got the argument {twice[0]!r} twice")
    return {**given, **keywords}


def _is_pair(value: Any) -> bool:
    """Whether a value is a location: anything of two elements."""
    return hasattr(value, "__len__") and len(value) == 2
