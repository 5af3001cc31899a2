"""`histocodec verify`: check that a container is complete and unaltered, and measure it against the original."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import (
    Location,
    device_option,
    json_option,
    location,
    location_argument,
    option,
    short_name,
)
from histocodec.errors import FormatError
from histocodec.report import print_facts, print_json, progress_bar, say
from histocodec.text import count_text, decibel_text, time_text

if TYPE_CHECKING:
    from histocodec.formats.decode.verify import VerifyReport

MAX_LISTED = 20  # problems; --json lists all


@click.command("verify", short_help="Check a container, and measure it against the original.")
@location_argument("src")
@option("--quick", is_flag=True, help="Compare checksums only; decode nothing.")
@option(
    "--against",
    type=location,
    metavar="ORIGINAL",
    help="Also decode all pixels, compare them with this slide, and check the stored fidelity maps.",
)
@device_option
@json_option
@click.pass_context
def command(
    context: click.Context, src: Location, *, against: Location | None, quick: bool, device: str, as_json: bool
) -> None:
    """Check the container SRC, a path or a URL: its checksums, its completeness, and that every chunk decodes.

    The exit code is 3 if it is damaged.

    \b
    Examples:
      histocodec verify slide.hcz
      histocodec verify slide.hcz --against slide.svs
    """
    if quick and against is not None:
        raise click.UsageError("--quick and --against exclude each other: --quick decodes nothing; give one")

    from histocodec.formats.decode.open import open_slide
    from histocodec.formats.decode.verify import verify
    from histocodec.sources import with_pyramid

    with (
        progress_bar(short_name(src)) as bar,
        nullcontext() if against is None else open_slide(against, device=device) as original,
    ):
        # A slide without reduced levels was compressed with derived ones.
        pyramid = None if original is None else with_pyramid(original)
        report = verify(src, against=pyramid, quick=quick, device=device, progress=bar)
    if as_json:
        print_json(report)
    else:
        print_facts(report_facts(report, quick=quick))
        for problem in report.problems[:MAX_LISTED]:
            say(f"  {problem}")
        if len(report.problems) > MAX_LISTED:
            say(f"  and {len(report.problems) - MAX_LISTED} more; --json lists all")
    if not report.ok:
        say(f"histocodec: error: {src}: {count_text(len(report.problems), 'problem')} found")
        context.exit(FormatError.exit_code)


def report_facts(report: "VerifyReport", *, quick: bool) -> list[tuple[str, str]]:
    """Return names and values of a report, for people."""
    scope = f"{count_text(report.chunks, 'chunk')} in {count_text(report.shards, 'shard')}"
    facts = [
        ("container", f"{report.path}: {'sound' if report.ok else 'DAMAGED'}"),
        ("checked", f"checksums of {scope}" if quick else scope),
    ]
    if report.psnr is not None:
        worst = "" if report.worst_psnr is None else f"; worst chunk {decibel_text(report.worst_psnr)}"
        facts.append(("PSNR", decibel_text(report.psnr) + worst))
    if report.worst_block_error is not None:
        text = f"at most {report.worst_block_error:.2f} grey values (RMS over 16 x 16 pixels)"
        facts.append(("block error", text))
    if report.worst_background_psnr is not None:
        facts.append(("background", f"at least {decibel_text(report.worst_background_psnr)}"))
    return [*facts, ("time", time_text(report.seconds))]
