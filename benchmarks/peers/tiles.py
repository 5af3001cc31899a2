"""A codec on independent tiles, as a slide needs them for random access."""

import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from histocodec.benchmarks.peers.contender import Contender
from histocodec.geometry import Grid, Region
from histocodec.slide import Pixels

TILE = 512  # pixels on a side: the block in which a container is read, too
TILE_HEADER = struct.Struct("<III")  # height, width, tile; then the tiles' sizes (uint32 each), then the tiles


def tiled(contender: Contender, tile: int = TILE) -> Contender:
    """The same codec on tiles that are shared out to threads."""
    return replace(
        contender,
        name=f"{contender.name}, {tile}-px tiles",
        _encode=partial(_encode_tiles, contender, tile),
        _decode=partial(_decode_tiles, contender),
    )


def _encode_tiles(contender: Contender, tile: int, pixels: Pixels, setting: float, threads: int) -> bytes:
    grid = Grid(pixels.shape[0], pixels.shape[1], tile)
    places = list(np.ndindex(grid.rows, grid.columns))
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
    places = list(np.ndindex(grid.rows, grid.columns))
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
