"""`histocodec verify`: is everything there, unaltered, and does it still show the slide?"""

from contextlib import nullcontext
from pathlib import Path

import click

from histocodec.cli.options import device_option, json_option, path_argument
from histocodec.errors import FormatError
from histocodec.report import print_facts, print_json, progress_bar, say
from histocodec.text import decibel_text, time_text

SHOWN = 20  # problems that are listed for people; --json has all


@click.command("verify", short_help="Check a container, and measure it against the original.")
@path_argument("src")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="ORIGINAL",
    help="Decode everything, measure it again, and compare with the stored maps.",
)
@click.option("--quick", is_flag=True, help="Compare checksums only; decode nothing.")
@device_option
@json_option
@click.pass_context
def command(
    context: click.Context, src: Path, *, against: Path | None, quick: bool, device: str, as_json: bool
) -> None:
    """Check the container SRC: checksums, what has to be there, and whether every chunk decodes.

    Exit code 3 says that it is damaged.

    \b
    Examples:
      histocodec verify slide.zarr
      histocodec verify slide.zarr --against slide.svs --json
    """
    if quick and against is not None:
        raise click.UsageError("--quick decodes nothing, so it cannot compare --against; give one")

    from histocodec.formats.decode.open import open_slide
    from histocodec.formats.decode.verify import verify
    from histocodec.sources import with_pyramid

    with (
        progress_bar(src.name) as bar,
        nullcontext() if against is None else open_slide(against, device=device) as original,
    ):
        # A slide without reduced levels was compressed with derived ones.
        whole = None if original is None else with_pyramid(original)
        report = verify(src, against=whole, quick=quick, device=device, progress=bar)
    if as_json:
        print_json(report)
    else:
        facts = [
            ("container", f"{src}: {'sound' if report.ok else 'DAMAGED'}"),
            ("checked", f"{report.chunks} chunks in {report.shards} shards"),
        ]
        if report.psnr is not None:
            worst = "" if report.worst_psnr is None else f", worst chunk {decibel_text(report.worst_psnr)}"
            facts.append(("PSNR", decibel_text(report.psnr) + worst))
        if report.worst_block_error is not None:
            facts.append(("local error", f"{report.worst_block_error:.2f} grey values at most (RMS, 16 x 16 pixels)"))
        if report.worst_background_psnr is not None:
            facts.append(("background", f"{decibel_text(report.worst_background_psnr)} at least"))
        facts.append(("time", time_text(report.seconds)))
        print_facts(facts)
        for problem in report.problems[:SHOWN]:
            say(f"  {problem}")
        if len(report.problems) > SHOWN:
            say(f"  and {len(report.problems) - SHOWN} more; --json lists all")
    if not report.ok:
        count = len(report.problems)
        say(f"histocodec: error: {src}: {count} problem{'' if count == 1 else 's'} found")
        context.exit(FormatError.exit_code)
