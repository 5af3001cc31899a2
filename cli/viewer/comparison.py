"""The original beside the slide as it decodes: PSNR of what is in view, and a picture of the difference.

/api/slides/ID/compare?x=&y=&width=&height=        numbers, of a region in level-0 pixels
/slides/ID/difference_files/LEVEL/COLUMN_ROW.png   tiles: grey where both agree
"""

import math

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from histocodec.cli.viewer.answers import answer, caching, json_answer, tag_of, whole_number
from histocodec.cli.viewer.catalogue import Opened
from histocodec.cli.viewer.deepzoom import tile_at
from histocodec.cli.viewer.limits import COMPARED_PIXELS, RefusedError
from histocodec.cli.viewer.scaling import image_bytes, level_scale, reading_of
from histocodec.cli.viewer.viewer import viewer_of
from histocodec.fidelity import psnr, squared_error
from histocodec.geometry import Region
from histocodec.slide import Pixels, Slide

GAIN = 8  # times that a difference is enlarged
MOST_GAIN = 64
MIDDLE = 128  # grey: no difference
FAR = 2**31 - 1  # pixels


def both(opened: Opened, original: Slide, level: int, region: Region) -> tuple[Pixels, Pixels]:
    """A region of a level, in its own pixels, as it decodes and in the original."""
    size = opened.slide.levels[level]
    decoded = opened.slide.read(region, level)
    for number, candidate in enumerate(original.levels):
        if (candidate.width, candidate.height) == (size.width, size.height):
            return decoded, original.read(region, number)
    across, down = level_scale(opened.slide.levels, level)
    box = (region.x / across, region.y / down, region.x_end / across, region.y_end / down)
    reading = reading_of(original.levels, box, (region.width, region.height))
    return decoded, reading.scaled(original.read(reading.region, reading.level))


async def compare(request: Request) -> Response:
    """PSNR and the largest difference in a region."""
    viewer = viewer_of(request)
    opened = await viewer.open(request.path_params["id"])
    original = await viewer.need_original(opened)
    full, levels = opened.slide.levels[0], opened.slide.levels
    x = whole_number(request, "x", 0, low=-FAR, high=FAR)
    y = whole_number(request, "y", 0, low=-FAR, high=FAR)
    width = whole_number(request, "width", full.width, low=1, high=FAR)
    height = whole_number(request, "height", full.height, low=1, high=FAR)
    wanted = Region(x, y, width, height).intersect(full.region)
    if wanted.empty:
        raise RefusedError(400, f"the region has no pixel of this slide of {full.width}x{full.height}")
    for level in range(len(levels)):
        across, down = level_scale(levels, level)
        left, top = math.floor(wanted.x * across), math.floor(wanted.y * down)
        right, bottom = math.ceil(wanted.x_end * across), math.ceil(wanted.y_end * down)
        region = Region(left, top, right - left, bottom - top).intersect(levels[level].region)
        if region.area <= COMPARED_PIXELS:
            break
    else:
        raise RefusedError(
            400, f"the region has more than {COMPARED_PIXELS} pixels of every level; choose a smaller one"
        )
    if region.empty:
        raise RefusedError(400, "the region has no whole pixel of the level that it would be compared at")

    def work() -> dict[str, object]:
        decoded, source = both(opened, original, level, region)
        error = squared_error(decoded, source)
        difference = np.abs(decoded.astype(np.int16) - source)
        return {
            "level": level,
            "region": {"x": region.x, "y": region.y, "width": region.width, "height": region.height},
            "psnr": psnr(error, decoded.size),  # null: equal
            "equal": error == 0,
            "mean_squared_error": error / decoded.size,
            "largest_difference": int(difference.max()),
            "changed": float((difference.max(-1) > 0).mean()),
        }

    return json_answer(request, await viewer.run(work))


async def difference_tile(request: Request) -> Response:
    """A tile of the difference: 128 + gain · (decoded − original), for red, green and blue."""
    viewer = viewer_of(request)
    opened = await viewer.open(request.path_params["id"])
    original = await viewer.need_original(opened)
    wanted = tile_at(opened.slide.levels[0], request.path_params["tile"])
    gain = whole_number(request, "gain", GAIN, low=1, high=MOST_GAIN)
    if wanted.suffix != "png":
        raise RefusedError(404, "tiles of the difference are PNG")
    tag = tag_of(opened.version, "difference", original.name, gain, request.path_params["tile"])

    def work() -> bytes:
        reading = reading_of(opened.slide.levels, wanted.box, wanted.size)
        decoded, source = both(opened, original, reading.level, reading.region)
        enlarged = MIDDLE + gain * (decoded.astype(np.int16) - source)
        return image_bytes(reading.scaled(enlarged.clip(0, 255).astype(np.uint8)), "png")

    async def make() -> bytes:
        return await viewer.run(work)

    return await answer(
        request, tag, "image/png", lambda: viewer.answers.get(tag, make), cache=caching(request, opened.version)
    )
