"""`histocodec serve`: show slides in a browser, and serve them to other programs."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import (
    Location,
    SectionedCommand,
    device_option,
    integer,
    json_option,
    location_arguments,
    option,
    workers_option,
)
from histocodec.report import print_facts, print_json, say

if TYPE_CHECKING:
    from histocodec.cli.viewer.catalogue import Catalogue

PORT = 8200  # by default; any free one where it is taken
GENERATE = "new"
SECTIONS = {
    "Slides": ("original_dir",),
    "Address": ("host", "port", "open_browser"),
    "Access": ("token", "without_token", "allow_host", "cors"),
    "Other": ("device", "workers", "cache", "as_json"),
}


@click.command("serve", cls=SectionedCommand, sections=SECTIONS, short_help="Show slides in a browser.")
@location_arguments("slides", "SLIDE|DIR|URL…")
@option(
    "--original-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the originals of compressed slides are, to compare with: by the name that a slide states, or its own.",
)
@option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@option(
    "--port",
    type=integer(0, 65_535),
    metavar="N",
    show_default=f"{PORT}, or any that is free",
    help="Port to listen on; 0 is any that is free.",
)
@option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@option(
    "--token",
    envvar="HISTOCODEC_TOKEN",
    metavar=f"TOKEN|{GENERATE}",
    help=f"Answer only requests that name this token; {GENERATE!r} makes one. HISTOCODEC_TOKEN keeps it out of the "
    "list of processes.",
)
@option("--without-token", is_flag=True, help="Let everyone who reaches --host read the slides.")
@option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Name by which browsers call this server, beside localhost and numbers. Repeatable.",
)
@option(
    "--cors",
    multiple=True,
    metavar="ORIGIN",
    help="Web pages of other servers that may read the slides, such as https://viewer.example.org; '*' is all, and the "
    "default with a token. Without one: well-known viewers of OME-Zarr. Repeatable.",
)
@device_option
@workers_option
@option(
    "--cache",
    type=integer(0),
    metavar="MB",
    default="256",
    show_default=True,
    help="Memory for decoded pixels and latents.",
)
@json_option
def command(
    slides: Sequence[Location],
    *,
    original_dir: Path | None,
    host: str,
    port: int | None,
    open_browser: bool,
    token: str | None,
    without_token: bool,
    allow_host: tuple[str, ...],
    cors: tuple[str, ...],
    device: str,
    workers: int | None,
    cache: int,
    as_json: bool,
) -> None:
    """Serve slides until Ctrl-C: a page to look at them, and DeepZoom, IIIF, OME-Zarr and regions for other programs.

    Each SLIDE is a container (path or URL) or any slide that `encode` reads. Of a folder DIR, all containers in it are
    served, also those that come later. Only this machine reaches the server, unless --host says otherwise.

    \b
    Examples:
      histocodec serve slide.hcz --open
      histocodec serve slides/ --original-dir originals/
      histocodec serve slides/ --host 0.0.0.0 --token new
      histocodec serve https://example.org/slide.hcz --json
    """
    import secrets

    from histocodec.errors import UsageError
    from histocodec.extras import requires_extra

    with requires_extra("serve"):
        from histocodec.cli.viewer.app import application
        from histocodec.cli.viewer.catalogue import Catalogue
        from histocodec.cli.viewer.guard import VIEWERS
        from histocodec.cli.viewer.server import address_of, bound, is_loopback, serve
    from histocodec.formats.decode.settings import configure

    if token is not None and without_token:
        raise click.UsageError("--token and --without-token contradict each other")
    if token is not None and not token.strip():
        raise click.UsageError("the token is empty")
    if not is_loopback(host) and token is None and not without_token:
        raise click.UsageError(
            f"--host {host}: others reach this address, so --token {GENERATE} is needed; --without-token lets everyone "
            "read the slides"
        )
    token = secrets.token_urlsafe(24) if token == GENERATE else token
    if original_dir is not None and not original_dir.is_dir():
        raise UsageError(f"--original-dir {original_dir}: is no folder")
    configure(workers=workers, cache_bytes=cache << 20)
    catalogue = Catalogue(slides, device=device)
    check_named(catalogue)
    page = prepare_page()
    try:
        sock = bound(host, PORT if port is None else port)
    except UsageError:
        raise
    except Exception:
        if port is not None:
            raise
        sock = bound(host, 0)  # several people, or several servers, on one machine
    address = address_of(host, sock)
    link = address if token is None else f"{address}?token={token}"
    hosts = (*allow_host, *(() if is_loopback(host) else (host,)))
    origins = cors or (VIEWERS if token is None else ("*",))
    app = application(catalogue, original_dir=original_dir, running=workers, token=token, hosts=hosts, origins=origins)

    def started() -> None:
        Thread(target=warm_up, args=(catalogue,), daemon=True).start()
        count = len(catalogue.entries())
        if as_json:
            print_json({"address": link, "token": token, "slides": count, "page": page})
        else:
            print_facts([("address", link), ("slides", str(count))])
            say("Ctrl-C ends the server")
        if open_browser:
            click.launch(link)

    serve(app, sock, started)
    say("stopped")


def check_named(catalogue: "Catalogue") -> None:
    """Open the slides that were named, so that their errors are told at once. Raises what opening them raises, and
    UsageError where there is no slide at all."""
    from histocodec.errors import UsageError

    catalogue.check_named()
    if not catalogue.entries():
        raise UsageError(
            "there is no container in the folder; name slides that are not compressed one by one, or encode them first"
        )


def warm_up(catalogue: "Catalogue") -> None:
    """Decode a little of the first slide, so that who opens the page need not wait for kernels to be compiled."""
    from histocodec.cli.viewer.limits import RefusedError
    from histocodec.errors import HistocodecError
    from histocodec.geometry import Region

    with suppress(HistocodecError, RefusedError, IndexError):
        slide = catalogue.open(catalogue.entries()[0].id).slide
        slide.read(Region(0, 0, 64, 64).intersect(slide.levels[-1].region), len(slide.levels) - 1)


def prepare_page() -> bool:
    """Whether the page can be shown: OpenSeadragon is there, or was fetched into a clone. Says what to do otherwise."""
    from histocodec.cli.viewer import assets

    if assets.present():
        return True
    reason = "this copy of histocodec was built without it"
    if assets.from_clone():
        say(f"fetching OpenSeadragon {assets.version()} by npm, once")
        try:
            assets.fetch()
            return True
        except assets.MissingScriptError as exc:
            reason = str(exc)
    say(f"the page has no viewer, since OpenSeadragon is missing ({reason}); all else is served. {assets.advice()}")
    return False
