"""`histocodec umap`: plot the patches of an index."""

from pathlib import Path

import click

from histocodec.cli.options import integer, json_option, option, overwrite_option, path_argument
from histocodec.errors import OutputError, UsageError
from histocodec.report import print_facts, print_json, say

MIN_PATCHES = 4  # fewer have no neighbourhood
BY_SLIDE = "slide"


@click.command("umap", short_help="Plot the patches of an index.")
@path_argument("index")
@path_argument("out")
@option(
    "--color",
    "--colour",
    "colour",
    default=BY_SLIDE,
    show_default=True,
    metavar="slide|KEY",
    help="Colour by slide, or by the label KEY.",
)
@click.option("--seed", type=integer(0), metavar="N", default=0, show_default=True, help="Seed of the layout.")
@overwrite_option("OUT and its CSV")
@json_option
def command(index: Path, out: Path, *, colour: str, seed: int, overwrite: bool, as_json: bool) -> None:
    """Plot every patch of INDEX by UMAP into OUT (.png), with the coordinates beside it (.csv).

    Patches that are close look alike; distances between groups mean little. Slides from one scanner often lie together
    for that reason alone. Install the extra: pip install 'histocodec[umap]'.

    \b
    Examples:
      histocodec umap lung.index lung.png
      histocodec umap lung.index lung.png --color organ
    """
    if out.suffix.lower() != ".png":
        raise click.UsageError(f"{out}: the plot is a PNG; choose a name that ends in .png")
    table = out.with_suffix(".csv")
    for path in (out, table):
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already; --overwrite replaces it")

    from histocodec.formats.container.files import write_atomically
    from histocodec.search.index import Index
    from histocodec.search.plot import check_installed, coordinates_csv, scatter_plot, umap_coordinates

    opened = Index(index)
    if opened.facts.rows < MIN_PATCHES:
        raise UsageError(f"{index}: has {opened.facts.rows} patches; a plot needs at least {MIN_PATCHES}")
    keys = {key for slide in opened.slides for key in slide.labels}
    if colour not in (BY_SLIDE, *keys):
        raise UsageError(
            f"{index}: no slide has the label {colour!r}; --color can be {', '.join(sorted({BY_SLIDE, *keys}))}"
        )
    check_installed()
    say(f"laying out {opened.facts.rows} patches; many thousands take minutes")
    points = umap_coordinates(opened.vectors(), seed=seed)
    slides = [slide for slide in opened.slides for _ in range(slide.patch_count)]
    if colour == BY_SLIDE:
        groups, column = [Path(slide.path).name for slide in slides], "name"
    else:
        groups, column = [slide.labels.get(colour, "") for slide in slides], colour
    rows = coordinates_csv(points, opened.positions(), [slide.path for slide in slides], groups, column)
    kind = opened.facts.kind
    write_atomically(table, rows.encode())
    write_atomically(out, scatter_plot(points, groups, f"{kind.model}, {kind.embedder}, by {colour}"))
    if as_json:
        print_json({"plot": out, "coordinates": table, "patches": len(points), "groups": len(set(groups))})
    else:
        print_facts([("plot", str(out)), ("coordinates", str(table)), ("patches", str(len(points)))])
