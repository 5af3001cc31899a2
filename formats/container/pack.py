"""A folder as one ZIP archive, and back, byte for byte.

The archive follows RFC-9 of OME-NGFF (zipped OME-Zarr): entries are stored, the root's zarr.json first, then the others
by depth, and a comment says so. Small objects follow and shards come last, so that the first bytes of the file hold all
that a reader needs before it knows which shards it wants. Equal folders give equal archives.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from histocodec.errors import FormatError, OutputError, UsageError
from histocodec.formats.container.abstract_store import Store
from histocodec.formats.container.arrays import METADATA, read_metadata
from histocodec.formats.container.digests import PIECE
from histocodec.formats.container.files import whole_file, whole_folder
from histocodec.formats.container.layout import DIGESTS, MAPS, is_lossless, is_shard
from histocodec.formats.container.read import is_container, open_container
from histocodec.formats.container.store import FolderStore, Location
from histocodec.formats.container.zip_directory import MAX_DIRECTORY, checked_name
from histocodec.formats.container.zipped import ZIP_SUFFIXES

Progress = Callable[[int, int], None]  # bytes done, bytes in all

NGFF_VERSION = "0.5"
COMMENT = {"ome": {"version": NGFF_VERSION, "zipFile": {"centralDirectory": {"jsonFirst": True}}}}
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that ZIP has, so that equal folders give equal archives
PERMISSIONS = 0o100644  # a regular file
SMALL = 64 << 10  # bytes; what is larger than this stands behind all that is not
ENTRY_BYTES = 46 + 28  # of an entry in the directory, without its name; 28 where it needs ZIP64


def pack(folder: Path, file: Path, *, overwrite: bool = False, progress: Progress | None = None) -> None:
    """Writes a container that is a folder as one file. Calls `progress` with the bytes that are done and their total.

    Raises UsageError for a name that is none of an archive, OutputError where the file exists (with `overwrite`: where
    it is no container) or cannot be written, and what opening a container and `write_zip` raise.
    """
    if file.suffix.lower() not in ZIP_SUFFIXES:
        raise UsageError(f"{file}: its name must end in {', '.join(ZIP_SUFFIXES[:-1])} or {ZIP_SUFFIXES[-1]}")
    open_container(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: is one file already; `histocodec unpack` makes a folder of it")
    if file.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{file}: lies in the folder that is to be packed; choose another place")
    if os.path.lexists(file):
        if not overwrite:
            raise OutputError(f"{file}: exists; --overwrite replaces it")
        if not (file.is_file() and is_container(file)):
            raise OutputError(f"{file}: is no packed container, so --overwrite leaves it alone; remove it yourself")
    write_zip(folder, file, progress=progress)


def write_zip(folder: Path, file: Path, *, progress: Progress | None = None) -> None:
    """Writes all files of a folder to an archive, which is complete or absent, and replaces what is there. Raises
    FormatError where something in the folder is no regular file, UsageError where there are more files than readers
    take, and OutputError where the archive cannot be written."""
    store = FolderStore(folder)
    store.check()
    entries = sorted(store.entries(), key=_place)
    for key, _ in entries:
        checked_name(key, str(folder))
    needed = sum(ENTRY_BYTES + len(key.encode()) for key, _ in entries)
    if needed > MAX_DIRECTORY:
        raise UsageError(f"{folder}: has {len(entries)} files, more than fit into one archive; keep it as a folder")
    done, total = 0, sum(size for _, size in entries)
    with whole_file(file) as output, zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        if _is_ome_zarr(store):
            archive.comment = json.dumps(COMMENT, separators=(",", ":")).encode()
        for key, size in entries:
            info = zipfile.ZipInfo(key, EPOCH)
            info.create_system, info.external_attr, info.file_size = 3, PERMISSIONS << 16, size
            with archive.open(info, "w") as entry:
                for data in pieces(store, key):
                    entry.write(data)
                    done += len(data)
                    if progress is not None:
                        progress(done, total)


def _is_ome_zarr(store: Store) -> bool:
    """Whether a folder has an image that readers of OME-Zarr show."""
    if store.size(METADATA) is None:
        return False
    root = read_metadata(store, "").value
    attributes = root.get("attributes") if isinstance(root, dict) else None
    return isinstance(attributes, dict) and "ome" in attributes


def _place(entry: tuple[str, int]) -> tuple[int, int, str]:
    """The order of entries: metadata by depth, maps, small objects, large ones, lossless chunks, shards."""
    key, size = entry
    if key.rpartition("/")[2] == METADATA:
        return 0, key.count("/"), key
    if is_shard(key):
        return 5, 0, key
    if is_lossless(key):
        return 4, 0, key
    if key.startswith((f"{MAPS}-", f"{DIGESTS}/")):
        return 1, 0, key
    return 3 if size > SMALL else 2, 0, key


def pieces(store: Store, key: str) -> Iterator[bytes]:
    """The bytes of an object, PIECE at a time. Raises FormatError where it is missing."""
    size = store.size(key)
    if size is None:
        raise FormatError(f"{store.where(key)}: is missing")
    for offset in range(0, size, PIECE):
        yield store.read_parts(key, [(offset, min(PIECE, size - offset))])[0]


def unpack(location: Location, folder: Path, *, progress: Progress | None = None) -> None:
    """Writes a container as a new folder, which is complete or absent: a copy of what is one file, or lies elsewhere.
    Calls `progress` with the bytes that are done and their total.

    Takes as many bytes as the archive has, at most: its entries are stored, and none shares bytes with another. Raises
    OutputError where the folder exists or cannot be written, FormatError where the archive is damaged, and what opening
    a container raises.
    """
    if os.path.lexists(folder):
        raise OutputError(f"{folder}: exists already; remove it, or choose another name")
    store = open_container(location).store
    with whole_folder(folder) as staged:
        extract(store, staged, progress=progress)


def extract(store: Store, folder: Path, *, progress: Progress | None = None) -> None:
    """Writes the objects of a store into an empty folder. Raises FormatError where one is damaged, and OSError."""
    entries = sorted(store.entries())
    done, total = 0, sum(size for _, size in entries)
    for key, _ in entries:
        path = folder / checked_name(key, store.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        crc = 0
        with path.open("xb") as output:
            for data in pieces(store, key):
                output.write(data)
                crc = zlib.crc32(data, crc)
                done += len(data)
                if progress is not None:
                    progress(done, total)
            output.flush()
            os.fsync(output.fileno())
        expected = store.crc32(key)
        if expected is not None and crc != expected:
            raise FormatError(f"{store.where(key)}: does not match its CRC-32 (altered or cut short)")
