"""Values as text: sizes, times and ratios as people write them, and results in JSON's types."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike, fspath

BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


def size_text(count: int) -> str:
    """Format a number of bytes in decimal units, as disks are sold: 1.23 MB."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(BYTE_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.3g} {BYTE_UNITS[unit]}"


def time_text(seconds: float) -> str:
    """Format a duration: 12.3 s, 2:05 min or 1:02:03 h."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def ratio_text(ratio: float | None) -> str:
    """Format a compression ratio: 1:43.2; None is unknown."""
    if ratio is None:
        return "unknown"
    return f"1:{ratio:.1f}" if ratio < 100 else f"1:{ratio:.0f}"


def decibel_text(psnr: float | None) -> str:
    """Format a PSNR in dB: 38.25 dB; infinity is lossless, None is not measured."""
    if psnr is None:
        return "not measured"
    return f"{psnr:.2f} dB" if math.isfinite(psnr) else "lossless"


def mpp_text(mpp: Sequence[float] | None) -> str:
    """Format a resolution in microns per pixel, x and y: 0.5 µm; None is unknown."""
    if mpp is None:
        return "unknown"
    x, y = mpp
    return f"{x:.6g} µm" if x == y else f"{x:.6g} x {y:.6g} µm"


def speed_text(megapixels_per_second: float) -> str:
    """Format a speed: 12.3 MP/s, or 0.023 MP/s where it is that slow."""
    digits = 1 if megapixels_per_second >= 1 else 3
    return f"{megapixels_per_second:.{digits}f} MP/s"


def count_text(count: int, noun: str) -> str:
    """Format a count with its noun, to which more than one adds an s: 1 level, 3 levels."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def printable(line: str) -> str:
    """Escape control characters, so that text from a file cannot steer the terminal."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


def json_text(value: object, *, indent: int = 2) -> str:
    """Format a result as JSON; `value` is anything that `jsonable` takes."""
    return json.dumps(jsonable(value), indent=indent, ensure_ascii=False, allow_nan=False)


def jsonable(value: object) -> object:
    """Convert a value to JSON's types: dataclasses, mappings, sequences, paths and numpy's numbers.

    Infinities and NaN become null, since JSON has no word for them.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, PathLike):
        return fspath(value)
    if hasattr(value, "item"):  # numpy's numbers
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
