"""DICOM slides in folders: which files are parts of one, and of which series. OpenSlide reads the pixels.

The files of a series need no extension. They are known by their content: `DICM` at byte 128. OpenSlide joins the files
of one series that lie in the folder of the file that it opens.
"""

import os
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from histocodec.errors import UnsupportedError

MAGIC, MAGIC_OFFSET = b"DICM", 128
MOST_FILES = 20_000  # that are looked at in a folder
MOST_ELEMENTS = 10_000  # that are passed over in a file; the series comes before the pixels
IMPLICIT_VR = "1.2.840.10008.1.2"
UNREAD_SYNTAXES = ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")  # big-endian and deflated: none of a slide's
LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
TRANSFER_SYNTAX, SERIES = (0x0002, 0x0010), (0x0020, 0x000E)
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
UNDEFINED = 0xFFFFFFFF


def dicom_in(folder: Path, is_slide: Callable[[Path], bool]) -> Path | None:
    """The first file, by name, of the only DICOM slide in a folder and those below it; None where there is none.
    `is_slide` says whether a DICOM file is part of a slide. Raises UnsupportedError, which lists them, where there are
    several series, or one in several folders."""
    groups: dict[tuple[str, Path], list[Path]] = defaultdict(list)
    for file in islice(files_below(folder), MOST_FILES):
        if is_dicom(file) and is_slide(file):
            groups[series_of(file) or "unknown", file.parent].append(file)
    if len(groups) > 1:
        listed = "; ".join(
            f"series {series}: {len(files)} in {parent}, such as {files[0].name}"
            for (series, parent), files in sorted(groups.items())
        )
        raise UnsupportedError(
            f"{folder}: holds several DICOM series, or one in several folders; give one file of the one you mean "
            f"instead of the folder. Found are {listed}"
        )
    return next(iter(groups.values()))[0] if groups else None


def series_files(file: Path) -> list[Path]:
    """The DICOM files of the same series in the same folder, this one included."""
    series = series_of(file)
    candidates = islice((path for path in sorted(file.parent.iterdir()) if path.is_file()), MOST_FILES)
    return [path for path in candidates if path == file or (is_dicom(path) and series_of(path) == series)]


def check_folder(file: Path) -> None:
    """Raises UnsupportedError where a pipe or device lies beside a DICOM file: OpenSlide opens whatever lies there, and
    would wait for ever."""
    for path in islice(file.parent.iterdir(), MOST_FILES):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UnsupportedError(f"{path}: is no regular file, and lies beside DICOM files; move it elsewhere")


def is_dicom(path: Path) -> bool:
    """Whether a regular file is DICOM, by its content."""
    try:
        with path.open("rb") as file:
            file.seek(MAGIC_OFFSET)
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def series_of(path: Path) -> str | None:
    """The Series Instance UID of a DICOM file; None where it cannot be found."""
    try:
        with path.open("rb") as file:
            file.seek(MAGIC_OFFSET + len(MAGIC))
            return _series(file)
    except (OSError, struct.error):
        return None


def _series(file: BinaryIO) -> str | None:
    """The value of SERIES at the top of the data set: what is inside sequences may name other series."""
    syntax, depth = "", 0  # of sequences without a length, which have to be read through
    for _ in range(MOST_ELEMENTS):
        tag, vr, length = _element(file, syntax)
        if tag == SEQUENCE_END:
            depth -= 1
        elif length == UNDEFINED:
            if tag != ITEM and vr not in (b"SQ", b""):
                return None  # pixels, or a sequence of unknown form
            depth += tag != ITEM
        elif depth == 0 and tag == SERIES:
            value = file.read(length)
            return _text(value) if len(value) == length else None
        elif depth == 0 and tag == TRANSFER_SYNTAX:
            syntax = _text(file.read(length))
            if syntax in UNREAD_SYNTAXES:
                return None
        elif depth == 0 and tag > SERIES and tag != ITEM:
            return None
        else:
            file.seek(length, os.SEEK_CUR)
    return None


def _element(file: BinaryIO, syntax: str) -> tuple[tuple[int, int], bytes, int]:
    """Tag, value representation (empty where it is implicit) and length. Raises struct.error at the file's end."""
    head = file.read(8)
    group, number, length = struct.unpack("<HHI", head)
    tag = (group, number)
    if tag in (ITEM, ITEM_END, SEQUENCE_END) or (group != 2 and syntax == IMPLICIT_VR):
        return tag, b"", length
    if head[4:6] in LONG_VRS:
        return tag, head[4:6], struct.unpack("<I", file.read(4))[0]
    return tag, head[4:6], struct.unpack("<H", head[6:])[0]


def _text(value: bytes) -> str:
    return value.rstrip(b"\0 ").decode("ascii", "replace")


def files_below(folder: Path) -> Iterator[Path]:
    """The regular files of a folder by name, then those of the folders in it. Not by recursion, since folders may be
    nested more deeply than Python's calls."""
    pending = [os.fspath(folder)]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
            yield from (Path(entry.path) for entry in entries if entry.is_file())  # a pipe or device may never end
            pending += [entry.path for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]
