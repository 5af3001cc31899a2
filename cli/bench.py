"""`histocodec bench`: slides and images in; what they cost and what is left of them, with us and with others, out."""

from pathlib import Path

import click

from histocodec.cli.options import device_option, json_option
from histocodec.report import print_json, progress_bar, say


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def whole_numbers(text: str) -> tuple[int, ...]:
    """Numbers with commas between them, in order, each once; ratios may be written 1:64."""
    parts = [part.removeprefix("1:") for part in names(text)]
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"{text!r}; whole numbers with commas between them are needed")
    return tuple(sorted({int(part) for part in parts}))


def qualities(text: str) -> tuple[int, ...]:
    found = whole_numbers(text)
    if len(found) < 2 or found[-1] > 100:
        raise click.BadParameter(f"{text}; two or more from 0 to 100 are needed")
    return found


def ratios(text: str) -> tuple[int, ...]:
    found = () if text == "none" else whole_numbers(text)
    if found and found[0] < 1:
        raise click.BadParameter(f"{text}; ratios from 1 on are needed")
    return found


@click.command("bench", short_help="Compare with other codecs on your slides.")
@click.argument("sources", metavar="SRC...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=names,
    default="jpeg2000,jpegxl,avif,htj2k,webp,jpeg",
    show_default=True,
    metavar="CODECS",
    help="The peers.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The folder for rows, plots and report; a run goes on from what is there.",
)
@click.option("--model", default="hyper-6", show_default=True, metavar="ID|FILE")
@click.option("--effort", type=click.FloatRange(0, 9), help="As in encode.")
@click.option("--qualities", type=qualities, default="0,10,20,30,40,50,60,70,80,90,100", metavar="N,…", help="Ours.")
@click.option("--points", type=click.IntRange(min=2), default=12, show_default=True, help="Of each peer's curve.")
@click.option(
    "--ratios",
    type=ratios,
    default="32,64,128,256,512",
    show_default=True,
    metavar="R,…|none",
    help="Of raw RGB to bytes, at which ours and JPEG 2000 are compared.",
)
@click.option(
    "--variant",
    "variants",
    type=names,
    multiple=True,
    metavar="native|enlarged|blurred",
    help="What is done to the pixels first: nothing, enlarged twice, blurred (2 pixels); may be given again.",
)
@click.option("--regions", type=click.IntRange(min=0), default=4, show_default=True, help="Of a slide; 0: all of it.")
@click.option("--region-size", type=click.IntRange(min=32), default=1024, show_default=True, help="Pixels a side.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Chooses the regions.")
@click.option("--timing/--no-timing", default=True, help="Time a few rows of each image.  [default: yes]")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="What all threads are.  [default: one a core]")
@click.option(
    "--speed",
    "speed_slide",
    type=click.Path(path_type=Path),
    metavar="SLIDE",
    help="Time a region of this slide with care, too.",
)
@click.option("--crops/--no-crops", default=True, help="Make a sheet of crops, which shows tissue.  [default: yes]")
@device_option
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

    Images up to 2048 pixels on a side are taken whole, of larger ones squares with tissue. An interrupted run goes on
    where it was, given the same --out. An image belongs to the group that its name begins with, up to the first "-".

    \b
    Examples:
      histocodec bench slide.svs --out results
      histocodec bench images/*.png --against jpeg2000,avif --no-timing --json
      histocodec bench images/*.png --variant native,blurred --out results --speed slide.svs
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
    chosen = tuple(dict.fromkeys(one for some in variants for one in some)) or ("native",)
    subjects = Subjects(sources, chosen, regions, region_size, seed)
    with progress_bar("benchmark") as bar:
        result = run_bench(subjects, options, out=out, speed_slide=speed_slide, crops=crops, progress=bar)
    if as_json:
        print_json(bench_json(result))
    else:
        for line in headline(result):
            click.echo(line)
    if out is not None:
        say(f"written to {out}")
