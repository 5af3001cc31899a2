"""Slides in folders, by patterns, in manifests and in object stores; several files of one slide are one slide."""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from histocodec.errors import HistocodecError, UsageError
from histocodec.formats.cohort.manifest import is_manifest, read_manifest
from histocodec.formats.cohort.objects import Object, objects_below
from histocodec.formats.container.locations import is_url, local_path
from histocodec.formats.container.read import PARTIAL, is_container
from histocodec.formats.container.zipped import SUFFIX
from histocodec.sources import ZARR_FILES
from histocodec.sources.dicom import is_dicom, series_of
from histocodec.sources.files import slide_files

# What a folder is searched for. Ordinary images are slides only where they are named: beside slides, they are
# thumbnails and photographs.
SLIDES = (
    ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu", ".czi", ".zvi", ".tif", ".tiff", ".btf",
    ".tf2", ".tf8",
)  # fmt: skip
IMAGES = (".png", ".jpg", ".jpeg", ".jp2", ".j2k", ".webp", ".avif", ".bmp", ".gif")
DICOM = (".dcm", "")  # the suffixes of DICOM files; many have none, or only numbers after the last point
PATTERN = "*?["


@dataclass(frozen=True)
class Found:
    """A slide that was found. `name` is its path without a suffix, below the folder it was found in, with `/` between
    folders. `parts` are the URLs of its files where they are several in an object store. `problem` says why there is
    none, where a manifest names something that is not there."""

    source: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    bytes: int | None = None
    problem: HistocodecError | None = None


def find_slides(sources: Sequence[str | Path]) -> Iterator[Found]:
    """The slides in folders, patterns (`*`, `?`, `**`), manifests, files and object stores, each once.

    Raises UsageError for a source that does not exist, FormatError for a damaged manifest, and StoreError.
    """
    seen: set[str] = set()
    for source in sources:
        for found in _in_source(source):
            if found.source not in seen:
                seen.add(found.source)
                yield found


def _in_source(source: str | Path) -> Iterator[Found]:
    if is_url(str(source)):
        yield from _in_store(str(source))
        return
    path = local_path(str(source))
    if path.exists():
        yield from _at_path(path)
    elif any(character in str(path) for character in PATTERN):
        paths = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        if not paths:
            raise UsageError(f"{path}: no file fits this pattern")
        for match in _first_files(paths):
            yield from _at_path(match)
    else:
        raise UsageError(f"{path}: does not exist")


def _at_path(path: Path) -> Iterator[Found]:
    if is_manifest(path):
        yield from _in_manifest(path)
    elif path.is_dir() and not _is_array(path):
        yield from _in_folder(path)
    else:
        yield _found(path, path.parent)


def _in_manifest(path: Path) -> Iterator[Found]:
    lines: dict[str, str] = {}
    for line in read_manifest(path):
        if line.source in lines:
            raise UsageError(f"{line.where}: names {line.source} again, as {lines[line.source]} does; once is enough")
        lines[line.source] = line.where
        labels = dict(line.labels)
        if is_url(line.source):
            matches = list(_in_store(line.source))
            if len(matches) == 1:
                yield Found(line.source, matches[0].name, labels, matches[0].parts, matches[0].bytes)
                continue
            problem = UsageError(f"{line.source}: is {len(matches)} slides, where a line is one ({line.where})")
        else:
            file = Path(line.source)
            if file.exists():
                yield Found(str(file), _name(file, file.parent), labels)
                continue
            problem = UsageError(f"{line.source}: does not exist ({line.where})")
        yield Found(line.source, _without_suffix(PurePosixPath(line.source).name), labels, problem=problem)


def _in_folder(root: Path) -> Iterator[Found]:
    """The slides below a folder, by name. Containers are passed over: they are compressed already."""
    for folder, folders, names in os.walk(root):
        place = Path(folder)
        folders.sort()
        arrays = [name for name in folders if _is_array(place / name)]
        data = {Path(name).stem for name in names if name.lower().endswith(".mrxs")}
        folders[:] = [
            name
            for name in folders
            if name not in data and name not in arrays and not name.startswith(".") and not name.endswith(PARTIAL)
        ]
        files = [place / name for name in sorted(names) if not name.startswith(".")]
        wanted = [file for file in files if file.suffix.lower() in SLIDES]
        dicom = [file for file in files if _may_be_dicom(file) and is_dicom(file)]
        for path in (*_first_files(wanted), *(place / name for name in arrays if not is_container(place / name))):
            yield _found(path, root)
        yield from _series(dicom, place, root)


def _series(files: Sequence[Path], folder: Path, root: Path) -> Iterator[Found]:
    """One slide for each series; that of a folder with a single one has the folder's name."""
    first: dict[str, Path] = {}
    for file in files:
        first.setdefault(series_of(file) or "unknown", file)
    for file in first.values():
        name = _name(file, root)
        if len(first) == 1 and len(files) > 1:
            name = root.absolute().name if folder == root else folder.relative_to(root).as_posix()
        yield Found(str(file), name)


def _first_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Those of the files that are not parts of a slide that another one of them opens."""
    parts: set[Path] = set()
    for path in paths:
        if path in parts:
            continue
        if path.is_file():
            parts.update(slide_files(path)[1:])
        yield path


def _in_store(url: str) -> Iterator[Found]:
    """The slides among the objects below a URL, told apart by their names alone."""
    objects = objects_below(url)
    root = PurePosixPath(url.split("://", 1)[1].partition("/")[2])
    single = len(objects) == 1 and PurePosixPath(objects[0].key) == root
    by_folder: dict[str, list[Object]] = {}
    for item in objects:
        path = PurePosixPath(item.key)
        for folder in (path.parent, *path.parent.parents):
            by_folder.setdefault(str(folder), []).append(item)
    for item in objects:
        path = PurePosixPath(item.key)
        suffix = path.suffix.lower()
        name = _without_suffix(path.name if single else str(path.relative_to(root) if root.parts else path))
        if suffix == ".mrxs":
            data = by_folder.get(str(path.with_suffix("")), [])
            files = (item, *data)
            yield Found(item.url, name, {}, tuple(file.url for file in files), sum(file.size for file in files))
        elif suffix == ".dcm":
            files = tuple(file for file in by_folder[str(path.parent)] if _is_beside(file, path, ".dcm"))
            if files[0] is item:  # the files of a folder are one series: only reading them could tell
                name = str(PurePosixPath(name).parent) if len(files) > 1 and "/" in name else name
                yield Found(item.url, name, {}, tuple(file.url for file in files), sum(file.size for file in files))
        elif suffix in SLIDES or single:
            yield Found(item.url, name, {}, (), item.size)


def _is_beside(item: Object, path: PurePosixPath, suffix: str) -> bool:
    other = PurePosixPath(item.key)
    return other.parent == path.parent and other.suffix.lower() == suffix


def _found(path: Path, root: Path) -> Found:
    return Found(str(path.absolute()), _name(path, root))


def _name(path: Path, root: Path) -> str:
    relative = path.absolute().relative_to(root.absolute())
    return _without_suffix(relative.as_posix())


def _without_suffix(name: str) -> str:
    path = PurePosixPath(name)
    for suffix in (*SLIDES, *IMAGES, ".dcm", ".zarr", ".ome", SUFFIX):
        if path.suffix.lower() == suffix and path.stem:
            path = path.with_suffix("")
    return path.as_posix()


def _is_array(path: Path) -> bool:
    return any(os.path.lexists(path / name) for name in ZARR_FILES)


def _may_be_dicom(file: Path) -> bool:
    suffix = file.suffix.lower()
    return suffix in DICOM or suffix[1:].isdigit()
