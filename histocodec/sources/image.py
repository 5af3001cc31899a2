"""Ordinary images through Pillow: PNG, JPEG, WebP, AVIF, BMP and the like. The whole image is held in memory.

Pixels are as the file stores them. An EXIF orientation is not applied, since no slide reader turns a slide and
coordinates would no longer be the file's; the properties have it as `exif.Orientation`. The dots per inch in such files
are a printer's or a default, so that `mpp` is None unless the user gives it. Of an animation, the first frame is read.
"""

import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from histocodec.errors import SourceError, UnsupportedError
from histocodec.slide import WHITE, Colour, Mpp, Pixels, composited
from histocodec.sources.array import ArraySlide
from histocodec.sources.icc import BROKEN_PROFILE, is_profile

OPAQUE_MODES = ("RGB", "L", "P", "1", "YCbCr", "RGBX")
ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


class UnidentifiedError(UnsupportedError):
    """Pillow does not recognise the file as an image."""


def open_image(path: Path, *, mpp: Mpp | None = None, background: Colour | None = None) -> ArraySlide:
    """Open an image as a slide of one level. Transparent pixels are laid over `background`, or over white.

    Raises UnidentifiedError where Pillow does not recognise the file, UnsupportedError for an image that is too large
    or not 8-bit RGB, grey or palette, and SourceError where it cannot be read to its end.
    """
    try:
        with warnings.catch_warnings():
            # Between one and two times Pillow's limit it only warns; ours is where it raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except Image.DecompressionBombError as exc:
        raise UnsupportedError(
            f"{path}: the image is too large to be held in memory ({exc}). Save it as a tiled TIFF, "
            "or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from exc
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as exc:
        raise UnidentifiedError(f"{path}: is no image that Pillow reads: {exc}") from exc
    with image:
        pixels = _pixels(image, path, background or WHITE)
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        properties = {"image.format": str(image.format), "image.mode": image.mode}
        if orientation is not None:
            properties["exif.Orientation"] = str(orientation)
        profile, animated = image.info.get("icc_profile"), _is_animated(image)
    notes = [BROKEN_PROFILE] if profile and not is_profile(profile) else []
    if animated:
        notes.append("the file has further images (frames), which are not read")
    slide = ArraySlide(
        pixels,
        name=str(path),
        axes="yxc",
        mpp=mpp,
        background=background,
        properties=properties,
        icc_profile=profile if isinstance(profile, bytes) and is_profile(profile) else None,
        notes=notes,
    )
    slide.read_whole = True
    return slide


def _is_animated(image: Image.Image) -> bool:
    with suppress(OSError, ValueError, SyntaxError):  # a damaged second frame is no matter
        return bool(getattr(image, "is_animated", False))
    return False


def _pixels(image: Image.Image, path: Path, fill: Colour) -> Pixels:
    if image.mode not in OPAQUE_MODES + ALPHA_MODES:
        raise UnsupportedError(
            f"{path}: the image has Pillow's mode {image.mode}; 8-bit RGB, grey and palette are read"
        )
    bits = _bits_per_sample(image, path)
    if bits > 8:
        raise UnsupportedError(f"{path}: the image has {bits} bits a sample; only 8 (uint8) are read")
    try:
        image.load()
    except (OSError, ValueError, SyntaxError) as exc:
        raise SourceError(f"{path}: the image cannot be read to its end: {exc}") from exc
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        return composited(np.asarray(image.convert("RGBA")), fill)
    return np.asarray(image.convert("RGB"))


def _bits_per_sample(image: Image.Image, path: Path) -> int:
    """The bits per sample in the file. Pillow cuts deeper samples to 8 bits without saying so."""
    if image.format == "PNG":  # the raw mode of a tile, such as "RGB;16B"; the rest of a tile is sizes and offsets
        return 16 if any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) else 8
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if image.format == "JPEG2000":
        size_marker = head.find(b"\xff\x51")  # SIZ; its first component's depth is 40 bytes on, less one
        if 0 <= size_marker < len(head) - 40:
            return (head[size_marker + 40] & 0x7F) + 1
    if image.format == "AVIF":
        config = head.find(b"av1C")  # the third byte after it has the flag "high bit depth"
        if 0 <= config < len(head) - 6:
            return 10 if head[config + 6] & 0x40 else 8
    return 8
