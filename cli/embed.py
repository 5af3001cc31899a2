"""`histocodec embed`: a vector for each patch of tissue, added to the container."""

import time
from pathlib import Path

import click

from histocodec.cli.options import json_option
from histocodec.report import print_facts, print_json, progress_bar
from histocodec.text import size_text, time_text


@click.command("embed", short_help="Add vectors for search to containers.")
@click.argument("slides", metavar="SLIDE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--level",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Level to embed; slides that are compared should have like resolutions.",
)
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="Threads.  [default: one a core]")
@click.option("--overwrite", is_flag=True, help="Replace vectors that are there.")
@json_option
def command(slides: tuple[Path, ...], *, level: int, workers: int | None, overwrite: bool, as_json: bool) -> None:
    """Add one vector for each 256 x 256 pixels of tissue to each container SLIDE, computed from its latents.

    No pixel is decoded, and nothing that was in the container changes; `verify` checks the vectors too.

    \b
    Examples:
      histocodec embed slide.zarr
      histocodec embed slides/*.zarr --level 1 --json
    """
    from histocodec.formats.container.embeddings import check_absent, write_embeddings
    from histocodec.formats.embed import embed

    if not overwrite:
        for path in slides:
            check_absent(path)
    results: list[dict[str, object]] = []
    facts: list[tuple[str, str]] = []
    for path in slides:
        start = time.perf_counter()
        with progress_bar(path.name) as bar:
            found = embed(path, level=level, workers=workers, progress=bar)
        written = write_embeddings(path, found, overwrite=overwrite)
        seconds = time.perf_counter() - start
        results.append(
            {
                "path": path,
                "model": found.kind.model,
                "embedder": found.kind.embedder,
                "patches": len(found.vectors),
                "length": found.kind.length,
                "level": level,
                "bytes": written,
                "seconds": seconds,
            }
        )
        facts.append((str(path), f"{len(found.vectors)} patches, {size_text(written)}, {time_text(seconds)}"))
    if as_json:
        print_json({"slides": results})
    else:
        print_facts(facts)
