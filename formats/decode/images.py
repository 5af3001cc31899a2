"""A region of pixels as an ordinary image file: PNG, JPEG, TIFF or NPY.

A file is whole or absent: it is written under a temporary name beside its place, and renamed last.
"""

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np

from histocodec.errors import OutputError, UsageError
from histocodec.formats.container.files import whole_file
from histocodec.slide import Mpp, Pixels

TIFF_SUFFIXES = (".tif", ".tiff")
JPEG_SUFFIXES = (".jpg", ".jpeg")
SUFFIXES = (".png", *JPEG_SUFFIXES, *TIFF_SUFFIXES, ".npy")

MAX_PIXELS = 400_000_000  # of an image that is held in memory as a whole: 1.2 GB
MAX_JPEG_SIDE = 65_500  # pixels; libjpeg's limit
REGION_JPEG_QUALITY = 95
REGION_TILE = 256
MAX_CLASSIC_TIFF = 3 << 30  # raw bytes; with more, offsets might not fit in 32 bits, even compressed
MICRONS_PER_CM = 10_000.0
MICRONS_PER_METRE = 1e6
METRES_PER_INCH = 0.0254
MAX_PNG_INTEGER = 2**31 - 1  # of the pixels per metre in a PNG
MAX_TERM = 2**32 - 1  # of the fractions that TIFF and EXIF have for a resolution


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
        if (resolution := resolution_tags(mpp)) is not None:
            x_resolution, y_resolution, unit, centimetre = 282, 283, 296, 3
            exif[x_resolution], exif[y_resolution] = resolution
            exif[unit] = centimetre
        image.save(buffer, "JPEG", quality=REGION_JPEG_QUALITY, subsampling=0, icc_profile=icc, exif=exif)
    return buffer.getbuffer()


def _write_tiff(file: BinaryIO, pixels: Pixels, mpp: Mpp | None, icc: bytes | None) -> None:
    import tifffile

    resolution = resolution_tags(mpp)
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


def resolution_tags(mpp: Mpp | None) -> tuple[float, float] | None:
    """Pixels per centimetre. None, for which tifffile writes that the unit is unknown, where `mpp` is not known or a
    fraction of two 32-bit integers cannot hold them."""
    if mpp is None:
        return None
    x, y = MICRONS_PER_CM / mpp[0], MICRONS_PER_CM / mpp[1]
    return (x, y) if all(1 / MAX_TERM < pixels < MAX_TERM for pixels in (x, y)) else None
