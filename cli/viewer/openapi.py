"""The description of the server's API as OpenAPI 3.1, for programs that write clients, and for the page `/api`."""

from histocodec.cli.viewer.limits import REGION_PIXELS
from histocodec.version import VERSION

Json = dict[str, object]

PNG, JPEG, WEBP = "image/png", "image/jpeg", "image/webp"
ID: Json = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "Id of a slide, as the list has it.",
    "schema": {"type": "string"},
}


def _parameter(name: str, text: str, schema: Json, *, place: str = "query", required: bool = False) -> Json:
    return {"name": name, "in": place, "required": required or place == "path", "description": text, "schema": schema}


def _integer(name: str, text: str, *, required: bool = False, default: int | None = None) -> Json:
    schema: Json = {"type": "integer"} if default is None else {"type": "integer", "default": default}
    return _parameter(name, text, schema, required=required)


def _words(name: str, text: str, *words: str) -> Json:
    return _parameter(name, text, {"type": "string", "enum": list(words), "default": words[0]})


def _get(tag: str, summary: str, parameters: list[Json], *media: str, text: str = "") -> Json:
    content: Json = {
        kind: {"schema": {"type": "object"} if "json" in kind else {"type": "string", "format": "binary"}}
        for kind in media
    }
    answers: Json = {
        "200": {"description": "Done.", "content": content},
        "304": {"description": "The client has it already: If-None-Match named its ETag."},
    }
    errors = {
        "400": "The request makes no sense, or asks for too much.",
        "401": "A token is needed.",
        "404": "There is no such slide, or it has no such thing.",
        "502": "The slide is damaged.",
        "503": "The server is busy; Retry-After says when to try again.",
    }
    for status, meaning in errors.items():
        schema: Json = {"schema": {"$ref": "#/components/schemas/Error"}}
        answers[status] = {"description": meaning, "content": {"application/json": schema}}
    return {
        "get": {"tags": [tag], "summary": summary, "description": text, "parameters": parameters, "responses": answers}
    }


def document() -> Json:
    """The document. Answers to HEAD are those to GET without a body."""
    json, xml, ld = "application/json", "application/xml", "application/ld+json"
    tile = _parameter("tile", "LEVEL/COLUMN_ROW.EXT: jpeg, png or webp.", {"type": "string"}, place="path")
    measure = _words("measure", "What the colours show of each chunk.", "psnr", "block")
    iiif = [
        _parameter(name, text, {"type": "string"}, place="path")
        for name, text in (
            ("region", "full, square, x,y,w,h or pct:x,y,w,h."),
            ("size", "max, w, or ,h or pct:n or w,h or !w,h; with ^ before it to enlarge."),
            ("rotation", "0, 90, 180 or 270; with ! before it to mirror first."),
            ("quality", "default, color, gray or bitonal."),
            ("format", "jpg, png or webp."),
        )
    ]
    box = [
        _integer("x", "Left edge, in level-0 pixels.", required=True),
        _integer("y", "Upper edge, in level-0 pixels.", required=True),
        _integer("width", "Pixels of the level.", required=True),
        _integer("height", "Pixels of the level.", required=True),
    ]
    key = _parameter("key", "Name of an object, such as zarr.json or 0/c/0/1/2.", {"type": "string"}, place="path")
    paths: Json = {
        "/api/slides": _get(
            "Slides",
            "List the slides",
            [
                _integer("offset", "Number of the first one.", default=0),
                _integer("limit", "How many at most.", default=200),
            ],
            json,
        ),
        "/api/slides/{id}": _get("Slides", "Facts about a slide, and its addresses", [ID], json),
        "/api/slides/{id}/region": _get(
            "Pixels",
            "A region of a level",
            [
                ID,
                *box,
                _integer("level", "Number of the level.", default=0),
                _words("format", "PNG has the exact pixels.", "png", "jpeg", "webp"),
                _integer("quality", "Of JPEG and WebP, 1 to 100.", default=95),
            ],
            PNG,
            JPEG,
            WEBP,
            text=f"OpenSlide's read_region. At most {REGION_PIXELS} pixels. Beyond the edge, PNG and WebP are "
            "transparent, JPEG has the background colour.",
        ),
        "/api/slides/{id}/thumbnail": _get(
            "Pixels", "A small picture of the slide", [ID, _integer("size", "Of the longer side.", default=256)], JPEG
        ),
        "/api/slides/{id}/associated/{name}": _get(
            "Pixels",
            "An associated image",
            [ID, _parameter("name", "Such as thumbnail.", {"type": "string"}, place="path")],
            PNG,
        ),
        "/api/slides/{id}/fidelity": _get(
            "Fidelity", "PSNR and block error of every chunk", [ID, _integer("level", "Its number.", default=0)], json
        ),
        "/api/slides/{id}/fidelity.png": _get(
            "Fidelity",
            "The fidelity map over the slide, with its legend",
            [ID, measure, _integer("size", "Pixels of the longer side.", default=1200)],
            PNG,
        ),
        "/slides/{id}/fidelity_files/{tile}": _get(
            "Fidelity",
            "A tile of the map",
            [ID, tile, _words("measure", "`measured` needs the original.", "psnr", "block", "measured")],
            PNG,
        ),
        "/api/slides/{id}/compare": _get(
            "Original",
            "PSNR of a region against the original",
            [
                ID,
                _integer("x", "Left edge, in level-0 pixels."),
                _integer("y", "Upper edge, in level-0 pixels."),
                _integer("width", "Level-0 pixels."),
                _integer("height", "Level-0 pixels."),
            ],
            json,
            text="The finest level is compared of which the region has at most 4 megapixels. Without parameters, all.",
        ),
        "/slides/{id}/original_files/{tile}": _get("Original", "A tile of the original", [ID, tile], JPEG, PNG, WEBP),
        "/slides/{id}/difference_files/{tile}": _get(
            "Original",
            "A tile of the difference",
            [ID, tile, _integer("gain", "Times that it is enlarged.", default=8)],
            PNG,
            text="128 + gain · (decoded − original), for red, green and blue.",
        ),
        "/slides/{id}.dzi": _get("DeepZoom", "The description of the pyramid", [ID], xml),
        "/slides/{id}_files/{tile}": _get("DeepZoom", "A tile", [ID, tile], JPEG, PNG, WEBP),
        "/iiif/{id}/info.json": _get("IIIF", "The image's description (Image API 3, level 2)", [ID], ld),
        "/iiif/{id}/{region}/{size}/{rotation}/{quality}.{format}": _get(
            "IIIF", "An image", [ID, *iiif], JPEG, PNG, WEBP
        ),
        "/ome-zarr/{id}.ome.zarr/{key}": _get(
            "OME-Zarr", "An object of the slide as OME-NGFF 0.5", [ID, key], json, "application/octet-stream",
            text="Ranges are known. Open the address without the key in a viewer.",
        ),
        "/ome-zarr-0.4/{id}.ome.zarr/{key}": _get(
            "OME-Zarr", "An object of the slide as OME-NGFF 0.4", [ID, key], json, "application/octet-stream"
        ),
    }  # fmt: skip
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "histocodec serve",
            "version": VERSION,
            "description": "Slides as JSON, regions, DeepZoom, IIIF and OME-Zarr. Where a token is needed, requests "
            "name it in the header Authorization (Bearer TOKEN), in the query (token), or by the cookie of the page.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": error},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }
