"""Objects in a store, S3 and the like: which there are below a URL, and copies of them on this machine."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp

from histocodec.errors import OutputError, StoreError, UsageError
from histocodec.formats.container.client_process import ask
from histocodec.formats.container.locations import is_url
from histocodec.formats.container.obstore_client import locate

PIECE = 8 << 20  # bytes of one request
AT_ONCE = 4  # pieces that are asked for together


@dataclass(frozen=True)
class Object:
    """An object: its URL, its key in the bucket, and its size in bytes."""

    url: str
    key: str
    size: int


def objects_below(url: str) -> list[Object]:
    """The object at a URL, or else those below it as a folder, by key. Raises UsageError where there is none,
    StoreError where the store cannot be reached or refuses."""
    server, key = locate(url)
    if key:
        try:
            return [Object(url, key, ask(server, "size", key))]
        except FileNotFoundError:
            pass
    if server.is_web:
        raise UsageError(f"{server.name}/{key}: does not exist; a web server lists no folders, so name each slide")
    items = sorted(ask(server, "list", key))
    if not items:
        raise UsageError(f"{server.name}/{key}: does not exist, and nothing is below it")
    return [Object(f"{server.root}/{path}", path, size) for path, size in items]


@contextmanager
def local_copy(source: str, parts: Sequence[str] = ()) -> Iterator[Path]:
    """The slide at a path or URL, as a path: of a URL, a copy in a temporary folder that goes with the block. `parts`
    are the URLs of its files, if it has several. Raises StoreError, UsageError where it does not exist, and OutputError
    where the disk is full."""
    if not is_url(source):
        yield Path(source)
        return
    folder = Path(mkdtemp(prefix="histocodec-cohort-"))
    try:
        base = PurePosixPath(locate(source)[1]).parent
        for url in parts or (source,):
            key = PurePosixPath(locate(url)[1])
            _copy(url, folder / (key.relative_to(base) if key.is_relative_to(base) else key.name))
        yield folder / PurePosixPath(locate(source)[1]).name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def object_sha256(url: str) -> tuple[str, int]:
    """The SHA-256 and the size of an object, as the store gives it out. Raises StoreError where it is missing."""
    digest, size = sha256(), 0
    for piece in _pieces(url):
        digest.update(piece)
        size += len(piece)
    return digest.hexdigest(), size


def _copy(url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for piece in _pieces(url):
                file.write(piece)
    except OSError as exc:
        raise OutputError(f"{path}: cannot be written: {exc.strerror or exc}") from exc


def _pieces(url: str) -> Iterator[bytes]:
    server, key = locate(url)
    try:
        size = ask(server, "size", key)
        step = PIECE * AT_ONCE
        for start in range(0, size, step):
            ends = range(start, min(size, start + step), PIECE)
            yield from ask(server, "ranges", key, [(offset, min(PIECE, size - offset)) for offset in ends])
    except FileNotFoundError as exc:
        raise StoreError(f"{server.name}/{key}: is not there any more") from exc
