"""Where a container may lie, as users write it: a path, with `~` or as `file://`, or a URL."""

import re
from pathlib import Path
from urllib.parse import urlsplit

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(text: str) -> bool:
    """Whether this is a URL of another place than this machine's files."""
    return URL.match(text) is not None and not text.lower().startswith("file://")


def local_path(text: str) -> Path:
    """The path that a user means: of a `file://` URL, and of `~` where nothing has that very name."""
    if text.lower().startswith("file://"):
        from urllib.request import url2pathname  # here, since it loads all of HTTP and TLS

        return Path(url2pathname(urlsplit(text).path))
    path = Path(text)
    return path.expanduser() if text.startswith("~") and not path.exists() else path
