"""What OpenSlide leaves out of a file, in sentences: focal planes, filters, optical paths, and further images.

Nobody who reads the slide would know otherwise. OpenSlide refuses some files for the same reasons (DICOM and Zeiss with
focal planes); `why_refused` says so in other words.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from tifffile import TiffFile, TiffPage

from histocodec.geometry import Level, ceil_div

NDPI_LENS, NDPI_FOCAL_PLANE = 65421, 65424  # TIFF tags; label, macro and map have a lens of -1 and below
VMS_IMAGE = re.compile(r"hamamatsu\.ImageFile\((-?\d+)(?:,\d+,\d+)?\)")  # (layer) or (layer, column, row)
MIRAX_COUNT = re.compile(r"mirax\.HIERARCHICAL\.HIER_(\d+)_COUNT")
ZOOM_LEVEL = "Slide zoom level"
REFUSED = {"FocalPlanes": "focal planes", 'dimension "Z"': "focal planes", "subblock channel": "channels"}
MOST_IMAGES = 8  # that are named one by one


def left_out(path: Path, properties: Mapping[str, str], levels: Sequence[Level]) -> tuple[str, ...]:
    """A sentence for each kind of thing that OpenSlide does not read of a file with these properties and levels. Empty
    where it reads everything, and where that cannot be found out."""
    try:
        match properties.get("openslide.vendor"):
            case "hamamatsu":
                return tuple(_of_hamamatsu(path, properties))
            case "leica":
                return tuple(_of_leica(path))
            case "dicom":
                return tuple(_of_dicom(properties))
            case "mirax":
                return tuple(_of_mirax(properties))
            case "ventana":
                return tuple(_planes(_number(properties, "ventana.Z-layers") - 1))
            case "generic-tiff":
                return tuple(_of_tiff(path, levels))
    except Exception:  # tifffile and expat raise many kinds; OpenSlide has opened the file
        return ()
    return ()


def why_refused(message: str) -> str:
    """What an error of OpenSlide means where it refuses focal planes or channels, and what to do; else empty."""
    for sign, kind in REFUSED.items():
        if sign in message:
            return f"It has several {kind}, of which none is read; save the one you mean as a slide of its own"
    return ""


def named(images: Sequence[str]) -> Iterator[str]:
    """The sentences about images that are not read, of which there may be thousands: the first few, and a count."""
    yield from images[:MOST_IMAGES]
    if len(images) > MOST_IMAGES:
        yield f"{len(images) - MOST_IMAGES} further images are not read"


def _of_hamamatsu(path: Path, properties: Mapping[str, str]) -> Iterator[str]:
    layers = {int(match[1]) for key in properties if (match := VMS_IMAGE.fullmatch(key))}
    yield from _planes(len(layers - {0}))
    if path.suffix.lower() in (".vms", ".vmu"):
        return
    with TiffFile(path) as file:
        pages = [page.aspage() for page in file.pages]
    offsets = {_tag(page, NDPI_FOCAL_PLANE) for page in pages if _tag(page, NDPI_LENS) > 0}
    others = sorted(offsets - {0})
    yield from _planes(len(others), f" at {', '.join(f'{offset:g}' for offset in others)}")


def _of_leica(path: Path) -> Iterator[str]:
    with TiffFile(path) as file:
        description = file.pages.first.aspage().description
    dimensions = ElementTree.fromstring(description).findall(".//{*}dimension")
    yield from _planes(len({dimension.get("z", "0") for dimension in dimensions} - {"0"}))


def _of_dicom(properties: Mapping[str, str]) -> Iterator[str]:
    paths = _number(properties, "dicom.NumberOfOpticalPaths")
    if paths > 1:
        yield f"{paths} optical paths are in the file; only the first is read"
    yield from _planes(_number(properties, "dicom.TotalPixelMatrixFocalPlanes") - 1)
    columns, rows = (
        ceil_div(_number(properties, f"dicom.TotalPixelMatrix{axis}"), _number(properties, f"dicom.{axis}"))
        for axis in ("Columns", "Rows")
    )
    frames = _number(properties, "dicom.NumberOfFrames")
    if frames > columns * rows * paths:
        yield (
            f"{frames} frames are in the file for {columns * rows} tiles, as with several focal planes; one for each "
            "tile is read"
        )


def _of_mirax(properties: Mapping[str, str]) -> Iterator[str]:
    for key in sorted(properties):
        match = MIRAX_COUNT.fullmatch(key)
        if match is not None:
            name = properties.get(f"mirax.HIERARCHICAL.HIER_{match[1]}_NAME", "")
            count = _number(properties, key)
            if count > 1 and name != ZOOM_LEVEL:
                yield f"{count} of {name or 'an unnamed kind'!r} are in the file; only the first is read"


def _of_tiff(path: Path, levels: Sequence[Level]) -> Iterator[str]:
    with TiffFile(path) as file:
        pages = [page.aspage() for page in file.pages]
    taken = Counter((level.width, level.height) for level in levels)
    others = []
    for number, page in enumerate(pages):
        size = page.imagewidth, page.imagelength
        if taken[size]:
            taken[size] -= 1
        else:
            others.append(f"image {number} of {size[0]}x{size[1]} pixels is not read")
    yield from named(others)


def _planes(count: int, where: str = "") -> Iterator[str]:
    if count > 0:
        noun, verb = ("focal plane", "is") if count == 1 else ("focal planes", "are")
        yield f"{count} further {noun}{where} {verb} in the file, and not read"


def _number(properties: Mapping[str, str], key: str) -> int:
    """A count; 1 where the file does not say."""
    return int(properties.get(key) or 1)


def _tag(page: TiffPage, code: int) -> float:
    tag = page.tags.get(code)
    return 0 if tag is None else float(tag.value)
