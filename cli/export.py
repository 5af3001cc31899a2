"""`histocodec export`: write a container as a file that other programs open."""

import time
from pathlib import Path
from typing import Any

import click

from histocodec.cli.options import (
    Location,
    device_option,
    json_option,
    location_argument,
    option,
    overwrite_option,
    path_argument,
    positive,
    short_name,
)
from histocodec.report import print_facts, print_json, progress_bar, say
from histocodec.text import size_text, speed_text, time_text

FORMATS = ("tiff", "ome-tiff", "dicom", "ome-zarr")
CODECS = ("jpeg", "deflate", "jpeg2000", "htj2k", "zstd", "blosc")


@click.command("export", short_help="Write the slide as OME-TIFF, DICOM, OME-Zarr or TIFF.")
@location_argument("src")
@path_argument("out")
@option("--format", "kind", type=click.Choice(FORMATS), show_default="by OUT's name", help="Format of OUT.")
@option(
    "--codec",
    type=click.Choice(CODECS),
    show_default="jpeg; zstd for OME-Zarr",
    help="Codec of the pixels. TIFF, OME-TIFF: jpeg, deflate. DICOM: jpeg, jpeg2000, htj2k. OME-Zarr: zstd, blosc.",
)
@option(
    "--quality",
    type=positive,
    metavar="Q",
    show_default="90 for jpeg, else lossless",
    help="Of jpeg 1–100; of jpeg2000 and htj2k a PSNR in dB, 20–70.",
)
@option("--mpp", type=positive, metavar="M", help="Microns per pixel of level 0, where the slide does not state them.")
@option(
    "--ngff",
    type=click.Choice(("0.5", "0.4")),
    default="0.5",
    show_default=True,
    help="Version of OME-Zarr: 0.5 is sharded (Zarr v3), older programs read 0.4.",
)
@overwrite_option("OUT, once the new one is complete")
@device_option
@json_option
def command(src: Location, out: Path, *, overwrite: bool, device: str, as_json: bool, **options: Any) -> None:
    """Write the container SRC, a path or a URL, as OUT: all its levels, in a format that other programs open.

    The name of OUT chooses the format: .ome.tif an OME-TIFF (Bio-Formats, QuPath), .tif a pyramidal TIFF (OpenSlide,
    libvips), .dicom a folder with a DICOM series (PACS, OpenSlide; needs the extra dicom), .zarr an OME-Zarr image.
    Resolution, objective power, ICC profile and associated images go along where the format has a place for them, and
    the metadata say which lossy compression the pixels went through. The same container gives the same DICOM UIDs.

    \b
    Examples:
      histocodec export slide.hcz slide.ome.tif
      histocodec export slide.hcz slide.dicom --codec htj2k
      histocodec export slide.hcz slide.zarr --ngff 0.4 --codec blosc
    """
    from histocodec.formats.decode.slide import open_compressed
    from histocodec.formats.export.export import export

    start = time.perf_counter()
    with open_compressed(src, device=device) as slide, progress_bar(short_name(src)) as bar:
        done = export(slide, out, overwrite=overwrite, progress=bar, **options)
        pixels = sum(level.region.area for level in slide.levels)
    seconds = time.perf_counter() - start
    if as_json:
        print_json(
            {
                "output": done.path,
                "format": done.kind,
                "codec": done.codec,
                "quality": done.quality,
                "bytes": done.bytes,
                "levels": done.levels,
                "associated": done.associated,
                "mpp": done.mpp,
                "history": done.history,
                "notes": done.notes,
                "seconds": seconds,
                "megapixels_per_second": pixels / 1e6 / seconds,
            }
        )
        return
    images = f", {', '.join(done.associated)}" if done.associated else ""
    print_facts(
        [
            ("export", f"{done.path}: {done.kind}, {done.levels} levels{images}, {size_text(done.bytes)}"),
            ("history", done.history),
            ("time", f"{time_text(seconds)}, {speed_text(pixels / 1e6 / seconds)}, start-up included"),
        ]
    )
    for note in done.notes:
        say(f"histocodec: note: {done.path}: {note}")
