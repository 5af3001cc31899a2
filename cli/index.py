"""`histocodec index`: many slides' vectors, brought together so that they can be searched."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import json_option, label_option, path_argument
from histocodec.errors import FormatError
from histocodec.report import print_facts, print_json, progress_bar, say
from histocodec.text import mpp_text, size_text

if TYPE_CHECKING:
    from histocodec.search.database import Entry, IndexedSlide
    from histocodec.search.index import Index

slides_argument = click.argument("slides", metavar="SLIDE...", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.group("index", short_help="Bring the vectors of many slides together.")
def command() -> None:
    """Build an index of containers that `histocodec embed` has been over, add to it, take out, look into it.

    INDEX is a folder. All its slides have vectors of one model.

    \b
    Examples:
      histocodec index build lung.index lung/*.zarr --label organ=lung
      histocodec index add lung.index more/*.zarr --label organ=lung --label stain=HE
      histocodec index remove lung.index more/a.zarr
      histocodec index info lung.index
    """


@command.command("build", short_help="Make an index.")
@path_argument("index")
@slides_argument
@label_option
@click.option("--approximate", is_flag=True, help="Also keep a graph (HNSW) for faster search; needs the extra search.")
@json_option
def build_command(
    index: Path, slides: tuple[Path, ...], *, labels: dict[str, str], approximate: bool, as_json: bool
) -> None:
    """Make the index INDEX of these slides. How much each direction of the vectors counts is learnt from them, so let
    them be typical of what is to come.

    \b
    Example:
      histocodec index build lung.index lung/*.zarr --label organ=lung
    """
    from histocodec.search.graph import check_installed, updated_graph
    from histocodec.search.index import build

    if approximate:
        check_installed()
    made = build(index, _entries(slides, labels), graph=approximate)
    if approximate:
        updated_graph(made)
    _report(made, as_json=as_json)


@command.command("add", short_help="Add slides to an index.")
@path_argument("index")
@slides_argument
@label_option
@json_option
def add_command(index: Path, slides: tuple[Path, ...], *, labels: dict[str, str], as_json: bool) -> None:
    """Add these slides to INDEX: all of them or, where one cannot be, none.

    \b
    Example:
      histocodec index add lung.index more/*.zarr --label organ=lung
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


@command.command("remove", short_help="Take slides out of an index.")
@path_argument("index")
@slides_argument
@json_option
def remove_command(index: Path, slides: tuple[Path, ...], *, as_json: bool) -> None:
    """Take these slides out of INDEX; the containers stay as they are, and need not be there any more.

    \b
    Example:
      histocodec index remove lung.index more/a.zarr
    """
    from histocodec.search.index import Index

    opened = Index(index)
    opened.remove([_name(path) for path in slides])
    _report(opened, as_json=as_json)


@command.command("info", short_help="Say what an index holds, and check it.")
@path_argument("index")
@json_option
@click.pass_context
def info_command(context: click.Context, index: Path, *, as_json: bool) -> None:
    """Say what INDEX holds, slide by slide, and check that it is as it was written. Exit code 3 says that it is not.

    \b
    Example:
      histocodec index info lung.index --json
    """
    from histocodec.search.index import Index

    opened = Index(index)
    problems = list(opened.problems())
    _report(opened, as_json=as_json, problems=problems)
    if problems:
        say(f"histocodec: error: {index}: {len(problems)} problem{'' if len(problems) == 1 else 's'} found")
        context.exit(FormatError.exit_code)


def _name(path: Path) -> str:
    """How an index calls a slide: by its place, wherever the command is run."""
    return str(path.absolute())


def _entries(slides: Sequence[Path], labels: dict[str, str]) -> "list[Entry]":
    from histocodec.formats.container.embeddings import read_embeddings
    from histocodec.search.database import Entry

    entries = []
    with progress_bar("reading vectors") as bar:
        for done, path in enumerate(slides, 1):
            entries.append(Entry(_name(path), read_embeddings(path), labels))
            bar(done, len(slides), path.name)
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
            ("index", f"{index.folder}: {len(index.slides)} slides, {facts.rows} patches, {size_text(size)}"),
            ("vectors", f"{kind}, of which {facts.whitening.dimensions} after whitening"),
            ("search", "a graph of usearch, or exact" if facts.graph else "exact"),
            ("slides", "\n".join(_line(slide) for slide in index.slides)),
        ]
    )
    for problem in problems:
        say(f"  {problem}")


def _line(slide: "IndexedSlide") -> str:
    labels = "".join(f", {key}={value}" for key, value in slide.labels.items())
    return f"{slide.path}: {slide.patch_count} patches, {mpp_text(slide.mpp)}{labels}"
