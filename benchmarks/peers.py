"""The codecs that we are measured against, each in one shape, and how to bring one to a wanted quality.

JPEG 2000 is OpenJPEG with the 9/7 wavelet, the colour transform and 6 resolutions, at the rate where it
reaches a given PSNR. Whole images are encoded through Pillow, whose codestream has no precincts and is 0.1 to
0.4 % smaller; tiles through imagecodecs, which lets other threads run meanwhile (Pillow does not). It is the
same library.
"""

import io
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import cast

import imagecodecs
import numpy as np
from PIL import Image

from histocodec.formats.measure import psnr, squared_error
from histocodec.geometry import Grid, Region
from histocodec.slide import Pixels

RESOLUTIONS = 6
TILE = 512  # pixels on a side: the block in which a container is read, too
TILE_HEADER = struct.Struct(
    "<III"
)  # height, width, tile; then the tiles' sizes (uint32 each), then the tiles


@dataclass(frozen=True)
class Contender:
    """One codec in one way of using it. A larger `setting` gives a better image and more bytes."""

    name: str
    version: str
    settings: tuple[float, float]  # the coarsest and the finest that make sense
    _encode: Callable[[Pixels, float, int], bytes]
    _decode: Callable[[bytes, int], Pixels]

    def encode(self, pixels: Pixels, setting: float, *, threads: int = 1) -> bytes:
        return self._encode(pixels, setting, threads)

    def decode(self, data: bytes, *, threads: int = 1) -> Pixels:
        return self._decode(data, threads)


@dataclass(frozen=True)
class Coded:
    """An image, encoded; `psnr` is that of the decoded bytes."""

    setting: float
    data: bytes
    psnr: float


def coded(contender: Contender, pixels: Pixels, setting: float, *, threads: int = 1) -> Coded:
    """Encodes, decodes and compares."""
    data = contender.encode(pixels, setting, threads=threads)
    decoded = contender.decode(data, threads=threads)
    return Coded(setting, data, psnr(squared_error(decoded, pixels), pixels.size))


def coded_at_psnr(
    contender: Contender, pixels: Pixels, wanted: float, *, tolerance: float = 0.02, threads: int = 1
) -> Coded:
    """The nearest to the wanted PSNR in dB that bisection finds between the codec's coarsest and finest."""
    low, high = contender.settings
    best: Coded | None = None
    for _ in range(20):  # halves of the settings' span: far below any difference in bytes
        one = coded(contender, pixels, (low + high) / 2, threads=threads)
        if best is None or abs(one.psnr - wanted) < abs(best.psnr - wanted):
            best = one
        if abs(one.psnr - wanted) <= tolerance:
            break
        low, high = (one.setting, high) if one.psnr < wanted else (low, one.setting)
    assert best is not None
    return best


def ladder(contender: Contender, pixels: Pixels, low: float, high: float, *, steps: int = 12) -> list[Coded]:
    """Encodings from about PSNR `low` to about `high` in dB, their settings evenly apart."""
    first = coded_at_psnr(contender, pixels, low, tolerance=0.25)
    last = coded_at_psnr(contender, pixels, high, tolerance=0.25)
    between = np.linspace(first.setting, last.setting, steps)[1:-1].tolist()
    return [first, *(coded(contender, pixels, setting) for setting in between), last]


def tiled(contender: Contender, tile: int = TILE) -> Contender:
    """The same codec on independent tiles, as a slide needs them for random access, shared out to threads."""
    return Contender(
        f"{contender.name}, {tile}-px tiles",
        contender.version,
        contender.settings,
        partial(_encode_tiles, contender, tile),
        partial(_decode_tiles, contender),
    )


def _encode_tiles(contender: Contender, tile: int, pixels: Pixels, setting: float, threads: int) -> bytes:
    grid = Grid(pixels.shape[0], pixels.shape[1], tile)
    places = list(np.ndindex(grid.rows, grid.cols))
    whole = Region(0, 0, grid.width, grid.height)

    def encode(place: tuple[int, ...]) -> bytes:
        part = pixels[grid.region(place[0], place[1]).within(whole)]
        return contender.encode(np.ascontiguousarray(part), setting)

    with ThreadPoolExecutor(threads) as pool:
        tiles = list(pool.map(encode, places))
    sizes = struct.pack(f"<{len(tiles)}I", *map(len, tiles))
    return TILE_HEADER.pack(grid.height, grid.width, tile) + sizes + b"".join(tiles)


def _decode_tiles(contender: Contender, data: bytes, threads: int) -> Pixels:
    grid = Grid(*TILE_HEADER.unpack_from(data))
    places = list(np.ndindex(grid.rows, grid.cols))
    sizes = struct.unpack_from(f"<{len(places)}I", data, TILE_HEADER.size)
    starts = TILE_HEADER.size + 4 * len(places) + np.concatenate(([0], np.cumsum(sizes)[:-1]))
    pixels = np.empty((grid.height, grid.width, 3), np.uint8)
    whole = Region(0, 0, grid.width, grid.height)

    def decode(number: int) -> None:
        where = grid.region(places[number][0], places[number][1])
        start = int(starts[number])
        pixels[where.within(whole)] = contender.decode(data[start : start + sizes[number]])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, range(len(places))))
    return pixels


def _openjpeg_whole(pixels: Pixels, wanted_psnr: float, threads: int) -> bytes:
    """On one thread, whatever `threads` is: Pillow has no such option."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file,
        "JPEG2000",
        no_jp2=True,  # the bare codestream
        irreversible=True,
        mct=1,
        num_resolutions=min(RESOLUTIONS, min(pixels.shape[:2]).bit_length()),
        quality_mode="dB",
        quality_layers=[wanted_psnr],
    )
    return file.getvalue()


def _openjpeg_tile(pixels: Pixels, wanted_psnr: float, threads: int) -> bytes:
    data = imagecodecs.jpeg2k_encode(
        pixels,
        wanted_psnr,  # type: ignore[arg-type]  # its stub says int; 30.25 and 30.5 differ
        codecformat="j2k",
        reversible=False,
        mct=True,
        resolutions=RESOLUTIONS,  # it takes fewer where the tile is small
        numthreads=threads,
    )
    return cast("bytes", data)


def _openjpeg_decode(data: bytes, threads: int) -> Pixels:
    return cast("Pixels", imagecodecs.jpeg2k_decode(data, numthreads=threads))


_VERSION = str(imagecodecs.jpeg2k_version())
_PSNRS = (10.0, 60.0)
JPEG2000 = Contender("JPEG 2000", _VERSION, _PSNRS, _openjpeg_whole, _openjpeg_decode)
JPEG2000_TILES = tiled(Contender("JPEG 2000", _VERSION, _PSNRS, _openjpeg_tile, _openjpeg_decode))
