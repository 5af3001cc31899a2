"""Requests for objects on other machines, made by the package obstore: ranges, retries, and errors in our words.

A `Server` is named, not held, so that it can be used in any thread and any process. What runs obstore's requests are
threads that a forked child does not have, and that cannot be started anew in it: see `client_process`, by way of which
all requests are made.
"""

import os
import re
import threading
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from histocodec.errors import FormatError, HistocodecError, StoreError, UnsupportedError, UsageError
from histocodec.extras import requires_extra

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SCHEMES = ("http", "https", "s3", "gs", "az")
MOST_CALLS = 8  # at a time, in a process; each makes up to ten requests at a time
CONNECT_SECONDS = 10.0
STALL_SECONDS = 30.0  # without a byte
REQUEST_SECONDS = 600.0  # for a whole answer: 64 MiB at 0.9 Mbit/s
RETRIES = 5  # after connections that fail and answers of 5xx …
RETRY_SECONDS = 60.0  # … but not for longer than this

CREDENTIALS = (
    "taken from the environment, as obstore does: AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, "
    "AZURE_STORAGE_ACCOUNT_KEY and so on; AWS_SKIP_SIGNATURE=true is for public buckets"
)
VARIABLES = ("AWS_", "AZURE_", "GOOGLE_")
NO_BUCKET = "its bucket (or container) does not exist; make it first, or correct its name"
# Where machines in a cloud ask for credentials of their own, after none were found in the environment.
CREDENTIAL_SERVERS = ("169.254.169.254", "metadata.google.internal")

Operation = Literal["whole", "ranges", "front", "tail", "size", "list", "put", "delete"]

_calls = threading.BoundedSemaphore(MOST_CALLS)


@dataclass(frozen=True)
class Server:
    """A bucket, or a web server. `root` is its URL, which may carry credentials; `name` is without them."""

    root: str
    name: str

    @property
    def is_web(self) -> bool:
        """Whether this is an ordinary web server, which cannot list what it has."""
        return self.root.startswith("http")


