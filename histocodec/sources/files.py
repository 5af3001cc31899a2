"""The files that a slide consists of: most are one file, some a folder, some a file and others beside it."""

import re
from collections.abc import Iterator
from pathlib import Path

from tifffile import TiffFile

from histocodec.sources.dicom import files_below, is_dicom, series_files

OME_FILE = re.compile(r"""\b(?:FileName|MetadataFile)\s*=\s*["']([^"'/\\]+)["']""")
MOST_TEXT = 1 << 26  # bytes of a text that lists other files
HAMAMATSU = (".vms", ".vmu")


def slide_files(path: Path) -> list[Path]:
    """All files of the slide that is opened by `path`, each once, that one first if it is a file: a folder's files, the
    data of .mrxs and .vms, the DICOM files of a series, the files that OME-XML names. Empty where there is nothing."""
    if path.is_dir():
        return sorted(files_below(path))
    if not path.is_file():
        return []
    others = (file for file in _files_beside(path) if file.is_file() and file != path)
    return [path, *sorted(set(others))]


def slide_bytes(path: Path) -> int | None:
    """The size in bytes of all files of the slide that is opened by `path`; None where there is nothing."""
    try:
        sizes = [file.stat().st_size for file in slide_files(path)]
    except OSError:
        return None
    return sum(sizes) if sizes else None


def _files_beside(path: Path) -> Iterator[Path]:
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        yield from path.with_suffix("").glob("*")
    elif suffix in HAMAMATSU:
        for line in _text(path).splitlines():
            name = line.partition("=")[2].strip()
            if name and "/" not in name:
                yield path.parent / name
    elif is_dicom(path):
        yield from series_files(path)
    else:
        yield from _ome_files(path)


def _ome_files(path: Path) -> Iterator[Path]:
    """The files that the OME-XML of a TIFF names, and those that the companion file which it names does."""
    try:
        with TiffFile(path) as file:
            xml = file.ome_metadata if file.is_ome else None
    except Exception:  # no TIFF; tifffile raises many kinds
        return
    for name in set(OME_FILE.findall(xml or "")):
        yield path.parent / name
        if not name.lower().endswith((".tif", ".tiff", ".tf2", ".tf8", ".btf")):
            yield from (path.parent / other for other in OME_FILE.findall(_text(path.parent / name)))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MOST_TEXT).decode("utf-8", "replace")
    except OSError:
        return ""
