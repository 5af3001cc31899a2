"""The IIIF Image API 3, level 2: https://iiif.io/api/image/3.0/

/iiif/ID/info.json
/iiif/ID/{region}/{size}/{rotation}/{quality}.{format}
"""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

import numpy as np
from PIL import Image
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from histocodec.cli.viewer.answers import answer, caching, tag_of
from histocodec.cli.viewer.deepzoom import SIDE
from histocodec.cli.viewer.limits import SCALED_PIXELS, RefusedError
from histocodec.cli.viewer.scaling import FORMATS, MEDIA, Box, Format, image_bytes, level_scale, reading_of
from histocodec.cli.viewer.viewer import viewer_of
from histocodec.geometry import Level
from histocodec.slide import Pixels
from histocodec.text import json_text

CONTEXT = "http://iiif.io/api/image/3/context.json"
PROFILE = "http://iiif.io/api/image/3/level2.json"
MOST_SIDE = 16_384  # pixels of an answer's side; its area is at most SCALED_PIXELS
QUALITIES = ("default", "color", "gray", "bitonal")
NUMBER = r"\d{1,12}(?:\.\d{1,12})?"
SIZE = re.compile(rf"(\^?)(?:(max)|pct:({NUMBER})|(!?)(\d{{0,9}}),(\d{{0,9}}))", re.ASCII)
REGION = re.compile(rf"(pct:)?({NUMBER}),({NUMBER}),({NUMBER}),({NUMBER})", re.ASCII)
GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


