"""Pixels as ordinary image files: a region as PNG, JPEG, TIFF or NPY, and a whole slide as a pyramidal TIFF.

A file is whole or absent: it is written under a temporary name beside its place, and renamed last.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from histocodec.errors import OutputError, UsageError
from histocodec.formats.container.files import whole_file
from histocodec.geometry import Level, Region
from histocodec.slide import Mpp, Pixels, Slide, mpp_at
from histocodec.sources.pyramid import with_pyramid

TIFF_SUFFIXES = (".tif", ".tiff")
JPEG_SUFFIXES = (".jpg", ".jpeg")
SUFFIXES = (".png", *JPEG_SUFFIXES, *TIFF_SUFFIXES, ".npy")

MAX_PIXELS = 400_000_000  # of an image that is held in memory as a whole: 1.2 GB
MAX_JPEG_SIDE = 65_500  # pixels; libjpeg's limit
REGION_JPEG_QUALITY = 95
PYRAMID_JPEG_QUALITY = 90  # at least what scanners use
REGION_TILE = 256
PYRAMID_TILE = 512  # the side of a chunk, so that each chunk is decoded once
READ_TILES = 8  # tiles of a row that are read together: 6 MiB
TIFF_BUFFER = 64 << 20  # bytes of tiles that tifffile collects for its threads; its default is 512 MiB
MAX_CLASSIC_TIFF = 3 << 30  # raw bytes; with more, offsets might not fit in 32 bits, even compressed
MICRONS_PER_CM = 10_000.0
MICRONS_PER_METRE = 1e6
METRES_PER_INCH = 0.0254
MAX_PNG_INTEGER = 2**31 - 1  # of the pixels per metre in a PNG
MAX_TERM = 2**32 - 1  # of the fractions that TIFF and EXIF have for a resolution

Progress = Callable[[int, int], None]  # pixels done, pixels in all


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Raises UsageError for a suffix that stands for no image format, and OutputError where no file can be written at
    `path`: to be called before any work is done."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: its name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file instead")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; --overwrite replaces it")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist")


def check_size(path: Path, width: int, height: int) -> None:
    """Raises UsageError for an image of `width` × `height` pixels that is too large for memory, or for the format that
    the suffix stands for."""
    if width * height > MAX_PIXELS:
        raise UsageError(
            f"{path}: {width}x{height} pixels are too many for one image in memory (at most "
            f"{MAX_PIXELS // 1_000_000} megapixels); write the whole slide as .tif, or choose a --region"
        )
    if path.suffix.lower() in JPEG_SUFFIXES and max(width, height) > MAX_JPEG_SIDE:
        raise UsageError(f"{path}: {width}x{height}; a JPEG has at most {MAX_JPEG_SIDE} pixels on a side")


def write_region(path: Path, pixels: Pixels, *, mpp: Mpp | None, icc: bytes | None) -> None:
    """Writes an image (h, w, 3) uint8 in the format that the suffix stands for, and replaces what is there.

    The resolution `mpp` (microns per pixel, x and y) and the ICC profile are written where the format has a place for
    them, which NPY has not. A resolution that the format's integers cannot hold is left out. Raises UsageError or
    OutputError as `check_output` and `check_size` do. Memory: a copy of 4 bytes for each pixel, and the file.
    """
    check_output(path, overwrite=True)
    check_size(path, pixels.shape[1], pixels.shape[0])
    suffix = path.suffix.lower()
    with whole_file(path) as file:
        if suffix == ".npy":
            np.save(file, pixels)
        elif suffix in TIFF_SUFFIXES:
            _write_tiff(file, pixels, mpp, icc)
        else:
            file.write(_encoded(pixels, suffix, mpp, icc))


def _encoded(pixels: Pixels, suffix: str, mpp: Mpp | None, icc: bytes | None) -> memoryview:
    """The bytes of a PNG or JPEG. Made in memory because Pillow reports a full disk in its own ways."""
    from PIL import Image

    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if suffix == ".png":
        per_metre = None if mpp is None else (MICRONS_PER_METRE / mpp[0], MICRONS_PER_METRE / mpp[1])
        inches = {}
        if per_metre is not None and all(1 <= pixels < MAX_PNG_INTEGER for pixels in per_metre):
            inches["dpi"] = (per_metre[0] * METRES_PER_INCH, per_metre[1] * METRES_PER_INCH)
        image.save(buffer, "PNG", icc_profile=icc, **inches)
    else:
        # As EXIF: JFIF has 16 bits for dots per inch, which 100,000 would overflow.
        exif = Image.Exif()
        if (resolution := _resolution(mpp)) is not None:
            x_resolution, y_resolution, unit, centimetre = 282, 283, 296, 3
            exif[x_resolution], exif[y_resolution] = resolution
            exif[unit] = centimetre
        image.save(buffer, "JPEG", quality=REGION_JPEG_QUALITY, subsampling=0, icc_profile=icc, exif=exif)
    return buffer.getbuffer()


def _write_tiff(file: BinaryIO, pixels: Pixels, mpp: Mpp | None, icc: bytes | None) -> None:
    import tifffile

    resolution = _resolution(mpp)
    with tifffile.TiffWriter(file, bigtiff=pixels.nbytes > MAX_CLASSIC_TIFF) as writer:
        writer.write(
            pixels,
            photometric="rgb",
            tile=(REGION_TILE, REGION_TILE),
            compression="deflate",
            predictor=True,
            iccprofile=icc,
            software="histocodec",
            metadata=None,
            resolution=resolution,
            resolutionunit=None if resolution is None else "CENTIMETER",
        )


def write_pyramid(
    path: Path,
    slide: Slide,
    *,
    first_level: int = 0,
    tile: int = PYRAMID_TILE,
    compression: str = "jpeg",
    quality: int = PYRAMID_JPEG_QUALITY,
    progress: Progress | None = None,
) -> None:
    """Writes a slide's levels, from `first_level` on, as a tiled TIFF that OpenSlide opens (as generic-tiff), and
    replaces what is there. A slide of one level gets derived ones. Memory does not grow with the slide, but for about
    200 bytes for each tile, which tifffile keeps until the level is complete.

    `tile` is the side of a tile in pixels. `compression` is "jpeg", at `quality` and 4:4:4, or a lossless one that
    tifffile knows, such as "deflate". Raises UsageError, OutputError, and SourceError or FormatError where the slide
    cannot be read.
    """
    import tifffile

    check_output(path, overwrite=True)
    if path.suffix.lower() not in TIFF_SUFFIXES:
        raise UsageError(f"{path}: a pyramid needs a name that ends in {' or '.join(TIFF_SUFFIXES)}")
    if tile < 16 or tile % 16:
        raise UsageError(f"the side of a TIFF's tiles is {tile}; a multiple of 16 pixels is needed")
    slide = with_pyramid(slide)
    if not 0 <= first_level < len(slide.levels):
        raise UsageError(f"{slide.name}: level {first_level} does not exist; it has 0 to {len(slide.levels) - 1}")
    chosen = list(enumerate(slide.levels))[first_level:]
    total = sum(level.region.area for _, level in chosen)
    done = 0

    def tiles(index: int, level: Level) -> Iterator[Pixels]:
        nonlocal done
        for region, pixels in _tiles(slide, index, tile):
            done += region.area
            if progress is not None:
                progress(done, total)
            yield pixels

    jpeg = compression == "jpeg"
    with whole_file(path) as file, tifffile.TiffWriter(file, bigtiff=3 * total > MAX_CLASSIC_TIFF) as writer:
        for index, level in chosen:
            first = index == first_level
            resolution = _resolution(mpp_at(slide.mpp, level.downsample))
            writer.write(
                tiles(index, level),
                shape=(level.height, level.width, 3),
                dtype="uint8",
                photometric="rgb",  # of the tiles; the JPEG encoder converts them to YCbCr itself
                tile=(tile, tile),
                compression=compression,
                compressionargs={"level": quality} if jpeg else None,
                subsampling=(1, 1) if jpeg else None,
                predictor=None if jpeg else True,
                subfiletype=0
                if first
                else 1,  # 1: a reduced image, the only other pages that OpenSlide takes for levels
                description=_description(slide, level) if first else None,
                iccprofile=slide.icc_profile if first else None,
                software="histocodec" if first else False,
                metadata=None,
                buffersize=TIFF_BUFFER,
                resolution=resolution,
                resolutionunit=None if resolution is None else "CENTIMETER",
            )


def _tiles(slide: Slide, index: int, tile: int) -> Iterator[tuple[Region, Pixels]]:
    """The tiles of a level, row by row: the region that each covers, and its pixels (tile, tile, 3). At the far edges
    the last pixels are repeated, which costs JPEG less than a jump to white."""
    level = slide.levels[index]
    for y in range(0, level.height, tile):
        for x in range(0, level.width, READ_TILES * tile):
            strip = Region(x, y, READ_TILES * tile, tile).intersect(level.region)
            pixels = slide.read(strip, index)
            for left in range(x, strip.x_end, tile):
                region = Region(left, y, tile, tile).intersect(strip)
                padding = ((0, tile - region.height), (0, tile - region.width), (0, 0))
                yield region, np.pad(pixels[region.within(strip)], padding, mode="edge")


def _resolution(mpp: Mpp | None) -> tuple[float, float] | None:
    """Pixels per centimetre. None, for which tifffile writes that the unit is unknown, where `mpp` is not known or a
    fraction of two 32-bit integers cannot hold them."""
    if mpp is None:
        return None
    x, y = MICRONS_PER_CM / mpp[0], MICRONS_PER_CM / mpp[1]
    return (x, y) if all(1 / MAX_TERM < pixels < MAX_TERM for pixels in (x, y)) else None


def _description(slide: Slide, level: Level) -> str:
    """The description of the TIFF, with what TIFF has no tags for: microns per pixel and objective power."""
    parts, mpp = [f"{level.width}x{level.height}"], mpp_at(slide.mpp, level.downsample)
    if mpp is not None:
        parts.append(f"MPP = {mpp[0]:.6g} x {mpp[1]:.6g}")
    if slide.objective_power is not None:
        parts.append(f"AppMag = {slide.objective_power:g}")
    return "histocodec|" + "|".join(parts)
