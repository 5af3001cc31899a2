"""TIFF and OME-TIFF through tifffile: tiled, in strips or flat, with any way of storing a pyramid."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from tifffile import TiffFile, TiffPage, TiffPageSeries

from histocodec.errors import HistocodecError, UnsupportedError
from histocodec.geometry import Region
from histocodec.slide import WHITE, BaseSlide, Colour, LazyImages, Mpp, Pixels, pyramid_levels
from histocodec.sources.channels import check_colours
from histocodec.sources.icc import BROKEN_PROFILE, is_profile
from histocodec.sources.left_out import named
from histocodec.sources.microns import (
    MICRONS_PER_TIFF_UNIT,
    in_microns,
    most_credible,
    printed_mpp,
    stated_mpp,
    stated_number,
)
from histocodec.sources.pages import RGB, YCBCR, PageReader, SegmentCache

TEXT_TAGS = ("ImageDescription", "Make", "Model", "Software", "DateTime", "Artist", "Copyright")
# The names of associated images, as programs write them: "macro", "Label image", "label_image", "SlideOverview".
ASSOCIATED = re.compile(r"(?:slide[ _-]?)?(label|macro|thumbnail|overview)(?:[ _-]?image)?", re.IGNORECASE)
# None, LZW, JPEG and Deflate in both numbers: what every build of libtiff reads.
LIBTIFF_COMPRESSIONS = (1, 5, 7, 8, 32946)
SMALLEST_STEP = 1.2  # between levels of a pyramid; two series that are nearer in size are two images


@dataclass(frozen=True)
class _Planes:
    """One level: one page, or a page for each of three channels."""

    pages: tuple[PageReader, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.pages[0].width, self.pages[0].height

    def close(self) -> None:
        for page in self.pages:
            page.close()

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
                return PageReader(page, name=name, fill=fill, cache=cache)

            series = list(self._file.series)
            main = _largest(series, name)
            first = _page(main.levels[0])
            pyramid = _pyramid(main, series)
            if self._file.is_ome:
                _check_channels(_channel_names(self._file.ome_metadata, series.index(main)), main, name)
            self._planes = [_planes(level, reader, name) for level in pyramid]
            associated = {_associated_name(image): image for image in series if image is not main}
            loaders = {key: _loader(image, reader, name) for key, image in associated.items() if key is not None}
            unread = [image for image in series if image not in pyramid and _associated_name(image) is None]
            ome = _ome_facts(self._file.ome_metadata, series.index(main)) if self._file.is_ome else _OmeFacts()
            super().__init__(
                name=name,
                levels=pyramid_levels([planes.size for planes in self._planes]),
                mpp=mpp or most_credible(ome.mpp, _imagej_mpp(self._file, first), _tag_mpp(first)),
                objective_power=ome.objective_power,
                properties=_properties(first),
                icc_profile=first.iccprofile if first.iccprofile and is_profile(first.iccprofile) else None,
                background=background,
                associated=LazyImages(loaders),
                notes=_notes(first, main, unread),
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
        for planes in self._planes:
            planes.close()
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
    """Whether OpenSlide's generic reader shows all of this TIFF as it is stored.

    It ignores OME-XML and SubIFDs, cuts 16-bit samples to 8 bits, takes the first page for the slide and leaves out
    smaller ones that are not marked as reduced, turns each tile by Orientation in its place, and fails with
    compressions and tile sizes that its libtiff does not know, all without saying so before pixels are read. Raises
    UnsupportedError where tifffile cannot open the file.
    """
    with open_tiff(path) as file:
        page = file.pages.first
        tiled = tiled_pages(file)
        return (
            not file.is_ome
            and not page.subifds
            and page.dtype == np.uint8
            and page.samplesperpixel == 3
            and page.photometric in (RGB, YCBCR)
            and page.compression in LIBTIFF_COMPRESSIONS
            and page.tilewidth % 16 == page.tilelength % 16 == 0
            and _orientation(page) == 1
            and all(larger.is_reduced or larger.imagewidth <= page.imagewidth for larger in tiled)
            and all(small.is_reduced for small in tiled[1:] if _is_reduction(small, page))
            and all(all(level.databytecounts) for level in tiled)
        )


def tiled_pages(file: TiffFile) -> list[TiffPage]:
    """The tiled 8-bit pages of the file, without SubIFDs."""
    pages = [page.aspage() for page in file.pages]
    return [page for page in pages if page.is_tiled and page.dtype == np.uint8]


def _orientation(page: TiffPage) -> int:
    tag = page.tags.get("Orientation")
    return 1 if tag is None else int(tag.value)


def _page(series: TiffPageSeries) -> TiffPage:
    return series.keyframe.aspage()


def _size(series: TiffPageSeries) -> tuple[int, int]:
    return _page(series).imagewidth, _page(series).imagelength


def _largest(series: list[TiffPageSeries], name: str) -> TiffPageSeries:
    if not series:
        raise UnsupportedError(f"{name}: the TIFF holds no image")
    return max(series, key=lambda image: _size(image)[0] * _size(image)[1])


def _pyramid(main: TiffPageSeries, series: list[TiffPageSeries]) -> list[TiffPageSeries]:
    """The levels of the series `main`, and the other series whose sizes show that they are its reductions."""
    levels = list(main.levels)
    for image in series:
        like_main = image.axes == main.axes and _is_reduction(_page(image), _page(main))
        apart = all(not _alike(_size(image), _size(level)) for level in levels)
        if image is not main and like_main and apart and _associated_name(image) is None:
            levels.append(image)
    return sorted(levels, key=lambda level: _size(level)[0], reverse=True)


def _alike(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two widths are too near for two levels of a pyramid."""
    return max(size[0], other[0]) <= SMALLEST_STEP * min(size[0], other[0])


