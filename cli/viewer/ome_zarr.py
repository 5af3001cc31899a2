"""The slide as an OME-Zarr image over HTTP: `histocodec.view`, object by object, decoded as it is asked for.

/ome-zarr/ID.ome.zarr/zarr.json, …      OME-NGFF 0.5 (Zarr v3)
/ome-zarr-0.4/ID.ome.zarr/.zattrs, …    OME-NGFF 0.4 (Zarr v2)
"""

from starlette.requests import Request
from starlette.responses import Response

from histocodec.cli.viewer.answers import answer, caching, tag_of
from histocodec.cli.viewer.catalogue import Opened
from histocodec.cli.viewer.limits import RefusedError
from histocodec.cli.viewer.viewer import viewer_of
from histocodec.formats.decode.ome_zarr import CHUNK_SIDE, NgffVersion, OmeZarrPixels, chunk_bytes

PREFIXES: dict[NgffVersion, str] = {"0.5": "/ome-zarr", "0.4": "/ome-zarr-0.4"}


def view_of(opened: Opened, version: NgffVersion) -> OmeZarrPixels:
    """The view of a slide, made once."""
    if version not in opened.views:
        opened.views[version] = OmeZarrPixels(opened.slide, CHUNK_SIDE, version)
    return opened.views[version]


async def object_of_view(request: Request, version: NgffVersion) -> Response:
    """One object: metadata, or a chunk of pixels."""
    viewer = viewer_of(request)
    opened = await viewer.open(request.path_params["id"])
    key = request.path_params["key"]
    view = view_of(opened, version)
    size = view.size(key)
    if size is None:
        raise RefusedError(404, "the image has no such object")
    tag = tag_of(opened.version, "ome-zarr", version, key)
    cache = caching(request, opened.version)
    if (place := view.region_of(key)) is None:

        async def metadata() -> bytes:
            return view.read(key, size)

        return await answer(request, tag, "application/json", metadata, cache=cache, ranges="range" in request.headers)
    if request.method == "HEAD" and "range" not in request.headers:  # nothing needs to be decoded to know its size
        headers = {"ETag": f'"{tag}"', "Cache-Control": cache, "Accept-Ranges": "bytes", "Content-Length": str(size)}
        return Response(headers=headers, media_type="application/octet-stream")

    async def pixels() -> bytes:
        return await viewer.pixels(opened.slide, *place, chunk_bytes)

    # Chunks are not kept as answers: their pixels are, in the decoder's own cache.
    return await answer(request, tag, "application/octet-stream", pixels, cache=cache, ranges=True)


async def version_5(request: Request) -> Response:
    """An object of OME-NGFF 0.5."""
    return await object_of_view(request, "0.5")


async def version_4(request: Request) -> Response:
    """An object of OME-NGFF 0.4."""
    return await object_of_view(request, "0.4")
