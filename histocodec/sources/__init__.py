"""Sources of slides: `open_slide` finds the reader for a file or folder."""

import os
from pathlib import Path

from histocodec.errors import UnsupportedError, UsageError
from histocodec.slide import Colour, Mpp, Slide
from histocodec.sources.array import ArraySlide, open_zarr
from histocodec.sources.dicom import check_folder, dicom_in
from histocodec.sources.dicom_slide import DicomSlide
from histocodec.sources.image import UnidentifiedError, open_image
from histocodec.sources.left_out import why_refused
from histocodec.sources.microns import checked_mpp
from histocodec.sources.openslide import OpenSlideSlide
from histocodec.sources.pyramid import DerivedPyramid, with_pyramid
from histocodec.sources.tiff import TiffSlide, is_plain

__all__ = ["ArraySlide", "DerivedPyramid", "OpenSlideSlide", "TiffSlide", "open_slide", "with_pyramid"]

READABLE = (
    "whole-slide files that OpenSlide reads (.svs, .ndpi, .mrxs, .scn, .bif, DICOM, …), TIFF and OME-TIFF, "
    "PNG, JPEG, JPEG 2000, WebP, AVIF, BMP, Zarr arrays and OME-Zarr"
)
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, either byte order
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")


def open_slide(
    path: str | Path, *, mpp: float | tuple[float, float] | None = None, background: Colour | None = None
) -> Slide:
    """Open a slide of any kind. `mpp` (microns per pixel of level 0) and `background` take the place of what the file
    says. Raises UsageError where the path does not exist, and UnsupportedError where no source reads it."""
    path = Path(path)
    stated = None if mpp is None else checked_mpp(mpp)
    if not path.exists():
        raise UsageError(f"{path}: does not exist")
    if not (path.is_file() or path.is_dir()):
        raise UnsupportedError(f"{path}: is a pipe or a device. Readable are: {READABLE}")
    if path.is_dir():
        if any(os.path.lexists(path / name) for name in ZARR_FILES):
            return open_zarr(path, mpp=stated, background=background)
        path = _slide_in(path)
    if path.stat().st_size == 0:
        raise UnsupportedError(f"{path}: is empty. Readable are: {READABLE}")
    vendor = OpenSlideSlide.detect(path)
    if vendor == "dicom":
        check_folder(path)
        return _open_dicom(path, stated, background)
    if vendor is not None and not (vendor == "generic-tiff" and not is_plain(path)):
        return OpenSlideSlide(path, mpp=stated, background=background)
    if _starts_as_tiff(path):
        return TiffSlide(path, mpp=stated, background=background)
    try:
        return open_image(path, mpp=stated, background=background)
    except UnidentifiedError as exc:
        raise UnsupportedError(f"{path}: is no slide or image. Readable are: {READABLE}") from exc


def _slide_in(folder: Path) -> Path:
    """The file to open for a folder: the .mrxs file beside its data, or one file of the DICOM series in it."""
    mrxs = folder.with_name(folder.name + ".mrxs")
    if mrxs.is_file():
        return mrxs
    dicom = dicom_in(folder, lambda file: OpenSlideSlide.detect(file) == "dicom")
    if dicom is not None:
        return dicom
    raise UnsupportedError(
        f"{folder}: is a folder without Zarr metadata or DICOM files, and no slide. Readable are: {READABLE}"
    )


def _open_dicom(path: Path, mpp: Mpp | None, background: Colour | None) -> Slide:
    """Through OpenSlide, and through wsidicom where OpenSlide refuses frames of that kind. Focal planes it refuses for
    a reason: which of them is meant, only the user knows."""
    try:
        return OpenSlideSlide(path, mpp=mpp, background=background)
    except UnsupportedError as refused:
        if why_refused(str(refused)):
            raise
        try:
            return DicomSlide(path, mpp=mpp, background=background)
        except UnsupportedError as exc:
            raise UnsupportedError(f"{refused}. {exc}") from exc


def _starts_as_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in TIFF_MAGICS
