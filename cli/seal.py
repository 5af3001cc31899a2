"""`histocodec seal`: give a container whose attributes were changed on purpose its digest again."""

import click

from histocodec.cli.options import Location, json_option, location_argument, option
from histocodec.report import print_facts, print_json


@click.command("seal", short_help="Take names out of a container, and renew its digest.")
@location_argument("container")
@option("--drop-name", is_flag=True, help="Take out the name of the source's file.")
@option(
    "--drop-property",
    "properties",
    multiple=True,
    metavar="NAME",
    help="Take out a property, or all that match: 'aperio.*'. Repeatable.",
)
@option("--drop-image", "images", multiple=True, metavar="NAME", help="Take out label, macro or thumbnail. Repeatable.")
@option("--drop-private", is_flag=True, help="Take out all that encode leaves out by default.")
@json_option
def command(
    container: Location,
    *,
    drop_name: bool,
    properties: tuple[str, ...],
    images: tuple[str, ...],
    drop_private: bool,
    as_json: bool,
) -> None:
    """Compute the digest of CONTAINER again, after its attributes were changed on purpose.

    Whoever edits zarr.json with an editor seals the folder afterwards; the options make the usual edits themselves. One
    file (.hcz) is written anew as a whole. Attributes that could not be read again are refused. Pixels do not change. A
    signature holds for the digest that it was made for: sign the new one.

    \b
    Examples:
      histocodec seal slide.hc.zarr
      histocodec seal slide.hc.zarr --drop-name --drop-property aperio.User --drop-image label
      histocodec seal slide.hc.zarr --drop-private
    """
    from histocodec.formats.seal import Removals, seal

    report = seal(container, Removals(drop_name, properties, images, drop_private))
    if as_json:
        print_json(report)
        return
    before = report.previous_digest or "none"
    print_facts(
        [
            ("container", report.path),
            ("taken out", "\n".join(report.removed) or "nothing"),
            ("digest", f"{report.digest}{' (unchanged)' if before == report.digest else ''}"),
            *([] if before == report.digest else [("it was", before)]),
        ]
    )
