"""The options and arguments that commands share, and the types of their values."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])  # click's decorators take and give any callable

DEVICE_HELP = "Where the network runs; auto takes a GPU where there is one."


class Positive(click.ParamType):
    """A finite number above 0."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is no number", param, ctx)
        if not math.isfinite(number) or number <= 0:
            self.fail(f"{value} is not allowed; a finite number above 0 is", param, ctx)
        return number


class Ratio(click.ParamType):
    """32 or 1:32."""

    name = "ratio"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(str(value).removeprefix("1:"))
        except ValueError:
            self.fail(f"{value!r} is no ratio; 32 and 1:32 are", param, ctx)


class Levels(click.ParamType):
    """`all` (which is None) or numbers with commas between them."""

    name = "levels"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | None:
        if value is None or isinstance(value, tuple) or value == "all":
            return None if value == "all" else value
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() for part in parts):
            self.fail(f"{value!r}; allowed are all, one level (0) or several (0,2)", param, ctx)
        return tuple(sorted({int(part) for part in parts}))


class Box(click.ParamType):
    """X,Y,W,H"""

    name = "X,Y,W,H"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int, int]:
        if isinstance(value, tuple):
            return value
        try:
            x, y, width, height = (int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}; four whole numbers are needed, as in 1024,2048,512,512", param, ctx)
        if width < 1 or height < 1:
            self.fail(f"{value}: a size of {width}x{height}; at least 1x1 is needed", param, ctx)
        return x, y, width, height


def path_argument(name: str) -> Callable[[Command], Command]:
    """Whether it exists is for the command to say: its message names what can be read."""
    return click.argument(name, type=click.Path(path_type=Path))


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(
        command
    )


def device_option(command: Command) -> Command:
    return click.option(
        "--device", default="auto", metavar="auto|cpu|cuda", show_default=True, help=DEVICE_HELP
    )(command)
