"""Options and arguments that commands share, and the types of their values."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import click

Command = TypeVar("Command", bound=Callable[..., Any])  # click's decorators take and return any callable
Location = Path | str  # on this machine, or a URL


# How help looks.

FIRST_COLUMN = 28  # characters; longer names get a line of their own, as click has it


class Option(click.Option):
    """An option whose help ends with `[default: …]`, where `show_default` asks for it or gives the words."""

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """Return what click puts in square brackets after the help text."""
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default  # click would put it in parentheses
        return extra


class SectionedCommand(click.Command):
    """A command that lists its options under headings: `sections` maps each heading to the options' parameter names.

    Options that no section names go to the last one.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, with their columns aligned."""
        headings = {name: heading for heading, names in self.sections.items() for name in names}
        last = list(self.sections)[-1]
        records: dict[str, list[tuple[str, str]]] = {heading: [] for heading in self.sections}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                records[headings.get(parameter.name or "", last)].append(record)
        width = max(len(names) for section in records.values() for names, _ in section)
        width = min(width, FIRST_COLUMN)
        for heading, section in records.items():
            with formatter.section(heading):
                formatter.write_dl([(names.ljust(width), text) for names, text in section])


class OrderedGroup(click.Group):
    """Commands in the order in which they are declared, where click would sort them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return list(self.commands)


def option(*names: str, **attributes: Any) -> Callable[[Command], Command]:
    """Declare an option, as `click.option` does."""
    return click.option(*names, cls=Option, **attributes)


# Types of values: each takes the text of the command line.


def number(low: float, high: float) -> Callable[[str], float]:
    """Make a parser of numbers from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError as exc:
            raise click.BadParameter(f"{text!r} is not a number") from exc
        if not low <= value <= high:
            raise click.BadParameter(f"{text} is not allowed; give a number from {low:g} to {high:g}")
        return value

    return parse


def positive(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        value = float(text)
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is not a number") from exc
    if not math.isfinite(value) or value <= 0:
        raise click.BadParameter(f"{text} is not allowed; give a finite number above 0")
    return value


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Make a parser of integers from `low` to `high`, if that is given."""
    allowed = f"of at least {low}" if high is None else f"from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError as exc:
            raise click.BadParameter(f"{text!r} is not an integer") from exc
        if value < low or (high is not None and value > high):
            raise click.BadParameter(f"{text} is not allowed; give an integer {allowed}")
        return value

    return parse


def ratio(text: str) -> float:
    """Parse a compression ratio, 32 or 1:32, as 32.0."""
    try:
        return float(text.removeprefix("1:"))
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is not a ratio; write 32 or 1:32") from exc


def level_list(text: str) -> tuple[int, ...] | None:
    """Parse `all`, which is None, or numbers of levels separated by commas."""
    if text == "all":
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{text!r} names no levels; write all, one level (0) or several (0,2)")
    return tuple(sorted({int(part) for part in parts}))


def pixels_or_none(text: str) -> int | None:
    """Parse a number of pixels, or `none`."""
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is no number of pixels; write 512 or none") from exc


def box(text: str) -> tuple[int, int, int, int]:
    """Parse X,Y,W,H: the upper left corner, which may be negative, and the size of a region."""
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is not a region; write four integers X,Y,W,H: 1024,2048,512,512") from exc
    if width < 1 or height < 1:
        raise click.BadParameter(f"{text} has a size of {width}x{height}; at least 1x1 is needed")
    return x, y, width, height


def label(text: str) -> tuple[str, str]:
    """Parse KEY=VALUE."""
    key, separator, value = text.partition("=")
    if not (separator and key.strip() and value.strip()):
        raise click.BadParameter(f"{text!r} is not a label; write KEY=VALUE: organ=lung")
    return key.strip(), value.strip()


def location(text: str) -> Location:
    """Take a path, or the URL of something on another machine, which stays a string: a Path would alter it."""
    from histocodec.formats.container.locations import is_url, local_path

    return text if is_url(text) else local_path(text)


# Shared options and arguments.


def path_argument(name: str) -> Callable[[Command], Command]:
    """Declare an argument that is a path. The command checks that it exists: it can say what it reads."""
    return click.argument(name, type=click.Path(path_type=Path))


def location_argument(name: str) -> Callable[[Command], Command]:
    """Declare an argument that is a path or a URL."""
    return click.argument(name, type=location)


def location_arguments(name: str, metavar: str) -> Callable[[Command], Command]:
    """Declare an argument of one or more paths and URLs."""
    return click.argument(name, metavar=metavar, nargs=-1, required=True, type=location)


def short_name(location: Location) -> str:
    """Return the last part of a path or URL."""
    return location.name if isinstance(location, Path) else location.split("?")[0].rstrip("/").rpartition("/")[2]


def shown(location: Location) -> str:
    """Return a path or URL as it may be printed or stored: without what may be a password or a signature."""
    if isinstance(location, Path) or not location.lower().startswith("http"):
        return str(location)
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def path_arguments(name: str, metavar: str) -> Callable[[Command], Command]:
    """Declare an argument of one or more paths."""
    return click.argument(name, metavar=metavar, nargs=-1, required=True, type=click.Path(path_type=Path))


def overwrite_option(output: str) -> Callable[[Command], Command]:
    """Declare `--overwrite`; `output` is what it replaces, if it exists."""
    return option("--overwrite", is_flag=True, help=f"Replace {output}.")


def model_option(command: Command) -> Command:
    """Declare `--model`, the model to encode with."""
    text = "Id of an installed model, or a .safetensors file."
    return option("--model", default="hyper-6", show_default=True, metavar="ID|FILE", help=text)(command)


def label_option(command: Command) -> Command:
    """Declare `--label`, whose values become a dict."""
    return option(
        "--label",
        "labels",
        type=label,
        multiple=True,
        metavar="KEY=VALUE",
        callback=lambda context, parameter, values: dict(values),
        help="Label these slides, for search --filter and umap --color. Repeatable.",
    )(command)


def workers_option(command: Command) -> Command:
    """Declare `--workers`, the number of threads."""
    return option(
        "--workers", type=integer(1, 1024), metavar="N", show_default="one per core", help="Number of threads."
    )(command)


def device_option(command: Command) -> Command:
    """Declare `--device`."""
    text = "Where networks run; auto uses a GPU if there is one."
    return option("--device", default="auto", metavar="auto|cpu|cuda", show_default=True, help=text)(command)


def json_option(command: Command) -> Command:
    """Declare `--json`, the flag `as_json`."""
    return option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(command)
