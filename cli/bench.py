"""`histocodec bench`: compare histocodec with other codecs on slides and images."""

from pathlib import Path

import click

from histocodec.cli.options import (
    SectionedCommand,
    device_option,
    integer,
    json_option,
    model_option,
    number,
    option,
    path_arguments,
)
from histocodec.report import print_json, progress_bar, say

SECTIONS = {
    "What to measure": ("variants", "regions", "region_size", "seed"),
    "Codecs": ("against", "points", "ratios", "model", "qualities", "effort"),
    "Speed": ("timing", "speed_slide", "threads", "device"),
    "Results": ("out", "crops", "as_json"),
}


def names(text: str) -> tuple[str, ...]:
    """Parse names separated by commas, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def integers(text: str) -> tuple[int, ...]:
    """Parse integers separated by commas, sorted, each once; a ratio may be written 1:64."""
    parts = [part.removeprefix("1:") for part in names(text)]
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"{text!r} is not a list of integers; separate them by commas: 30,50,70")
    return tuple(sorted({int(part) for part in parts}))


def qualities(text: str) -> tuple[int, ...]:
    """Parse at least two qualities."""
    values = integers(text)
    if len(values) < 2 or values[-1] > 100:
        raise click.BadParameter(f"{text} is not allowed; give two or more qualities from 0 to 100")
    return values


def ratios(text: str) -> tuple[int, ...]:
    """Parse compression ratios; `none` is an empty tuple."""
    values = () if text == "none" else integers(text)
    if values and values[0] < 1:
        raise click.BadParameter(f"{text} is not allowed; give ratios of at least 1, or none")
    return values


@click.command("bench", cls=SectionedCommand, sections=SECTIONS, short_help="Compare with other codecs on your slides.")
@path_arguments("sources", "SRC...")
@option(
    "--variant",
    "variants",
    type=names,
    multiple=True,
    metavar="NAMES",
    show_default="native",
    help="native (pixels as they are), enlarged (twofold), blurred (by 2 pixels). Repeatable.",
)
@option(
    "--regions",
    type=integer(0),
    metavar="N",
    default=4,
    show_default=True,
    help="Regions with tissue to take of a large slide; 0 takes it whole.",
)
@option(
    "--region-size",
    type=integer(32),
    metavar="N",
    default=1024,
    show_default=True,
    help="Side of a region, in pixels.",
)
@option(
    "--seed",
    type=integer(0),
    metavar="N",
    default=0,
    show_default=True,
    help="Seed for the choice of regions.",
)
@option(
    "--against",
    type=names,
    default="jpeg2000,jpegxl,avif,htj2k,webp,jpeg",
    show_default=True,
    metavar="CODECS",
    help="Codecs to compare with.",
)
@option(
    "--points",
    type=integer(2),
    metavar="N",
    default=12,
    show_default=True,
    help="Points on the rate-distortion curve of each of them.",
)
@option(
    "--ratios",
    type=ratios,
    default="32,64,128,256,512",
    show_default=True,
    metavar="R,…|none",
    help="Ratios to raw RGB at which to compare with JPEG 2000.",
)
@model_option
@option(
    "--qualities",
    type=qualities,
    default="0,10,20,30,40,50,60,70,80,90,100",
    show_default="0,10,…,100",
    metavar="Q,…",
    help="Qualities to encode at.",
)
@option("--effort", type=number(0, 9), metavar="N", help="Search effort, as in encode.")
@option("--timing/--no-timing", default=True, show_default="yes", help="Time a few of the codings of each image.")
@option(
    "--speed",
    "speed_slide",
    type=click.Path(path_type=Path),
    metavar="SLIDE",
    help="Also time a region of this slide thoroughly.",
)
@option(
    "--threads",
    type=integer(1),
    metavar="N",
    show_default="one per core",
    help="Number of threads, for every codec.",
)
@device_option
@option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder for rows, plots and report; a run continues from what is there.",
)
@option("--crops/--no-crops", default=True, show_default="yes", help="Draw a sheet of crops; it shows tissue.")
@json_option
def command(
    sources: tuple[Path, ...],
    *,
    against: tuple[str, ...],
    out: Path | None,
    model: str,
    effort: float | None,
    qualities: tuple[int, ...],
    points: int,
    ratios: tuple[int, ...],
    variants: tuple[tuple[str, ...], ...],
    regions: int,
    region_size: int,
    seed: int,
    timing: bool,
    threads: int | None,
    speed_slide: Path | None,
    crops: bool,
    device: str,
    as_json: bool,
) -> None:
    """Measure bytes, fidelity and speed on slides and images, beside JPEG 2000 and other codecs.

    Images of at most 2048 pixels a side are taken whole; of larger ones, regions with tissue. What stands before the
    first "-" of an image's name is its group in the report. Install the extra: pip install 'histocodec[bench]'.

    \b
    Examples:
      histocodec bench slide.svs --out results
      histocodec bench images/*.png --against jpeg2000,avif --no-timing
      histocodec bench images/*.png --variant native,blurred --speed slide.svs --out results
    """
    from histocodec.benchmarks.bench import Subjects, run_bench
    from histocodec.benchmarks.bench import as_json as bench_json
    from histocodec.benchmarks.compare.report import headline
    from histocodec.benchmarks.measure.measure_images import BenchOptions
    from histocodec.threads import default_workers

    options = BenchOptions(
        against=against,
        qualities=qualities,
        ratios=ratios,
        steps=points,
        model=model,
        device=device,
        threads=threads or default_workers(),
        effort=effort,
        timing=timing,
    )
    chosen_variants = tuple(dict.fromkeys(name for group in variants for name in group)) or ("native",)
    subjects = Subjects(sources, chosen_variants, regions, region_size, seed)
    with progress_bar("benchmark") as bar:
        result = run_bench(subjects, options, out=out, speed_slide=speed_slide, crops=crops, progress=bar)
    if as_json:
        print_json(bench_json(result))
    else:
        for line in headline(result):
            click.echo(line)
    if out is not None:
        say(f"written to {out}")
