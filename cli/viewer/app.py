"""The application: routes, errors, and the guard before them."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from histocodec.cli.viewer import api, comparison, deepzoom, fidelity, iiif, ome_zarr, pages
from histocodec.cli.viewer.answers import refusal
from histocodec.cli.viewer.catalogue import Catalogue
from histocodec.cli.viewer.decoding import Decoding
from histocodec.cli.viewer.guard import VIEWERS, Guard, with_guard
from histocodec.cli.viewer.limits import RefusedError
from histocodec.cli.viewer.originals import Originals
from histocodec.cli.viewer.viewer import Viewer
from histocodec.text import printable
from histocodec.threads import default_workers

Handler = Callable[[Request], Awaitable[Response]]

ROUTES: tuple[tuple[str, Handler], ...] = (
    ("/", pages.index),
    ("/favicon.ico", pages.icon),
    ("/assets/{name}", pages.asset),
    ("/api", pages.api),
    ("/api/openapi.json", api.openapi),
    ("/api/slides", api.slides),
    ("/api/slides/{id}", api.slide),
    ("/api/slides/{id}/region", api.region),
    ("/api/slides/{id}/thumbnail", api.thumbnail),
    ("/api/slides/{id}/associated/{name}", api.associated),
    ("/api/slides/{id}/fidelity", fidelity.numbers),
    ("/api/slides/{id}/fidelity.png", fidelity.picture),
    ("/api/slides/{id}/compare", comparison.compare),
    ("/slides/{id}.dzi", deepzoom.description),
    ("/slides/{id}_files/{tile:path}", deepzoom.tile),
    ("/slides/{id}/original_files/{tile:path}", deepzoom.original_tile),
    ("/slides/{id}/difference_files/{tile:path}", comparison.difference_tile),
    ("/slides/{id}/fidelity_files/{tile:path}", fidelity.tile),
    ("/slides/{id}", pages.slide),
    ("/iiif/{id}", iiif.base),
    ("/iiif/{id}/info.json", iiif.info),
    ("/iiif/{id}/{region}/{size}/{rotation}/{quality}.{format}", iiif.image),
    (ome_zarr.PREFIXES["0.5"] + "/{id}.ome.zarr/{key:path}", ome_zarr.version_5),
    (ome_zarr.PREFIXES["0.4"] + "/{id}.ome.zarr/{key:path}", ome_zarr.version_4),
)


def application(
    catalogue: Catalogue,
    *,
    original_dir: Path | None = None,
    running: int | None = None,
    token: str | None = None,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = VIEWERS,
) -> Guard:
    """The ASGI application for the slides of a catalogue. `running` is how many requests decode at a time; the others
    are as in `Access`."""
    viewer = Viewer(catalogue, Originals(original_dir), Decoding(running or max(2, default_workers())))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        viewer.decoding.close()

    app = Starlette(
        routes=[Route(path, handler, methods=["GET", "HEAD"]) for path, handler in ROUTES],
        exception_handlers={
            RefusedError: _refused,
            HTTPException: _http,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )
    app.state.viewer = viewer
    return with_guard(app, token=token, hosts=hosts, origins=origins)


async def _refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RefusedError)
    return refusal(exc)


async def _http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    message = "there is nothing at this address" if exc.status_code == 404 else exc.detail
    return refusal(RefusedError(exc.status_code, message))


async def _unexpected(request: Request, exc: Exception) -> Response:
    logging.getLogger("histocodec.serve").error("unexpected %s: %s", type(exc).__name__, printable(str(exc)))
    return refusal(RefusedError(500, "something unexpected went wrong; see the terminal of the server"))
