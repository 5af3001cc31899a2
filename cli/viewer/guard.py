"""What stands before every route: who may ask, how long it may take, and the headers of every answer.

connection ─▶ method ─▶ Host ─▶ token ─▶ CORS ─▶ time limit ─▶ routes ─▶ headers
"""

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from histocodec.cli.viewer.answers import refusal
from histocodec.cli.viewer.limits import REQUEST_SECONDS, RefusedError, busy

COOKIE = "histocodec-token"
METHODS = ("GET", "HEAD", "OPTIONS")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
# Viewers of OME-Zarr that run in the browser and open the address of a server on the same machine.
VIEWERS = (
    "https://avivator.gehlenborglab.org",
    "https://hms-dbmi.github.io",  # vizarr
    "https://neuroglancer-demo.appspot.com",
    "https://ome.github.io",  # the validator of OME-NGFF
)
LOOPBACK_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?")
# The one style that OpenSeadragon 6.1 writes into the page, for touch screens.
OPENSEADRAGON_STYLE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'self'; style-src 'self' {OPENSEADRAGON_STYLE}; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",  # the address may have the token
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class Access:
    """Who may ask. `token` is what requests must name, if any; `hosts` are names that `Host` may have beside those of
    this machine and numeric addresses; `origins` are web pages of other servers that may read the answers, "*" for
    all."""

    token: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = VIEWERS

    def host_allowed(self, header: str) -> bool:
        """Whether `Host` names this server. A page of another name that resolves to this machine (DNS rebinding) sends
        its own name; it cannot send a number."""
        name = host_name(header)
        if name is None:
            return False
        if name in (*LOOPBACK_NAMES, *(host.lower() for host in self.hosts)):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    def origin_allowed(self, origin: str) -> bool:
        """Whether a page of this origin may read the answers."""
        return "*" in self.origins or origin in self.origins or LOOPBACK_ORIGIN.fullmatch(origin) is not None

    def token_matches(self, *named: str | None) -> bool:
        """Whether one of what a request names is the token; takes as long whether or not it nearly is."""
        if self.token is None:
            return True
        token = self.token.encode()
        matching = [hmac.compare_digest(token, text.encode("utf-8", "replace")) for text in named if text is not None]
        return True in matching


def host_name(header: str) -> str | None:
    """The name in a `Host` header, without the port; None where it is none."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(:\d{1,5})?", header)
    return None if match is None else match[1].lower()


class Guard:
    """The middleware. Raises nothing: refusals are answers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        extra = self._cors(headers)
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                names = {name.lower() for name, _ in message["headers"]}
                added = [(name.lower().encode(), value.encode()) for name, value in {**HEADERS, **extra}.items()]
                message = {**message, "headers": [*message["headers"], *(h for h in added if h[0] not in names)]}
            await send(message)

        try:
            answer = self._refusal(scope, headers)
            if answer is None and scope["method"] == "OPTIONS":
                answer = _preflight(headers)
            if answer is not None:
                await answer(scope, receive, guarded)
                return
            async with asyncio.timeout(REQUEST_SECONDS):
                await _until_gone(self.app(scope, receive, guarded), receive)
        except TimeoutError:
            if not started:
                await refusal(busy(f"this took more than {REQUEST_SECONDS:.0f} s"))(scope, receive, guarded)
            else:
                raise _TooSlowError from None  # the server closes the connection

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> Response | None:
        if scope["method"] not in METHODS:
            return refusal(RefusedError(405, "only GET and HEAD are known", {"Allow": ", ".join(METHODS)}))
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return refusal(RefusedError(413, "a request has no body here", {"Connection": "close"}))
        if not self.access.host_allowed(headers.get("host", "")):
            return refusal(RefusedError(421, "this server has another name; --allow-host NAME allows one"))
        if self.access.token is None or scope["method"] == "OPTIONS":  # a preflight cannot name it
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=None)
        named = [value for key, value in query if key == "token"][:1]
        bearer = headers.get("authorization", "")
        bearer = bearer[7:].strip() if bearer[:7].lower() == "bearer " else ""
        if not self.access.token_matches(*named, bearer or None, _cookie(headers.get("cookie", ""))):
            return refusal(RefusedError(401, "a token is needed; see the address that was printed", _BEARER))
        if named and "text/html" in headers.get("accept", ""):
            # To the same page without the token in its address, which is shown, kept in the history and copied.
            rest = urlencode([(key, value) for key, value in query if key != "token"])
            place = scope["raw_path"].decode("latin-1").partition("?")[0] if scope.get("raw_path") else scope["path"]
            target = "/" + place.lstrip("/") + (f"?{rest}" if rest else "")
            return Response(status_code=303, headers={"Location": target, "Set-Cookie": self._set_cookie()})
        return None

    def _set_cookie(self) -> str:
        cookie: SimpleCookie = SimpleCookie()
        cookie[COOKIE] = self.access.token or ""
        cookie[COOKIE]["path"], cookie[COOKIE]["samesite"] = "/", "Strict"
        cookie[COOKIE]["httponly"] = True
        return cookie.output(header="").strip()

    def _cors(self, headers: dict[str, str]) -> dict[str, str]:
        """The headers that let pages of other servers read an answer, or keep them from it."""
        everyone = "*" in self.access.origins
        extra = {"Cross-Origin-Resource-Policy": "cross-origin" if everyone else "same-origin"}
        origin = headers.get("origin")
        if everyone:
            extra["Access-Control-Allow-Origin"] = "*"
        elif origin is not None and self.access.origin_allowed(origin):
            extra |= {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if "Access-Control-Allow-Origin" in extra:
            extra["Access-Control-Expose-Headers"] = "ETag, Content-Length, Content-Range, Accept-Ranges, Link"
            extra["Access-Control-Max-Age"] = "600"
        return extra


_BEARER = {"WWW-Authenticate": 'Bearer realm="histocodec"'}


class _TooSlowError(Exception):
    """An answer whose client takes too long."""


def _cookie(header: str) -> str | None:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return None if found is None else found.value


def _preflight(headers: dict[str, str]) -> Response:
    """The answer to a browser that asks whether it may ask. Without the header of `_cors` it may not."""
    allowed = {
        "Access-Control-Allow-Methods": ", ".join(METHODS),
        "Access-Control-Allow-Headers": "Range, Authorization, If-None-Match, If-Range, Cache-Control",
        "Allow": ", ".join(METHODS),
    }
    if headers.get("access-control-request-private-network") == "true":
        allowed["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=allowed)


async def _until_gone(handling: Awaitable[None], receive: Receive) -> None:
    """Wait for an answer, and end it where its client has gone."""
    task = asyncio.ensure_future(handling)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if (current := asyncio.current_task()) is not None and current.cancelling():
            raise  # by the time limit, not by the client


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def with_guard(app: ASGIApp, *, token: str | None, hosts: Sequence[str], origins: Sequence[str]) -> Guard:
    """An application behind a guard."""
    return Guard(app, Access(token, tuple(hosts), tuple(origins)))
