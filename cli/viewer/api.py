"""`/api`: the slides as JSON, and regions, thumbnails and associated images as files.

openapi.py describes it for programs; `/api` is its page for people.
"""

from collections.abc import Sequence

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from histocodec.cli.viewer.answers import answer, caching, choice, json_answer, tag_of, whole_number
from histocodec.cli.viewer.catalogue import Entry, Opened
from histocodec.cli.viewer.deepzoom import first_level, last_level, thumbnail_size
from histocodec.cli.viewer.fidelity import scale
from histocodec.cli.viewer.limits import PAGE_SLIDES, REGION_PIXELS, RefusedError
from histocodec.cli.viewer.ome_zarr import PREFIXES
from histocodec.cli.viewer.openapi import document
from histocodec.cli.viewer.scaling import FORMATS, MEDIA, Format, image_bytes, reading_of
from histocodec.cli.viewer.viewer import Viewer, viewer_of
from histocodec.formats.decode.describe import describe
from histocodec.geometry import Region
from histocodec.slide import Pixels

FAR = 2**40  # pixels; nothing is that far away
THUMBNAIL = 256  # pixels of the longer side
MOST_THUMBNAIL = 1024
REGION_QUALITY = 95  # of JPEG and WebP, without subsampling: as `histocodec decode` writes them
# Of `describe`: what would tell where the slide lies, or repeats what is said anyway.
PRIVATE = ("path", "source", "properties")


async def slides(request: Request) -> Response:
    """The list of slides, PAGE_SLIDES at most from `offset` on."""
    viewer = viewer_of(request)
    offset = whole_number(request, "offset", 0, low=0, high=10**9)
    limit = whole_number(request, "limit", PAGE_SLIDES, low=1, high=PAGE_SLIDES)

    def listed() -> tuple[list[dict[str, object]], int]:
        viewer.catalogue.scan()
        entries = viewer.catalogue.entries()
        return [summary(viewer, entry) for entry in entries[offset : offset + limit]], len(entries)

    rows, total = await viewer.decoding.aside(listed)
    after = offset + len(rows)
    following = f"/api/slides?offset={after}&limit={limit}" if after < total else None
    return json_answer(request, {"slides": rows, "total": total, "next": following})


async def slide(request: Request) -> Response:
    """All about one slide."""
    viewer = viewer_of(request)
    opened = await viewer.open(request.path_params["id"])

    def facts() -> dict[str, object]:
        more: dict[str, object] = {"compressed": opened.container is not None}
        if opened.container is not None:
            described = describe(opened.container.store)
            more["scale"] = scale()
            more["container"] = {name: value for name, value in described.items() if name not in PRIVATE}
        return {**of_slide(viewer, opened), **more}

    return json_answer(request, await viewer.decoding.aside(facts))


def summary(viewer: Viewer, entry: Entry) -> dict[str, object]:
    """A slide in the list; where it cannot be opened, why."""
    try:
        return of_slide(viewer, viewer.catalogue.open(entry.id))
    except RefusedError as exc:
        return {"id": entry.id, "name": entry.name, "error": exc.message}


def of_slide(viewer: Viewer, opened: Opened) -> dict[str, object]:
    """What the page needs of a slide, and the addresses of everything that is served of it."""
    entry, shown, full = opened.entry, opened.slide, opened.slide.levels[0]
    return {
        "id": entry.id,
        "name": entry.name,
        "version": opened.version,
        "width": full.width,
        "height": full.height,
        "mpp": None if shown.mpp is None else list(shown.mpp),
        "objective_power": shown.objective_power,
        "background": None if shown.background is None else list(shown.background),
        "levels": [
            {"width": level.width, "height": level.height, "downsample": level.downsample} for level in shown.levels
        ],
        "deepzoom_levels": [first_level(opened.levels), last_level(full)],
        "associated": list(shown.associated),
        "map": opened.container is not None,
        "original": viewer.originals.of(opened) is not None,
        "links": {
            "page": f"/slides/{entry.id}",
            "thumbnail": f"/api/slides/{entry.id}/thumbnail",
            "region": f"/api/slides/{entry.id}/region",
            "deepzoom": f"/slides/{entry.id}.dzi",
            "iiif": f"/iiif/{entry.id}/info.json",
            "ome_zarr": f"{PREFIXES['0.5']}/{entry.id}.ome.zarr",
            "ome_zarr_0.4": f"{PREFIXES['0.4']}/{entry.id}.ome.zarr",
        },
    }


