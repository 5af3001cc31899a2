"""What every command prints, and where: results on stdout, progress on stderr."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from typing import Protocol

import click

BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


class Progress(Protocol):
    """Called with how much is done, of how much, and a few words about it."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A bar on stderr, or nothing at all where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=None, note="")

        def show(done: int, total: int, note: str = "") -> None:
            bars.update(task, completed=done, total=total, note=note)

        yield show


def say(message: str) -> None:
    """A line about what goes on, for people: to stderr."""
    click.echo(message, err=True)


def print_json(result: object) -> None:
    """One object, with every field."""
    text = json.dumps(plain(result), indent=2, ensure_ascii=False, allow_nan=False)
    click.echo(text.encode("utf-8", "backslashreplace"))  # half a surrogate pair is \\udc80, in JSON too


def plain(value: object) -> object:
    """The value in JSON's types. What is not finite becomes null, as JSON has no word for it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, PathLike):
        return fspath(value)
    if hasattr(value, "item"):  # numpy's numbers
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values in two columns; a value of several lines stays in its column."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        for index, line in enumerate(value.splitlines() or [""]):
            click.echo(f"{name if index == 0 else '':<{width}}  {printable(line)}".rstrip())


def printable(line: str) -> str:
    """The line with control characters written out: what a file says must not steer the terminal."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


def size_text(count: int) -> str:
    """Bytes as people say them: 1.23 MB. Decimal units, as disks are sold."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(BYTE_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.3g} {BYTE_UNITS[unit]}"


def time_text(seconds: float) -> str:
    """12.3 s, or 1:02:03 where it takes minutes or hours."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def ratio_text(ratio: float | None) -> str:
    """1:43.2"""
    if ratio is None:
        return "unknown"
    return f"1:{ratio:.1f}" if ratio < 100 else f"1:{ratio:.0f}"


def decibel_text(psnr: float | None) -> str:
    if psnr is None:
        return "not measured"
    return f"{psnr:.2f} dB" if math.isfinite(psnr) else "lossless"


def mpp_text(mpp: Sequence[float] | None) -> str:
    if mpp is None:
        return "not known"
    x, y = mpp
    return f"{x:.6g} µm" if x == y else f"{x:.6g} x {y:.6g} µm"
