"""Files that are whole or absent: written in one step, and read within a bound."""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from io import FileIO
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


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes the name `folder` when the `with` block ends well, and vanishes when it does not.
    With `replace` it takes the place of the folder that has the name. Raises OutputError with the path and the
    reason."""
    staged = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            staged.mkdir()
            yield staged
            if replace and folder.is_dir():
                before = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
                folder.rename(before)
                try:
                    staged.rename(folder)
                except BaseException:
                    before.rename(folder)
                    raise
                shutil.rmtree(before)
            else:
                staged.rename(folder)
        except BaseException:
            with suppress(OSError):
                shutil.rmtree(staged)
            raise
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be written: {exc.strerror or exc}") from exc
    sync_folder(folder.parent)


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
        check_regular(path)
        with path.open("rb") as file:
            data = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)  # takes memory for all that is asked for
    except OSError as exc:
        raise FormatError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if len(data) > most:
        raise FormatError(f"{path}: has more than {most} bytes, the most that is allowed here")
    return data


def open_regular(path: Path) -> FileIO:
    """A regular file, for one read: no two threads share its position. Raises FormatError as `check_regular` does."""
    try:
        check_regular(path)
        return path.open("rb", buffering=0)
    except OSError as exc:
        raise FormatError(f"{path}: cannot be read: {exc.strerror or exc}") from exc


def read_at(file: FileIO, size: int, offset: int, where: str) -> bytes:
    """Exactly `size` bytes at `offset`. Raises FormatError, which begins with `where`, where the file ends before."""
    parts = []
    try:
        file.seek(offset)
        while size:
            part = file.read(size)
            if not part:
                raise FormatError(f"{where}: ends at byte {offset}, within something that has to be there")
            parts.append(part)
            size, offset = size - len(part), offset + len(part)
    except OSError as exc:
        raise FormatError(f"{where}: cannot be read: {exc.strerror or exc}") from exc
    return parts[0] if len(parts) == 1 else b"".join(parts)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable, where the system allows a folder to be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_regular(path: Path) -> None:
    """Raises FormatError unless `path` is a regular file: not missing, no folder, no pipe or device, from which a read
    could wait or last for ever, and no link, which could lead out of a container."""
    if regular_size(path) is None:
        raise FormatError(f"{path}: is missing")


def regular_size(path: Path) -> int | None:
    """The size of a regular file; None where there is nothing. Raises FormatError as `check_regular` does."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise FormatError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        raise FormatError(f"{path}: is a link; a container consists of folders and regular files")
    if stat.S_ISDIR(mode):
        raise FormatError(f"{path}: is missing; a folder is there")
    if not stat.S_ISREG(mode):
        raise FormatError(f"{path}: is no regular file; a container consists of folders and regular files")
    return status.st_size


def linked_folders(root: Path, depth: int) -> Iterator[Path]:
    """The links among the entries of `root` and of its folders, `depth` folders deep."""
    with suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            elif depth > 1 and entry.is_dir():
                yield from linked_folders(Path(entry.path), depth - 1)


def relative_files(root: Path) -> Iterator[str]:
    """The names of everything below `root` but folders, relative to it and with slashes. Leaves out what a killed
    writer left, and follows no links; folders may be nested as deeply as the system allows."""
    return (name for name in _names_below(root) if not _is_temporary(name))


def temporary_files(root: Path) -> list[str]:
    """The names of what a killed writer left below `root`, as `relative_files` gives those of the rest."""
    return [name for name in _names_below(root) if _is_temporary(name)]


def _names_below(root: Path) -> Iterator[str]:
    pending = [""]
    while pending:
        folder = pending.pop()
        with suppress(OSError), os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{folder}{entry.name}/")
                else:
                    yield f"{folder}{entry.name}"


def _is_temporary(name: str) -> bool:
    return fnmatch(name.rpartition("/")[2], TEMPORARY_GLOB)


def file_bytes(root: Path) -> int:
    """The size of all files below a folder together; 0 where there is none."""
    return sum((root / name).lstat().st_size for name in relative_files(root))
