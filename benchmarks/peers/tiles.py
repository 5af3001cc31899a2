"""A codec on independent tiles, as a slide needs them for random access."""

import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from histocodec.benchmarks.peers.contender import Contender
from histocodec.geometry import Grid, Region
from histocodec.slide import Pixels

TILE = 512  # pixels on a side: as much as one of our chunks decodes to
TILE_HEADER = struct.Struct("<III")  # height, width, tile; then the tiles' sizes (uint32 each), then the tiles


def tiled(contender: Contender, tile: int = TILE) -> Contender:
    """The same codec on tiles of `tile` pixels a side, which are shared out to threads."""
    return replace(
        contender,
        name=f"{contender.name}, {tile}-px tiles",
        _encode=partial(_encode_tiles, contender, tile),
        _decode=partial(_decode_tiles, contender),
    )


def _encode_tiles(contender: Contender, tile: int, pixels: Pixels, setting: float, threads: int) -> bytes:
    grid = Grid(pixels.shape[0], pixels.shape[1], tile)
    whole = Region(0, 0, grid.width, grid.height)

    def encode(region: Region) -> bytes:
        return contender.encode(np.ascontiguousarray(pixels[region.within(whole)]), setting)

    with ThreadPoolExecutor(threads) as pool:
        tiles = list(pool.map(encode, _regions(grid)))
    sizes = struct.pack(f"<{len(tiles)}I", *map(len, tiles))
    return TILE_HEADER.pack(grid.height, grid.width, tile) + sizes + b"".join(tiles)


def _decode_tiles(contender: Contender, data: bytes, threads: int) -> Pixels:
    grid = Grid(*TILE_HEADER.unpack_from(data))
    regions = _regions(grid)
    sizes = struct.unpack_from(f"<{len(regions)}I", data, TILE_HEADER.size)
    starts = TILE_HEADER.size + 4 * len(regions) + np.concatenate(([0], np.cumsum(sizes)[:-1]))
    pixels = np.empty((grid.height, grid.width, 3), np.uint8)
    whole = Region(0, 0, grid.width, grid.height)

    def decode(number: int) -> None:
        start = int(starts[number])
        pixels[regions[number].within(whole)] = contender.decode(data[start : start + sizes[number]])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, range(len(regions))))
    return pixels


def _regions(grid: Grid) -> list[Region]:
    """The tiles' regions, row by row."""
    return [grid.region(row, column) for row in range(grid.rows) for column in range(grid.columns)]
