"""Containers that are written to a URL: encoded on this machine first, then sent, complete or absent.

    <cache>/<hash of the URL>/NAME.partial    the container as it grows, with its journal beside it
    the store                                 everything but the root's zarr.json, eight objects at a time; the root's
                                              zarr.json last. One file, NAME.hcz, is one object and appears at once

What is interrupted, `--resume` continues from the cache of this machine; what was encoded is not encoded again.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from histocodec.errors import HistocodecError, OutputError, UnsupportedError, UsageError
from histocodec.formats.container.arrays import METADATA
from histocodec.formats.container.client_process import ask
from histocodec.formats.container.files import relative_files
from histocodec.formats.container.obstore_client import Server, locate
from histocodec.formats.container.pack import write_zip
from histocodec.formats.container.zipped import SUFFIX

AT_ONCE = 8  # objects that are sent at the same time


def staging_path(url: str) -> Path:
    """Where on this machine the container grows that will be at `url`: in the user's folder of caches."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = url.split("?")[0].rstrip("/").rpartition("/")[2]
    return caches / "histocodec" / "uploads" / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def check_url(url: str, *, overwrite: bool) -> None:
    """Raises OutputError where there is something at `url` already and `overwrite` is not given, UnsupportedError for a
    URL that cannot be written to, UsageError for one that names nothing, and StoreError."""
    server, key = _target(url)
    if overwrite:
        return
    for name in (key, f"{key}/{METADATA}"):
        try:
            ask(server, "size", name)
        except FileNotFoundError:
            continue
        raise OutputError(f"{server.name}/{key}: exists; --overwrite replaces it")


def upload(folder: Path, url: str) -> None:
    """Sends a finished container to `url`, where it is complete at the end. What an earlier container had there, and
    this one has not, is removed. Raises OutputError; then no reader takes what is there for a container."""
    server, key = _target(url)
    try:
        if key.lower().endswith(SUFFIX):
            archive = folder.with_name(f".{folder.name}.tmp")
            try:
                write_zip(folder, archive)
                ask(server, "put", key, str(archive))
            finally:
                archive.unlink(missing_ok=True)
        else:
            _upload_folder(folder, server, key)
    except OutputError:
        raise
    except HistocodecError as exc:
        raise OutputError(f"{exc}. What was encoded is kept: --resume sends it again") from exc


def _upload_folder(folder: Path, server: Server, key: str) -> None:
    names = sorted(relative_files(folder))
    before = {path for path, _ in ask(server, "list", key)}
    root = f"{key}/{METADATA}"
    if root in before:  # from now on there is no container, until the new one is whole
        ask(server, "delete", root)
    others = [name for name in names if name != METADATA]
    _each(others, lambda name: ask(server, "put", f"{key}/{name}", str(folder / name)))
    stale = sorted(before - {f"{key}/{name}" for name in names})
    _each(stale, lambda path: ask(server, "delete", path))
    ask(server, "put", root, str(folder / METADATA))


def _each(names: Sequence[str], send: Callable[[str], object]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(send, names):
            pass


def _target(url: str) -> tuple[Server, str]:
    server, key = locate(url)
    if server.is_web:
        raise UnsupportedError(
            f"{server.name}/{key}: a web server cannot be written to; give s3://, gs:// or az://, or a path"
        )
    if not key:
        raise UsageError(f"{server.name}: names no container; give a name such as {server.name}/slide.hcz")
    return server, key
