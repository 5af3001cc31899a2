"""`histocodec search`: what looks like this, found by latents."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import box, device_option, json_option, label, path_argument
from histocodec.errors import UsageError
from histocodec.report import print_facts, print_json, say
from histocodec.text import mpp_text

if TYPE_CHECKING:
    from histocodec.search.database import IndexedSlide
    from histocodec.search.embedding import Embeddings
    from histocodec.search.index import Index
    from histocodec.search.nearest import PatchHit, SlideHit
    from histocodec.search.whitening import Vectors
    from histocodec.slide import Mpp

MOST_SHOWN = 50  # patches on a sheet
ALIKE = 1.5  # resolutions that differ by more are named: the same tissue then looks different


@click.command("search", short_help="Find patches or slides that look alike.")
@path_argument("index")
@click.option("--image", type=click.Path(path_type=Path), metavar="IMAGE", help="Look for what is in this image.")
@click.option("--slide", type=click.Path(path_type=Path), metavar="SLIDE", help="Look for slides like this container.")
@click.option("--region", type=box, metavar="X,Y,W,H", help="With --slide: for patches like those here.")
@click.option("-k", "k", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many.")
@click.option(
    "--filter",
    "filters",
    type=label,
    multiple=True,
    metavar="KEY=VALUE",
    help="Only among slides with this label; may be given again.",
)
@click.option("--exact", is_flag=True, help="Compare with every vector, even where the index has a graph.")
@click.option("--sheet", type=click.Path(path_type=Path, dir_okay=False), metavar="PNG", help="Draw the patches found.")
@click.option("--overwrite", is_flag=True, help="Replace the PNG of --sheet.")
@device_option
@json_option
def command(
    index: Path,
    *,
    image: Path | None,
    slide: Path | None,
    region: tuple[int, int, int, int] | None,
    k: int,
    filters: tuple[tuple[str, str], ...],
    exact: bool,
    sheet: Path | None,
    overwrite: bool,
    device: str,
    as_json: bool,
) -> None:
    """Find in INDEX what looks like an image, a region of a container, or a whole container.

    Patches are ranked by their distance to the nearest patch of the query, slides by the median over the query's
    patches of the distance to the nearest in the slide. The distance is 0 for the same, about 1 for unrelated. The
    query's own slide is left out. Colour hardly counts: latents are of normalised stains. The query should have the
    resolution of the slides; where it says that it has another, so does this command.

    \b
    Examples:
      histocodec search lung.index --image gland.png -k 5 --sheet found.png
      histocodec search lung.index --slide a.zarr --region 20000,14000,512,512 --filter organ=lung
      histocodec search lung.index --slide a.zarr --json
    """
    if (image is None) == (slide is None):
        raise click.UsageError("give one of --image and --slide")
    if region is not None and slide is None:
        raise click.UsageError("--region is a part of --slide; an --image is taken whole")
    whole = slide is not None and region is None
    if whole and sheet is not None:
        raise click.UsageError("--sheet shows patches; give --image, or --slide with --region")

    from histocodec.formats.container.embeddings import read_embeddings
    from histocodec.formats.decode.images import check_output
    from histocodec.search.index import Index

    if sheet is not None:
        check_output(sheet, overwrite=overwrite)
    opened = Index(index)
    name = str(image if image is not None else slide)
    if image is not None:
        from histocodec.formats.embed import embed_image  # which brings torch

        found = embed_image(image, opened.facts.kind, device=device)
    else:
        assert slide is not None
        found = read_embeddings(slide)
    raw = found.vectors if region is None else found.vectors[_inside(found, region)]
    queries = opened.whitened(found.kind, raw, name)
    among = opened.slides_with(dict(filters))
    others = tuple(one for one in among if one.latents_sha256 != found.latents_sha256)
    if not others:
        raise UsageError(f"{index}: has no other slide than {name} itself to search")
    _compare_resolutions(name, found.mpp, others)
    if whole:
        _report_slides(opened, name, queries, others, k, as_json=as_json)
        return
    hits = _patches(opened, queries, others, k, exact=exact)
    if sheet is not None:
        _draw(sheet, opened, hits[:MOST_SHOWN], device)
    _report_patches(opened, name, queries, hits, as_json=as_json)


def _compare_resolutions(name: str, mpp: "Mpp | None", slides: "tuple[IndexedSlide, ...]") -> None:
    """Says where the query and the slides are hardly comparable."""
    known = [slide.mpp[0] for slide in slides if slide.mpp is not None]
    far = [] if mpp is None else [one for one in known if not 1 / ALIKE <= one / mpp[0] <= ALIKE]
    if mpp is not None and far:
        say(
            f"note: {name} has {mpp_text(mpp)} per pixel, {len(far)} of {len(slides)} slides have {min(far):.3g} to "
            f"{max(far):.3g} µm: the same tissue may not be found there"
        )


def _inside(found: "Embeddings", region: tuple[int, int, int, int]) -> list[int]:
    """Which patches have their middle within the region; else the one that the region's middle is in."""
    import numpy as np

    x, y, width, height = region
    middles = found.positions + found.patch_side_level0 / 2
    within = ((middles >= (x, y)) & (middles < (x + width, y + height))).all(axis=1)
    if not within.any():
        middle = (x + width / 2, y + height / 2)
        within = ((found.positions <= middle) & (found.positions + found.patch_side_level0 > middle)).all(axis=1)
    chosen: list[int] = np.flatnonzero(within).tolist()
    return chosen


def _patches(
    index: "Index", queries: "Vectors", slides: "tuple[IndexedSlide, ...]", k: int, *, exact: bool
) -> "list[PatchHit]":
    """By the graph where there is one and all slides are wanted: it knows no filter."""
    from histocodec.search.graph import approximate_patches
    from histocodec.search.nearest import nearest_patches

    if index.facts.graph and not exact and len(slides) == len(index.slides):
        return approximate_patches(index, queries, k)
    return nearest_patches(index, queries, slides, k)


def _report_slides(
    index: "Index", name: str, queries: "Vectors", slides: "tuple[IndexedSlide, ...]", k: int, *, as_json: bool
) -> None:
    from histocodec.search.nearest import nearest_slides

    hits: list[SlideHit] = nearest_slides(index, queries, slides, k)
    if as_json:
        found = [{"slide": h.slide.path, "distance": h.distance, "labels": h.slide.labels} for h in hits]
        print_json({"index": index.folder, "query": name, "query_patches": len(queries), "slides": found})
        return
    print_facts([(f"{hit.distance:.4f}", f"{hit.slide.path}{_labels(hit.slide)}") for hit in hits])


def _report_patches(index: "Index", name: str, queries: "Vectors", hits: "list[PatchHit]", *, as_json: bool) -> None:
    places = [index.position(hit.slide, hit.row) for hit in hits]
    if as_json:
        found = [
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
            for hit, (x, y) in zip(hits, places, strict=True)
        ]
        print_json({"index": index.folder, "query": name, "query_patches": len(queries), "patches": found})
        return
    print_facts(
        [
            (f"{hit.distance:.4f}", f"{hit.slide.path} at {x},{y}{_labels(hit.slide)}")
            for hit, (x, y) in zip(hits, places, strict=True)
        ]
    )


def _labels(slide: "IndexedSlide") -> str:
    return "".join(f"  {key}={value}" for key, value in slide.labels.items())


def _draw(path: Path, index: "Index", hits: "list[PatchHit]", device: str) -> None:
    """The patches found, decoded, best first."""
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
