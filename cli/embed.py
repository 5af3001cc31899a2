"""`histocodec embed`: add a vector for each patch of tissue to containers, for search."""

import time
from pathlib import Path

import click

from histocodec.cli.options import integer, json_option, option, overwrite_option, path_arguments, workers_option
from histocodec.report import print_facts, print_json, progress_bar
from histocodec.text import count_text, size_text, time_text


@click.command("embed", short_help="Add vectors for search to containers.")
@path_arguments("slides", "SLIDE...")
@option(
    "--level",
    type=integer(0),
    metavar="N",
    default=0,
    show_default=True,
    help="Level to embed; slides compare best at similar resolutions.",
)
@overwrite_option("vectors that are there already")
@workers_option
@json_option
def command(slides: tuple[Path, ...], *, level: int, workers: int | None, overwrite: bool, as_json: bool) -> None:
    """Add a vector for each patch of tissue to each container SLIDE.

    A patch has 256 x 256 pixels (64 x 64 with vae-512). Its vector is computed from latents, without decoding pixels.
    Nothing else in the container changes.

    \b
    Examples:
      histocodec embed slide.hcz
      histocodec embed lung/*.hcz --level 1
    """
    from histocodec.formats.container.embeddings import check_absent, write_embeddings
    from histocodec.formats.embed import embed

    for path in slides:
        check_absent(path, overwrite=overwrite)
    results: list[dict[str, object]] = []
    facts: list[tuple[str, str]] = []
    for path in slides:
        start = time.perf_counter()
        with progress_bar(path.name) as bar:
            embeddings = embed(path, level=level, workers=workers, progress=bar)
        size = write_embeddings(path, embeddings, overwrite=overwrite)
        seconds, patches = time.perf_counter() - start, len(embeddings.vectors)
        results.append(
            {
                "path": path,
                "model": embeddings.kind.model,
                "embedder": embeddings.kind.embedder,
                "patches": patches,
                "length": embeddings.kind.length,
                "level": level,
                "bytes": size,
                "seconds": seconds,
            }
        )
        text = f"{count_text(patches, 'vector')} of {embeddings.kind.length} values, {size_text(size)}"
        facts.append((str(path), f"{text}, {time_text(seconds)}"))
    if as_json:
        print_json({"slides": results})
    else:
        print_facts(facts)
