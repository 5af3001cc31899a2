"""`histocodec cohort`: compress many slides on many machines, and see what came of it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.cohort_run import INCOMPLETE, embed_command, list_errors, run_command, verify_command
from histocodec.cli.cohort_search import index_command, tune_command
from histocodec.cli.options import (
    Location,
    OrderedGroup,
    device_option,
    integer,
    json_option,
    location,
    location_arguments,
    number,
    option,
    path_argument,
)
from histocodec.report import print_facts, print_json, progress_bar, say
from histocodec.text import count_text, ratio_text, size_text, time_text

if TYPE_CHECKING:
    from histocodec.formats.cohort.plan import PlanReport


@click.group("cohort", cls=OrderedGroup, short_help="Compress many slides, on many machines.")
def command() -> None:
    """Compress a whole archive of slides, on one machine or a cluster.

    `plan` finds the slides and writes a ledger, a SQLite file with a row for each. `run` compresses them on Dask; what
    is interrupted, `run` again continues. Everything but `plan` and `report` needs pip install 'histocodec[cohort]'.

    \b
    Examples:
      histocodec cohort plan slides/ --out compressed/
      histocodec cohort run compressed/cohort.sqlite
      histocodec cohort report compressed/cohort.sqlite --out report/
    """


@command.command("plan", short_help="Find slides, and write a ledger.")
@location_arguments("sources", "SRC...")
@option("--out", type=location, required=True, metavar="DST", help="Folder or URL for the containers.")
@option(
    "--ledger",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="DST/cohort.sqlite",
    help="The ledger, which is made, or added to.",
)
@option(
    "--policy",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML file with the options of slides, by their labels, and names.",
)
@option("--quality", type=number(0, 100), metavar="Q", help="Quality of all slides, 0–100, over the policy's.")
@option("--min-psnr", type=float, metavar="DB", help="Guarantee every chunk of all slides this PSNR.")
@option("--effort", type=number(0, 9), metavar="N", help="Search effort for all slides, 0–9.")
@option("--model", metavar="ID|FILE", show_default="hyper-6", help="Id of an installed model, or a .safetensors file.")
@json_option
@click.pass_context
def plan_command(
    context: click.Context,
    sources: tuple[Location, ...],
    *,
    out: Location,
    ledger: Path | None,
    policy: Path | None,
    quality: float | None,
    min_psnr: float | None,
    effort: float | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Find the slides in SRC, and write those that are new into a ledger. Nothing is compressed yet.

    SRC is a folder, a slide, a pattern ('slides/**/*.svs'), a prefix in an object store (s3://), or a manifest: a CSV
    or Parquet file with a column `path`, whose other columns are labels for the policy. Several files of one slide are
    one. The exit code is 1 where a slide cannot be opened; the others are planned.

    \b
    Examples:
      histocodec cohort plan slides/ --out compressed/ --quality 60
      histocodec cohort plan slides.csv --out s3://archive/slides --ledger archive.sqlite --policy archive.toml
    """
    from histocodec.formats.cohort.plan import LEDGER_NAME, make_plan
    from histocodec.formats.cohort.policy import Policy, encode_options, merged, read_policy

    if ledger is None:
        if isinstance(out, str):
            raise click.UsageError("with --out at a URL, the ledger cannot be there; give --ledger FILE")
        ledger = out / LEDGER_NAME
    given = {"quality": quality, "min_psnr": min_psnr, "effort": effort, "model": _model(model)}
    options = {name: value for name, value in given.items() if value is not None}
    chosen = Policy() if policy is None else read_policy(policy)
    encode_options(merged(chosen.options, options))  # what is out of range is told before slides are looked for
    with progress_bar("looking into slides") as bar:
        report = make_plan(sources, str(out), ledger, chosen, options=options, progress=bar)
    if as_json:
        print_json(report)
    else:
        print_facts(_plan_facts(report))
        list_errors([problem.error for problem in report.unreadable], "--json lists all")
    if report.unreadable:
        say(f"histocodec: error: {count_text(len(report.unreadable), 'slide')} cannot be opened")
        context.exit(INCOMPLETE)


command.add_command(run_command)


@command.command("report", short_help="Write a page and a table about a cohort.")
@path_argument("ledger")
@option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder for the page and the table."
)
@option(
    "--below", type=float, metavar="DB", default=30.0, show_default=True, help="List slides with a chunk below this."
)
@option(
    "--pictures",
    type=integer(0, 200),
    metavar="N",
    default=12,
    show_default=True,
    help="Slides whose worst chunk is shown.",
)
@device_option
@json_option
def report_command(ledger: Path, *, out: Path, below: float, pictures: int, device: str, as_json: bool) -> None:
    """Write DIR/index.html, a page that any browser opens without a server, and DIR/slides.csv, with a line a slide.

    They say what LEDGER says now; a run may go on meanwhile. The pictures show parts of slides: keep the page where the
    slides may be.

    \b
    Example:
      histocodec cohort report cohort.sqlite --out report/
    """
    from histocodec.formats.cohort.report import write_report

    with progress_bar("reading the lowest chunks") as bar:
        report = write_report(ledger, out, threshold=below, pictures=pictures, device=device, progress=bar)
    if as_json:
        print_json(report)
        return
    print_facts(
        [
            ("slides", f"{report.done} done, {report.failed} failed, {report.left} left"),
            (
                "bytes",
                f"{size_text(report.source_bytes)} to {size_text(report.result_bytes)}, {ratio_text(report.ratio)}",
            ),
            ("fidelity", f"{count_text(report.below, 'slide')} with a chunk below {below:g} dB"),
            ("page", str(report.page)),
            ("table", str(report.table)),
        ]
    )


command.add_command(verify_command)
command.add_command(embed_command)
command.add_command(index_command)
command.add_command(tune_command)


def _plan_facts(report: "PlanReport") -> list[tuple[str, str]]:
    known = f", {report.known} in the ledger already" if report.known else ""
    facts = [
        ("slides", f"{report.added} planned{known}"),
        ("pixels", f"{report.pixels / 1e9:.3g} gigapixels of level 0 in {size_text(report.source_bytes)}"),
    ]
    if report.options:
        facts.append(
            ("options", "\n".join(f"{words}: {count_text(count, 'slide')}" for words, count in report.options))
        )
    return [*facts, ("ledger", report.ledger), ("containers", report.out), ("time", time_text(report.seconds))]


def _model(model: str | None) -> str | None:
    """A model's file as an absolute path, since workers run in other folders; an id as it is."""
    return str(Path(model).absolute()) if model is not None and Path(model).is_file() else model
