"""`histocodec index`: gather the vectors of many slides, so that they can be searched."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import (
    Location,
    OrderedGroup,
    json_option,
    label_option,
    location_arguments,
    option,
    path_argument,
    short_name,
    shown,
)
from histocodec.errors import FormatError
from histocodec.report import print_facts, print_json, progress_bar, say
from histocodec.text import count_text, mpp_text, size_text

if TYPE_CHECKING:
    from histocodec.search.database import Entry, IndexedSlide
    from histocodec.search.index import Index

slides_argument = location_arguments("slides", "SLIDE...")


@click.group("index", cls=OrderedGroup, short_help="Gather the vectors of many slides.")
def command() -> None:
    """Build or change an index: a folder with the vectors of many slides.

    A SLIDE is a container that `histocodec embed` has added vectors to. All slides of an index have the same model.

    \b
    Examples:
      histocodec index build lung.index lung/*.hcz --label organ=lung
      histocodec index add lung.index more/*.hcz --label organ=lung --label stain=HE
    """


@command.command("build", short_help="Build an index of slides.")
@path_argument("index")
@slides_argument
@label_option
@option(
    "--approximate",
    is_flag=True,
    help="Also keep a graph (HNSW) for faster search; needs pip install 'histocodec[search]'.",
)
@json_option
def build_command(
    index: Path, slides: tuple[Location, ...], *, labels: dict[str, str], approximate: bool, as_json: bool
) -> None:
    """Build the index INDEX from containers.

    The scale of its vectors is fitted to these slides and never changes: start with slides that are typical of those
    to come.

    \b
    Example:
      histocodec index build lung.index lung/*.hcz --label organ=lung
    """
    from histocodec.search.graph import check_installed, updated_graph
    from histocodec.search.index import build

    if approximate:
        check_installed()
    built = build(index, _entries(slides, labels), graph=approximate)
    if approximate:
        updated_graph(built)
    _report(built, as_json=as_json)


@command.command("add", short_help="Add slides to an index.")
@path_argument("index")
@slides_argument
@label_option
@json_option
def add_command(index: Path, slides: tuple[Location, ...], *, labels: dict[str, str], as_json: bool) -> None:
    """Add containers to the index INDEX: all of them or, if one cannot be added, none.

    \b
    Example:
      histocodec index add lung.index more/*.hcz --label organ=lung
    """
    from histocodec.search.graph import check_installed, updated_graph
    from histocodec.search.index import Index

    opened = Index(index)
    if opened.facts.graph:
        check_installed()
    opened.add(_entries(slides, labels))
    if opened.facts.graph:
        updated_graph(opened)
    _report(opened, as_json=as_json)


@command.command("remove", short_help="Remove slides from an index.")
@path_argument("index")
@slides_argument
@json_option
def remove_command(index: Path, slides: tuple[Location, ...], *, as_json: bool) -> None:
    """Remove slides from the index INDEX. Their containers stay as they are, and need not exist any more.

    \b
    Example:
      histocodec index remove lung.index more/slide.hcz
    """
    from histocodec.search.index import Index

    opened = Index(index)
    opened.remove([_name(path) for path in slides])
    _report(opened, as_json=as_json)


@command.command("info", short_help="Show what an index holds, and check it.")
@path_argument("index")
@json_option
@click.pass_context
def info_command(context: click.Context, index: Path, *, as_json: bool) -> None:
    """Show the slides of the index INDEX, and check that nothing in it was altered.

    The exit code is 3 if something was.

    \b
    Example:
      histocodec index info lung.index
    """
    from histocodec.search.index import Index

    opened = Index(index)
    problems = list(opened.problems())
    _report(opened, as_json=as_json, problems=problems)
    if problems:
        say(f"histocodec: error: {index}: {count_text(len(problems), 'problem')} found")
        context.exit(FormatError.exit_code)


def _name(location: Location) -> str:
    """Return the name of a slide in an index: its absolute path, so that commands may run in any folder; or its URL,
    without what may be a password or a signature."""
    return str(location.absolute()) if isinstance(location, Path) else shown(location)


def _entries(slides: Sequence[Location], labels: dict[str, str]) -> "list[Entry]":
    from histocodec.formats.container.embeddings import read_embeddings
    from histocodec.search.database import Entry

    entries = []
    with progress_bar("reading vectors") as bar:
        for done, path in enumerate(slides, 1):
            entries.append(Entry(_name(path), read_embeddings(path), labels))
            bar(done, len(slides), short_name(path))
    return entries


def _report(index: "Index", *, as_json: bool, problems: Sequence[str] = ()) -> None:
    kind, facts = index.facts.kind, index.facts
    size = sum(path.stat().st_size for path in index.folder.iterdir())
    if as_json:
        slides = [
            {
                "path": slide.path,
                "patches": slide.patch_count,
                "level": slide.level,
                "patch": slide.patch_side,
                "mpp": slide.mpp,
                "labels": slide.labels,
            }
            for slide in index.slides
        ]
        print_json(
            {
                "path": index.folder,
                "model": kind.model,
                "model_sha256": kind.sha256,
                "embedder": kind.embedder,
                "dimensions": facts.whitening.dimensions,
                "patches": facts.rows,
                "bytes": size,
                "approximate": facts.graph,
                "problems": list(problems),
                "slides": slides,
            }
        )
        return
    print_facts(
        [
            (
                "index",
                f"{index.folder}: {count_text(len(index.slides), 'slide')}, {facts.rows} patches, {size_text(size)}",
            ),
            ("vectors", f"{kind}, whitened to {facts.whitening.dimensions}"),
            ("search", "approximate (a graph) or exact" if facts.graph else "exact"),
            ("slides", "\n".join(_line(slide) for slide in index.slides)),
        ]
    )
    for problem in problems:
        say(f"  {problem}")


def _line(slide: "IndexedSlide") -> str:
    labels = "".join(f", {key}={value}" for key, value in slide.labels.items())
    return f"{slide.path}: {slide.patch_count} patches at {mpp_text(slide.mpp)}{labels}"
