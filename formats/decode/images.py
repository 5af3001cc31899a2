"""Pixels as ordinary image files: a region as PNG, JPEG, TIFF or NPY, a whole slide as a pyramidal TIFF.

A file is whole or absent: it is written under another name beside its place and renamed last.
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

MOST_PIXELS = 400_000_000  # of an image that is held in memory whole: 1.2 GB
JPEG_LONGEST = 65_500  # pixels on a side; libjpeg's limit
REGION_JPEG_QUALITY = 95
PYRAMID_JPEG_QUALITY = 90  # what scanners use, or better
REGION_TILE = 256
PYRAMID_TILE = 512  # a chunk of a container, so that each is decoded once
READ_TILES = 8  # tiles of a row that are read at once: 6 MiB
TIFF_BUFFER = 64 << 20  # bytes of tiles that tifffile collects for its threads; its own choice is 512 MiB
CLASSIC_TIFF = 3 << 30  # raw bytes; above it offsets might not fit in 32 bits, JPEG or not
MICRONS_PER_CM = 10_000.0
MICRONS_PER_INCH = 25_400.0

Report = Callable[[int, int], None]  # pixels done, pixels in all


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Whether a file of this name can be written and read as what its suffix says, before any work is done.
    Raises UsageError or OutputError."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: its name has to end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, where a file is to be written")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; --overwrite replaces it")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist")


def check_size(path: Path, width: int, height: int) -> None:
    """Whether an image of this size can be held in memory and written as what the suffix says."""
    if width * height > MOST_PIXELS:
        raise UsageError(
            f"{path}: {width}x{height} pixels are too many for one image in memory (at most "
            f"{MOST_PIXELS // 1_000_000} megapixels); write the whole slide as .tif, or choose a --region"
        )
    if path.suffix.lower() in JPEG_SUFFIXES and max(width, height) > JPEG_LONGEST:
        raise UsageError(f"{path}: {width}x{height}; a JPEG has at most {JPEG_LONGEST} pixels on a side")


def write_region(path: Path, pixels: Pixels, *, mpp: Mpp | None, icc: bytes | None) -> None:
    """One image, as its suffix says. The resolution and the ICC profile go in where the format has a place
    for them, which .npy has not. Replaces what is there. Raises UsageError or OutputError."""
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
    """PNG or JPEG, in memory: Pillow's encoders report a full disk in ways of their own."""
    from PIL import Image

    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if suffix == ".png":
        inches = {} if mpp is None else {"dpi": (MICRONS_PER_INCH / mpp[0], MICRONS_PER_INCH / mpp[1])}
        image.save(buffer, "PNG", icc_profile=icc, **inches)
    else:
        # In EXIF, as JFIF's 16 bits would overflow at 100,000 dots per inch.
        exif = Image.Exif()
        if mpp is not None:
            x_resolution, y_resolution, unit, centimetre = 282, 283, 296, 3
            exif[x_resolution], exif[y_resolution] = MICRONS_PER_CM / mpp[0], MICRONS_PER_CM / mpp[1]
            exif[unit] = centimetre
        image.save(buffer, "JPEG", quality=REGION_JPEG_QUALITY, subsampling=0, icc_profile=icc, exif=exif)
    return buffer.getbuffer()


def _write_tiff(file: BinaryIO, pixels: Pixels, mpp: Mpp | None, icc: bytes | None) -> None:
    import tifffile

    with tifffile.TiffWriter(file, bigtiff=pixels.nbytes > CLASSIC_TIFF) as writer:
        writer.write(
            pixels,
            photometric="rgb",
            tile=(REGION_TILE, REGION_TILE),
            compression="deflate",
            predictor=True,
            iccprofile=icc,
            software="histocodec",
            metadata=None,
            resolution=_resolution(mpp),
            resolutionunit=None if mpp is None else "CENTIMETER",
        )


