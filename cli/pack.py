"""`histocodec pack`: make one file of a container that is a folder."""

from pathlib import Path

import click

from histocodec.cli.options import json_option, overwrite_option, path_argument
from histocodec.report import print_facts, print_json, progress_bar
from histocodec.text import size_text


@click.command("pack", short_help="Make one file of a container.")
@path_argument("src")
@path_argument("out")
@overwrite_option("OUT, once the new file is complete")
@json_option
def command(src: Path, out: Path, *, overwrite: bool, as_json: bool) -> None:
    """Pack the container SRC, a folder, into one file OUT (.hcz): a ZIP archive that is not compressed any further.

    Every command reads it as it reads the folder, also from a URL. `histocodec unpack` gives the folder back, byte for
    byte.

    \b
    Example:
      histocodec pack slide.hc.zarr slide.hcz
    """
    from histocodec.formats.container.pack import pack

    with progress_bar(src.name) as bar:
        pack(src, out, overwrite=overwrite, progress=bar)
    size = out.stat().st_size
    if as_json:
        print_json({"path": out, "bytes": size})
    else:
        print_facts([("file", f"{out}: {size_text(size)}")])
