"""Files that are whole or absent: written in one step, and read within a bound."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from histocodec.errors import FormatError, OutputError

TEMPORARY_GLOB = ".*.tmp"  # lies beside the file; a killed writer leaves it behind


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to. It takes the place of `path` when the `with` block ends well, and vanishes when the block
    raises anything, an interrupt included. Raises OutputError with the path and the reason."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as exc:
        raise OutputError(f"{path}: cannot be written: {exc.strerror or exc}") from exc
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Writes a whole file in one step, and the folders that it needs. Raises OutputError, and leaves no file then."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{path}: cannot be written: {exc.strerror or exc}") from exc
    with whole_file(path) as file:
        file.write(data)


def read_bounded(path: Path, most: int) -> bytes:
    """All bytes of a regular file of at most `most` bytes. Raises FormatError where it is missing, larger or
    unreadable."""
    try:
        if not path.is_file():  # neither a folder nor a pipe, from which a read could wait for ever
            raise FormatError(f"{path}: is missing")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as exc:
        raise FormatError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if len(data) > most:
        raise FormatError(f"{path}: has more than {most} bytes, the most that is allowed here")
    return data


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable, where the system allows a folder to be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def relative_files(root: Path) -> Iterator[str]:
    """The names of all files below `root`, relative to it and with slashes. Leaves out what a killed writer left."""
    for path in root.rglob("*"):
        if path.is_file() and not path.match(TEMPORARY_GLOB):
            yield path.relative_to(root).as_posix()
