"""A whole slide as DICOM (VL Whole Slide Microscopy Image, PS3.3 A.32.8): a folder with one series, an instance for
each level, and one each for label, overview and thumbnail where the container keeps them."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from histocodec.errors import UnsupportedError, UsageError
from histocodec.extras import requires_extra
from histocodec.formats.container.files import whole_folder
from histocodec.formats.export.dicom_dataset import Instance, Series, file_header, image_dataset
from histocodec.formats.export.losses import Loss
from histocodec.formats.export.order import Order
from histocodec.formats.export.tiles import TILE, tiles_of
from histocodec.slide import Pixels
from histocodec.threads import SHARED_WORKERS

if TYPE_CHECKING:
    from pydicom import Dataset

FLAVOURS = {"label": "LABEL", "macro": "OVERVIEW", "overview": "OVERVIEW", "thumbnail": "THUMBNAIL"}
MAX_BASIC = 2**32 - 1  # the largest offset of a basic offset table
MAX_FRAMES = 2**31 - 1
ITEM, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0" + bytes(4)
PIXEL_DATA = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
HTJ2K_STEP = 1.5  # of its quantiser at 0 dB, in parts of the range: 43.6 dB at a step of 0.01, 56.5 at 0.002


def write_dicom(order: Order, *, overwrite: bool) -> list[str]:
    """Writes the folder, which is complete or absent, and gives the names of associated images that DICOM has no place
    for. Frames go through a file beside it, so memory does not grow with the slide, but for 16 bytes for each frame.

    Raises UsageError where the resolution is not known, UnsupportedError without the extra `dicom`, OutputError, and
    FormatError where the slide cannot be read.
    """
    with requires_extra("dicom"):
        import pydicom  # noqa: F401 - asked for before any work
    if order.mpp is None:
        raise UsageError(
            f"{order.slide.name}: its resolution is not known, and DICOM demands one; give --mpp, in microns per pixel"
        )
    slide, series, encode = order.slide, Series(order), _encoder(order)
    total = sum(level.region.area for level in slide.levels)
    done = 0

    def frames(number: int) -> Iterator[bytes]:
        nonlocal done
        tiles = tiles_of(slide, number, TILE)
        areas: list[int] = []

        def pixels() -> Iterator[Pixels]:
            for region, tile in tiles:
                areas.append(region.area)
                yield tile

        for count, frame in enumerate(SHARED_WORKERS.map(encode, pixels())):
            done += areas[count]
            if order.progress is not None:
                order.progress(done, total)
            yield frame

    left_out = []
    with whole_folder(order.out, replace=overwrite) as folder:
        for number, level in enumerate(slide.levels):
            kind = ("DERIVED", "PRIMARY", "VOLUME", "NONE" if number == 0 else "RESAMPLED")
            instance = Instance(kind, number + 1, (level.width, level.height), (TILE, TILE), order.losses(number))
            _write(folder / f"level-{number}.dcm", series, instance, frames(number), order)
        taken: set[str] = set()
        for name in slide.associated:
            flavour = FLAVOURS.get(name.lower())
            if flavour is None or flavour in taken:
                left_out.append(name)
                continue
            taken.add(flavour)
            pixels = slide.associated[name]
            size = (pixels.shape[1], pixels.shape[0])
            kind = ("DERIVED", "PRIMARY", flavour, "RESAMPLED" if flavour == "THUMBNAIL" else "NONE")
            instance = Instance(kind, len(slide.levels) + len(taken), size, size, ())
            _write(folder / f"{flavour.lower()}.dcm", series, instance, iter([encode(pixels)]), order)
    return left_out


def _write(path: Path, series: Series, instance: Instance, frames: Iterator[bytes], order: Order) -> None:
    """Writes one instance. Its frames come first, to a temporary file: offsets and ratio stand before them."""
    with TemporaryFile(dir=path.parent) as spool:
        lengths = []
        for frame in frames:
            frame += b"\0" * (len(frame) % 2)
            lengths.append(len(frame))
            spool.write(ITEM + len(frame).to_bytes(4, "little") + frame)
        if len(lengths) > MAX_FRAMES:
            raise UsageError(f"{path}: {len(lengths)} frames; DICOM allows {MAX_FRAMES}")
        losses = instance.losses
        if order.quality is not None:
            raw = 3 * instance.frame[0] * instance.frame[1] * len(lengths)
            losses = (*losses, Loss(order.coding, _method(order.codec), raw / sum(lengths)))
        dataset = image_dataset(series, instance, len(lengths), losses)
        with path.open("xb") as file:
            _copy(file, dataset, spool, lengths)
            file.flush()
            os.fsync(file.fileno())


def _copy(file: BinaryIO, dataset: "Dataset", spool: BinaryIO, lengths: list[int]) -> None:
    """Writes header, data set, table of offsets and frames."""
    sizes = np.array(lengths, np.uint64)
    offsets = np.concatenate(([0], np.cumsum(sizes + 8)[:-1])).astype(np.uint64)
    basic = b""
    if int(offsets[-1]) <= MAX_BASIC:
        basic = offsets.astype("<u4").tobytes()
    else:
        dataset.ExtendedOffsetTable = offsets.astype("<u8").tobytes()
        dataset.ExtendedOffsetTableLengths = sizes.astype("<u8").tobytes()
    file_header(file, dataset)
    file.write(PIXEL_DATA + ITEM + len(basic).to_bytes(4, "little") + basic)
    spool.seek(0)
    shutil.copyfileobj(spool, file, 1 << 20)
    file.write(SEQUENCE_END)


def _encoder(order: Order) -> Callable[[Pixels], bytes]:
    """What turns (h, w, 3) uint8 into a frame."""
    import imagecodecs

    quality = order.quality
    if order.codec == "jpeg":
        return lambda pixels: bytes(imagecodecs.jpeg8_encode(pixels, level=int(quality or 0), subsampling="422"))
    if order.codec == "jpeg2000":
        options: dict[str, Any] = {"reversible": True} if quality is None else {"level": int(quality)}
        return lambda pixels: bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", mct=True, **options))
    if not getattr(getattr(imagecodecs, "HTJ2K", None), "available", False):
        raise UnsupportedError("HTJ2K needs a later version of imagecodecs: pip install 'imagecodecs>=2026.1.1'")
    if quality is None:
        return lambda pixels: bytes(imagecodecs.htj2k_encode(pixels, reversible=True))
    step = HTJ2K_STEP * 10 ** (-quality / 20)
    return lambda pixels: bytes(imagecodecs.htj2k_encode(pixels, level=step, reversible=False))


def _method(codec: str) -> str:
    """The standard of a lossy codec, as DICOM names it."""
    return {"jpeg": "ISO_10918_1", "jpeg2000": "ISO_15444_1", "htj2k": "ISO_15444_15"}[codec]
