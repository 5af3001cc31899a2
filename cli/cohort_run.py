"""`histocodec cohort run`, `verify` and `embed`: work on the slides of a ledger, on this machine or on a cluster."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from histocodec.cli.options import (
    Command,
    device_option,
    integer,
    json_option,
    option,
    overwrite_option,
    path_argument,
    positive,
)
from histocodec.report import print_facts, print_json, progress_bar, say
from histocodec.text import count_text, ratio_text, size_text, speed_text, time_text

if TYPE_CHECKING:
    from histocodec.formats.cohort.ledger import Kind
    from histocodec.formats.cohort.run import Progress, RunReport

MAX_LISTED = 20  # slides; --json lists all
INCOMPLETE = 1  # the exit code where some slides failed
SILENCE = 60.0  # seconds between two lines about progress where no bar is shown


def setting(text: str) -> tuple[str, object]:
    """Parse NAME=VALUE; a VALUE that is a number is one."""
    name, separator, value = text.partition("=")
    if not (separator and name.strip().isidentifier() and value.strip()):
        raise click.BadParameter(f"{text!r} is no option; write NAME=VALUE: queue=short")
    value = value.strip()
    return name.strip(), int(value) if value.isdecimal() else value


def resource(text: str) -> tuple[str, float]:
    """Parse NAME=N, where N is a number above 0."""
    name, separator, value = text.partition("=")
    if not (separator and name.strip()):
        raise click.BadParameter(f"{text!r} is no resource; write NAME=N: GPU=1")
    return name.strip(), positive(value)


def cluster_options(command: Command) -> Command:
    """Declare the options that say where tasks run."""
    for declare in reversed(
        (
            option(
                "--workers",
                type=integer(1, 100_000),
                metavar="N",
                show_default="half of the cores",
                help="Slides at a time: processes on this machine, or jobs with --cluster.",
            ),
            option("--scheduler", metavar="ADDRESS", help="A Dask scheduler that runs already: tcp://host:8786."),
            option(
                "--cluster",
                metavar="KIND",
                help="Start workers on a cluster: slurm, pbs, sge, lsf (dask-jobqueue) or kubernetes.",
            ),
            option(
                "--cluster-option",
                "cluster_options",
                type=setting,
                multiple=True,
                metavar="NAME=VALUE",
                help="Option of the cluster's class, such as queue=short or cores=8. Repeatable.",
            ),
            option(
                "--resource",
                "resources",
                type=resource,
                multiple=True,
                metavar="NAME=N",
                help="What each slide takes of a worker's Dask resources, such as GPU=1. Repeatable.",
            ),
            option(
                "--memory",
                metavar="SIZE",
                default="auto",
                show_default=True,
                help="Limit of each worker's memory on this machine, such as 8GB.",
            ),
            option("--threads", type=integer(1, 1024), metavar="N", help="Threads of each slide."),
            option(
                "--attempts",
                type=integer(1, 100),
                metavar="N",
                default=3,
                show_default=True,
                help="How often a slide is tried before it counts as failed.",
            ),
        )
    ):
        command = declare(command)
    return command


@click.command("run", short_help="Compress the slides of a ledger.")
@path_argument("ledger")
@cluster_options
@option("--verify", is_flag=True, help="Read back every container that was written, and decode it.")
@option("--retry-failed", is_flag=True, help="Also try those again that failed for good.")
@overwrite_option("containers that are of other slides, or were encoded with other options")
@device_option
@json_option
@click.pass_context
def run_command(
    context: click.Context, /, ledger: Path, *, verify: bool, retry_failed: bool, overwrite: bool, device: str,
    as_json: bool, **choices: Any,
) -> None:  # fmt: skip
    """Compress all slides of LEDGER that are not done, on this machine or on a cluster.

    Ctrl-C, killed workers and lost machines lose nothing that was done: run it again to go on. A container appears
    whole or not at all. Slides that fail are tried again, then listed; the others go on. The exit code is 1 where some
    failed. One run at a time works on a ledger.

    \b
    Examples:
      histocodec cohort run cohort.sqlite --workers 4 --verify
      histocodec cohort run cohort.sqlite --scheduler tcp://node1:8786
      histocodec cohort run cohort.sqlite --cluster slurm --workers 20 --cluster-option queue=short
    """
    _run(context, "encode", ledger, choices, device=device, as_json=as_json, again=retry_failed, verify=verify,
         overwrite=overwrite)  # fmt: skip


@click.command("verify", short_help="Check the containers of a ledger.")
@path_argument("ledger")
@cluster_options
@option("--quick", is_flag=True, help="Compare checksums only; decode nothing.")
@option("--again", is_flag=True, help="Also check those that were checked already.")
@device_option
@json_option
@click.pass_context
def verify_command(
    context: click.Context, /, ledger: Path, *, quick: bool, again: bool, device: str, as_json: bool, **choices: Any
) -> None:
    """Check every container that LEDGER says is done: that it is whole, unaltered, and the one that was written.

    What is interrupted goes on with the next call. The exit code is 1 where a container is not sound.

    \b
    Examples:
      histocodec cohort verify cohort.sqlite --quick
      histocodec cohort verify cohort.sqlite --again --scheduler tcp://node1:8786
    """
    _run(context, "verify", ledger, choices, device=device, as_json=as_json, again=again, detail={"quick": quick})


@click.command("embed", short_help="Add vectors for search to the containers.")
@path_argument("ledger")
@cluster_options
@option("--level", type=integer(0), metavar="N", default=0, show_default=True, help="Level to embed.")
@option("--again", is_flag=True, help="Also embed those that were embedded already; needs --overwrite.")
@overwrite_option("vectors that are there already")
@json_option
@click.pass_context
def embed_command(
    context: click.Context, /, ledger: Path, *, level: int, again: bool, overwrite: bool, as_json: bool, **choices: Any
) -> None:
    """Add a vector for each patch of tissue to every container that LEDGER says is done, as `histocodec embed` does.

    \b
    Example:
      histocodec cohort embed cohort.sqlite --level 1
    """
    detail: dict[str, object] = {"level": level, "overwrite": overwrite}
    _run(context, "embed", ledger, choices, as_json=as_json, again=again, detail=detail)


def _run(
    context: click.Context, kind: "Kind", ledger: Path, choices: dict[str, Any], *, device: str = "auto",
    as_json: bool, again: bool = False, verify: bool = False, overwrite: bool = False,
    detail: dict[str, object] | None = None,
) -> None:  # fmt: skip
    """Work on a ledger, and print what came of it."""
    from histocodec.formats.cohort.cluster import Place
    from histocodec.formats.cohort.run import Progress, Request, run

    place = Place(
        workers=choices["workers"], scheduler=choices["scheduler"], cluster=choices["cluster"],
        resources=dict(choices["resources"]), memory=choices["memory"], settings=dict(choices["cluster_options"]),
    )  # fmt: skip
    request = Request(
        kind, attempts=choices["attempts"], again=again, device=device, threads=choices["threads"], verify=verify,
        overwrite=overwrite, detail=detail or {},
    )  # fmt: skip
    with progress_bar(ledger.name) as bar:
        said, told = time.monotonic(), False

        def show(progress: Progress) -> None:
            nonlocal said, told
            bar(progress.area, progress.total, _progress_note(progress))
            if progress.workers == 0 and not told:
                told = True
                say(f"{place}: has no workers yet; start some: dask worker {place} --nthreads 1")
            if not sys.stderr.isatty() and time.monotonic() - said > SILENCE:
                said = time.monotonic()
                say(f"{ledger.name}: {_progress_note(progress)}")

        report = run(ledger, place, request, progress=show)
    if as_json:
        print_json(report)
    else:
        print_facts(_run_facts(report))
        errors = [
            failure.error if failure.source in failure.error else f"{failure.source}: {failure.error}"
            for failure in report.failures
        ]
        list_errors(errors, "--json and `cohort report` list all")
    if report.failures:
        say(f"histocodec: error: {count_text(report.failed, 'slide')} failed")
        context.exit(INCOMPLETE)


def list_errors(errors: Sequence[str], rest: str) -> None:
    """Print the first errors to stderr, and how many more there are; `rest` says where those are listed."""
    for error in errors[:MAX_LISTED]:
        say(f"  {error}")
    if len(errors) > MAX_LISTED:
        say(f"  and {len(errors) - MAX_LISTED} more; {rest}")


def _progress_note(progress: "Progress") -> str:
    """Return the words beside the bar: slides, speed, bytes saved, failures, and the time left."""
    parts = [f"{progress.done + len(progress.failures)}/{progress.slides} slides"]
    if progress.pixels:
        parts.append(speed_text(progress.pixels / 1e6 / progress.seconds))
        saved = progress.source_bytes - progress.result_bytes
        parts.append(f"{size_text(saved)} saved" if saved > 0 else f"{size_text(-saved)} more")
    if progress.failures:
        parts.append(f"{len(progress.failures)} failed")
    if progress.seconds_left is not None:
        parts.append(f"{time_text(round(progress.seconds_left))} left")
    return ", ".join(parts)


def _run_facts(report: "RunReport") -> list[tuple[str, str]]:
    adopted = f", {report.adopted} of them were there already, whole" if report.adopted else ""
    left = f", {report.left} left" if report.left else ""
    facts = [("slides", f"{report.done} done{adopted}, {report.failed} failed{left}")]
    if report.kind == "encode" and report.done:
        ratio = ratio_text(report.source_bytes / report.result_bytes) if report.result_bytes else "unknown"
        facts += [
            ("bytes", f"{size_text(report.source_bytes)} to {size_text(report.result_bytes)}, {ratio}"),
            ("speed", speed_text(report.pixels / 1e6 / report.seconds)),
        ]
    return [*facts, ("ledger", report.ledger), ("time", time_text(report.seconds))]
