"""The pages: plain HTML, CSS and JavaScript modules, from memory. They have no script or style in the HTML itself."""

from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from histocodec.cli.viewer.answers import answer, tag_of
from histocodec.cli.viewer.assets import HERE, LICENSE, MOST_SCRIPT, SCRIPT, VENDOR
from histocodec.cli.viewer.limits import RefusedError
from histocodec.cli.viewer.viewer import viewer_of

PAGE = HERE / "page"
MEDIA = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}


@cache
def files() -> dict[str, bytes]:
    """The page's files by name."""
    return {path.name: path.read_bytes() for path in sorted(PAGE.iterdir()) if path.suffix in MEDIA}


@cache
def vendored(size: int, changed: int) -> bytes:
    """The script of OpenSeadragon, read again when it has changed."""
    return (VENDOR / SCRIPT).read_bytes()[:MOST_SCRIPT]


async def file(request: Request, name: str) -> Response:
    """One of the page's files."""
    body = files().get(name)
    if body is None:
        raise RefusedError(404, "there is no such file")

    async def make() -> bytes:
        return body

    return await answer(request, tag_of("page", body.hex()), MEDIA[Path(name).suffix], make)


async def index(request: Request) -> Response:
    """The list of slides."""
    return await file(request, "index.html")


async def slide(request: Request) -> Response:
    """The page of one slide. Its script looks at the address to know which."""
    viewer_of(request).catalogue.entry(request.path_params["id"])
    return await file(request, "slide.html")


async def api(request: Request) -> Response:
    """The page of the API."""
    return await file(request, "api.html")


async def asset(request: Request) -> Response:
    """A script or a style, by its name in a list: nothing of a request becomes a path."""
    name = request.path_params["name"]
    if name.endswith(".html"):
        raise RefusedError(404, "there is no such file")
    if name not in (SCRIPT, LICENSE):
        return await file(request, name)
    try:
        facts = (VENDOR / SCRIPT).stat()
        body = vendored(facts.st_size, facts.st_mtime_ns) if name == SCRIPT else (VENDOR / LICENSE).read_bytes()
    except OSError as exc:
        raise RefusedError(404, "OpenSeadragon is not installed; see the terminal of the server") from exc

    async def make() -> bytes:
        return body

    return await answer(request, tag_of("vendor", len(body), facts.st_mtime_ns), MEDIA[Path(name).suffix], make)


async def icon(request: Request) -> Response:
    """The icon that browsers ask for."""
    return await file(request, "icon.svg")
