"""`histocodec decode`: write a region of a container, or all of it, as an ordinary image."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import (
    Location,
    box,
    device_option,
    integer,
    json_option,
    location_argument,
    option,
    overwrite_option,
    path_argument,
    positive,
    short_name,
)
from histocodec.errors import UsageError
from histocodec.report import Progress, print_facts, print_json, progress_bar
from histocodec.text import size_text, speed_text, time_text

if TYPE_CHECKING:
    from histocodec.formats.decode.slide import CompressedSlide
    from histocodec.slide import Mpp, Pixels

Box = tuple[int, int, int, int]  # x, y in pixels of level 0; width, height in pixels of the image

STRIP_ROWS, STRIP_COLUMNS = 512, 32_768  # of a whole level, decoded between two steps of the progress bar


@click.command("decode", short_help="Write a region, or the whole slide, as an ordinary image.")
@location_argument("src")
@path_argument("out")
@option("--region", type=box, metavar="X,Y,W,H", help="Decode W x H pixels, with the corner X,Y in pixels of level 0.")
@option("--level", type=integer(0), metavar="N", show_default="0", help="Level to decode.")
@option("--mpp", type=positive, metavar="M", help="Resolution to decode at, in microns per pixel.")
@option(
    "--jpeg-quality",
    type=integer(1, 100),
    metavar="Q",
    default=90,
    show_default=True,
    help="JPEG quality of a whole slide written as TIFF, 1–100.",
)
@overwrite_option("OUT, once the new file is complete")
@device_option
@json_option
def command(
    src: Location,
    out: Path,
    *,
    region: Box | None,
    level: int | None,
    mpp: float | None,
    jpeg_quality: int,
    overwrite: bool,
    device: str,
    as_json: bool,
) -> None:
    """Decode the container SRC, a path or a URL, into the image OUT: a .png, .jpg, .tif or .npy.

    Without --region, OUT is the whole slide; as .tif, it is a pyramid of all levels that OpenSlide opens. A region may
    reach beyond the slide's edge, where OUT has the background colour.

    \b
    Examples:
      histocodec decode slide.hcz slide.tif
      histocodec decode slide.hcz region.png --region 10000,8000,1024,1024
      histocodec decode slide.hcz small.jpg --mpp 8
    """
    if level is not None and mpp is not None:
        raise click.UsageError("--level and --mpp exclude each other; give one")

    from histocodec.formats.decode.images import check_output
    from histocodec.formats.decode.slide import open_compressed

    check_output(out, overwrite=overwrite)
    start = time.perf_counter()
    with open_compressed(src, device=device) as slide, progress_bar(short_name(src)) as bar:
        image = write_image(slide, out, region=region, level=level, mpp=mpp, jpeg_quality=jpeg_quality, progress=bar)
        model = slide.model_id
    seconds = time.perf_counter() - start
    speed = image.width * image.height / 1e6 / seconds
    if as_json:
        print_json(
            {
                "output": out,
                "bytes": out.stat().st_size,
                "width": image.width,
                "height": image.height,
                "levels": image.levels,
                "region": region,
                "level": image.level,
                "mpp": image.mpp,
                "seconds": seconds,
                "megapixels_per_second": speed,
                "device": device,
                "model": model,
            }
        )
        return
    pyramid = f", {image.levels} levels" if image.levels > 1 else ""
    print_facts(
        [
            ("image", f"{out}: {image.width} x {image.height} pixels{pyramid}, {size_text(out.stat().st_size)}"),
            ("time", f"{time_text(seconds)}, {speed_text(speed)}, start-up included"),
        ]
    )


@dataclass(frozen=True)
class Written:
    """The image that was written: its size in pixels, and where in the slide's pyramid it comes from."""

    width: int
    height: int
    levels: int
    level: int | None  # its first level; None with --mpp
    mpp: "Mpp | None"  # microns per pixel, where they are known


