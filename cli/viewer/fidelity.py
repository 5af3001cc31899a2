"""The fidelity map over HTTP: as tiles that lie over the slide, as one picture, and as numbers.

    /slides/ID/fidelity_files/LEVEL/COLUMN_ROW.png?measure=psnr|block|measured
    /api/slides/ID/fidelity.png, /api/slides/ID/fidelity

`psnr` and `block` are what the container states of each chunk. `measured` is computed from the original, where that is
at hand, for each block of 16 × 16 pixels of the level that a tile is made from.
"""

from typing import cast

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from histocodec.cli.fidelity_map import (
    LONGEST,
    MEASURES,
    Measure,
    block_decibels,
    chunk_colours,
    colours,
    decibels,
    fidelity_map,
    legend,
)
from histocodec.cli.viewer.answers import answer, caching, choice, json_answer, tag_of, whole_number
from histocodec.cli.viewer.catalogue import Opened
from histocodec.cli.viewer.comparison import both
from histocodec.cli.viewer.deepzoom import Tile, tile_at
from histocodec.cli.viewer.limits import RefusedError
from histocodec.cli.viewer.scaling import image_bytes, reading_of
from histocodec.cli.viewer.viewer import viewer_of
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.states import BACKGROUND, CODED, LOSSLESS
from histocodec.geometry import ceil_div
from histocodec.slide import Pixels, Slide

BLOCK = 16  # pixels of a side, as those of the stored block errors
MEASURED = "measured"
MOST_CHUNKS = 1 << 17  # of a level, as JSON
LEAST_SIDE, MOST_SIDE = 64, 4096  # pixels of the picture
STATE_NAMES = {BACKGROUND: "background", CODED: "coded", LOSSLESS: "lossless"}


def container_of(opened: Opened) -> Container:
    """The container of a compressed slide. Raises RefusedError for others: they have no map."""
    if opened.container is None:
        raise RefusedError(404, "this slide is not compressed, so it has no fidelity map")
    return opened.container


async def tile(request: Request) -> Response:
    """A tile of the map: colours, transparent where the slide is background."""
    viewer = viewer_of(request)
    opened = await viewer.open(request.path_params["id"])
    container_of(opened)
    wanted = tile_at(opened.slide.levels[0], request.path_params["tile"])
    if wanted.suffix != "png":
        raise RefusedError(404, "tiles of the map are PNG")
    measure = choice(request, "measure", "psnr", (*MEASURES, MEASURED))
    tag = tag_of(opened.version, "map", measure, request.path_params["tile"])
    original = await viewer.need_original(opened) if measure == MEASURED else None

    async def make() -> bytes:
        if original is not None:
            return await viewer.run(lambda: measured_tile(opened, original, wanted))
        return await viewer.decoding.aside(lambda: stored_tile(opened, cast(Measure, measure), wanted))

    return await answer(
        request, tag, "image/png", lambda: viewer.answers.get(tag, make), cache=caching(request, opened.version)
    )


def stored_tile(opened: Opened, measure: Measure, wanted: Tile) -> bytes:
    """A tile of what the container states."""
    container = container_of(opened)
    side = container.attributes.chunk_side
    if (rgba := opened.map_colours.get(measure)) is None:
        rgba = chunk_colours(container.tiles(0), decibels(container, 0, measure))
        opened.map_colours[measure] = rgba
    rows = (np.arange(wanted.region.y, wanted.region.y_end) + 0.5) * wanted.factor // side
    columns = (np.arange(wanted.region.x, wanted.region.x_end) + 0.5) * wanted.factor // side
    rows = rows.astype(int).clip(0, rgba.shape[0] - 1)
    columns = columns.astype(int).clip(0, rgba.shape[1] - 1)
    return image_bytes(rgba[rows[:, None], columns], "png")


