"""Vendor files through OpenSlide: .svs, .ndpi, .mrxs, DICOM, Philips and generic tiled TIFF."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
from openslide import OpenSlide, OpenSlideError
from PIL import ImageCms

from histocodec.errors import SourceError, UnsupportedError
from histocodec.geometry import Grid, Region
from histocodec.slide import WHITE, BaseSlide, Colour, LazyImages, Mpp, Pixels, composited, pyramid_levels
from histocodec.sources.icc import BROKEN_PROFILE
from histocodec.sources.microns import printed_mpp, stated_mpp
from histocodec.sources.pages import PageReader, SegmentCache
from histocodec.sources.tiff import open_tiff, tiled_pages

# OpenSlide takes level-0 coordinates. Where a level's downsample is not an integer, most of the level's pixels have no
# integer address, and OpenSlide interpolates between neighbours. Cairo rounds positions to 1/256 pixel, so that an
# address this close is exact.
EXACT = 1 / 512
SQUARE = (
    512  # pixels: such levels are read in fixed squares, so that pixels never depend on the region they are read in
)
REACH = 1024  # pixels of the level: how far before a square an exact address is looked for
PROBE = 256  # pixels: side of the corner in which tifffile has to agree with OpenSlide


class OpenSlideSlide(BaseSlide):
    """A slide that OpenSlide opens. Any region equals the crop of the whole level, bit for bit.

    Where the level's downsample is an integer, OpenSlide reads it so. Where it is not (TIFF pyramids of 9271 and 2317
    pixels), the level's TIFF page is decoded instead; where there is no such page, the level is read in fixed squares,
    each from the address that is nearest to integer pixels.

    `mpp` and `background` take the place of what the file says. Raises UnsupportedError where OpenSlide cannot open
    the file.
    """

    def __init__(self, path: Path, *, mpp: Mpp | None = None, background: Colour | None = None) -> None:
        self._path = path
        self._handle = self._opened()
        self._handle_lock = threading.Lock()
        handle, properties = self._handle, dict(self._handle.properties)
        stated = stated_mpp(
            _number(properties, openslide.PROPERTY_NAME_MPP_X), _number(properties, openslide.PROPERTY_NAME_MPP_Y)
        )
        if properties.get(openslide.PROPERTY_NAME_VENDOR) == "generic-tiff":
            stated = printed_mpp(stated)  # OpenSlide reports the resolution tags, 72 dpi included
        profile, notes = _profile(handle)
        super().__init__(
            name=str(path),
            levels=pyramid_levels(list(handle.level_dimensions)),
            mpp=mpp or stated,
            objective_power=_number(properties, openslide.PROPERTY_NAME_OBJECTIVE_POWER),
            properties=properties,
            icc_profile=profile,
            background=background or _declared_background(properties),
            associated=LazyImages({key: self._associated_loader(key) for key in handle.associated_images}),
            notes=notes,
        )
        self._downsamples = handle.level_downsamples
        self._pages = self._exact_pages()

    @staticmethod
    def detect(path: Path) -> str | None:
        """OpenSlide's name for the file's format, or None where OpenSlide does not read it."""
        try:
            return OpenSlide.detect_format(path)
        except (OpenSlideError, OSError):
            return None

    def _opened(self) -> OpenSlide:
        try:
            return OpenSlide(self._path)
        except (OpenSlideError, OSError) as exc:
            raise UnsupportedError(f"{self._path}: OpenSlide cannot open it: {exc}") from exc

    def _read_inside(self, region: Region, level: int) -> Pixels:
        if self._downsamples[level].is_integer():
            step = int(self._downsamples[level])
            return self._read_at(region.x * step, region.y * step, region, level)
        page = self._pages.get(level)
        if page is not None:
            return page.read(region)
        return self._read_squares(region, level)

    def _read_squares(self, region: Region, level: int) -> Pixels:
        pixels = np.empty((region.height, region.width, 3), np.uint8)
        size, downsample = self.levels[level], self._downsamples[level]
        grid = Grid(size.height, size.width, SQUARE)
        for row, column in grid.squares_in(region):
            square = grid.region(row, column)
            x, y = _address(square.x, downsample), _address(square.y, downsample)
            widened = Region(x.pixel, y.pixel, square.x_end - x.pixel, square.y_end - y.pixel)
            part = square.intersect(region)
            pixels[part.within(region)] = self._read_at(x.level0, y.level0, widened, level)[part.within(widened)]
        return pixels

    def _read_at(self, x_level0: int, y_level0: int, region: Region, level: int) -> Pixels:
        """The pixels of `region` by one call of OpenSlide, which gets level-0 coordinates.

        An error makes an OpenSlide handle useless for good, and it may have been another thread's error. Therefore a
        second attempt is made with a handle of its own."""
        request = ((x_level0, y_level0), level, (region.width, region.height))
        try:
            image = self._handle.read_region(*request)
        except (OpenSlideError, OSError):
            fresh = self._opened()
            try:
                image = fresh.read_region(*request)
            except (OpenSlideError, OSError) as exc:
                fresh.close()
                raise SourceError(f"{self.name}: level {level}, region {region} cannot be read: {exc}") from exc
            with self._handle_lock:
                self._handle = fresh  # the broken handle is freed when no thread uses it any more
        return composited(np.asarray(image), self.fill)

    def _exact_pages(self) -> dict[int, PageReader]:
        """For each level without an integer downsample, the TIFF page that holds it, if tifffile gives the same pixels
        as OpenSlide."""
        fractional = [level for level, step in enumerate(self._downsamples) if not step.is_integer()]
        self._tiff = None
        if not fractional:
            return {}
        try:
            self._tiff = open_tiff(self._path)
            candidates = tiled_pages(self._tiff)
        except Exception:  # MRXS, DICOM or a broken directory: OpenSlide alone reads it
            return {}
        pages, cache = {}, SegmentCache()
        for level in fractional:
            corner = self.levels[level].region.intersect(Region(0, 0, PROBE, PROBE))
            expected = self._read_at(0, 0, corner, level)  # the origin is exact whatever the downsample
            for page in candidates:
                if (page.imagewidth, page.imagelength) != (
                    self.levels[level].width,
                    self.levels[level].height,
                ):
                    continue
                try:
                    reader = PageReader(page, name=self.name, fill=self.fill, cache=cache)
                    agrees = np.array_equal(reader.read(corner), expected)
                except (SourceError, UnsupportedError):
                    continue
                if agrees:
                    pages[level] = reader
                    break
        return pages

    def _associated_loader(self, key: str) -> Callable[[], Pixels]:
        def load() -> Pixels:
            try:
                image = self._handle.associated_images[key]
            except OpenSlideError as exc:
                raise SourceError(f"{self.name}: the associated image {key!r} cannot be read: {exc}") from exc
            return composited(np.asarray(image), WHITE)

        return load

    def close(self) -> None:
        """See `Slide.close`."""
        self._handle.close()
        if self._tiff is not None:
            self._tiff.close()


@dataclass(frozen=True)
class _Address:
    """A pixel of a level on one axis, and the level-0 coordinate by which OpenSlide is asked for it."""

    pixel: int
    level0: int


def _address(pixel: int, downsample: float) -> _Address:
    """The nearest exact address at or before `pixel`, else the most exact one within `REACH`."""
    best, smallest = _Address(pixel, round(pixel * downsample)), 1.0
    for candidate in range(pixel, max(-1, pixel - REACH), -1):
        level0 = round(candidate * downsample)
        error = abs(level0 / downsample - candidate)
        if error < smallest:
            best, smallest = _Address(candidate, level0), error
        if error < EXACT:
            break
    return best


def _profile(handle: OpenSlide) -> tuple[bytes | None, tuple[str, ...]]:
    """The ICC profile, and a note where it is damaged."""
    try:
        profile = handle.color_profile
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None, (BROKEN_PROFILE,)
    return None if profile is None else profile.tobytes(), ()


def _number(properties: Mapping[str, str], key: str) -> float | None:
    try:
        return float(properties[key])
    except (KeyError, ValueError):
        return None


def _declared_background(properties: Mapping[str, str]) -> Colour | None:
    """The background colour, which OpenSlide writes as RRGGBB."""
    text = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "")
    try:
        red, green, blue = bytes.fromhex(text)
    except ValueError:
        return None
    return red, green, blue
