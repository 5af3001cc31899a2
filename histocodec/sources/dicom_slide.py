"""DICOM slides that OpenSlide refuses, such as those with HTJ2K frames, through wsidicom (the extra `dicom`)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocodec.errors import HistocodecError, SourceError, UnsupportedError
from histocodec.extras import requires_extra
from histocodec.geometry import Region
from histocodec.slide import BaseSlide, Colour, LazyImages, Mpp, Pixels, pyramid_levels
from histocodec.sources.dicom import series_files
from histocodec.sources.icc import is_profile

if TYPE_CHECKING:
    from wsidicom import WsiDicom

VENDOR = "dicom"  # as OpenSlide names it


class DicomSlide(BaseSlide):
    """A series of VL Whole Slide Microscopy Images: the files of the same series in the folder of `path`. Of several
    optical paths and focal planes the default ones are read.

    Raises UnsupportedError where wsidicom is not installed or cannot open the series, or where it is not 8-bit RGB.
    """

    def __init__(self, path: Path, *, mpp: Mpp | None = None, background: Colour | None = None) -> None:
        with requires_extra("dicom"):
            from wsidicom import WsiDicom
        files = series_files(path)
        with _foreign(f"{path}: wsidicom cannot open the series", UnsupportedError):
            opened = WsiDicom.open(files)
        try:
            with _foreign(f"{path}: is no slide that can be read", UnsupportedError):
                super().__init__(name=str(path), **_facts(opened, path, mpp, background))
                self._numbers = [level.level for level in opened.levels]
        except BaseException:
            opened.close()
            raise
        self._slide = opened

    def _read_inside(self, region: Region, level: int) -> Pixels:
        with _foreign(f"{self.name}: level {level} at {region.x},{region.y} cannot be read", SourceError):
            pixels = self._slide.read_region(
                (region.x, region.y), self._numbers[level], (region.width, region.height), as_array=True
            )
        return np.asarray(pixels, np.uint8)

    def close(self) -> None:
        """See `Slide.close`."""
        self._slide.close()


def _facts(opened: "WsiDicom", path: Path, mpp: Mpp | None, background: Colour | None) -> dict[str, Any]:
    """What `BaseSlide` wants to know of a series."""
    levels = opened.levels
    image = levels[0].default_instance.image_data
    if image.samples_per_pixel != 3 or image.bits != 8:
        found = f"{image.samples_per_pixel} samples of {image.bits} bits"
        raise UnsupportedError(f"{path}: has {found} per pixel; 8-bit RGB is supported")
    power, profile = _optics(opened)
    images = {}
    if opened.labels:
        images["label"] = partial(_image, opened.read_label)
    if opened.overviews:
        images["macro"] = partial(_image, opened.read_overview)
    counts = {"focal planes": len(levels[0].focal_planes), "optical paths": len(levels[0].optical_paths)}
    size = levels[0].mpp
    return {
        "levels": pyramid_levels([(level.size.width, level.size.height) for level in levels]),
        "mpp": mpp or (size.width, size.height),
        "objective_power": power,
        "properties": {"openslide.vendor": VENDOR},
        "icc_profile": profile,
        "background": background,
        "associated": LazyImages(images),
        "notes": [f"{count - 1} further {kind} are not read" for kind, count in counts.items() if count > 1],
    }


def _optics(opened: "WsiDicom") -> tuple[float | None, bytes | None]:
    """Objective power and ICC profile. Odd metadata must cost nobody the pixels."""
    with suppress(Exception):
        path = opened.levels[0].default_instance.dataset.as_dataset().OpticalPathSequence[0]
        power, profile = path.get("ObjectiveLensPower"), path.get("ICCProfile")
        return None if power is None else float(power), profile if profile and is_profile(profile) else None
    return None, None


def _image(read: Callable[..., Any]) -> Pixels:
    """Label or overview."""
    with _foreign("an associated image cannot be read", SourceError):
        return np.asarray(read(as_array=True), np.uint8)


@contextmanager
def _foreign(message: str, error: type[HistocodecError]) -> Iterator[None]:
    """Turns whatever wsidicom and pydicom raise, which are many kinds, into one of our errors."""
    try:
        yield
    except (HistocodecError, MemoryError):
        raise
    except Exception as exc:
        raise error(f"{message}: {type(exc).__name__}: {exc}") from exc
