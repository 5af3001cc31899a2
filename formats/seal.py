"""Attributes that are changed on purpose: what may name somebody is taken out, and the digest is computed again.

Whoever edits the root's `zarr.json` by hand seals the container afterwards; `Removals` are the usual edits.
"""

import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from histocodec.errors import FormatError, OutputError, UnsupportedError, UsageError
from histocodec.formats.container.arrays import METADATA, check_metadata, write_metadata
from histocodec.formats.container.attributes import KEY, MAX_ASSOCIATED, MAX_TEXT, VERSION, Attributes
from histocodec.formats.container.attributes_json import digest_of, from_json
from histocodec.formats.container.container import ContainerV2
from histocodec.formats.container.fields import Node
from histocodec.formats.container.files import sync_folder
from histocodec.formats.container.layout import ASSOCIATED, ICC, MODEL, OVERVIEW, all_metadata, small_arrays
from histocodec.formats.container.ngff import ome_attributes
from histocodec.formats.container.pack import extract, write_zip
from histocodec.formats.container.read import read_root
from histocodec.formats.container.store import FolderStore, Store, open_store
from histocodec.formats.encode.extras import PRIVATE_IMAGES, PROPERTY
from histocodec.formats.encode.options import EncodeOptions
from histocodec.formats.encode.privacy import stored_name, without_private

# Folders of arrays that a container has only where its attributes list them.
OPTIONAL_ARRAYS = re.compile(rf"{OVERVIEW}|{ICC}|{MODEL}|{ASSOCIATED}-.*")
IMAGE = "image "  # before the name of an image in `removed`


@dataclass(frozen=True)
class Removals:
    """What to take out of a container.

    `name` is that of the source's file. `properties` are names or patterns, such as "aperio.*", `images` names of
    associated images. `private` is everything that an encode leaves out unless it is told to keep it.
    """

    name: bool = False
    properties: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    private: bool = False


@dataclass(frozen=True)
class SealReport:
    """A sealed container: the digest that was found in it (None where it had none), the one that it has now, and what
    was taken out: "name", "image label", "property aperio.User", "icc"."""

    path: str
    previous_digest: str | None
    digest: str
    removed: tuple[str, ...]


def seal(path: str | Path, removals: Removals | None = None) -> SealReport:
    """Takes `removals` out of a local container, gives its attributes their digest, and removes images, profile and
    model where the attributes no longer list them. Writes nothing where nothing changes; one file is written anew as a
    whole.

    Raises UsageError for what cannot be taken out or is not on this machine, UnsupportedError for a container of
    another version, and FormatError for attributes that could not be read again or do not fit the other files; the
    container is then as it was. Raises OutputError where a file cannot be written or removed.
    """
    store = open_store(path)
    if store.path is None:
        raise UsageError(f"{store.name}: is not on this machine; `histocodec unpack` it into a folder, and seal that")
    change = _changed(store, removals or Removals())
    if isinstance(store, FolderStore):
        _write(store, change)
    elif change.document is not None or change.unlisted:
        _write_archive(store, store.path.resolve(), change)
    return change.report


@dataclass(frozen=True)
class _Change:
    """What becomes of a container: its root's metadata, None where it stays, the arrays to remove, and the report."""

    document: dict[str, object] | None
    unlisted: list[str]
    report: SealReport


def _changed(store: Store, removals: Removals) -> _Change:
    root, described, version = read_root(store)
    if version < VERSION:
        raise UnsupportedError(f"{described.where}: version {version} has no digest, so there is nothing to seal")
    members = dict(described.members())
    previous = members.get("digest")
    _read(members, described.where)  # from here on, members are what SPEC says
    arrays = _optional_arrays(store)
    removed = _remove(members, removals, arrays, store.name)
    attributes = _read(members, described.where)
    _check_files(ContainerV2(store, attributes))
    unlisted = [name for name in arrays if name not in small_arrays(attributes)]
    others = dict(root.member("attributes").members())
    if OVERVIEW in unlisted:
        others.pop("ome", None)  # it says where the overview is
    document = {**root.members(), "attributes": {**others, **ome_attributes(attributes, OVERVIEW), KEY: members}}
    removed += [name.replace(f"{ASSOCIATED}-", IMAGE, 1) for name in unlisted]
    found = previous if isinstance(previous, str) else None
    report = SealReport(store.name, found, attributes.provenance.digest, tuple(dict.fromkeys(removed)))
    return _Change(None if document == root.value else document, unlisted, report)


def _write(store: FolderStore, change: _Change) -> None:
    """The root first: a container that lists an image which is gone would be damaged."""
    if change.document is not None:
        try:
            with _same_mode(store.path / METADATA):
                write_metadata(store.path, change.document)
        except ValueError as exc:  # 1e999, say, in the attributes of another program
            raise FormatError(f"{store.where(METADATA)}: cannot be written again: {exc}") from exc
    _remove_arrays(store, change.unlisted)


