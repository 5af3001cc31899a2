"""`histocodec search`: find patches or slides that look alike."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import (
    Location,
    SectionedCommand,
    box,
    device_option,
    integer,
    json_option,
    label,
    location,
    option,
    overwrite_option,
    path_argument,
    shown,
)
from histocodec.errors import UsageError
from histocodec.report import print_facts, print_json, say
from histocodec.text import mpp_text

if TYPE_CHECKING:
    from histocodec.search.database import IndexedSlide
    from histocodec.search.index import Index
    from histocodec.search.nearest import PatchHit, SlideHit
    from histocodec.search.whitening import Vectors
    from histocodec.slide import Mpp

MAX_ON_SHEET = 50  # patches
MAX_SCALE = 1.5  # between resolutions; beyond it the same tissue looks different, and the user is told
SECTIONS = {
    "Query (give --image or --slide)": ("image", "slide", "region"),
    "Results": ("k", "filters", "exact", "sheet", "overwrite", "as_json"),
    "Execution": ("device",),
}


@click.command("search", cls=SectionedCommand, sections=SECTIONS, short_help="Find patches or slides that look alike.")
@path_argument("index")
@option("--image", type=click.Path(path_type=Path), metavar="IMAGE", help="Find patches that look like this image.")
@option("--slide", type=location, metavar="SLIDE", help="Find slides that look like this container.")
@option("--region", type=box, metavar="X,Y,W,H", help="Find patches that look like this region of --slide (level 0).")
@option("-k", "k", type=integer(1, 10_000), metavar="N", default=10, show_default=True, help="Number of hits.")
@option(
    "--filter",
    "filters",
    type=label,
    multiple=True,
    metavar="KEY=VALUE",
    help="Search only slides with this label. Repeatable.",
)
@option("--exact", is_flag=True, help="Compare with every vector, even if the index has a graph.")
@option(
    "--sheet", type=click.Path(path_type=Path, dir_okay=False), metavar="PNG", help="Draw the patches that were found."
)
@overwrite_option("the PNG of --sheet")
@device_option
@json_option
def command(
    index: Path,
    *,
    image: Path | None,
    slide: Location | None,
    region: tuple[int, int, int, int] | None,
    k: int,
    filters: tuple[tuple[str, str], ...],
    exact: bool,
    sheet: Path | None,
    overwrite: bool,
    device: str,
    as_json: bool,
) -> None:
    """Find what looks like an image, a region or a whole slide in the index INDEX.

    Hits are sorted by distance: 0 is equal, 1 is unrelated. The query's own slide is left out. Vectors describe
    texture, hardly colour; the query should have the resolution of the slides.

    \b
    Examples:
      histocodec search lung.index --image gland.png -k 5 --sheet found.png
      histocodec search lung.index --slide slide.hcz --region 20000,14000,512,512
      histocodec search lung.index --slide slide.hcz --filter organ=lung
    """
    if (image is None) == (slide is None):
        raise click.UsageError("give one of --image and --slide")
    if region is not None and slide is None:
        raise click.UsageError("--region belongs to --slide; an --image is taken whole")
    whole_slide = slide is not None and region is None
    if whole_slide and sheet is not None:
        raise click.UsageError("--sheet shows patches; give --image, or --slide with --region")

    from histocodec.formats.container.embeddings import read_embeddings
    from histocodec.formats.decode.images import check_output
    from histocodec.search.index import Index
    from histocodec.search.nearest import nearest_slides

    if sheet is not None:
        check_output(sheet, overwrite=overwrite)
    opened = Index(index)
    if image is not None:
        from histocodec.formats.embed import embed_image  # which imports torch

        name, query = str(image), embed_image(image, opened.facts.kind, device=device)
    else:
        assert slide is not None
        name, query = shown(slide), read_embeddings(slide)
    vectors = opened.whitened(query.kind, query.vectors if region is None else query.vectors_in(*region), name)
    labelled = opened.slides_with(dict(filters))
    slides = tuple(candidate for candidate in labelled if candidate.latents_sha256 != query.latents_sha256)
    if not slides:
        raise UsageError(f"{index}: has no slide to search other than {name} itself")
    _warn_of_scale(name, query.mpp, slides)
    if whole_slide:
        _report_slides(opened, name, len(vectors), nearest_slides(opened, vectors, slides, k), as_json=as_json)
        return
    hits = _nearest_patches(opened, vectors, slides, k, exact=exact)
    if sheet is not None:
        _draw(sheet, opened, hits[:MAX_ON_SHEET], device)
    _report_patches(opened, name, len(vectors), hits, as_json=as_json)


def _warn_of_scale(name: str, mpp: "Mpp | None", slides: "tuple[IndexedSlide, ...]") -> None:
    """Tell the user where the resolutions of query and slides differ too much to compare them."""
    if mpp is None:
        return
    resolutions = [slide.mpp[0] for slide in slides if slide.mpp is not None]
    differing = [value for value in resolutions if not 1 / MAX_SCALE <= value / mpp[0] <= MAX_SCALE]
    if differing:
        low, high = f"{min(differing):.3g}", f"{max(differing):.3g}"
        say(
            f"note: {name} has {mpp_text(mpp)} per pixel, but {len(differing)} of {len(slides)} slides have "
            f"{low if low == high else f'{low} to {high}'} µm; similar tissue in them may not be found"
        )


def _nearest_patches(
    index: "Index", queries: "Vectors", slides: "tuple[IndexedSlide, ...]", k: int, *, exact: bool
) -> "list[PatchHit]":
    """Search the graph if there is one and all slides are searched: it cannot filter."""
    from histocodec.search.graph import approximate_patches
    from histocodec.search.nearest import nearest_patches

    if index.facts.graph and not exact and len(slides) == len(index.slides):
        return approximate_patches(index, queries, k)
    return nearest_patches(index, queries, slides, k)


def _report_slides(index: "Index", name: str, queries: int, hits: "list[SlideHit]", *, as_json: bool) -> None:
    if as_json:
        slides = [{"slide": h.slide.path, "distance": h.distance, "labels": h.slide.labels} for h in hits]
        print_json({"index": index.folder, "query": name, "query_patches": queries, "slides": slides})
        return
    lines = [(f"{hit.distance:.4f}", f"{hit.slide.path}{_labels_text(hit.slide)}") for hit in hits]
    print_facts([("distance", "slide"), *lines])


def _report_patches(index: "Index", name: str, queries: int, hits: "list[PatchHit]", *, as_json: bool) -> None:
    positions = [index.position(hit.slide, hit.row) for hit in hits]
    if as_json:
        patches = [
            {
                "slide": hit.slide.path,
                "x": x,
                "y": y,
                "level": hit.slide.level,
                "patch": hit.slide.patch_side,
                "mpp": hit.slide.mpp,
                "distance": hit.distance,
                "labels": hit.slide.labels,
            }
            for hit, (x, y) in zip(hits, positions, strict=True)
        ]
        print_json({"index": index.folder, "query": name, "query_patches": queries, "patches": patches})
        return
    lines = [
        (f"{hit.distance:.4f}", f"{hit.slide.path} at {x},{y}{_labels_text(hit.slide)}")
        for hit, (x, y) in zip(hits, positions, strict=True)
    ]
    print_facts([("distance", "patch, by its upper left corner at level 0"), *lines])


def _labels_text(slide: "IndexedSlide") -> str:
    return "".join(f"  {key}={value}" for key, value in slide.labels.items())


def _draw(path: Path, index: "Index", hits: "list[PatchHit]", device: str) -> None:
    """Decode the patches, and draw them in rows, nearest first."""
    from histocodec.formats.decode.images import write_region
    from histocodec.formats.decode.slide import open_compressed
    from histocodec.picture import Panel, in_rows

    panels = []
    for hit in hits:
        x, y = index.position(hit.slide, hit.row)
        with open_compressed(hit.slide.path, device=device) as slide:
            side = hit.slide.patch_side
            pixels = slide.read_array(x, y, side, side, level=hit.slide.level)
        panels.append(Panel(pixels, f"{hit.distance:.3f}", f"{Path(hit.slide.path).name[:18]} {x},{y}"))
    write_region(path, in_rows(panels), mpp=None, icc=None)