def locate(url: str) -> tuple[Server, str]:
    """The server of a URL, and the key of an object or a folder there. Raises UnsupportedError for other schemes, and
    UsageError where the URL names no server."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in SCHEMES:
        raise UnsupportedError(
            f"{url.split('?')[0]}: URLs of the kind {scheme}:// cannot be read; {', '.join(SCHEMES)} can"
        )
    host = parts.netloc.rpartition("@")[2]
    if not host:
        raise UsageError(f"{url}: names no {'server' if scheme.startswith('http') else 'bucket'}")
    if scheme.startswith("http"):
        # The query stays with every request: the signature of a URL that is signed in advance.
        return Server(urlunsplit((scheme, parts.netloc, "", parts.query, "")), f"{scheme}://{host}"), unquote(
            parts.path
        ).strip("/")
    key = url.split("://", 1)[1].partition("/")[2]  # as it is: these are no URLs of the web, whatever they look like
    return Server(f"{scheme}://{host}", f"{scheme}://{host}"), key.strip("/")


def answer(server: Server, operation: Operation, key: str, arguments: Sequence[Any]) -> Any:
    """The answer to a request:

        whole   most          (bytes, size): the object; without its bytes where it has more than `most`
        ranges  parts         the bytes of parts (offset, size)
        front   size          (bytes, size): the first bytes, and the size of the object
        tail    size          (bytes, size): the last bytes
        size                  the size
        list                  [(key, size)] of all below a folder
        put     file          nothing: the object becomes what a local file is, at once
        delete                nothing: the object is no more

    Raises FileNotFoundError where there is no such object, FormatError where it ends before a part does, StoreError
    where the server cannot be reached or refuses, and UnsupportedError where it cannot do this.
    """
    with requires_extra("remote"):
        import obstore
    from obstore.exceptions import BaseError

    where = f"{server.name}/{key}"
    try:
        with _calls:
            store = _client(server.root, _patience(), _environment())
            match operation:
                case "whole":
                    result = obstore.get(store, key)
                    size = result.meta["size"]
                    return (bytes(result.bytes()), size) if size <= arguments[0] else (None, size)
                case "ranges":
                    return _ranges(store, key, arguments[0], where)
                case "front":
                    result = obstore.get(store, key, options={"range": (0, arguments[0])})
                    return bytes(result.bytes()), result.meta["size"]
                case "tail":
                    result = obstore.get(store, key, options={"range": {"suffix": arguments[0]}})
                    return bytes(result.bytes()), result.meta["size"]
                case "size":
                    return obstore.head(store, key)["size"]
                case "list":
                    batches = obstore.list(store, prefix=f"{key}/" if key else None)
                    return [(item["path"], item["size"]) for batch in batches for item in batch]
                case "put":
                    obstore.put(store, key, Path(arguments[0]))
                case "delete":
                    obstore.delete(store, key)
            return None
    except FileNotFoundError:
        if operation == "put":  # which needs no object, so it is the bucket that is missing
            raise StoreError(f"{where}: cannot be written: {NO_BUCKET}") from None
        raise FileNotFoundError(where) from None
    except (BaseError, ValueError, OSError) as exc:
        # Not `from exc`: its text has the whole URL, credentials included.
        raise _translated(exc, where, "written" if operation in ("put", "delete") else "read") from None


def _ranges(store: "ObjectStore", key: str, parts: Sequence[tuple[int, int]], where: str) -> list[bytes]:
    import obstore

    starts, sizes = [offset for offset, _ in parts], [size for _, size in parts]
    data = [bytes(part) for part in obstore.get_ranges(store, key, starts=starts, lengths=sizes, coalesce=0)]
    for part, start, size in zip(data, starts, sizes, strict=True):
        if len(part) != size:
            raise FormatError(f"{where}: ends at byte {start + len(part)}, within something that has to be there")
    return data


def _translated(exc: Exception, where: str, done: str) -> HistocodecError:
    """An error of obstore in our words."""
    from obstore import exceptions

    text = str(exc).split("Debug source")[0]
    status = re.search(r"status code: (\d{3})", text)
    number = int(status.group(1)) if status else None
    if any(server in text for server in CREDENTIAL_SERVERS):
        return StoreError(f"{where}: no credentials were found, which are {CREDENTIALS}")
    if isinstance(exc, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or number in (401, 403):
        return StoreError(
            f"{where}: access was refused ({number or 403}), or there is no such object. Credentials: {CREDENTIALS}"
        )
    if isinstance(exc, exceptions.NotSupportedError):
        return UnsupportedError(
            f"{where}: the server does not answer requests for a part of a file (HTTP ranges), without which a slide "
            "cannot be read there; copy it to this machine"
        )
    if number == 416:
        return FormatError(f"{where}: is empty, or ends before something that has to be there")
    if number == 404 and not where.startswith("http"):  # for a missing object, obstore raises FileNotFoundError
        return StoreError(f"{where}: cannot be {done}: {NO_BUCKET}")
    kind = re.search(r"kind: (Timeout|Connect|Interrupted)", str(exc))
    reason = {
        "Timeout": "the server did not answer in time",
        "Connect": "the server cannot be reached",
        "Interrupted": "the answer was cut short",
    }.get(kind.group(1) if kind else "")
    if reason is None and number is not None:
        reason = f"the server failed with status {number}"
    if reason is None:
        reason = " ".join(re.sub(r"\w+://\S+", "the server", text).split())[:300]
        return StoreError(f"{where}: cannot be {done}: {reason}")
    return StoreError(f"{where}: cannot be {done}: {reason}; try again later")


def _environment() -> tuple[tuple[str, str], ...]:
    """The variables that obstore takes credentials and addresses from."""
    return tuple(item for item in sorted(os.environ.items()) if item[0].startswith(VARIABLES))


def _patience() -> tuple[float, float, float, int, float]:
    return CONNECT_SECONDS, STALL_SECONDS, REQUEST_SECONDS, RETRIES, RETRY_SECONDS


@lru_cache(maxsize=16)
def _client(
    root: str, patience: tuple[float, float, float, int, float], environment: tuple[tuple[str, str], ...]
) -> "ObjectStore":
    """obstore's client for a server, with its pool of connections. Credentials come from the environment, and another
    environment means another client."""
    from obstore.store import HTTPStore, from_url

    connect, stall, request, retries, retrying = patience
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=connect),
        "read_timeout": timedelta(seconds=stall),
        "timeout": timedelta(seconds=request),
        "allow_http": True,  # where a URL or AWS_ENDPOINT_URL says so; the addresses of buckets are https
    }
    retry: RetryConfig = {"max_retries": retries, "retry_timeout": timedelta(seconds=retrying)}
    if root.startswith("http"):
        # Not by `from_url`, which takes some web servers for buckets, and would want credentials for public files.
        parts = urlsplit(root)
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            client["default_headers"] = {"Authorization": f"Basic {b64encode(login).decode()}"}
        url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        return HTTPStore(url, client_options=client, retry_config=retry)
    return from_url(root, client_options=client, retry_config=retry)
