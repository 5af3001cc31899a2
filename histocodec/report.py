"""Where output goes: results to stdout, progress and messages to stderr."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import click

from histocodec.text import json_text, printable

MAX_TITLE = 28  # characters; longer file names leave no room for the bar on 80 columns


class Progress(Protocol):
    """A callback that long tasks report to: units done, units in total, and a few words beside the bar."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Show a progress bar on stderr, or nothing where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),  # a file name may hold square brackets
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(_shortened(printable(title)), total=None, note="")

        def show(done: int, total: int, note: str = "") -> None:
            bars.update(task, completed=done, total=total, note=printable(note))

        yield show


def _shortened(title: str) -> str:
    half = MAX_TITLE // 2
    return title if len(title) <= MAX_TITLE else f"{title[: half - 1]}…{title[-half:]}"


def say(message: str) -> None:
    """Print a line for people to stderr."""
    click.echo(message, err=True)


def print_json(result: object) -> None:
    """Print one JSON object to stdout; `result` is anything that `histocodec.text.jsonable` takes."""
    click.echo(json_text(result).encode("utf-8", "backslashreplace"))  # half a surrogate pair is \\udc80, in JSON too


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns to stdout; the lines of a value stay in its column."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        for index, line in enumerate(value.splitlines() or [""]):
            click.echo(f"{name if index == 0 else '':<{width}}  {printable(line)}".rstrip())
