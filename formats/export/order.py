"""What is to be exported and how, checked once: the kinds of export, their codecs and the range of each quality."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from histocodec.errors import UsageError
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.formats.export.losses import Loss, history, losses_of
from histocodec.slide import Mpp
from histocodec.sources.microns import checked_mpp

Kind = Literal["tiff", "ome-tiff", "dicom", "ome-zarr"]
Progress = Callable[[int, int], None]  # pixels done, pixels in all

SUFFIXES: dict[str, Kind] = {  # the first that fits
    ".ome.tif": "ome-tiff",
    ".ome.tiff": "ome-tiff",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".zarr": "ome-zarr",
    ".dicom": "dicom",
    ".dcm": "dicom",
}
KINDS: tuple[Kind, ...] = ("tiff", "ome-tiff", "dicom", "ome-zarr")
CODECS: dict[Kind, tuple[str, ...]] = {  # the first is the default
    "tiff": ("jpeg", "deflate"),
    "ome-tiff": ("jpeg", "deflate"),
    "dicom": ("jpeg", "jpeg2000", "htj2k"),
    "ome-zarr": ("zstd", "blosc"),
}
JPEG_QUALITY = 90.0  # at least what scanners use
RANGES = {"jpeg": (1, 100), "jpeg2000": (20, 70), "htj2k": (20, 70)}  # of the quality; the latter two in dB


@dataclass(frozen=True)
class Order:
    """A slide, the place for its export, and how its pixels are to be coded.

    `quality` is that of JPEG, 1–100, or the PSNR in dB that JPEG 2000 and HTJ2K aim at; None for lossless codecs. `mpp`
    is the slide's own, or what the user stated for a slide that has none.
    """

    slide: CompressedSlide
    out: Path
    kind: Kind
    codec: str
    quality: float | None
    mpp: Mpp | None
    progress: Progress | None = None

    @property
    def coding(self) -> str:
        """The codec in words."""
        names = {"jpeg": "JPEG", "deflate": "Deflate", "jpeg2000": "JPEG 2000", "htj2k": "HTJ2K"}
        name = names.get(self.codec, self.codec)
        if self.quality is None:
            return f"{name}, lossless"
        return f"{name} at quality {self.quality:g}" if self.codec == "jpeg" else f"{name} at {self.quality:g} dB"

    def losses(self, level: int) -> tuple[Loss, ...]:
        """What the container did to the pixels of a level."""
        return losses_of(self.slide, level)

    def history(self, level: int) -> str:
        """What the pixels of a level went through, for people."""
        return history(self.losses(level), self.coding)


def kind_of(out: Path) -> Kind:
    """The kind of export that a name stands for. Raises UsageError for a name that stands for none."""
    name = out.name.lower()
    for suffix, kind in SUFFIXES.items():
        if name.endswith(suffix) and name != suffix:
            return kind
    raise UsageError(
        f"{out}: the name says nothing of a format; end it in .ome.tif, .tif, .zarr or .dicom (a folder), or name the "
        f"--format: {', '.join(KINDS)}"
    )


def make_order(
    slide: CompressedSlide,
    out: Path,
    *,
    kind: Kind | None = None,
    codec: str | None = None,
    quality: float | None = None,
    mpp: float | Mpp | None = None,
    progress: Progress | None = None,
) -> Order:
    """An order with its defaults. Raises UsageError for a codec that the kind does not have, a quality that the codec
    does not have, and a resolution where the container states its own or that no microscope has."""
    kind = kind or kind_of(out)
    codec = codec or CODECS[kind][0]
    if codec not in CODECS[kind]:
        raise UsageError(f"{out}: {kind} with the codec {codec!r}; it can have {' or '.join(CODECS[kind])}")
    quality = _quality(codec, quality)
    if mpp is not None and slide.mpp is not None:
        raise UsageError(f"{slide.name}: states its own resolution, {slide.mpp[0]:g} µm per pixel; leave --mpp out")
    stated = slide.mpp if mpp is None else checked_mpp(mpp)
    return Order(slide, out, kind, codec, quality, stated, progress)


def _quality(codec: str, quality: float | None) -> float | None:
    if quality is None:
        return JPEG_QUALITY if codec == "jpeg" else None
    if codec not in RANGES:
        raise UsageError(f"quality {quality:g}: {codec} is lossless and has none; leave --quality out")
    low, high = RANGES[codec]
    if not low <= quality <= high or quality != round(quality):
        what = "" if codec == "jpeg" else ", a PSNR in dB"
        raise UsageError(f"quality {quality:g}; that of {codec} is a whole number from {low:g} to {high:g}{what}")
    return float(quality)
