"""Vendor files through OpenSlide: .svs, .ndpi, .mrxs, DICOM, Philips and generic tiled TIFF."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray
from openslide import OpenSlide, OpenSlideError
from PIL import ImageCms

from histocodec.errors import SourceError, UnsupportedError
from histocodec.geometry import Grid, Level, Region
from histocodec.slide import WHITE, BaseSlide, Colour, LazyImages, Mpp, Pixels, composited, known_mpp, known_power
from histocodec.sources.icc import BROKEN_PROFILE
from histocodec.sources.left_out import left_out, why_refused
from histocodec.sources.leica import address_after, leica_areas
from histocodec.sources.microns import printed_mpp, stated_mpp, stated_number
from histocodec.sources.pages import PageReader, SegmentCache
from histocodec.sources.tiff import open_tiff, tiled_pages

# OpenSlide takes level-0 coordinates. Where a level's downsample is not an integer, most of the level's pixels have no
# integer address, and OpenSlide interpolates between neighbours. Cairo rounds positions to 1/256 pixel, so that an
# address this close is exact.
EXACT = 1 / 512
SQUARE = (
    512  # pixels: such levels are read in fixed squares, so that pixels never depend on the region they are read in
)
MPP, POWER = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y), openslide.PROPERTY_NAME_OBJECTIVE_POWER
VENDORS_NAMES = {  # of what OpenSlide gives its own names, where it can be parsed
    MPP[0]: ("aperio.MPP",),
    MPP[1]: ("aperio.MPP",),
    POWER: (
        "aperio.AppMag", "huron.Objective", "leica.objective", "mirax.GENERAL.OBJECTIVE_MAGNIFICATION",
        "trestle.Objective Power", "ventana.Magnification",
    ),
}  # fmt: skip
PIECE = 4096  # pixels: OpenSlide cuts larger requests into pieces of this side, whose addresses it truncates
REACH = PIECE - SQUARE  # pixels of the level: how far before a square an exact address is looked for
PROBE = 256  # pixels: side of the corner in which tifffile has to agree with OpenSlide


class OpenSlideSlide(BaseSlide):
    """A slide that OpenSlide opens. Any region equals the crop of the whole level, bit for bit.

    Where the level's downsample is an integer, OpenSlide reads it so. Where it is not (TIFF pyramids of 9271 and 2317
    pixels), the level's TIFF page is decoded instead, if every tile of the file has bytes: what OpenSlide shows in
    place of an empty tile is its own affair. Where there is no such page, the level is read in fixed squares, each from
    the address that is nearest to integer pixels. Leica's areas are read one by one; see `leica.py`.

    A level that is at most 4096 pixels wide and high equals what OpenSlide gives for the whole level from (0, 0).
    Larger ones differ beyond that, because OpenSlide truncates the addresses of the pieces it reads them in.

    `mpp` and `background` take the place of what the file says. Raises UnsupportedError where OpenSlide cannot open
    the file.
    """

    def __init__(self, path: Path, *, mpp: Mpp | None = None, background: Colour | None = None) -> None:
        self._path = path
        self._handle = self._opened()
        self._handle_lock = threading.Lock()
        handle, properties = self._handle, dict(self._handle.properties)
        stated, power = stated_mpp(*(_stated(properties, key) for key in MPP)), _stated(properties, POWER)
        if properties.get(openslide.PROPERTY_NAME_VENDOR) == "generic-tiff":
            stated = printed_mpp(stated)  # OpenSlide reports the resolution tags, 72 dpi included
        profile, notes = _profile(handle)
        unknown = (*(MPP if stated and not known_mpp(stated) else ()), *(POWER,) * (known_power(power) is None))
        levels = tuple(
            Level(width, height, downsample)  # the vendor's downsample: sizes are rounded, 4 is not 4.0046
            for (width, height), downsample in zip(handle.level_dimensions, handle.level_downsamples, strict=True)
        )
        super().__init__(
            name=str(path),
            levels=levels,
            mpp=mpp or stated,
            objective_power=power,
            properties={key: value for key, value in properties.items() if key not in unknown},
            icc_profile=profile,
            background=background or _declared_background(properties),
            associated=LazyImages({key: self._associated_loader(key) for key in handle.associated_images}),
            notes=(*notes, *left_out(path, properties, levels)),
        )
        self._pages, self._areas, self._squares = self._exact_pages(), self._leica_areas(), SegmentCache()

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
            raise UnsupportedError(
                ". ".join(filter(None, (f"{self._path}: OpenSlide cannot open it: {exc}", why_refused(str(exc)))))
            ) from exc

    def _read_inside(self, region: Region, level: int) -> Pixels:
        downsample = self.levels[level].downsample
        if downsample.is_integer():
            step = int(downsample)
            return self._read_at(region.x * step, region.y * step, region, level)
        if (page := self._pages.get(level)) is not None:
            return page.read(region)
        if (areas := self._areas.get(level)) is not None:
            return self._read_areas(region, level, areas)
        return self._read_squares(region, level)

    def _read_squares(self, region: Region, level: int) -> Pixels:
        pixels = np.empty((region.height, region.width, 3), np.uint8)
        grid = Grid(self.levels[level].height, self.levels[level].width, SQUARE)
        for row, column in grid.squares_in(region):
            square, key = grid.region(row, column), (level, row, column)
            cached = self._squares.get(key)
            if cached is None:
                cached = self._read_square(square, level)
                self._squares.put(key, cached)
            part = square.intersect(region)
            pixels[part.within(region)] = cached[part.within(square)]
        return pixels

    def _read_square(self, square: Region, level: int) -> Pixels:
        downsample = self.levels[level].downsample
        x, y = _address(square.x, downsample), _address(square.y, downsample)
        widened = Region(x.pixel, y.pixel, square.x_end - x.pixel, square.y_end - y.pixel)
        try:
            pixels = self._read_at(x.level0, y.level0, widened, level)
        except SourceError:  # perhaps only of what lies before the square
            if widened == square:
                raise
            return self._read_at(round(square.x * downsample), round(square.y * downsample), square, level)
        return np.ascontiguousarray(pixels[square.within(widened)])

    def _read_areas(self, region: Region, level: int, areas: tuple[Region, ...]) -> Pixels:
        size, pixels = self.levels[level], np.empty((region.height, region.width, 3), np.uint8)
        pixels[...] = self.fill
        grid = Grid(size.height, size.width, PIECE)
        for area in areas:
            for row, column in grid.squares_in(area.intersect(region)):
                part = grid.region(row, column).intersect(area).intersect(region)
                x, y = address_after(part.x, size.downsample), address_after(part.y, size.downsample)
                pixels[part.within(region)] = self._read_at(x, y, part, level)
        return pixels

    def _read_at(self, x_level0: int, y_level0: int, region: Region, level: int) -> Pixels:
        """The pixels of `region` by one call of OpenSlide, which gets level-0 coordinates.

        Raises SourceError."""
        return composited(self._rgba_at(x_level0, y_level0, region, level), self.fill)

    def _rgba_at(self, x_level0: int, y_level0: int, region: Region, level: int) -> NDArray[np.uint8]:
        """The same with alpha. An error makes an OpenSlide handle useless for good, and it may have been another
        thread's error. Therefore a second attempt is made with a handle of its own."""
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
        return np.asarray(image)

    def _fractional_levels(self) -> list[int]:
        return [number for number, level in enumerate(self.levels) if not level.downsample.is_integer()]

    def _leica_areas(self) -> dict[int, tuple[Region, ...]]:
        """For each level of a Leica slide without an integer downsample, its areas, if they lie apart."""
        areas: dict[int, tuple[Region, ...]] = {}
        if self.properties.get(openslide.PROPERTY_NAME_VENDOR) == "leica":
            for level in self._fractional_levels():
                try:
                    found = leica_areas(self.properties, self.levels[level], partial(self._rgba_at, level=level))
                except SourceError:
                    continue
                if found is not None:
                    areas[level] = found
        return areas

    def _exact_pages(self) -> dict[int, PageReader]:
        """For each level without an integer downsample, the TIFF page that holds it, if tifffile gives the same pixels
        as OpenSlide. None where a tile has no bytes: OpenSlide shows the level above there, in that tile and in those
        of smaller levels that cover it."""
        fractional = self._fractional_levels()
        self._tiff = None
        if not fractional:
            return {}
        try:
            self._tiff = open_tiff(self._path)
            candidates = tiled_pages(self._tiff)
        except Exception:  # MRXS, DICOM or a broken directory: OpenSlide alone reads it
            return {}
        if any(not all(page.dataoffsets) or not all(page.databytecounts) for page in candidates):
            return {}
        pages, cache = {}, SegmentCache()
        for level in fractional:
            corner = self.levels[level].region.intersect(Region(0, 0, PROBE, PROBE))
            try:
                expected = self._read_at(0, 0, corner, level)  # the origin is exact whatever the downsample
            except SourceError:  # a damaged corner; the rest of the level may be sound
                continue
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
    for candidate in range(pixel, max(-1, pixel - REACH - 1), -1):
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


def _stated(properties: Mapping[str, str], key: str) -> float | None:
    """A number by OpenSlide's name for it, else by the vendor's; NaN for a text, which OpenSlide passes over."""
    texts = (properties.get(name) for name in (key, *VENDORS_NAMES[key]))
    return stated_number(next((text for text in texts if text), None))


def _declared_background(properties: Mapping[str, str]) -> Colour | None:
    """The background colour, which OpenSlide writes as RRGGBB."""
    text = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "")
    try:
        red, green, blue = bytes.fromhex(text)
    except ValueError:
        return None
    return red, green, blue