async def region(request: Request) -> Response:
    """`read_region` of OpenSlide: `x` and `y` are level-0 pixels, `width` and `height` pixels of `level`. PNG and WebP
    are transparent beyond the level's edge, JPEG has the background colour there."""
    viewer = viewer_of(request)
    opened = await viewer.open(request.path_params["id"])
    levels = opened.slide.levels
    level = whole_number(request, "level", 0, low=0, high=len(levels) - 1)
    x = whole_number(request, "x", low=-FAR, high=FAR)
    y = whole_number(request, "y", low=-FAR, high=FAR)
    width = whole_number(request, "width", low=1, high=REGION_PIXELS)
    height = whole_number(request, "height", low=1, high=REGION_PIXELS)
    form = FORMATS[choice(request, "format", "png", tuple(FORMATS))]
    quality = whole_number(request, "quality", REGION_QUALITY, low=1, high=100)
    if width * height > REGION_PIXELS:
        raise RefusedError(
            400, f"{width}x{height} are too many pixels; at most {REGION_PIXELS} can be asked for at once"
        )
    if form == "webp" and max(width, height) > 16_383:
        raise RefusedError(400, "a WebP has at most 16383 pixels a side")
    downsample = levels[level].downsample
    wanted = Region(round(x / downsample), round(y / downsample), width, height)
    inside = wanted.intersect(levels[level].region)
    tag = tag_of(opened.version, "region", str(wanted), level, form, quality)

    def finish(pixels: Pixels) -> bytes:
        return image_bytes(padded(pixels, inside, wanted, form, opened), form, quality=quality, fine=True, icc=profile)

    profile = await viewer.decoding.aside(lambda: opened.slide.icc_profile)

    async def make() -> bytes:
        if inside.empty:
            return await viewer.run(lambda: finish(np.zeros((0, 0, 3), np.uint8)))
        return await viewer.pixels(opened.slide, level, inside, finish)

    return await answer(
        request, tag, MEDIA[form], lambda: viewer.answers.get(tag, make), cache=caching(request, opened.version)
    )


def padded(pixels: Pixels, inside: Region, wanted: Region, form: Format, opened: Opened) -> Pixels:
    """The pixels of `inside` as those of `wanted`: RGBA where something is missing and the format has transparency."""
    if inside == wanted:
        return pixels
    if form == "jpeg":
        result = np.full((wanted.height, wanted.width, 3), opened.slide.background or (255, 255, 255), np.uint8)
        if not inside.empty:
            result[inside.within(wanted)] = pixels
        return result
    result = np.zeros((wanted.height, wanted.width, 4), np.uint8)
    if not inside.empty:
        part = inside.within(wanted)
        result[(*part, slice(3))] = pixels
        result[(*part, 3)] = 255
    return result


async def thumbnail(request: Request) -> Response:
    """A small picture of the whole slide, JPEG."""
    viewer = viewer_of(request)
    opened = await viewer.open(request.path_params["id"])
    side = whole_number(request, "size", THUMBNAIL, low=16, high=MOST_THUMBNAIL)
    tag = tag_of(opened.version, "thumbnail", side)

    async def make() -> bytes:
        full = opened.slide.levels[0]
        reading = reading_of(opened.levels, (0, 0, full.width, full.height), thumbnail_size(opened, side))
        return await viewer.image(opened, reading, lambda pixels: image_bytes(pixels, "jpeg"))

    return await answer(
        request, tag, "image/jpeg", lambda: viewer.answers.get(tag, make), cache=caching(request, opened.version)
    )


async def associated(request: Request) -> Response:
    """An associated image, PNG: a container has a label or a macro only where it was encoded to keep them."""
    viewer = viewer_of(request)
    opened = await viewer.open(request.path_params["id"])
    images, name = opened.slide.associated, request.path_params["name"]
    if name not in images:
        raise RefusedError(404, f"the slide has no image of this name; it has {_names(tuple(images))}")
    tag = tag_of(opened.version, "associated", name)

    async def make() -> bytes:
        return await viewer.run(lambda: image_bytes(images[name], "png"))

    return await answer(request, tag, "image/png", make, cache=caching(request, opened.version))


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


async def openapi(request: Request) -> Response:
    """The description of this API."""
    return json_answer(request, document())