def measured_tile(opened: Opened, original: Slide, wanted: Tile) -> bytes:
    """A tile of the errors of each block of the level that the tile is made from, measured anew."""
    reading = reading_of(opened.slide.levels, wanted.box, wanted.size)
    decoded, source = both(opened, original, reading.level, reading.region)
    values = block_map(decoded, source)
    rows, columns = (np.arange(size) for size in wanted.size[::-1])
    scale = (reading.box[3] - reading.box[1]) / wanted.size[1], (reading.box[2] - reading.box[0]) / wanted.size[0]
    rows = ((rows + 0.5) * scale[0] + reading.box[1]).astype(int) // BLOCK
    columns = ((columns + 0.5) * scale[1] + reading.box[0]).astype(int) // BLOCK
    rows, columns = rows.clip(0, values.shape[0] - 1), columns.clip(0, values.shape[1] - 1)
    rgb = colours(values)[rows[:, None], columns]
    return image_bytes(np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 255, np.uint8)], -1), "png")


def block_map(a: Pixels, b: Pixels) -> NDArray[np.float32]:
    """The fidelity in dB of each block of two images (H, W, 3) uint8, (rows, columns); infinite where they agree."""
    height, width, _ = a.shape
    difference = np.subtract(a, b, dtype=np.int32).reshape(height, 3 * width)
    square = np.square(difference, out=difference)
    sums = np.add.reduceat(square, np.arange(0, height, BLOCK), axis=0)
    sums = np.add.reduceat(sums, np.arange(0, 3 * width, 3 * BLOCK), axis=1)
    down, across = (np.minimum(BLOCK, n - np.arange(0, n, BLOCK)) for n in (height, width))
    return block_decibels(np.sqrt(sums / (3 * np.outer(down, across))))


async def picture(request: Request) -> Response:
    """The whole map over a small picture of the slide, with its legend, as `info --map` draws it."""
    viewer = viewer_of(request)
    opened = await viewer.open(request.path_params["id"])
    container = container_of(opened)
    measure = cast(Measure, choice(request, "measure", "psnr", MEASURES))
    size = whole_number(request, "size", LONGEST, low=LEAST_SIDE, high=MOST_SIDE)
    tag = tag_of(opened.version, "map", measure, size)

    async def make() -> bytes:
        full = opened.slide.levels[0]
        scale = min(1.0, size / max(full.width, full.height))
        extent = max(1, round(full.width * scale)), max(1, round(full.height * scale))
        reading = reading_of(opened.levels, (0, 0, full.width, full.height), extent)

        def drawn(pixels: Pixels) -> bytes:
            return image_bytes(fidelity_map(container, pixels, measure=measure, longest=size), "png")

        return await viewer.image(opened, reading, drawn)

    return await answer(
        request, tag, "image/png", lambda: viewer.answers.get(tag, make), cache=caching(request, opened.version)
    )


async def numbers(request: Request) -> Response:
    """The maps of a level as JSON, and the scale of the colours."""
    viewer = viewer_of(request)
    opened = await viewer.open(request.path_params["id"])
    container = container_of(opened)
    level = whole_number(request, "level", 0, low=0, high=len(opened.slide.levels) - 1)
    return json_answer(request, await viewer.decoding.aside(lambda: facts(container, level)))


def facts(container: Container, level: int) -> dict[str, object]:
    """What the container states of the chunks of a level."""
    size, side = container.attributes.levels[level], container.attributes.chunk_side
    if ceil_div(size.width, side) * ceil_div(size.height, side) > MOST_CHUNKS:
        raise RefusedError(400, f"level {level} has more than {MOST_CHUNKS} chunks; read its maps from the container")
    tiles, error = container.tiles(level), container.block_error(level)
    return {
        "level": level,
        "chunk": side,
        "rows": tiles.shape[0],
        "columns": tiles.shape[1],
        "states": {name: int((tiles == state).sum()) for state, name in STATE_NAMES.items()},
        "tiles": tiles.tolist(),
        "psnr": container.psnr(level).tolist(),  # dB; null: not measured, or lossless
        "block_error": None if error is None else error.tolist(),  # grey values, RMS
        "scale": scale(),
    }


def scale() -> list[dict[str, str]]:
    """The steps of the colours, from low to high."""
    return [
        {"range": text, "meaning": meaning, "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for colour, text, meaning in legend()
    ]