def _is_reduction(page: TiffPage, of: TiffPage) -> bool:
    """Whether the sizes of two pages say that one is a smaller level of the other, whatever SUBFILETYPE says."""
    w, h, width, height = page.imagewidth, page.imagelength, of.imagewidth, of.imagelength
    # Level sizes are rounded either way, so the aspect may be off by a pixel of the smaller image.
    same_shape = abs(w * height - h * width) <= max(width, height)
    return w * SMALLEST_STEP < width and same_shape and page.is_tiled == of.is_tiled


def _associated_name(series: TiffPageSeries) -> str | None:
    """`label`, `macro`, `thumbnail` or `overview` where the name of an image says that it is one, else None."""
    match = ASSOCIATED.fullmatch(series.name.strip())
    return None if match is None else match[1].lower()


def _notes(first: TiffPage, main: TiffPageSeries, unread: Sequence[TiffPageSeries]) -> Iterator[str]:
    """What of the file is not taken as somebody may expect."""
    if _orientation(first) != 1:
        yield f"its Orientation is {_orientation(first)}; pixels are read as they are stored, not turned"
    if first.iccprofile and not is_profile(first.iccprofile):
        yield BROKEN_PROFILE
    sizes = [(image.name or image.index, *_size(image)) for image in unread]
    yield from named(
        [
            f"image {name!r} of {width}x{height} pixels is not read; {_described(main)} is"
            for name, width, height in sizes
        ]
    )


def _described(series: TiffPageSeries) -> str:
    return f"{series.name or 'the largest image'!r} of {_size(series)[0]}x{_size(series)[1]}"


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
    return _OmeFacts(mpp, stated_number(powers.pop()) if len(powers) == 1 else None)


def _channel_names(xml: str | None, image_index: int) -> list[str]:
    """The names of the channels of one image in OME-XML, if each has samples of its own; fluorophores count as names.
    Empty where all three are samples of one channel."""
    try:
        root = ElementTree.fromstring(xml or "")
    except ElementTree.ParseError:
        return []
    pixels = root.findall("{*}Image/{*}Pixels")
    channels = pixels[image_index].findall("{*}Channel") if image_index < len(pixels) else []
    if len(channels) < 2:
        return []
    return [channel.get("Fluor") or channel.get("Name") or "" for channel in channels]


def _check_channels(channels: Sequence[str], main: TiffPageSeries, name: str) -> None:
    """Raises UnsupportedError unless the channels are colours, and all of them are in the file."""
    check_colours(channels, name)
    samples = sum(page.aspage().samplesperpixel for page in main.levels[0].pages if page is not None)
    if channels and samples != len(channels):
        raise UnsupportedError(
            f"{name}: its OME-XML lists {len(channels)} channels, of which {samples} can be found. Are all files of "
            "the image beside it?"
        )


def _physical_size(pixels: ElementTree.Element, axis: str) -> float | None:
    unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")  # the schema's default
    return in_microns(stated_number(pixels.get(f"PhysicalSize{axis}")), unit)


def _imagej_mpp(file: TiffFile, page: TiffPage) -> Mpp | None:
    """Microns per pixel of an ImageJ file: its resolution tags count pixels per unit, which its description names."""
    unit = (file.imagej_metadata or {}).get("unit") if file.is_imagej else None
    if not isinstance(unit, str):
        return None
    unit = unit.encode("ascii", "backslashreplace").decode("unicode_escape")  # ImageJ writes \\u00B5m
    sizes = []
    for tag_name in ("XResolution", "YResolution"):
        tag = page.tags.get(tag_name)
        count, per = (0, 1) if tag is None else tag.value
        sizes.append(in_microns(per / count if count else None, unit))
    return stated_mpp(*sizes)


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
    if _orientation(page) != 1:
        properties["tiff.Orientation"] = str(_orientation(page))
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
