"""Whether the files of a container of version 2 are those that were written. Nothing is decoded here."""

import hashlib
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError
from histocodec.formats.container.arrays import METADATA, check_metadata, chunk_key, read_metadata
from histocodec.formats.container.container import ContainerV2
from histocodec.formats.container.layout import (
    ASSOCIATED,
    DIGESTS,
    ICC,
    LATENTS,
    LOSSLESS_PIXELS,
    MAPS,
    MODEL,
    NO_SHARD,
    OVERVIEW,
    all_metadata,
    has_lossless,
    lossless_key,
    plain_forms,
    shard_key,
    shards_of,
    small_arrays,
)
from histocodec.formats.container.ngff import shows_overview
from histocodec.formats.container.shard import ShardIndex, index_bytes
from histocodec.formats.container.states import BACKGROUND, LOSSLESS
from histocodec.geometry import ShardKey

Mask = NDArray[np.bool_]

HASHED_BYTES = 1 << 20  # read at once
# The names of the arrays that are the container's own. Everything else belongs to other programs.
OWN = re.compile(rf"{LATENTS}|(?:{LOSSLESS_PIXELS}|{MAPS})-\d+|{DIGESTS}|{OVERVIEW}|{ICC}|{MODEL}|{ASSOCIATED}-.*")


def problems(container: ContainerV2) -> Iterator[FormatError]:
    """Everything in a container that is not as it was written, file by file."""
    try:
        container.store.check()
    except FormatError as exc:
        yield exc
    yield from _root_problems(container)
    for name, expected in all_metadata(container.attributes).items():
        try:
            check_metadata(container.store, name, expected)
        except FormatError as exc:
            yield exc
    for name in small_arrays(container.attributes):
        try:
            container.array(name)
        except FormatError as exc:
            yield exc
    known = set(_known_files(container))
    yield from _shard_problems(container, known)
    yield from _unlisted_problems(container, known)


def _root_problems(container: ContainerV2) -> Iterator[FormatError]:
    """What the root's metadata say for readers of OME-Zarr, which the digest does not cover."""
    try:
        root = read_metadata(container.store, "")
    except FormatError as exc:
        yield exc
        return
    if container.attributes.overview is None:
        return
    ome = root.member("attributes").members().get("ome")
    if not shows_overview(ome, container.attributes, OVERVIEW):
        yield FormatError(f"{root.where}: ome does not show the overview as the attributes describe it")


def _known_files(container: ContainerV2) -> Iterator[str]:
    """Every file that follows from the attributes; shards, which the maps decide about, come later."""
    yield METADATA
    for name in all_metadata(container.attributes):
        yield f"{name}/{METADATA}"
    for name, form in plain_forms(container.attributes).items():
        yield chunk_key(name, (0,) * len(form.shape))


def _shard_problems(container: ContainerV2, known: set[str]) -> Iterator[FormatError]:
    """Holds every shard to its digest, and adds the files of those that have to be there to `known`."""
    attributes = container.attributes
    try:
        digests = container.digests()
        maps = [container.maps(level) for level in range(len(attributes.levels))]
    except FormatError as exc:
        yield exc
        return
    shards = [shard for level in range(len(attributes.levels)) for shard in shards_of(attributes, level)]
    stored, lossless = ([level.state != BACKGROUND for level in maps], [level.state == LOSSLESS for level in maps])
    files = [(shard, shard_key(shard), stored) for shard in shards]
    if has_lossless(attributes):
        files += [(shard, lossless_key(shard), lossless) for shard in shards]
    for (shard, file, present), digest in zip(files, digests, strict=True):
        expected = _square(container, shard, present[shard.level])
        if expected.any():
            known.add(file)
        try:
            _check_shard(container, file, expected, digest.tobytes())
        except FormatError as exc:
            yield exc


def _square(container: ContainerV2, shard: ShardKey, present: Mask) -> Mask:
    """The part of a level's map that is one shard's, (side, side), False beyond the level's edge."""
    side = container.attributes.shard_side(shard.level)
    square = np.zeros((side, side), np.bool_)
    part = present[shard.row * side : (shard.row + 1) * side, shard.column * side : (shard.column + 1) * side]
    square[: part.shape[0], : part.shape[1]] = part
    return square


def _check_shard(container: ContainerV2, file: str, expected: Mask, digest: bytes) -> None:
    where = f"{container.name}/{file}"
    size = container.store.size(file)
    if expected.any() == (digest == NO_SHARD):
        raise FormatError(f"{where}: maps and digests disagree whether it has to be there")
    if digest == NO_SHARD:
        if size is not None:
            raise FormatError(f"{where}: is there, although all its chunks are background")
        return
    if size is None:
        raise FormatError(f"{where}: is missing")
    hashed = hashlib.sha256()
    for start in range(0, size, HASHED_BYTES):
        (part,) = container.store.read_parts(file, [(start, min(HASHED_BYTES, size - start))])
        hashed.update(part)
    if hashed.digest() != digest:
        raise FormatError(
            f"{where}: is not the file written here (its SHA-256 differs): altered, written again, or of another place"
        )
    count = expected.size
    tail, size = container.store.read_tail(file, index_bytes(count))
    present = np.reshape(ShardIndex.parse(tail, file_bytes=size, name=where).present, expected.shape)
    if not np.array_equal(present, expected):
        raise FormatError(f"{where}: does not hold the chunks that the maps say")


def _unlisted_problems(container: ContainerV2, known: set[str]) -> Iterator[FormatError]:
    """Files that were added to the container's own arrays, or beside them."""
    features = container.attributes.provenance.features
    for name, _ in container.store.entries():
        array, *rest = name.split("/")
        foreign = bool(rest) and not OWN.fullmatch(array)
        of_feature = any(array == feature or array.startswith(f"{feature}-") for feature in features)
        if name not in known and not foreign and not (of_feature and not OWN.fullmatch(array)):
            yield FormatError(f"{container.name}/{name}: does not follow from the attributes, so it was added later")
