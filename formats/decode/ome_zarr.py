"""A slide as an OME-Zarr image whose pixels are decoded as they are asked for: `view`.

    zarr.json                    the attribute "ome": multiscales, in microns where the resolution is known
    0 1 2 …/zarr.json            an array (c, y, x) uint8 for each level, without compression
    0 1 2 …/c/0/ROW/COLUMN       its chunks, which exist only while somebody reads them

Any program that reads OME-Zarr reads the view like a folder of such files, through zarr. Version 0.4 is the same with
Zarr v2's names.
"""

import base64
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from histocodec.errors import UsageError
from histocodec.formats.container.arrays import array_metadata, group_metadata
from histocodec.formats.container.made_store import MadeStore
from histocodec.formats.container.ngff import channels_of, multiscales_of
from histocodec.formats.decode.open import open_slide
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.geometry import Region, ceil_div
from histocodec.slide import WHITE, Pixels, Slide, mpp_at

if TYPE_CHECKING:
    import zarr.abc.store

CHUNK_SIDE = 512  # pixels: that of a container's chunks, so that each is decoded once
SIDES = (16, 8192)
VERSIONS = ("0.5", "0.4")

NgffVersion = Literal["0.5", "0.4"]


def view(
    slide: "Slide | str",
    *,
    chunk: int = CHUNK_SIDE,
    version: NgffVersion = "0.5",
    device: str = "auto",
) -> "zarr.abc.store.Store":
    """A slide, by its path or URL or already open, as a read-only Zarr store that holds an OME-Zarr image: all levels,
    (c, y, x) uint8, in chunks of `chunk` × `chunk` pixels. Each chunk is decoded when it is read, on threads, and every
    pixel is that of `read_array`. `version` is that of OME-NGFF: 0.5 (Zarr v3) or 0.4 (Zarr v2).

    Raises UsageError for another version or a chunk of less than 16 or more than 8192 pixels, and what `open_slide`
    raises.
    """
    if version not in VERSIONS:
        raise UsageError(f"version {version!r} of OME-NGFF; {' and '.join(VERSIONS)} can be given")
    if not SIDES[0] <= chunk <= SIDES[1]:
        raise UsageError(f"chunks of {chunk} pixels; {SIDES[0]} to {SIDES[1]} can be given")
    opened = slide if isinstance(slide, Slide) else open_slide(slide, device=device)
    return OmeZarrPixels(opened, chunk, version).zarr()


class OmeZarrPixels(MadeStore):
    """The objects of an OME-Zarr image of a slide, made as they are read. Picklable if the slide is."""

    def __init__(self, slide: Slide, chunk: int, version: NgffVersion) -> None:
        self.name = f"view of {slide.name}"
        self._slide, self._chunk, self._version = slide, chunk, version
        self._shared = slide.container.attributes.chunk_side if isinstance(slide, CompressedSlide) else chunk
        layout = _version_5 if version == "0.5" else _version_4
        self._metadata = {key: json.dumps(value).encode() for key, value in layout(slide, chunk).items()}
        self._key = re.compile(r"(\d+)/c/0/(\d+)/(\d+)" if version == "0.5" else r"(\d+)/0/(\d+)/(\d+)")

    def make(self, key: str) -> bytes:
        """See `MadeStore`."""
        return self._metadata[key] if key in self._metadata else self._pixels(key)

    def read_together(self, keys: Sequence[str]) -> list[bytes | None]:
        """The bytes of several objects, None for those that do not exist. Chunks of one level are decoded together, so
        that what they share is decoded once, and all threads have work."""
        places = [self.region_of(key) for key in keys]
        data = [self._metadata.get(key) for key in keys]
        for level in {place[0] for place in places if place is not None}:
            numbers = [i for i, place in enumerate(places) if place is not None and place[0] == level]
            regions = [place[1] for place in places if place is not None and place[0] == level]
            for number, pixels in zip(numbers, read_regions(self._slide, regions, level), strict=True):
                data[number] = chunk_bytes(pixels)
        return data

    def group_of(self, key: str) -> tuple[int, int, int] | None:
        """What chunks have in common that are best decoded together: the level, and the chunk of the container that
        their first pixel lies in; None for what is not pixels."""
        if (place := self.region_of(key)) is None:
            return None
        level, region = place
        return level, region.y // self._shared, region.x // self._shared

    def size(self, key: str) -> int | None:
        """See `Store`."""
        if key in self._metadata:
            return len(self._metadata[key])
        return None if self.region_of(key) is None else 3 * self._chunk**2

    def entries(self) -> Iterator[tuple[str, int]]:
        """See `Store`."""
        for key, data in self._metadata.items():
            yield key, len(data)
        prefix = "c/0" if self._version == "0.5" else "0"
        for number, level in enumerate(self._slide.levels):
            for row in range(ceil_div(level.height, self._chunk)):
                for column in range(ceil_div(level.width, self._chunk)):
                    yield f"{number}/{prefix}/{row}/{column}", 3 * self._chunk**2

    def zarr(self) -> "zarr.abc.store.Store":
        """See `Store`."""
        from histocodec.formats.decode.together import TogetherView  # here: it needs zarr

        return TogetherView(self, self.group_of, self.read_together)

    def region_of(self, key: str) -> tuple[int, Region] | None:
        """Level and pixels of a chunk; None where there is no such chunk."""
        match = self._key.fullmatch(key)
        if match is None:
            return None
        number, row, column = (int(group) for group in match.groups())
        if number >= len(self._slide.levels) or any(str(int(group)) != group for group in match.groups()):
            return None
        region = Region(column * self._chunk, row * self._chunk, self._chunk, self._chunk)
        inside = region.intersect(self._slide.levels[number].region)
        return None if inside.empty else (number, region)

    def _pixels(self, key: str) -> bytes:
        found = self.region_of(key)
        assert found is not None, "its size was asked for"
        return chunk_bytes(self._slide.read(found[1], found[0]))  # background beyond the level's edge

    def __repr__(self) -> str:
        return f"OmeZarrPixels({self._slide!r})"


