"""`histocodec decode`: a container in, an ordinary image out."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import box, device_option, json_option, path_argument, positive
from histocodec.errors import UsageError
from histocodec.report import Progress, print_facts, print_json, progress_bar
from histocodec.text import size_text, time_text

if TYPE_CHECKING:
    from histocodec.formats.decode.slide import CompressedSlide
    from histocodec.slide import Mpp, Pixels

STRIP = 512  # rows decoded at once where a whole level is wanted in one array


@click.command("decode", short_help="Write a region, or the whole slide, as an ordinary image.")
@path_argument("src")
@path_argument("out")
@click.option(
    "--region",
    type=box,
    metavar="X,Y,W,H",
    help="X and Y in pixels of level 0, W and H in pixels of the level that is asked for.",
)
@click.option("--level", type=click.IntRange(min=0), help="The level to read.  [default: 0]")
@click.option("--mpp", type=positive, metavar="M", help="The resolution to read at, in microns per pixel.")
@click.option("--overwrite", is_flag=True, help="Replace OUT, once the new one is whole.")
@click.option(
    "--jpeg-quality",
    type=click.IntRange(1, 100),
    default=90,
    show_default=True,
    help="Of the tiles of a pyramidal TIFF.",
)
@device_option
@json_option
def command(
    src: Path,
    out: Path,
    *,
    region: tuple[int, int, int, int] | None,
    level: int | None,
    mpp: float | None,
    overwrite: bool,
    jpeg_quality: int,
    device: str,
    as_json: bool,
) -> None:
    """Decode the container SRC to OUT: .png, .jpg, .tif or .npy, by its name.

    Without --region the whole slide is written; as .tif with all its levels, in a form that OpenSlide and
    other viewers open. A region may reach beyond the slide's edge: what is there has the background's colour.

    \b
    Examples:
      histocodec decode slide.zarr slide.tif
      histocodec decode slide.zarr region.png --region 10000,8000,1024,1024
      histocodec decode slide.zarr small.jpg --mpp 8
    """
    if level is not None and mpp is not None:
        raise click.UsageError("--level and --mpp exclude each other; give one")

    from histocodec.formats.decode.images import TIFF_SUFFIXES, check_output, write_pyramid, write_region
    from histocodec.formats.decode.slide import open_compressed

    check_output(out, overwrite=overwrite)
    start = time.perf_counter()
    with open_compressed(src, device=device) as slide, progress_bar(src.name) as bar:
        wanted = level or 0
        if wanted >= len(slide.levels):
            raise UsageError(f"{src}: level {wanted} does not exist; it has 0 to {len(slide.levels) - 1}")
        size = slide.levels[wanted]
        if region is None and mpp is None and out.suffix.lower() in TIFF_SUFFIXES:
            write_pyramid(out, slide, first_level=wanted, quality=jpeg_quality, progress=bar)
            shape, levels = (size.width, size.height), max(1, len(slide.levels) - wanted)
            at = _mpp_at(slide, wanted)
        else:
            if region is None and mpp is None:
                pixels, at = _whole_level(slide, wanted, out, bar), _mpp_at(slide, wanted)
            elif mpp is None:
                assert region is not None
                pixels, at = _region(slide, region, wanted, out), _mpp_at(slide, wanted)
            else:
                pixels, at = _resampled(slide, region, mpp, out), (mpp, mpp)
            write_region(out, pixels, mpp=at, icc=slide.icc_profile)
            shape, levels = (pixels.shape[1], pixels.shape[0]), 1
        model = slide.model_id
    seconds = time.perf_counter() - start
    result = {
        "output": out,
        "bytes": out.stat().st_size,
        "width": shape[0],
        "height": shape[1],
        "levels": levels,
        "region": region,
        "level": None if mpp is not None else wanted,
        "mpp": at,
        "seconds": seconds,
        "megapixels_per_second": shape[0] * shape[1] / 1e6 / seconds,
        "device": device,
        "model": model,
    }
    if as_json:
        print_json(result)
        return
    pyramid = f", {levels} levels" if levels > 1 else ""
    speed = f"{time_text(seconds)}, {result['megapixels_per_second']:.1f} MP/s, starting included"
    print_facts(
        [
            ("image", f"{out}: {shape[0]} x {shape[1]} pixels{pyramid}, {size_text(out.stat().st_size)}"),
            ("time", speed),
        ]
    )


def _region(slide: "CompressedSlide", place: tuple[int, int, int, int], level: int, out: Path) -> "Pixels":
    from histocodec.formats.decode.images import check_size

    x, y, width, height = place
    down = slide.levels[level].downsample
    _check_touches(slide, place, (down, down))
    check_size(out, width, height)
    return slide.read_array(x, y, width, height, level=level)


def _whole_level(slide: "CompressedSlide", level: int, out: Path, progress: Progress) -> "Pixels":
    """In strips, so that there is something to show and something to interrupt."""
    import numpy as np

    from histocodec.formats.decode.images import check_size
    from histocodec.geometry import Region

    size = slide.levels[level]
    check_size(out, size.width, size.height)
    pixels = np.empty((size.height, size.width, 3), np.uint8)
    for y in range(0, size.height, STRIP):
        strip = Region(0, y, size.width, STRIP).intersect(size.region)
        pixels[strip.y : strip.y_end] = slide.read(strip, level)
        progress(strip.y_end * size.width, size.region.area)
    return pixels


def _resampled(slide: "CompressedSlide", place: tuple[int, int, int, int] | None, mpp: float, out: Path) -> "Pixels":
    from histocodec.formats.decode.images import check_size

    if slide.mpp is None:
        raise UsageError(f"{slide.name}: does not say its resolution, so --mpp means nothing; name a --level")
    factors = (mpp / slide.mpp[0], mpp / slide.mpp[1])
    if place is None:
        full, down = slide.levels[0], slide.levels[0].downsample
        width, height = round(full.width * down / factors[0]), round(full.height * down / factors[1])
        place = (0, 0, max(1, width), max(1, height))
    x, y, width, height = place
    _check_touches(slide, place, factors)
    check_size(out, width, height)
    # What has to be decoded for it: the next finer level.
    down = slide.levels[slide.get_best_level_for_downsample(min(factors))].downsample
    check_size(Path("decoding.npy"), round(width * factors[0] / down), round(height * factors[1] / down))
    return slide.read_array(x, y, width, height, mpp=mpp)


def _check_touches(slide: "CompressedSlide", place: tuple[int, int, int, int], factors: tuple[float, float]) -> None:
    """A region may reach beyond the edge, but one without a single pixel of the slide is a mistake.
    `factors` are level-0 pixels per pixel of the region."""
    x, y, width, height = place
    full = slide.levels[0]
    right, bottom = full.width * full.downsample, full.height * full.downsample
    if x >= right or y >= bottom or x + width * factors[0] <= 0 or y + height * factors[1] <= 0:
        raise UsageError(
            f"{slide.name}: the region {x},{y},{width},{height} lies outside the slide's "
            f"{right:.0f} x {bottom:.0f} pixels of level 0"
        )


def _mpp_at(slide: "CompressedSlide", level: int) -> "Mpp | None":
    down = slide.levels[level].downsample
    return None if slide.mpp is None else (slide.mpp[0] * down, slide.mpp[1] * down)
