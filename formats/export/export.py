"""Exporting a compressed slide: checks first, then the writer of its kind."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from histocodec.errors import OutputError, UsageError
from histocodec.formats.container.files import file_bytes
from histocodec.formats.container.read import is_container
from histocodec.formats.container.store import Location
from histocodec.formats.decode.ome_zarr import VERSIONS, NgffVersion
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.formats.export.order import Kind, Order, Progress, make_order
from histocodec.slide import Mpp

ZARR_ROOTS = ("zarr.json", ".zgroup", ".zattrs")


@dataclass(frozen=True)
class Exported:
    """What was written: the place, its kind, codec and quality, bytes, levels, associated images, microns per pixel of
    level 0, and sentences on what the format could not take."""

    path: Path
    kind: Kind
    codec: str
    quality: float | None
    bytes: int
    levels: int
    associated: tuple[str, ...]
    mpp: Mpp | None
    history: str
    notes: tuple[str, ...]


def export(
    slide: CompressedSlide | Location,
    out: str | Path,
    *,
    kind: Kind | None = None,
    codec: str | None = None,
    quality: float | None = None,
    mpp: float | Mpp | None = None,
    ngff: NgffVersion = "0.5",
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> Exported:
    """Writes a compressed slide, open or given by its path or URL, as a file or folder that other programs open.

    The kind follows from the name: `.tif` a pyramidal TIFF, `.ome.tif` an OME-TIFF, `.zarr` an OME-Zarr image, `.dicom`
    a folder of DICOM files; `kind` names it. `codec` and `quality` are those of `histocodec export`, `ngff` the version
    of OME-Zarr. `mpp` states a resolution where the container has none. The output is complete or absent; with
    `overwrite` it takes the place of an export of its kind. Metadata say what the pixels went through.

    Raises UsageError for options that do not fit together, OutputError where `out` cannot be written or exists,
    UnsupportedError without the extra `dicom`, and what opening and reading the slide raise.
    """
    if not isinstance(slide, CompressedSlide):
        with open_compressed(slide, device=device) as opened:
            return export(
                opened, out, kind=kind, codec=codec, quality=quality, mpp=mpp, ngff=ngff, overwrite=overwrite,
                progress=progress,
            )  # fmt: skip
    order = make_order(slide, Path(out), kind=kind, codec=codec, quality=quality, mpp=mpp, progress=progress)
    if ngff not in VERSIONS:
        raise UsageError(f"version {ngff!r} of OME-Zarr; {' and '.join(VERSIONS)} can be given")
    check_place(order, overwrite=overwrite)
    left_out = _write(order, ngff, overwrite)
    written = order.out.stat().st_size if order.out.is_file() else file_bytes(order.out)
    images = () if order.kind == "tiff" else tuple(name for name in slide.associated if name not in left_out)
    return Exported(
        order.out,
        order.kind,
        order.codec,
        order.quality,
        written,
        len(slide.levels),
        images,
        order.mpp,
        order.history(0),
        tuple(_notes(order, left_out)),
    )


def _write(order: Order, ngff: NgffVersion, overwrite: bool) -> list[str]:
    """Writes the output, and gives the names of the associated images that were left out."""
    if order.kind == "dicom":
        from histocodec.formats.export.dicom import write_dicom

        return write_dicom(order, overwrite=overwrite)
    if order.kind == "ome-zarr":
        from histocodec.formats.export.ome_zarr import write_ome_zarr

        write_ome_zarr(order, version=ngff, overwrite=overwrite)
        return []
    from histocodec.formats.export.tiff import write_ome_tiff, write_pyramid

    if order.kind == "ome-tiff":
        write_ome_tiff(order)
        return []
    write_pyramid(
        order.out,
        order.slide,
        compression=order.codec,
        quality=int(order.quality or 0),
        mpp=order.mpp,
        history=order.history(0),
        progress=order.progress,
    )
    return list(order.slide.associated)


def _notes(order: Order, left_out: list[str]) -> list[str]:
    notes = []
    if order.mpp is None:
        notes.append("the resolution is not known, and the export states none; --mpp gives it")
    if left_out:
        notes.append(f"associated images were left out, for which the format has no place: {', '.join(left_out)}")
    if order.kind == "dicom" and order.slide.icc_profile is None:
        notes.append("the slide has no ICC profile; DICOM demands one, so its pixels are said to be sRGB")
    return notes


def check_place(order: Order, *, overwrite: bool) -> None:
    """Raises OutputError where the output cannot be written, or where something lies that is no export of its kind: to
    be called before any work is done."""
    out = order.out
    if not out.parent.is_dir():
        raise OutputError(f"{out}: the folder {out.parent} does not exist")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise OutputError(f"{out}: exists already; --overwrite replaces it")
    if order.kind in ("tiff", "ome-tiff"):
        if not out.is_file() or is_container(out):
            raise OutputError(f"{out}: is no TIFF, so --overwrite leaves it alone; remove it yourself")
        return
    if out.is_symlink() or not out.is_dir() or is_container(out) or not _is_export(out, order.kind):
        what = "folder of DICOM files" if order.kind == "dicom" else "OME-Zarr image"
        raise OutputError(f"{out}: is no {what}, so --overwrite leaves it alone; remove it yourself")


def _is_export(folder: Path, kind: Kind) -> bool:
    """Whether a folder holds nothing but DICOM files, or is a Zarr group."""
    with os.scandir(folder) as entries:
        if kind == "dicom":
            return all(
                entry.name.endswith(".dcm") and stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode)
                for entry in entries
            )
        return any(entry.name in ZARR_ROOTS for entry in entries)