def read_regions(slide: Slide, regions: Sequence[Region], level: int) -> list[Pixels]:
    """The pixels of regions of one level of any slide, decoded together where the slide can."""
    if len(regions) > 1 and isinstance(slide, CompressedSlide):
        return slide.read_regions(regions, level)
    return [slide.read(region, level) for region in regions]


def chunk_bytes(pixels: Pixels) -> bytes:
    """The bytes of a chunk (h, w, 3) uint8 as they are in the view: (c, y, x)."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes()


def _described(slide: Slide) -> dict[str, object]:
    """The parts of the metadata that both versions have: multiscales and channels."""
    scales = []
    for level in slide.levels:
        mpp = mpp_at(slide.mpp, level.downsample) or (level.downsample, level.downsample)
        scales.append((mpp[1], mpp[0]))
    datasets = [(str(number), scale) for number, scale in enumerate(scales)]
    return {
        "multiscales": multiscales_of(title_of(slide), datasets, in_microns=slide.mpp is not None),
        "omero": channels_of(),
    }


def profile_attribute(slide: Slide) -> dict[str, object]:
    """The ICC profile, for programs that know where to look: OME-NGFF has no place for it."""
    return {} if slide.icc_profile is None else {"icc_profile": base64.b64encode(slide.icc_profile).decode()}


def title_of(slide: Slide) -> str:
    """The last part of a slide's name, which is a path or a URL."""
    return slide.name.replace("\\", "/").rstrip("/").rpartition("/")[2] or "slide"


def _version_5(slide: Slide, chunk: int) -> dict[str, dict[str, object]]:
    objects = {
        "zarr.json": group_metadata({"ome": {"version": "0.5", **_described(slide)}, **profile_attribute(slide)})
    }
    for number, level in enumerate(slide.levels):
        shape, chunks = (3, level.height, level.width), (3, chunk, chunk)
        codecs: list[object] = [{"name": "bytes"}]
        objects[f"{number}/zarr.json"] = array_metadata(shape, "uint8", chunks, codecs, ("c", "y", "x"))
    return objects


def _version_4(slide: Slide, chunk: int) -> dict[str, dict[str, object]]:
    described = _described(slide)
    multiscales = described["multiscales"]
    assert isinstance(multiscales, list)
    attributes = {
        **described,
        "multiscales": [{"version": "0.4", **scale} for scale in multiscales],
        **profile_attribute(slide),
    }
    objects: dict[str, dict[str, object]] = {".zgroup": {"zarr_format": 2}, ".zattrs": attributes}
    for number, level in enumerate(slide.levels):
        objects[f"{number}/.zarray"] = {
            "zarr_format": 2,
            "shape": [3, level.height, level.width],
            "chunks": [3, chunk, chunk],
            "dtype": "|u1",
            "compressor": None,
            "fill_value": WHITE[0],
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
        }
        objects[f"{number}/.zattrs"] = {"_ARRAY_DIMENSIONS": ["c", "y", "x"]}
    return objects
