"""A codec in one way of using it, and how to bring it to a wanted size or quality."""

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from histocodec.formats.measure import psnr, squared_error
from histocodec.geometry import Grid, Region
from histocodec.slide import Pixels

TILE = 512  # pixels on a side: the block in which a container is read, too
TILE_HEADER = struct.Struct("<III")  # height, width, tile; then the tiles' sizes (uint32 each), then the tiles
HALVINGS = 20  # of the settings' span: far below any difference in bytes


@dataclass(frozen=True)
class Contender:
    """A larger `setting` gives a better image and more bytes."""

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
    for _ in range(HALVINGS):
        one = coded(contender, pixels, (low + high) / 2, threads=threads)
        if best is None or abs(one.psnr - wanted) < abs(best.psnr - wanted):
            best = one
        if abs(one.psnr - wanted) <= tolerance:
            break
        low, high = (one.setting, high) if one.psnr < wanted else (low, one.setting)
    assert best is not None
    return best


def setting_at_bytes(contender: Contender, pixels: Pixels, wanted: float, *, tolerance: float = 0.002) -> float:
    """The setting whose bytes come nearest to the wanted ones; the coarsest or the finest where they lie beyond."""
    low, high = contender.settings
    best, least = low, abs(len(contender.encode(pixels, low)) - wanted)
    for _ in range(HALVINGS):
        if least <= tolerance * wanted:
            break
        middle = (low + high) / 2
        size = len(contender.encode(pixels, middle))
        if abs(size - wanted) < least:
            best, least = middle, abs(size - wanted)
        low, high = (middle, high) if size < wanted else (low, middle)
    return best


def ladder(contender: Contender, pixels: Pixels, bpp: tuple[float, float], steps: int) -> list[float]:
    """Settings, evenly apart, from about the lower to about the higher number of bits per pixel."""
    area = pixels.shape[0] * pixels.shape[1]
    ends = [setting_at_bytes(contender, pixels, rate * area / 8, tolerance=0.05) for rate in bpp]
    found: list[float] = np.linspace(ends[0], ends[1], steps).tolist()
    return found


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