def write_pyramid(
    path: Path,
    slide: Slide,
    *,
    first_level: int = 0,
    tile: int = PYRAMID_TILE,
    compression: str = "jpeg",
    quality: int = PYRAMID_JPEG_QUALITY,
    progress: Report | None = None,
) -> None:
    """A slide's levels, from `first_level` on, as a tiled TIFF that OpenSlide opens (as generic-tiff). A
    slide of one level gets derived ones. Streams: memory does not grow with the slide. `compression` is
    "jpeg", at `quality` and 4:4:4, or a lossless one of tifffile's, "deflate" say. Replaces what is there.
    Raises UsageError, OutputError, and SourceError where the slide cannot be read."""
    import tifffile

    check_output(path, overwrite=True)
    if path.suffix.lower() not in TIFF_SUFFIXES:
        raise UsageError(f"{path}: a pyramid is written as {' or '.join(TIFF_SUFFIXES)}")
    if tile < 16 or tile % 16:
        raise UsageError(f"a TIFF's tile is a multiple of 16 pixels, found {tile}")
    slide = with_pyramid(slide)
    if not 0 <= first_level < len(slide.levels):
        raise UsageError(f"{slide.name}: level {first_level} does not exist; it has 0 to {len(slide.levels) - 1}")
    chosen = list(enumerate(slide.levels))[first_level:]
    total = sum(level.region.area for _, level in chosen)
    done = 0

    def tiles(index: int, level: Level) -> Iterator[Pixels]:
        nonlocal done
        for piece, pixels in _tiles(slide, index, tile):
            done += piece.area
            if progress is not None:
                progress(done, total)
            yield pixels

    jpeg = compression == "jpeg"
    with whole_file(path) as file, tifffile.TiffWriter(file, bigtiff=3 * total > CLASSIC_TIFF) as writer:
        for index, level in chosen:
            first = index == first_level
            writer.write(
                tiles(index, level),
                shape=(level.height, level.width, 3),
                dtype="uint8",
                photometric="rgb",  # what the tiles are; JPEG turns them into YCbCr itself
                tile=(tile, tile),
                compression=compression,
                compressionargs={"level": quality} if jpeg else None,
                subsampling=(1, 1) if jpeg else None,
                predictor=None if jpeg else True,
                subfiletype=0 if first else 1,  # a reduced image: OpenSlide takes no other page for a level
                description=_description(slide, level) if first else None,
                iccprofile=slide.icc_profile if first else None,
                software="histocodec" if first else False,
                metadata=None,
                buffersize=TIFF_BUFFER,
                resolution=_resolution(mpp_at(slide.mpp, level.downsample)),
                resolutionunit=None if slide.mpp is None else "CENTIMETER",
            )


def _tiles(slide: Slide, index: int, tile: int) -> Iterator[tuple[Region, Pixels]]:
    """(what of the level it covers, (tile, tile, 3)) of a level's tiles, row by row. Those at the far edges
    are filled up with their last pixels, which JPEG takes better than a jump to white."""
    level = slide.levels[index]
    for y in range(0, level.height, tile):
        for x in range(0, level.width, READ_TILES * tile):
            strip = Region(x, y, READ_TILES * tile, tile).intersect(level.region)
            pixels = slide.read(strip, index)
            for left in range(x, strip.x_end, tile):
                piece = Region(left, y, tile, tile).intersect(strip)
                missing = ((0, tile - piece.height), (0, tile - piece.width), (0, 0))
                yield piece, np.pad(pixels[piece.within(strip)], missing, mode="edge")


def _resolution(mpp: Mpp | None) -> tuple[float, float] | None:
    """Pixels per centimetre. Where there is none, tifffile writes that the unit is unknown."""
    return None if mpp is None else (MICRONS_PER_CM / mpp[0], MICRONS_PER_CM / mpp[1])


def _description(slide: Slide, level: Level) -> str:
    """What TIFF has no tags for, in words."""
    parts, mpp = [f"{level.width}x{level.height}"], mpp_at(slide.mpp, level.downsample)
    if mpp is not None:
        parts.append(f"MPP = {mpp[0]:.6g} x {mpp[1]:.6g}")
    if slide.objective_power is not None:
        parts.append(f"AppMag = {slide.objective_power:g}")
    return "histocodec|" + "|".join(parts)
