"""Regions of one TIFF page, decoded tile by tile or strip by strip with tifffile. Both are called segments here."""

import threading
from collections import OrderedDict
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffPage

from histocodec.errors import SourceError, UnsupportedError
from histocodec.geometry import Region, ceil_div
from histocodec.slide import Colour, Pixels, composited

CACHE_BYTES = 64 << 20  # a few rows of 1024-pixel tiles of a wide slide
# A segment has to be decoded whole. Beyond this size, reading a region would mean reading everything, and a hostile
# header could demand any amount of memory.
LARGEST_SEGMENT_BYTES = 1 << 30

MINISWHITE, MINISBLACK, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
JPEG_COMPRESSIONS = (6, 7, 34892, 33007)
# Compressions whose decoder itself turns YCbCr into RGB: JPEG and JPEG 2000.
RGB_DECODERS = (*JPEG_COMPRESSIONS, 33003, 33005, 34712)
ASSOCIATED_ALPHA = 1
UNASSOCIATED_ALPHA = 2


SegmentKey = tuple[int, int, int]  # the file, the offset of the page in it, and the number of the segment


class SegmentCache:
    """The most recently used decoded segments of one file, up to `limit` bytes. Thread-safe.

    A key is the offset of a page in the file and the number of a segment.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self._segments: OrderedDict[SegmentKey, Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: SegmentKey) -> Pixels | None:
        """The segment, or None where it is not cached."""
        with self._lock:
            if key in self._segments:
                self._segments.move_to_end(key)
            return self._segments.get(key)

    def put(self, key: SegmentKey, segment: Pixels) -> None:
        """Add a segment, and drop the least recently used ones beyond the limit."""
        with self._lock:
            if key in self._segments:
                return
            self._segments[key] = segment
            self._bytes += segment.nbytes
            # The newest segment stays whatever its size: a flat file is one segment, read again and again.
            while self._bytes > self._limit and len(self._segments) > 1:
                self._bytes -= self._segments.popitem(last=False)[1].nbytes


class PageReader:
    """One 8-bit page as RGB: grey is replicated, palettes are looked up, alpha is laid over `fill`. Thread-safe.

    `name` is the file's name in error messages. Raises UnsupportedError for a page that is not 8-bit RGB, grey or
    palette, or whose segments are too large.
    """

    def __init__(self, page: TiffPage, *, name: str, fill: Colour, cache: SegmentCache) -> None:
        self.width, self.height = page.imagewidth, page.imagelength
        self._page, self._name, self._fill, self._cache = page, name, fill, cache
        self._handle = page.parent.filehandle  # of an image in several files, the page's own
        if not self._handle.has_lock:
            self._handle.set_lock(True)  # seek and read must stay together
        if self._handle.closed:  # tifffile closes the files of an image that has several
            self._handle.open()
        _check_pixels(page, name)
        if page.is_tiled:
            self._segment_width, self._segment_height = page.tilewidth, page.tilelength
        else:
            self._segment_width, self._segment_height = page.imagewidth, page.rowsperstrip
        self._segment_height = min(self._segment_height, ceil_div(self.height, 16) * 16)
        self._columns = ceil_div(self.width, self._segment_width)
        self._rows = ceil_div(self.height, self._segment_height)
        self._planes = page.samplesperpixel if page.planarconfig == 2 else 1
        nbytes = self._segment_width * self._segment_height * page.samplesperpixel
        if nbytes > LARGEST_SEGMENT_BYTES:
            raise UnsupportedError(
                f"{name}: a tile or strip has {self._segment_width}x{self._segment_height} pixels; up to "
                f"{LARGEST_SEGMENT_BYTES >> 20} MiB can be decoded at once. Save it as a tiled TIFF"
            )
        if len(page.dataoffsets) < self._rows * self._columns * self._planes:
            raise UnsupportedError(
                f"{name}: the page needs {self._rows * self._columns * self._planes} tiles or strips, but the file "
                f"lists {len(page.dataoffsets)}"
            )
        # Threads that need the same large segment wait until one has decoded it, instead of each making a copy.
        self._large_lock = threading.Lock() if nbytes > CACHE_BYTES // 4 else nullcontext()

    def close(self) -> None:
        """Close the file of the page."""
        self._handle.close()

    def read(self, region: Region) -> Pixels:
        """The pixels (h, w, 3) uint8 of a region that lies inside the page. Raises SourceError where a segment cannot
        be decoded."""
        pixels = np.empty((region.height, region.width, 3), np.uint8)
        width, height = self._segment_width, self._segment_height
        for row in range(region.y // height, ceil_div(region.y_end, height)):
            for column in range(region.x // width, ceil_div(region.x_end, width)):
                segment = self._segment(row, column)
                whole = Region(column * width, row * height, segment.shape[1], segment.shape[0])
                part = whole.intersect(region)
                pixels[part.within(region)] = segment[part.within(whole)]
        return pixels

    def _segment(self, row: int, column: int) -> Pixels:
        """One segment (h, w, 3), cut at the page's edge."""
        key = (id(self._handle), self._page.offset, row * self._columns + column)
        segment = self._cache.get(key)
        if segment is None:
            with self._large_lock:
                segment = self._cache.get(key)
                if segment is None:
                    segment = self._decode(row, column)
                    self._cache.put(key, segment)
        return segment

    def _decode(self, row: int, column: int) -> Pixels:
        height = min(self._segment_height, self.height - row * self._segment_height)
        width = min(self._segment_width, self.width - column * self._segment_width)
        index = row * self._columns + column
        planes = []
        for plane in range(self._planes):
            samples = self._samples(index + plane * self._rows * self._columns)
            if samples is None:  # a sparse tile: nothing was scanned there
                return np.full((height, width, 3), self._fill, np.uint8)
            if samples.shape[0] < height or samples.shape[1] < width:
                raise SourceError(
                    f"{self._name}: tile or strip {index} has {samples.shape[1]}x{samples.shape[0]} pixels; "
                    f"{width}x{height} are needed"
                )
            planes.append(samples[:height, :width])
        return self._rgb(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2))

    def _samples(self, index: int) -> NDArray[np.uint8] | None:
        """A segment as the file stores it, (h, w, samples); None where the file has no bytes for it."""
        page, handle = self._page, self._handle
        offset, nbytes = page.dataoffsets[index], page.databytecounts[index]
        if offset == 0 or nbytes == 0:
            return None
        jpeg_tables = {}
        if page.compression in JPEG_COMPRESSIONS:
            jpeg_tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        try:
            with handle.lock:
                handle.seek(offset)
                data = handle.read(nbytes)
            if len(data) != nbytes:
                raise EOFError(f"the file ends {nbytes - len(data)} bytes too early")
            segment = page.decode(data, index, **jpeg_tables)[0]
        except Exception as exc:  # each of the twenty codecs has its own exceptions
            raise SourceError(f"{self._name}: tile or strip {index} cannot be read: {exc}") from exc
        return None if segment is None else np.asarray(segment[0])

    def _rgb(self, samples: NDArray[np.uint8]) -> Pixels:
        page = self._page
        if page.photometric == PALETTE and page.colormap is not None:
            return np.ascontiguousarray((page.colormap.T >> 8).astype(np.uint8)[samples[..., 0]])
        colours = 3 if samples.shape[2] >= 3 else 1
        if page.photometric == MINISWHITE:
            samples = 255 - samples
        rgb = np.repeat(samples[..., :1], 3, axis=2) if colours == 1 else samples[..., :3]
        kind = page.extrasamples[0] if page.extrasamples else 0
        if kind in (ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA):
            rgba = np.concatenate([rgb, samples[..., colours : colours + 1]], axis=2)
            return composited(rgba, self._fill, premultiplied=kind == ASSOCIATED_ALPHA)
        return np.ascontiguousarray(rgb)


