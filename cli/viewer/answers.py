"""Answers over HTTP: what has not changed (304), parts of a body (206), compressed text, errors as JSON."""

import gzip
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from histocodec.cli.viewer.limits import RefusedError
from histocodec.text import json_text

SOFTWARE = 1  # raised when the same request gets other bytes than before: part of every tag
FOREVER = "private, max-age=31536000, immutable"  # of what is asked for with its version
CHECK = "private, no-cache"  # kept, but asked about: the answer is mostly 304
RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
LEAST_GZIP = 512  # bytes


def tag_of(version: str, *parts: object) -> str:
    """The tag of an answer: it follows from the slide's version and from what was asked for."""
    text = json.dumps([SOFTWARE, version, *parts], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def caching(request: Request, version: str) -> str:
    """How long an answer may be kept: for ever where the request names the slide's version as `v`."""
    named = request.query_params.get("v", "")
    return FOREVER if len(named) >= 8 and version.startswith(named) else CHECK


def matches(request: Request, tag: str) -> bool:
    """Whether the client has this answer already."""
    named = request.headers.get("if-none-match")
    if named is None:
        return False
    tags = {part.strip().removeprefix("W/").strip('"') for part in named.split(",")}
    return "*" in tags or tag in tags


async def answer(
    request: Request,
    tag: str,
    media: str,
    make: Callable[[], Awaitable[bytes]],
    *,
    cache: str = CHECK,
    headers: Mapping[str, str] | None = None,
    ranges: bool = False,
) -> Response:
    """A body that `make` makes, unless the client has it: 304. With `ranges`, a part of it where one is asked for."""
    common = {"ETag": f'"{tag}"', "Cache-Control": cache, **(headers or {})}
    if matches(request, tag):
        return Response(status_code=304, headers=common)
    body = await make()
    if ranges:
        common["Accept-Ranges"] = "bytes"
        wanted = request.headers.get("range")
        condition = request.headers.get("if-range", f'"{tag}"')
        if wanted is not None and condition == f'"{tag}"' and (match := RANGE.fullmatch(wanted.strip())):
            return partial(body, match[1], match[2], media, common)
    return packed(request, body, media, common)


def partial(body: bytes, first: str, last: str, media: str, headers: Mapping[str, str]) -> Response:
    """The part of a body that `Range: bytes=first-last` names; 416 where there is none of it."""
    if not first and not last:
        return Response(body, headers=dict(headers), media_type=media)
    start = int(first) if first else max(0, len(body) - int(last))
    end = min(int(last) + 1, len(body)) if first and last else len(body)
    if start >= end:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{len(body)}"})
    part = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(body)}"}
    return Response(body[start:end], 206, part, media)


def packed(request: Request, body: bytes, media: str, headers: Mapping[str, str]) -> Response:
    """A body, compressed by gzip where it is text and the client takes it."""
    textual = media.startswith("text/") or "json" in media or "xml" in media or "javascript" in media
    if not textual:
        return Response(body, headers=dict(headers), media_type=media)
    headers = {**headers, "Vary": "Accept-Encoding"}
    if len(body) >= LEAST_GZIP and takes_gzip(request.headers.get("accept-encoding", "")):
        # The tag stays that of the text: a weak one, since the bytes differ.
        if "ETag" in headers:
            headers = {**headers, "ETag": f"W/{headers['ETag']}"}
        body, headers = gzip.compress(body, 6, mtime=0), {**headers, "Content-Encoding": "gzip"}
    return Response(body, headers=dict(headers), media_type=media)


def takes_gzip(accepted: str) -> bool:
    """Whether `Accept-Encoding` names gzip, and does not refuse it."""
    for part in accepted.split(","):
        name, _, parameter = part.strip().partition(";")
        if name.strip() in ("gzip", "*"):
            return parameter.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def json_answer(request: Request, value: object, *, status: int = 200, media: str = "application/json") -> Response:
    """A value as JSON; infinities and NaN are null."""
    body = json_text(value).encode("utf-8", "backslashreplace")
    if status != 200:
        return Response(body, status, {"Cache-Control": "no-store"}, media)
    tag = hashlib.sha256(body).hexdigest()[:32]
    headers = {"ETag": f'"{tag}"', "Cache-Control": CHECK}
    return (
        Response(status_code=304, headers=headers) if matches(request, tag) else packed(request, body, media, headers)
    )


def refusal(exc: RefusedError) -> Response:
    """An error as JSON, {"error": …}."""
    body = json.dumps({"error": exc.message}).encode()
    return Response(body, exc.status, {"Cache-Control": "no-store", **exc.headers}, "application/json")


def whole_number(request: Request, name: str, default: int | None = None, *, low: int, high: int) -> int:
    """An integer of the query. Raises RefusedError where it is missing, no integer, or out of range."""
    text = request.query_params.get(name)
    if text is None:
        if default is None:
            raise RefusedError(400, f"{name} is missing; give an integer from {low} to {high}")
        return default
    if not re.fullmatch(r"[+-]?\d{1,12}", text, re.ASCII) or not low <= int(text) <= high:
        raise RefusedError(400, f"{name} must be an integer from {low} to {high}")
    return int(text)


def choice(request: Request, name: str, default: str, allowed: tuple[str, ...]) -> str:
    """A word of the query. Raises RefusedError where it is none of those that are allowed."""
    value = request.query_params.get(name, default)
    if value not in allowed:
        raise RefusedError(400, f"{name} must be one of {', '.join(allowed)}")
    return value
