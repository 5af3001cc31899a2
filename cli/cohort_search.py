"""`histocodec cohort index` and `tune`: vectors of a whole cohort, and a quality for it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import (
    Location,
    device_option,
    integer,
    json_option,
    location_arguments,
    number,
    option,
    path_argument,
    workers_option,
)
from histocodec.report import print_facts, print_json, progress_bar, say
from histocodec.text import count_text, decibel_text

if TYPE_CHECKING:
    from histocodec.formats.cohort.tune import TuneReport

SHOWN = 12  # curves; --json has all


@click.command("index", short_help="Gather the vectors of a cohort.")
@path_argument("ledger")
@path_argument("index")
@option(
    "--approximate",
    is_flag=True,
    help="Also keep a graph (HNSW) for faster search; needs pip install 'histocodec[search]'.",
)
@json_option
def index_command(ledger: Path, index: Path, *, approximate: bool, as_json: bool) -> None:
    """Build the index INDEX of all slides of LEDGER that have vectors, or add those that it lacks.

    The columns of the manifest become labels, for `histocodec search --filter`.

    \b
    Example:
      histocodec cohort index cohort.sqlite archive.index
    """
    from histocodec.formats.cohort.gather import gather_index
    from histocodec.search.graph import check_installed, updated_graph

    if approximate:
        check_installed()
    with progress_bar("reading vectors") as bar:
        made = gather_index(ledger, index, approximate=approximate, progress=bar)
    if made.facts.graph:
        check_installed()
        updated_graph(made)
    result = {"path": index, "slides": len(made.slides), "patches": made.facts.rows, "approximate": made.facts.graph}
    if as_json:
        print_json(result)
    else:
        print_facts([("index", f"{index}: {count_text(len(made.slides), 'slide')}, {made.facts.rows} patches")])


@click.command("tune", short_help="Propose a quality for a wanted fidelity.")
@location_arguments("sources", "SRC...")
@option("--psnr", type=number(10, 80), metavar="DB", help="Wanted PSNR of each slide.")
@option("--worst", type=number(10, 80), metavar="DB", help="Wanted PSNR of the worst chunk that is looked at.")
@option("--by", multiple=True, metavar="LABEL", help="Propose one for each value of this label. Repeatable.")
@option(
    "--slides",
    type=integer(1, 10_000),
    metavar="N",
    default=12,
    show_default=True,
    help="Slides to look at, for each proposal.",
)
@option(
    "--share",
    type=number(1, 100),
    metavar="PERCENT",
    default=95,
    show_default=True,
    help="How many of the slides have to reach it.",
)
@option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Also write the curves as a page.")
@option("--model", metavar="ID|FILE", show_default="hyper-6", help="Id of an installed model, or a .safetensors file.")
@device_option
@workers_option
@json_option
def tune_command(
    sources: tuple[Location, ...], *, psnr: float | None, worst: float | None, by: tuple[str, ...], slides: int,
    share: float, plot: Path | None, model: str | None, device: str, workers: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Propose the quality that slides need for a wanted fidelity, from a sample of the slides in SRC.

    Prints the curves that were seen, and the lines of a policy file for `histocodec cohort plan --policy`. Nothing is
    stored. It is an estimate; `cohort report` shows what was measured.

    \b
    Examples:
      histocodec cohort tune slides/ --psnr 38
      histocodec cohort tune slides.csv --worst 32 --by stain --by scanner > archive.toml
    """
    from histocodec.formats.cohort.tune import tune

    with progress_bar("looking at slides") as bar:
        report = tune(
            sources, wanted_psnr=psnr, wanted_worst=worst, by=by, slides=slides, share=share / 100, model=model,
            device=device, workers=workers, progress=bar,
        )  # fmt: skip
    if plot is not None:
        from histocodec.formats.cohort.tune_page import write_curves

        write_curves(report, plot, wanted_psnr=psnr, wanted_worst=worst)
    if as_json:
        print_json(report)
        return
    for line in _curve_lines(report):
        say(line)
    for text in report.left_out[:SHOWN]:
        say(f"left out: {text}")
    click.echo(report.policy.rstrip())


def _curve_lines(report: "TuneReport") -> list[str]:
    """The curves as a table: a line for each quality, the mean of the slides and the lowest of them."""
    lines = [f"{'quality':>7}  {'PSNR, lowest slide':>18}  {'mean':>9}  {'worst chunk':>11}  {'bits per pixel':>14}"]
    for points in zip(*(curve.points for curve in report.curves), strict=True):
        mean, lowest = sum(point.psnr for point in points) / len(points), min(point.psnr for point in points)
        lines.append(
            f"{points[0].quality:>7}  {decibel_text(lowest):>18}  {decibel_text(mean):>9}  "
            f"{decibel_text(min(point.worst_psnr for point in points)):>11}  "
            f"{sum(point.bpp for point in points) / len(points):>14.3f}"
        )
    for proposal in report.proposals:
        words = ", ".join(f"{name} {value}" for name, value in proposal.labels.items()) or "all"
        chosen = "none suffices" if proposal.quality is None else f"quality {proposal.quality}"
        rate = "" if proposal.bpp is None else f", {proposal.bpp:.3f} bits per pixel of tissue"
        lines.append(f"{words}: {chosen}{rate} ({count_text(proposal.slides, 'slide')} looked at)")
    return lines
