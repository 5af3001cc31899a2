"""Vendor files through OpenSlide: .svs, .ndpi, .mrxs, DICOM, Philips and generic tiled TIFF."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
from openslide import OpenSlide, OpenSlideError

from histocodec.errors import SourceError, UnsupportedError
from histocodec.geometry import Grid, Region
from histocodec.slide import WHITE, BaseSlide, Colour, LazyImages, Mpp, Pixels, composited, pyramid_levels
from histocodec.sources.microns import printed_mpp, stated_mpp
from histocodec.sources.pages import PageReader, SegmentCache
from histocodec.sources.tiff import open_tiff, tiled_pages

# Where OpenSlide has to be given level-0 coordinates and a level's downsample is no integer, most of the
# level's pixels have no integer address, and OpenSlide interpolates between its neighbours. Cairo rounds
# positions to 1/256 pixel, so an address this close is exact.
EXACT = 1 / 512
BLOCK = 512  # the unit in which such levels are read, so that a region never depends on how it was asked for
REACH = 1024  # how far before a block an exact address is looked for, in the level's pixels
PROBE = 256  # side of the corner in which tifffile has to agree with OpenSlide


class OpenSlideSlide(BaseSlide):
    """A slide that OpenSlide opens. Any region equals the crop of the whole level, bit for bit: directly
    where the level's downsample is an integer; by decoding the level's TIFF page where it is not (TIFF
    pyramids of 9271 and 2317 pixels); else in fixed blocks, each from the address nearest to whole pixels."""

    def __init__(self, path: Path, *, mpp: Mpp | None = None, background: Colour | None = None) -> None:
        self._path = path
        self._handle = self._opened()
        self._handle_lock = threading.Lock()
        handle, stated = self._handle, dict(self._handle.properties)
        own = stated_mpp(_number(stated, openslide.PROPERTY_NAME_MPP_X), _number(stated, openslide.PROPERTY_NAME_MPP_Y))
        if stated.get(openslide.PROPERTY_NAME_VENDOR) == "generic-tiff":
            own = printed_mpp(own)  # OpenSlide reports the resolution tags, 72 dpi included
        profile = handle.color_profile
        super().__init__(
            name=str(path),
            levels=pyramid_levels(list(handle.level_dimensions)),
            mpp=mpp or own,
            objective_power=_number(stated, openslide.PROPERTY_NAME_OBJECTIVE_POWER),
            properties=stated,
            icc_profile=None if profile is None else profile.tobytes(),
            background=background or _declared_background(stated),
            associated=LazyImages({key: self._associated_loader(key) for key in handle.associated_images}),
        )
        self._downsamples = handle.level_downsamples
        self._pages = self._exact_pages()

    @staticmethod
    def detect(path: Path) -> str | None:
        """OpenSlide's name for the format, or None where it is none of its own."""
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
        return self._read_blocks(region, level)

    def _read_blocks(self, region: Region, level: int) -> Pixels:
        pixels = np.empty((region.height, region.width, 3), np.uint8)
        size, downsample = self.levels[level], self._downsamples[level]
        grid = Grid(size.height, size.width, BLOCK)
        for row, col in grid.squares_in(region):
            block = grid.region(row, col)
            x, y = _address(block.x, downsample), _address(block.y, downsample)
            widened = Region(x.pixel, y.pixel, block.x_end - x.pixel, block.y_end - y.pixel)
            part = block.intersect(region)
            found = self._read_at(x.level0, y.level0, widened, level)
            pixels[part.within(region)] = found[part.within(widened)]
        return pixels

    def _read_at(self, x_level0: int, y_level0: int, region: Region, level: int) -> Pixels:
        """One call of OpenSlide. An error makes its handle useless for good, and perhaps it was another
        thread's error, so the second try has a handle of its own."""
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
                self._handle = fresh  # the broken one is freed when no thread uses it any more
        return composited(np.asarray(image), self.fill)

    def _exact_pages(self) -> dict[int, PageReader]:
        """For each level without an integer downsample: the TIFF page that holds it, if tifffile shows the
        same pixels there as OpenSlide."""
        wanted = [level for level, step in enumerate(self._downsamples) if not step.is_integer()]
        self._tiff = None
        if not wanted:
            return {}
        try:
            self._tiff = open_tiff(self._path)
            candidates = tiled_pages(self._tiff)
        except Exception:  # MRXS, DICOM or a broken directory: OpenSlide alone will do
            return {}
        pages, cache = {}, SegmentCache()
        for level in wanted:
            corner = self.levels[level].region.intersect(Region(0, 0, PROBE, PROBE))
            truth = self._read_at(0, 0, corner, level)  # the origin is exact whatever the downsample
            for page in candidates:
                if (page.imagewidth, page.imagelength) != (
                    self.levels[level].width,
                    self.levels[level].height,
                ):
                    continue
                try:
                    reader = PageReader(self._tiff, page, name=self.name, fill=self.fill, cache=cache)
                    agrees = np.array_equal(reader.read(corner), truth)
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
        self._handle.close()
        if self._tiff is not None:
            self._tiff.close()


@dataclass(frozen=True)
class _Address:
    """A pixel of a level, on one axis, and the level-0 coordinate that OpenSlide is given for it."""

    pixel: int
    level0: int


def _address(pixel: int, downsample: float) -> _Address:
    """The nearest address at or before `pixel` that is exact, else the best one within reach."""
    best, smallest = _Address(pixel, round(pixel * downsample)), 1.0
    for candidate in range(pixel, max(-1, pixel - REACH), -1):
        level0 = round(candidate * downsample)
        error = abs(level0 / downsample - candidate)
        if error < smallest:
            best, smallest = _Address(candidate, level0), error
        if error < EXACT:
            break
    return best


def _number(stated: Mapping[str, str], key: str) -> float | None:
    try:
        return float(stated[key])
    except (KeyError, ValueError):
        return None


def _declared_background(stated: Mapping[str, str]) -> Colour | None:
    """OpenSlide writes it as RRGGBB."""
    text = stated.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "")
    try:
        red, green, blue = bytes.fromhex(text)
    except ValueError:
        return None
    return red, green, blue
