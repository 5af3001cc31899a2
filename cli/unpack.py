"""`histocodec unpack`: make a folder of a container that is one file."""

from pathlib import Path

import click

from histocodec.cli.options import Location, json_option, location_argument, path_argument, short_name
from histocodec.report import print_facts, print_json, progress_bar
from histocodec.text import count_text, size_text


@click.command("unpack", short_help="Make a folder of a packed container.")
@location_argument("src")
@path_argument("out")
@json_option
def command(src: Location, out: Path, *, as_json: bool) -> None:
    """Unpack the container SRC, a file or a URL, into the new folder OUT.

    \b
    Examples:
      histocodec unpack slide.hcz slide.hc.zarr
      histocodec unpack https://example.org/slide.hcz slide.hc.zarr
    """
    from histocodec.formats.container.pack import unpack
    from histocodec.formats.container.store import FolderStore

    with progress_bar(short_name(src)) as bar:
        unpack(src, out, progress=bar)
    sizes = [size for _, size in FolderStore(out).entries()]
    if as_json:
        print_json({"path": out, "files": len(sizes), "bytes": sum(sizes)})
    else:
        print_facts([("folder", f"{out}: {count_text(len(sizes), 'file')}, {size_text(sum(sizes))}")])