@dataclass(frozen=True)
class ImageRequest:
    """What a request asks for: `box` in level-0 pixels, `size` before it is turned, clockwise by `rotation` degrees
    after it is mirrored."""

    box: Box
    size: tuple[int, int]
    mirrored: bool
    rotation: int
    quality: str
    form: Format

    def finish(self, pixels: Pixels) -> bytes:
        """The file of the pixels that were read."""
        if self.mirrored:
            pixels = pixels[:, ::-1]
        pixels = np.rot90(pixels, -(self.rotation // 90))
        if self.quality in ("gray", "bitonal"):
            grey = (pixels @ np.array(GREY)).round().astype(np.uint8)
            if self.quality == "bitonal":
                grey = np.asarray(Image.fromarray(grey).convert("1").convert("L"))
            pixels = grey
        return image_bytes(np.ascontiguousarray(pixels), self.form, fine=True)


def parsed(full: Level, region: str, size: str, rotation: str, quality: str, suffix: str) -> ImageRequest:
    """A request's words. Raises RefusedError, 400, where the standard has no meaning for them, or a limit is passed."""
    box = _region(full, region)
    extent = _size(size, box[2] - box[0], box[3] - box[1])
    turn = re.fullmatch(rf"(!?)({NUMBER})", rotation, re.ASCII)
    if turn is None or not 0 <= float(turn[2]) <= 360:
        raise RefusedError(400, "rotation is a number from 0 to 360, with ! before it to mirror the image first")
    if float(turn[2]) % 90:
        raise RefusedError(501, "rotations of 0, 90, 180 and 270 degrees are known")
    if quality not in QUALITIES:
        raise RefusedError(400, f"quality must be one of {', '.join(QUALITIES)}")
    if suffix not in ("jpg", "png", "webp"):
        raise RefusedError(400, "format must be one of jpg, png, webp")
    return ImageRequest(box, extent, bool(turn[1]), int(float(turn[2])) % 360, quality, FORMATS[suffix])


def _region(full: Level, text: str) -> Box:
    if text == "full":
        return 0, 0, full.width, full.height
    if text == "square":
        side = min(full.width, full.height)
        left, top = (full.width - side) // 2, (full.height - side) // 2
        return left, top, left + side, top + side
    match = REGION.fullmatch(text)
    if match is None:
        raise RefusedError(400, "region is full, square, x,y,w,h or pct:x,y,w,h")
    x, y, width, height = (float(match[number]) for number in (2, 3, 4, 5))
    if match[1]:
        x, width = x * full.width / 100, width * full.width / 100
        y, height = y * full.height / 100, height * full.height / 100
    elif not all(value.is_integer() for value in (x, y, width, height)):
        raise RefusedError(400, "a region in pixels has whole numbers; pct: takes others")
    left, top = round(x), round(y)
    right, bottom = min(full.width, round(x + width)), min(full.height, round(y + height))
    if left >= full.width or top >= full.height or right <= left or bottom <= top:
        raise RefusedError(400, f"the region has no pixel of this image of {full.width}x{full.height}")
    return left, top, right, bottom


def _size(text: str, width: float, height: float) -> tuple[int, int]:
    match = SIZE.fullmatch(text)
    if match is None or (match[5] is not None and not match[5] and not match[6]):
        raise RefusedError(400, "size is max, w, or ,h or pct:n or w,h or !w,h, with ^ before it to enlarge")
    larger = bool(match[1])
    if match[2]:
        factor = fitting(width, height) if larger else min(1.0, fitting(width, height))
        return fitted(width, height, factor)
    if match[3]:
        percent = float(match[3])
        if not percent or (percent > 100 and not larger):
            raise RefusedError(400, "a percentage is above 0, and above 100 only after ^")
        extent = max(1, round(width * percent / 100)), max(1, round(height * percent / 100))
    elif match[4]:
        if not match[5] or not match[6]:
            raise RefusedError(400, "after ! both width and height are needed")
        factor = min(int(match[5]) / width, int(match[6]) / height)
        factor = factor if larger else min(1.0, factor)
        factor = min(factor, fitting(width, height))
        if not factor:
            raise RefusedError(400, "a size of 0 pixels is none")
        return fitted(width, height, factor)
    else:
        across, down = int(match[5] or 0), int(match[6] or 0)
        if (match[5] and not across) or (match[6] and not down):
            raise RefusedError(400, "a size of 0 pixels is none")
        across = across or max(1, round(width * down / height))
        down = down or max(1, round(height * across / width))
        extent = across, down
    if not larger and (extent[0] > width or extent[1] > height):
        raise RefusedError(400, "the size is larger than the region; put ^ before it to enlarge")
    if max(extent) > MOST_SIDE or extent[0] * extent[1] > SCALED_PIXELS:
        raise RefusedError(
            400, f"{extent[0]}x{extent[1]} pixels are too many; maxArea in info.json says how many can be"
        )
    return extent


def fitting(width: float, height: float) -> float:
    """The largest factor at which a region is within the limits."""
    return min(MOST_SIDE / width, MOST_SIDE / height, float(np.sqrt(SCALED_PIXELS / (width * height))))


def fitted(width: float, height: float, factor: float) -> tuple[int, int]:
    """A region's size times a factor, within the limits."""
    across, down = max(1, int(width * factor + 1e-6)), max(1, int(height * factor + 1e-6))
    return min(across, MOST_SIDE), min(down, MOST_SIDE)


def base_of(request: Request, slide_id: str) -> str:
    """The address of an image, as the client named this server."""
    return f"{request.url.scheme}://{request.headers['host']}/iiif/{quote(slide_id)}"


async def base(request: Request) -> Response:
    """`/iiif/ID` leads to its description."""
    await viewer_of(request).open(request.path_params["id"])
    return RedirectResponse(f"{base_of(request, request.path_params['id'])}/info.json", 303)


async def info(request: Request) -> Response:
    """`info.json`."""
    opened = await viewer_of(request).open(request.path_params["id"])
    full = opened.slide.levels[0]
    factors = sorted({round(1 / max(level_scale(opened.slide.levels, n))) for n in range(len(opened.slide.levels))})
    steps = [1]
    while max(full.width, full.height) / steps[-1] > SIDE:
        steps.append(2 * steps[-1])
    described = {
        "@context": CONTEXT,
        "id": base_of(request, request.path_params["id"]),
        "type": "ImageService3",
        "protocol": "http://iiif.io/api/image",
        "profile": "level2",
        "width": full.width,
        "height": full.height,
        "maxWidth": MOST_SIDE,
        "maxHeight": MOST_SIDE,
        "maxArea": SCALED_PIXELS,
        "tiles": [{"width": SIDE, "height": SIDE, "scaleFactors": steps}],
        "sizes": [
            {"width": -(-full.width // factor), "height": -(-full.height // factor)}
            for factor in reversed(factors)
            if full.width * full.height / factor**2 <= SCALED_PIXELS
        ],
        "preferredFormats": ["jpg", "webp", "png"],
        "extraFormats": ["webp"],
        "extraQualities": ["color", "gray", "bitonal"],
        "extraFeatures": ["canonicalLinkHeader", "mirroring", "profileLinkHeader", "regionSquare", "sizeUpscaling"],
    }
    accepted = request.headers.get("accept", "")
    media = (
        "application/json" if "ld+json" not in accepted and "application/json" in accepted else "application/ld+json"
    )
    media = f'{media};profile="{CONTEXT}"' if "ld+json" in media else media
    body = json_text(described).encode()
    tag = tag_of(opened.version, "info", described["id"], media)

    async def make() -> bytes:
        return body

    return await answer(request, tag, media, make, headers={"Link": f'<{PROFILE}>;rel="profile"', "Vary": "Accept"})


async def image(request: Request) -> Response:
    """`{region}/{size}/{rotation}/{quality}.{format}`."""
    viewer = viewer_of(request)
    opened = await viewer.open(request.path_params["id"])
    words = [unquote(request.path_params[name]) for name in ("region", "size", "rotation", "quality", "format")]
    full = opened.slide.levels[0]
    wanted = parsed(full, *words)
    tag = tag_of(opened.version, "iiif", wanted.box, wanted.size, *words[2:])

    async def make() -> bytes:
        return await viewer.image(opened, reading_of(opened.levels, wanted.box, wanted.size), wanted.finish)

    return await answer(
        request,
        tag,
        MEDIA[wanted.form],
        lambda: viewer.answers.get(tag, make),
        cache=caching(request, opened.version),
        headers={"Link": f'<{PROFILE}>;rel="profile", <{canonical(request, full, wanted, words)}>;rel="canonical"'},
    )


def canonical(request: Request, full: Level, wanted: ImageRequest, words: list[str]) -> str:
    """The one address that the standard gives to an image."""
    left, top, right, bottom = (round(edge) for edge in wanted.box)
    whole = (left, top, right, bottom) == (0, 0, full.width, full.height)
    region = "full" if whole else f"{left},{top},{right - left},{bottom - top}"
    width, height = wanted.size
    larger = "^" if width > right - left or height > bottom - top else ""
    as_max = fitted(right - left, bottom - top, min(1.0, fitting(right - left, bottom - top))) == wanted.size
    size = "max" if as_max else f"{larger}{width},{height}"
    rotation = f"{'!' if wanted.mirrored else ''}{wanted.rotation}"
    return f"{base_of(request, request.path_params['id'])}/{region}/{size}/{rotation}/{wanted.quality}.{words[4]}"