@contextmanager
def _same_mode(file: Path) -> Iterator[None]:
    """Whoever may not read the file that is replaced may not read the new one either."""
    mode = file.stat().st_mode
    yield
    file.chmod(mode)


def _write_archive(store: Store, file: Path, change: _Change) -> None:
    """Writes the archive anew, by way of a folder beside it."""
    try:
        with TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.", suffix=".tmp") as folder:
            extract(store, Path(folder))
            _write(FolderStore(folder), change)
            with _same_mode(file):
                write_zip(Path(folder), file)
    except OSError as exc:
        raise OutputError(f"{file}: cannot be written: {exc.strerror or exc}") from exc


def _read(members: dict[str, Any], where: str) -> Attributes:
    """Gives members their digest, and reads them."""
    members["digest"] = "0" * 64  # checked for its form only
    try:
        members["digest"] = digest_of(members)
    except UsageError as exc:
        raise FormatError(f"{where}: {exc}") from exc
    return from_json(Node(members, where))


def _check_files(container: ContainerV2) -> None:
    """Raises FormatError where the attributes are not those of the other files. Shards are not read: the attributes
    name their digests."""
    for name, expected in all_metadata(container.attributes).items():
        check_metadata(container.store, name, expected)
    for name in small_arrays(container.attributes):
        container.array(name)
    for level in range(len(container.attributes.levels)):
        container.maps(level)
    container.digests()


# What is taken out. `members` are those of the attribute as JSON, so that what this version does not know stays.


def _remove(members: dict[str, Any], removals: Removals, arrays: list[str], where: str) -> list[str]:
    """Takes everything out of `members`, of a container with these optional arrays. Returns what was there."""
    name = _remove_name(members, removals)
    images = _remove_images(members, removals, arrays, where)
    properties = [f"{PROPERTY}{name}" for name in _remove_properties(members, removals, where)]
    dropped = members.get("dropped", [])
    noted = [*(image for image in images if image not in dropped), *dropped, *(text[:MAX_TEXT] for text in properties)]
    _set(members, "dropped", noted[:MAX_ASSOCIATED])
    return [*name, *(f"{IMAGE}{image}" for image in images), *properties]


def _remove_name(members: dict[str, Any], removals: Removals) -> list[str]:
    name = members["source"].get("name", "")
    tells_more = removals.private and not stored_name(name, members.get("properties", {}), EncodeOptions())
    if not name or not (removals.name or tells_more):
        return []
    members["source"] = {key: value for key, value in members["source"].items() if key != "name"}
    return ["name"]


def _remove_images(members: dict[str, Any], removals: Removals, arrays: list[str], where: str) -> list[str]:
    listed = members.get("associated", [])
    there = [image["name"] for image in listed]
    stored = [name.removeprefix(f"{ASSOCIATED}-") for name in arrays]
    for name in removals.images:
        if name not in {*there, *stored, *members.get("dropped", [])}:
            raise UsageError(f"{where}: has no image {name!r}; it has {', '.join(there) or 'none'}")
    wanted = {*removals.images, *(PRIVATE_IMAGES if removals.private else ())}
    _set(members, "associated", [image for image in listed if image["name"] not in wanted])
    return [name for name in there if name in wanted]


def _remove_properties(members: dict[str, Any], removals: Removals, where: str) -> list[str]:
    properties = members.get("properties", {})
    known = {*properties, *(name.removeprefix(PROPERTY) for name in members.get("dropped", []))}
    for pattern in removals.properties:
        if not any(_matches(name, [pattern]) for name in known):
            raise UsageError(f"{where}: has no property {pattern!r}; `histocodec info --json` lists those that it has")
    private = without_private(properties)[1] if removals.private else ()
    removed = [name for name in properties if name in private or _matches(name, removals.properties)]
    _set(members, "properties", {name: value for name, value in properties.items() if name not in removed})
    return removed


def _matches(name: str, patterns: Collection[str]) -> bool:
    return name in patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _set(members: dict[str, Any], name: str, value: Mapping[str, Any] | list[Any]) -> None:
    """Sets a member, which is left out where it is empty."""
    if value:
        members[name] = value
    else:
        members.pop(name, None)


# The files of arrays.


def _optional_arrays(store: Store) -> list[str]:
    """The names of the optional arrays that have files, listed or not."""
    found = {key.partition("/")[0] for key, _ in store.entries() if "/" in key}
    return sorted(name for name in found if OPTIONAL_ARRAYS.fullmatch(name))


def _remove_arrays(store: FolderStore, names: Collection[str]) -> None:
    for name in names:
        try:
            shutil.rmtree(store.path / name)
        except OSError as exc:
            raise OutputError(
                f"{store.where(name)}: cannot be removed: {exc.strerror or exc}; seal the container again"
            ) from exc
    if names:
        sync_folder(store.path)
