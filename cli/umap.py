"""`histocodec umap`: the patches of an index in the plane."""

from pathlib import Path

import click

from histocodec.cli.options import json_option, path_argument
from histocodec.errors import OutputError, UsageError
from histocodec.report import print_facts, print_json, say

LEAST = 4  # patches; fewer have no neighbourhood


@click.command("umap", short_help="Plot the patches of an index.")
@path_argument("index")
@path_argument("out")
@click.option(
    "--color", "--colour", "colour", default="slide", show_default=True, metavar="slide|KEY", help="A label, or slide."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace OUT and its CSV.")
@json_option
def command(index: Path, out: Path, *, colour: str, seed: int, overwrite: bool, as_json: bool) -> None:
    """Plot every patch of INDEX into OUT (.png) by UMAP of its vector, and write the coordinates beside it as CSV.

    Needs the extra umap. Near means alike; distances between groups mean little, and slides from one scanner lie
    together for that reason alone.

    \b
    Examples:
      histocodec umap lung.index lung.png
      histocodec umap all.index organs.png --color organ
    """
    table = out.with_suffix(".csv")
    if out.suffix.lower() != ".png":
        raise click.UsageError(f"{out}: its name has to end in .png")
    for path in (out, table):
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already; --overwrite replaces it")

    import csv
    import io

    from histocodec.formats.container.files import write_atomically
    from histocodec.search.index import Index
    from histocodec.search.plot import check_installed, coordinates, scatter

    opened = Index(index)
    if opened.facts.rows < LEAST:
        raise UsageError(f"{index}: has {opened.facts.rows} patches; a plot needs at least {LEAST}")
    keys = {key for slide in opened.slides for key in slide.labels}
    if colour != "slide" and colour not in keys:
        known = ", ".join(sorted({"slide", *keys}))
        raise UsageError(f"{index}: no slide has the label {colour!r}; --color can be {known}")
    check_installed()
    say("laying out; on many patches this takes minutes")
    points, positions = coordinates(opened.vectors(), seed=seed), opened.positions()
    slides = [slide for slide in opened.slides for _ in range(slide.count)]
    groups = [Path(s.path).name if colour == "slide" else s.labels.get(colour, "") for s in slides]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide", "x", "y", colour if colour != "slide" else "name", "umap_1", "umap_2"])
    for slide, (x, y), group, (first, second) in zip(slides, positions, groups, points, strict=True):
        writer.writerow([slide.path, x, y, group, f"{first:.4f}", f"{second:.4f}"])
    kind = opened.facts.kind
    write_atomically(table, text.getvalue().encode())
    write_atomically(out, scatter(points, groups, f"{kind.model}, {kind.embedder}, by {colour}"))
    if as_json:
        print_json({"plot": out, "coordinates": table, "patches": len(points), "groups": len(set(groups))})
    else:
        print_facts([("plot", str(out)), ("coordinates", str(table)), ("patches", str(len(points)))])
