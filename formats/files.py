"""Files that are whole or absent: writing them in one step, and reading them within a bound."""

import os
from contextlib import suppress
from pathlib import Path

from histocodec.errors import FormatError, OutputError

TEMPORARY = ".{name}.{pid}.tmp"  # beside the file; a killed writer leaves one behind
TEMPORARY_GLOB = ".*.tmp"


def write_atomically(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Write a file beside `path`, bring it to the disk and give it its name; folders are made as needed.
    Raises OutputError with the path and the reason, and then leaves nothing behind."""
    temporary = path.with_name(TEMPORARY.format(name=path.name, pid=os.getpid()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as exc:
        raise OutputError(f"{path}: cannot be written: {exc.strerror or exc}") from exc


def read_bounded(path: Path, most: int) -> bytes:
    """All bytes of a regular file of at most `most` bytes; FormatError where it is missing or larger."""
    try:
        if not path.is_file():  # neither a folder nor a pipe, on which reading could wait for ever
            raise FormatError(f"{path}: is missing")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as exc:
        raise FormatError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if len(data) > most:
        raise FormatError(f"{path}: has more than {most} bytes, the most that is allowed here")
    return data


def sync_folder(folder: Path) -> None:
    """Bring renames in a folder to the disk, where the system lets a folder be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