def _check_pixels(page: TiffPage, name: str) -> None:
    """Raise UnsupportedError for a page whose colours would come out wrong."""
    if page.dtype != np.uint8 or page.bitspersample != 8:
        samples = "of no pixel type" if page.dtype is None else f"{page.dtype}, {page.bitspersample} bits"
        raise UnsupportedError(f"{name}: the samples are {samples}; only uint8 is read")
    colours = {MINISWHITE: 1, MINISBLACK: 1, PALETTE: 1, RGB: 3, YCBCR: 3}.get(page.photometric)
    if colours is None:
        raise UnsupportedError(
            f"{name}: the photometric interpretation is {page.photometric}; RGB, grey and palette are read"
        )
    if page.photometric == YCBCR and page.compression not in RGB_DECODERS:
        raise UnsupportedError(f"{name}: the pixels are YCbCr, which is read only from JPEG and JPEG 2000")
    if page.samplesperpixel - len(page.extrasamples) != colours:
        raise UnsupportedError(
            f"{name}: the page has {page.samplesperpixel} samples a pixel, {len(page.extrasamples)} of them extra; "
            f"{colours} colours are needed"
        )
    if page.imagedepth != 1:
        raise UnsupportedError(f"{name}: the page is {page.imagedepth} images deep; only flat images are read")
