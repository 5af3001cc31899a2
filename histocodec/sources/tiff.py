"""TIFF and OME-TIFF through tifffile: tiled, in strips or flat, with any way of storing a pyramid."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from tifffile import TiffFile, TiffPage, TiffPageSeries

from histocodec.errors import HistocodecError, UnsupportedError
from histocodec.geometry import Region
from histocodec.slide import WHITE, BaseSlide, Colour, LazyImages, Mpp, Pixels, pyramid_levels
from histocodec.sources.microns import MICRONS_PER_TIFF_UNIT, in_microns, printed_mpp, stated_mpp
from histocodec.sources.pages import RGB, YCBCR, PageReader, SegmentCache

TEXT_TAGS = ("ImageDescription", "Make", "Model", "Software", "DateTime", "Artist", "Copyright")
ASSOCIATED_NAMES = ("label", "macro", "thumbnail", "overview")
SMALLEST_STEP = 1.2  # between levels of a pyramid; two series that are nearer in size are two images


@dataclass(frozen=True)
class _Planes:
    """One level: one page, or a page for each of three channels."""

    pages: tuple[PageReader, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.pages[0].width, self.pages[0].height

    def read(self, region: Region) -> Pixels:
        if len(self.pages) == 1:
            return self.pages[0].read(region)
        return np.stack([page.read(region)[..., 0] for page in self.pages], axis=2)


class TiffSlide(BaseSlide):
    """The largest image in the file and its pyramid. Only the tiles or strips under a region are decoded.

    `mpp` and `background` take the place of what the file says. Raises UnsupportedError for a file that is no TIFF, or
    whose pixels are not 8-bit RGB, grey or palette.
    """

    def __init__(self, path: Path, *, mpp: Mpp | None = None, background: Colour | None = None) -> None:
        name, self._file = str(path), open_tiff(path)
        try:
            cache, fill = SegmentCache(), background or WHITE

            def reader(page: TiffPage) -> PageReader:
                return PageReader(self._file, page, name=name, fill=fill, cache=cache)

            series = list(self._file.series)
            main = _largest(series, name)
            first = _page(main.levels[0])
            self._planes = [_planes(level, reader, name) for level in _pyramid(main, series)]
            loaders = {
                image.name.lower(): _loader(image, reader, name)
                for image in series
                if image is not main and image.name.lower() in ASSOCIATED_NAMES
            }
            ome = _ome_facts(self._file.ome_metadata, series.index(main)) if self._file.is_ome else _OmeFacts()
            super().__init__(
                name=name,
                levels=pyramid_levels([planes.size for planes in self._planes]),
                mpp=mpp or ome.mpp or _tag_mpp(first),
                objective_power=ome.objective_power,
                properties=_properties(first),
                icc_profile=first.iccprofile,
                background=background,
                associated=LazyImages(loaders),
            )
        except HistocodecError:
            self._file.close()
            raise
        except Exception as exc:  # a broken header makes tifffile raise many kinds
            self._file.close()
            raise UnsupportedError(f"{path}: the TIFF's structure cannot be read: {exc}") from exc

    def _read_inside(self, region: Region, level: int) -> Pixels:
        return self._planes[level].read(region)

    def close(self) -> None:
        """See `Slide.close`."""
        self._file.close()


def open_tiff(path: Path) -> TiffFile:
    """The file, opened for reading on several threads. Raises UnsupportedError where tifffile cannot open it."""
    try:
        file = TiffFile(path)
        len(file.pages)
        file.filehandle.set_lock(True)  # seek and read must stay together; by default nothing locks them
    except Exception as exc:  # TiffFileError, struct.error, OSError, ValueError, …
        raise UnsupportedError(f"{path}: looks like a TIFF but cannot be opened as one: {exc}") from exc
    return file


def is_plain(path: Path) -> bool:
    """Whether OpenSlide's generic reader shows all of this TIFF. It ignores OME-XML and SubIFDs, and cuts 16-bit
    samples to 8 bits without saying so. Raises UnsupportedError where tifffile cannot open the file."""
    with open_tiff(path) as file:
        page = file.pages.first
        return (
            not file.is_ome
            and not page.subifds
            and page.dtype == np.uint8
            and page.samplesperpixel == 3
            and page.photometric in (RGB, YCBCR)
        )


def tiled_pages(file: TiffFile) -> list[TiffPage]:
    """The tiled 8-bit pages of the file, without SubIFDs."""
    pages = [page.aspage() for page in file.pages]
    return [page for page in pages if page.is_tiled and page.dtype == np.uint8]


def _page(series: TiffPageSeries) -> TiffPage:
    return series.keyframe.aspage()


def _size(series: TiffPageSeries) -> tuple[int, int]:
    return _page(series).imagewidth, _page(series).imagelength


def _largest(series: list[TiffPageSeries], name: str) -> TiffPageSeries:
    if not series:
        raise UnsupportedError(f"{name}: the TIFF holds no image")
    return max(series, key=lambda image: _size(image)[0] * _size(image)[1])


def _pyramid(main: TiffPageSeries, series: list[TiffPageSeries]) -> list[TiffPageSeries]:
    """The levels that the series `main` itself has, else the other series whose shape shows that they are its
    reductions."""
    if len(main.levels) > 1:
        return list(main.levels)
    levels, (width, height) = [main], _size(main)
    for image in sorted(series, key=lambda image: _size(image)[0], reverse=True):
        w, h = _size(image)
        smaller = w * SMALLEST_STEP < _size(levels[-1])[0]
        # Level sizes are rounded either way, so the aspect may be off by a pixel of the smaller image.
        same_shape = abs(w * height - h * width) <= max(width, height)
        like_main = _page(image).is_tiled == _page(main).is_tiled and image.axes == main.axes
        if smaller and same_shape and like_main and image.name.lower() not in ASSOCIATED_NAMES:
            levels.append(image)
    return levels


def _planes(level: TiffPageSeries, reader: Callable[[TiffPage], PageReader], name: str) -> _Planes:
    """The planes of a flat image: one page, or three grey pages that are its channels."""
    pages = [page.aspage() for page in level.pages if page is not None]
    stacked = {axis: size for axis, size in zip(level.axes, level.shape, strict=True) if axis not in "YXS"}
    described = " ".join(f"{axis}={size}" for axis, size in stacked.items())
    if any(size != 1 for axis, size in stacked.items() if axis not in "CQI") or len(pages) not in (1, 3):
        raise UnsupportedError(
            f"{name}: {len(pages)} pages ({described or 'no axes'}); one RGB image is read, not a stack"
        )
    if len(pages) == 3 and (pages[0].samplesperpixel != 1 or stacked.get("C") != 3):
        raise UnsupportedError(f"{name}: three pages that are not the channels of one image ({described})")
    return _Planes(tuple(reader(page) for page in pages))


def _loader(series: TiffPageSeries, reader: Callable[[TiffPage], PageReader], name: str) -> Callable[[], Pixels]:
    def load() -> Pixels:
        planes = _planes(series.levels[0], reader, f"{name} ({series.name})")
        return planes.read(Region(0, 0, *planes.size))

    return load


@dataclass(frozen=True)
class _OmeFacts:
    """What OME-XML says about one image."""

    mpp: Mpp | None = None
    objective_power: float | None = None


def _ome_facts(xml: str | None, image_index: int) -> _OmeFacts:
    """The facts about one image in OME-XML; none where it does not parse."""
    try:
        root = ElementTree.fromstring(xml or "")
    except ElementTree.ParseError:
        return _OmeFacts()
    pixels = root.findall("{*}Image/{*}Pixels")
    mpp = None
    if image_index < len(pixels):
        x, y = (_physical_size(pixels[image_index], axis) for axis in "XY")
        mpp = stated_mpp(x, y)
    objectives = root.findall("{*}Instrument/{*}Objective")
    powers = {objective.get("NominalMagnification") for objective in objectives} - {None}
    return _OmeFacts(mpp, _number(powers.pop()) if len(powers) == 1 else None)


def _physical_size(pixels: ElementTree.Element, axis: str) -> float | None:
    unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")  # the schema's default
    return in_microns(_number(pixels.get(f"PhysicalSize{axis}")), unit)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _tag_mpp(page: TiffPage) -> Mpp | None:
    """Microns per pixel by XResolution and YResolution, which count pixels per inch or centimetre."""
    unit_tag = page.tags.get("ResolutionUnit")
    microns = MICRONS_PER_TIFF_UNIT.get(2 if unit_tag is None else int(unit_tag.value))
    sizes = []
    for tag_name in ("XResolution", "YResolution"):
        tag = page.tags.get(tag_name)
        count, per = (0, 1) if tag is None else tag.value
        sizes.append(microns * per / count if microns and count else None)
    return printed_mpp(stated_mpp(*sizes))


def _properties(page: TiffPage) -> dict[str, str]:
    """The text and resolution tags, by the names that OpenSlide gives them."""
    properties = {}
    for tag_name in TEXT_TAGS:
        tag = page.tags.get(tag_name)
        if tag is not None and isinstance(tag.value, str):
            properties[f"tiff.{tag_name}"] = tag.value
    for tag_name in ("XResolution", "YResolution"):
        tag = page.tags.get(tag_name)
        if tag is not None and tag.value[1]:
            properties[f"tiff.{tag_name}"] = repr(tag.value[0] / tag.value[1])
    unit = page.tags.get("ResolutionUnit")
    if unit is not None:
        properties["tiff.ResolutionUnit"] = {1: "none", 2: "inch", 3: "centimeter"}.get(
            int(unit.value), str(unit.value)
        )
    return properties
