"""The options and arguments that commands share, and how their values are read."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])  # click's decorators take and give any callable

DEVICE_HELP = "Where the network runs; auto takes a GPU where there is one."


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is no number") from exc
    if not math.isfinite(number) or number <= 0:
        raise click.BadParameter(f"{text} is not allowed; a finite number above 0 is")
    return number


def ratio(text: str) -> float:
    """32 or 1:32."""
    try:
        return float(text.removeprefix("1:"))
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is no ratio; 32 and 1:32 are") from exc


def level_list(text: str) -> tuple[int, ...] | None:
    """`all` (which is None), or numbers with commas between them."""
    if text == "all":
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{text!r}; allowed are all, one level (0) or several (0,2)")
    return tuple(sorted({int(part) for part in parts}))


def box(text: str) -> tuple[int, int, int, int]:
    """X,Y,W,H"""
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError as exc:
        raise click.BadParameter(f"{text!r}; four whole numbers are needed: 1024,2048,512,512") from exc
    if width < 1 or height < 1:
        raise click.BadParameter(f"{text}: a size of {width}x{height}; at least 1x1 is needed")
    return x, y, width, height


def path_argument(name: str) -> Callable[[Command], Command]:
    """Whether it exists is for the command to say: its message names what can be read."""
    return click.argument(name, type=click.Path(path_type=Path))


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(command)


def label(text: str) -> tuple[str, str]:
    """KEY=VALUE"""
    key, separator, value = text.partition("=")
    if not (separator and key.strip() and value.strip()):
        raise click.BadParameter(f"{text!r} is no label; organ=lung is")
    return key.strip(), value.strip()


def label_option(command: Command) -> Command:
    return click.option(
        "--label",
        "labels",
        type=label,
        multiple=True,
        metavar="KEY=VALUE",
        callback=lambda context, parameter, values: dict(values),
        help="Of these slides, for --filter and colours; may be given again.",
    )(command)


def device_option(command: Command) -> Command:
    return click.option("--device", default="auto", metavar="auto|cpu|cuda", show_default=True, help=DEVICE_HELP)(
        command
    )
