"""Opening containers of every version, and telling them from everything else."""

import os
from dataclasses import dataclass

from histocodec.errors import FormatError, HistocodecError, UnsupportedError
from histocodec.formats.container import attributes_json
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.arrays import METADATA, read_metadata
from histocodec.formats.container.attributes import KEY, MAX_SIDE, VERSION
from histocodec.formats.container.container import ContainerV2
from histocodec.formats.container.fields import Node
from histocodec.formats.container.layout import is_lossless, is_shard
from histocodec.formats.container.locations import is_url, local_path
from histocodec.formats.container.store import FolderStore, Location, Store, open_store
from histocodec.formats.container.version1.attributes import from_json as from_version_1
from histocodec.formats.container.version1.container import ContainerV1
from histocodec.formats.container.zipped import SUFFIX, FileSource, ZipStore, claims_zarr, is_zip
from histocodec.strict_json import refuse_half_surrogates

PARTIAL = ".partial"  # ends the name of the folder of an encode that goes on, or was interrupted


@dataclass(frozen=True)
class Sizes:
    """Bytes: of all files, and among them of the shards of latents and of the lossless chunks."""

    total: int
    latents: int
    lossless: int


def described_by(root: Node) -> Node | None:
    """The attribute "histocodec" in the metadata of a Zarr group, unchecked; None where it has none."""
    node: object = root.value
    for key in ("attributes", KEY):
        node = node.get(key) if isinstance(node, dict) else None
    return None if node is None else Node(node, f"{root.where}: {KEY}")


def _check_group(root: Node) -> None:
    """Raises FormatError unless the metadata is that of a group of Zarr v3, which any reader of Zarr opens."""
    root.member("zarr_format").integer(3, 3)
    root.member("node_type").choice(("group",))


def is_container(location: str | bytes | os.PathLike[str]) -> bool:
    """Whether a folder, a ZIP archive or what lies at a URL says that it is a histocodec container; sound or not."""
    try:
        return names_container(location)
    except HistocodecError:
        return False


def names_container(location: str | bytes | os.PathLike[str]) -> bool:
    """`is_container` for whoever is going to open the location. Raises FormatError where it is a Zarr group whose
    metadata cannot be read: then nobody can tell what it is. True of every URL, since nothing else is read from one."""
    text = os.fsdecode(location)
    if is_url(text):
        return True
    path = local_path(text)
    if is_zip(path):
        if path.suffix.lower() != SUFFIX and not claims_zarr(path):  # anybody's archive
            return False
        store: Store = ZipStore(FileSource(path))
        return store.size(METADATA) is not None and described_by(read_metadata(store, "")) is not None
    return os.path.lexists(path / METADATA) and described_by(read_metadata(FolderStore(path), "")) is not None


def sizes(store: Store) -> Sizes:
    """The bytes of a container's files."""
    by_name = dict(store.entries())
    return Sizes(
        sum(by_name.values()),
        sum(size for name, size in by_name.items() if is_shard(name)),
        sum(size for name, size in by_name.items() if is_lossless(name)),
    )


def open_container(location: Location) -> Container:
    """Opens a finished container at a path or URL, or in a store. Raises UsageError where a path does not exist,
    UnsupportedError where it is no container, or one of a later version or with a critical feature that is unknown, and
    FormatError where its attributes are damaged or it was never finished."""
    store = open_store(location)
    root, node, version = read_root(store)
    if version == VERSION:
        try:
            refuse_half_surrogates(root.value)  # which version 1 had
        except ValueError as exc:
            raise FormatError(f"{root.where}: {exc}") from exc
        return ContainerV2(store, attributes_json.from_json(node))
    attributes = from_version_1(node)
    if any(level.bytes is None for level in attributes.levels):
        raise FormatError(f"{store.name}: was never finished; `histocodec encode --resume` goes on with it")
    return ContainerV1(store, attributes)


def read_root(store: Store) -> tuple[Node, Node, int]:
    """The metadata of a container's root, the attribute "histocodec" in it, and the version of the format; nothing else
    of the attribute is checked. Raises what `open_container` raises."""
    if store.size(METADATA) is None:
        raise _no_container(store)
    root = read_metadata(store, "")
    node = described_by(root)
    if node is None:
        raise UnsupportedError(f"{store.name}: is Zarr, but no histocodec container (no attribute {KEY!r})")
    _check_group(root)
    store.check()
    version = node.member("version").integer(1, MAX_SIDE)
    if version > VERSION:
        raise UnsupportedError(
            f"{node.where}: version {version}, written by a later version of histocodec; this one reads up to "
            f"version {VERSION}"
        )
    return root, node, version


def _no_container(store: Store) -> HistocodecError:
    """What a place without the root's metadata is: nothing of ours, or what an interrupted encode has left."""
    if store.name.rstrip("/").endswith(PARTIAL):
        return FormatError(f"{store.name}: was never finished; `histocodec encode --resume` goes on with it")
    return UnsupportedError(f"{store.name}: is no histocodec container (it has no {METADATA})")
