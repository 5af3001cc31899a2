"""DeepZoom: a pyramid of tiles, each level half as large as the next, as OpenSeadragon and many viewers read it.

/slides/ID.dzi                         the description, XML
/slides/ID_files/LEVEL/COLUMN_ROW.EXT  a tile of level LEVEL, whose last is level 0 of the slide
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from histocodec.cli.viewer.answers import answer, caching, tag_of
from histocodec.cli.viewer.catalogue import Opened
from histocodec.cli.viewer.limits import SOURCE_PIXELS, RefusedError
from histocodec.cli.viewer.scaling import FORMATS, MEDIA, Box, image_bytes, reading_of
from histocodec.cli.viewer.viewer import viewer_of
from histocodec.geometry import Level, Region, ceil_div
from histocodec.slide import Pixels

SIDE = 512  # pixels of a tile's side: that of a chunk, so that each is decoded once
TILE = re.compile(r"(\d{1,2})/(\d{1,7})_(\d{1,7})\.([a-z]{3,4})", re.ASCII)
NAMESPACE = "http://schemas.microsoft.com/deepzoom/2008"


@dataclass(frozen=True)
class Tile:
    """A tile: its place in its level, in that level's pixels, the width of these in level-0 pixels, and the suffix."""

    region: Region
    factor: int
    suffix: str

    @property
    def box(self) -> Box:
        """The tile in level-0 pixels; the last of a row or column may reach beyond the edge by less than a pixel."""
        left, top, right, bottom = self.region.x, self.region.y, self.region.x_end, self.region.y_end
        return left * self.factor, top * self.factor, right * self.factor, bottom * self.factor

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.region.width, self.region.height


def last_level(full: Level) -> int:
    """The number of the level that is the slide's level 0."""
    return (max(full.width, full.height) - 1).bit_length()


def first_level(levels: tuple[Level, ...]) -> int:
    """The first level whose tiles can be made without reading more than is read for one answer."""
    last, coarsest = last_level(levels[0]), levels[-1]
    if coarsest.region.area <= SOURCE_PIXELS:
        return 0
    steps = 0
    while (SIDE * 2 ** (steps + 1) / coarsest.downsample) ** 2 <= SOURCE_PIXELS:
        steps += 1
    return max(0, last - steps)


def tile_at(full: Level, path: str) -> Tile:
    """The tile that `LEVEL/COLUMN_ROW.EXT` names. Raises RefusedError where there is none."""
    match = TILE.fullmatch(path)
    if match is None or match[4] not in FORMATS:
        raise RefusedError(404, f"a tile is LEVEL/COLUMN_ROW.EXT, with EXT of {', '.join(FORMATS)}")
    level, column, row = int(match[1]), int(match[2]), int(match[3])
    last = last_level(full)
    if level > last:
        raise RefusedError(404, f"level {level} does not exist; the last one is {last}")
    factor = 2 ** (last - level)
    plane = Region(0, 0, ceil_div(full.width, factor), ceil_div(full.height, factor))
    region = Region(column * SIDE, row * SIDE, SIDE, SIDE).intersect(plane)
    if region.empty:
        raise RefusedError(404, f"level {level} has no tile {column}_{row}")
    return Tile(region, factor, match[4])


def finisher(tile: Tile) -> Callable[[Pixels], bytes]:
    """What makes a file of a tile's pixels. Tiles at full resolution keep the full resolution of colour."""
    form = FORMATS[tile.suffix]
    return lambda pixels: image_bytes(pixels, form, fine=tile.factor == 1)


async def description(request: Request) -> Response:
    """`ID.dzi`."""
    opened = await viewer_of(request).open(request.path_params["id"])
    full = opened.slide.levels[0]
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Image xmlns="{NAMESPACE}" Format="jpeg" Overlap="0" '
        f'TileSize="{SIDE}"><Size Width="{full.width}" Height="{full.height}"/></Image>\n'
    ).encode()

    async def make() -> bytes:
        return body

    return await answer(request, tag_of(opened.version, "dzi"), "application/xml", make)


async def tile(request: Request) -> Response:
    """`ID_files/LEVEL/COLUMN_ROW.EXT`: the slide as it decodes."""
    viewer = viewer_of(request)
    opened = await viewer.open(request.path_params["id"])
    wanted = tile_at(opened.slide.levels[0], request.path_params["tile"])
    tag = tag_of(opened.version, "tile", request.path_params["tile"])

    async def make() -> bytes:
        reading = reading_of(opened.levels, wanted.box, wanted.size)
        return await viewer.image(opened, reading, finisher(wanted))

    return await answer(
        request, tag, media_of(wanted), lambda: viewer.answers.get(tag, make), cache=caching(request, opened.version)
    )


async def original_tile(request: Request) -> Response:
    """`ID/original_files/LEVEL/COLUMN_ROW.EXT`: the same of the original."""
    viewer = viewer_of(request)
    opened = await viewer.open(request.path_params["id"])
    original = await viewer.need_original(opened)
    wanted = tile_at(opened.slide.levels[0], request.path_params["tile"])
    tag = tag_of(opened.version, "original", original.name, request.path_params["tile"])

    async def make() -> bytes:
        reading = reading_of(original.levels, wanted.box, wanted.size)
        return await viewer.image_of(original, reading, finisher(wanted))

    return await answer(
        request, tag, media_of(wanted), lambda: viewer.answers.get(tag, make), cache=caching(request, opened.version)
    )


def media_of(tile: Tile) -> str:
    """The media type of a tile."""
    return MEDIA[FORMATS[tile.suffix]]


def thumbnail_size(opened: Opened, side: int) -> tuple[int, int]:
    """The size of a picture of the whole slide within a square."""
    full = opened.slide.levels[0]
    longest = max(full.width, full.height)
    scale = min(1.0, side / longest)
    return max(1, round(full.width * scale)), max(1, round(full.height * scale))
