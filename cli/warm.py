"""`histocodec warm`: compile the kernels ahead of the first read."""

import click

from histocodec.cli.options import json_option
from histocodec.report import print_facts, print_json


@click.command("warm", short_help="Compile the kernels of this processor ahead.")
@json_option
def command(*, as_json: bool) -> None:
    """Compile what decodes pixels on this processor, so that the first read need not.

    The machine code is kept where Python keeps its own, or in ~/.cache where that cannot be written, or in the folder
    that NUMBA_CACHE_DIR names. It serves until histocodec, numba or the processor is another. For a container image,
    run it while the image is built, on a processor like those that will use it.

    \b
    Example:
      histocodec warm
    """
    from histocodec.formats.decode.warm import warm

    report = warm()
    if as_json:
        print_json(report)
        return
    print_facts([("instructions", report.instructions), ("compiled", f"{report.compiled} kernels")])