def write_image(
    slide: "CompressedSlide",
    out: Path,
    *,
    region: Box | None,
    level: int | None,
    mpp: float | None,
    jpeg_quality: int,
    progress: Progress,
) -> Written:
    """Decode what the options ask for, and write it to `out`.

    Raises UsageError for a level that does not exist, a region outside the slide, an unknown resolution, or an image
    that is too large for memory or for the format of `out`.
    """
    from histocodec.formats.decode.images import TIFF_SUFFIXES, write_region
    from histocodec.formats.export.losses import history, losses_of
    from histocodec.formats.export.tiff import write_pyramid

    if mpp is not None:
        pixels = _resampled(slide, region, mpp, out)
        write_region(out, pixels, mpp=(mpp, mpp), icc=slide.icc_profile)
        return Written(pixels.shape[1], pixels.shape[0], 1, None, (mpp, mpp))
    level = level or 0
    if level >= len(slide.levels):
        raise UsageError(f"{slide.name}: level {level} does not exist; it has 0 to {len(slide.levels) - 1}")
    size, at = slide.levels[level], slide.container.attributes.mpp_at(level)
    if region is None and out.suffix.lower() in TIFF_SUFFIXES:
        passed = history(losses_of(slide, level), f"JPEG at quality {jpeg_quality}")
        write_pyramid(out, slide, first_level=level, quality=jpeg_quality, history=passed, progress=progress)
        return Written(size.width, size.height, max(1, len(slide.levels) - level), level, at)
    pixels = _whole_level(slide, level, out, progress) if region is None else _region(slide, region, level, out)
    write_region(out, pixels, mpp=at, icc=slide.icc_profile)
    return Written(pixels.shape[1], pixels.shape[0], 1, level, at)


def _region(slide: "CompressedSlide", region: Box, level: int, out: Path) -> "Pixels":
    from histocodec.formats.decode.images import check_size

    x, y, width, height = region
    downsample = slide.levels[level].downsample
    _check_touches(slide, region, (downsample, downsample))
    check_size(out, width, height)
    return slide.read_array(x, y, width, height, level=level)


def _whole_level(slide: "CompressedSlide", level: int, out: Path, progress: Progress) -> "Pixels":
    """Decode a level in strips, so that there is progress to show and a moment to interrupt."""
    import numpy as np

    from histocodec.formats.decode.images import check_size
    from histocodec.geometry import Region

    size = slide.levels[level]
    check_size(out, size.width, size.height)
    pixels = np.empty((size.height, size.width, 3), np.uint8)
    done = 0
    for y in range(0, size.height, STRIP_ROWS):
        for x in range(0, size.width, STRIP_COLUMNS):
            strip = Region(x, y, STRIP_COLUMNS, STRIP_ROWS).intersect(size.region)
            pixels[strip.within(size.region)] = slide.read(strip, level)
            done += strip.area
            progress(done, size.region.area)
    return pixels


def _resampled(slide: "CompressedSlide", region: Box | None, mpp: float, out: Path) -> "Pixels":
    from histocodec.formats.decode.images import check_size

    if slide.mpp is None:
        raise UsageError(f"{slide.name}: its resolution is unknown, so --mpp cannot be used; give a --level")
    factors = (mpp / slide.mpp[0], mpp / slide.mpp[1])  # level-0 pixels per pixel of the image
    if region is None:
        full, downsample = slide.levels[0], slide.levels[0].downsample
        width, height = round(full.width * downsample / factors[0]), round(full.height * downsample / factors[1])
        region = (0, 0, max(1, width), max(1, height))
    x, y, width, height = region
    _check_touches(slide, region, factors)
    check_size(out, width, height)
    return slide.read_array(x, y, width, height, mpp=mpp)


def _check_touches(slide: "CompressedSlide", region: Box, factors: tuple[float, float]) -> None:
    """Refuse a region without a single pixel of the slide; one that reaches beyond the edge is fine.

    `factors` are level-0 pixels per pixel of the region, in x and y.
    """
    x, y, width, height = region
    full = slide.levels[0]
    right, bottom = full.width * full.downsample, full.height * full.downsample
    if x >= right or y >= bottom or x + width * factors[0] <= 0 or y + height * factors[1] <= 0:
        raise UsageError(
            f"{slide.name}: the region {x},{y},{width},{height} lies outside the slide, "
            f"which has {right:.0f} x {bottom:.0f} pixels at level 0"
        )
