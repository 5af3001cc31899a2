"""Whether a container's files are those that were written: SHA-256 of every file, and maps that agree with the shards.

`integrity/N` has the digests of a level's shards, `integrity/files` those of all other files but its own. Nothing is
decoded here.
"""

import re
from collections.abc import Collection, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError
from histocodec.formats.container.abstract_store import Store
from histocodec.formats.container.arrays import METADATA, Form, chunk_key, read_metadata, read_plain, write_plain
from histocodec.formats.container.attributes import SHA256
from histocodec.formats.container.digests import check_digest, file_digest
from histocodec.formats.container.files import relative_files
from histocodec.formats.container.layout import NO_SHARD, is_shard
from histocodec.formats.container.shard import read_index
from histocodec.formats.container.states import BACKGROUND
from histocodec.formats.container.version1.container import ContainerV1
from histocodec.formats.container.version1.layout import GROUPS, LISTING, plain_arrays, shard_key
from histocodec.formats.container.version1.shards import check_shard
from histocodec.geometry import ShardKey

# The groups that a container's files lie in. `embeddings` has digests of its own.
OWN_GROUPS = (*GROUPS, "block_error", "lossless", "overview", "associated", "metadata", "model")
SHARD_NAME = re.compile(r"latents/(\d{1,2})/c/0/(0|[1-9]\d{0,8})/(0|[1-9]\d{0,8})")
MAX_LISTING = 64 << 20  # bytes: a hundred for each of half a million files


def write_listing(root: Path) -> None:
    """Writes `integrity/files`: a line with the SHA-256 and the name of every file that is no shard. Raises OutputError
    where it cannot be written."""
    names = sorted(name for name in relative_files(root) if not is_shard(name) and not name.startswith(f"{LISTING}/"))
    lines = [f"{file_digest(root / name).hex()}  {name}\n" for name in names]
    listing = np.frombuffer("".join(lines).encode(), np.uint8)
    write_plain(root / LISTING, Form(listing.shape, "uint8"), listing)


def read_listing(store: Store) -> dict[str, str]:
    """The SHA-256 in hexadecimal, by file name, of `integrity/files`. Raises FormatError where it is damaged."""
    where = store.where(LISTING)
    size = read_metadata(store, LISTING).member("shape").items(1, 1)[0].integer(1, MAX_LISTING)
    text = BytesIO(read_plain(store, LISTING, Form((size,), "uint8")).tobytes())
    listed: dict[str, str] = {}
    for number, line in enumerate(text, 1):
        digest, separator, name = line.decode("ascii", "replace").removesuffix("\n").partition("  ")
        if not separator or not re.fullmatch(SHA256, digest) or not _is_inner_name(name):
            raise FormatError(f"{where}: line {number} is not a SHA-256, two spaces and a file's name")
        if name in listed:
            raise FormatError(f"{where}: line {number} lists {name} a second time")
        listed[name] = digest
    return listed


def _is_inner_name(name: str) -> bool:
    """Whether this may name a file of a container: printable ASCII, relative and within it, in one way only."""
    return name.isascii() and name.isprintable() and not {"", ".", ".."} & set(name.split("/"))


def container_problems(container: ContainerV1) -> Iterator[FormatError]:
    """Everything in a container that is not as it was written, file by file. Embeddings, which are added later, have
    their own check: `embeddings.embedding_problems`."""
    store = container.store
    yield from (FormatError(problem) for problem in store.problems())
    for level in range(len(container.attributes.levels)):
        yield from _shard_problems(container, level)
    try:
        listed = read_listing(store)
    except FormatError as exc:
        yield exc
        return
    arrays = plain_arrays(container.attributes).items()
    needed = {METADATA, *(f"{name}/{METADATA}" for name, _ in arrays)}
    needed |= {chunk_key(name, (0,) * len(form.shape)) for name, form in arrays}
    for name in sorted(needed - listed.keys()):
        yield FormatError(f"{store.where(LISTING)}: does not list {name}")
    for name, digest in listed.items():
        try:
            check_digest(store, name, digest)
        except FormatError as exc:
            yield exc
    yield from _unlisted_problems(container, listed.keys() | needed)


def _unlisted_problems(container: ContainerV1, known: Collection[str]) -> Iterator[FormatError]:
    """Files that were added to the container's own groups, or beside them: an image, a level, a shard beyond the grid.
    Groups of other names are other programs'."""
    for name, _ in container.store.entries():
        group, *rest = name.split("/")
        if (rest and group not in OWN_GROUPS) or name in known or name.startswith(f"{LISTING}/"):
            continue
        if not _is_shard_of(container, name):
            yield FormatError(f"{container.store.where(name)}: is not listed in {LISTING}, so it was added later")


def _is_shard_of(container: ContainerV1, name: str) -> bool:
    """Whether this is where a shard of the container lies, present or not."""
    match = SHARD_NAME.fullmatch(name)
    if match is None:
        return False
    shard = ShardKey(*(int(number) for number in match.groups()))
    if shard.level >= len(container.attributes.levels):
        return False
    grid = container.attributes.grid(shard.level)
    return shard.row < grid.shard_rows and shard.column < grid.shard_columns


def _shard_problems(container: ContainerV1, level: int) -> Iterator[FormatError]:
    try:
        container.check_latent_metadata(level)
        digests, present = container.integrity(level), container.present_shards(level)
        tiles = container.tiles(level)
    except FormatError as exc:
        yield exc
        return
    for row, column in np.ndindex(*present.shape):
        shard, digest = ShardKey(level, row, column), digests[row, column].tobytes()
        where = container.store.where(shard_key(shard))
        try:
            if present[row, column] == (digest == NO_SHARD):
                raise FormatError(f"{where}: tiles/{level} and integrity/{level} disagree whether it has to be there")
            if digest != NO_SHARD:
                check_shard(container.store, container.attributes, shard, digests)
                _check_presence(container, shard, tiles)
            elif container.store.size(shard_key(shard)) is not None:
                raise FormatError(f"{where}: is there, although all its chunks are background")
        except FormatError as exc:
            yield exc


def _check_presence(container: ContainerV1, shard: ShardKey, tiles: NDArray[np.uint8]) -> None:
    """Raises FormatError unless a shard holds exactly the chunks that `tiles`, the level's, does not call
    background."""
    store, key, side = container.store, shard_key(shard), container.attributes.shard
    top, left = shard.row * side, shard.column * side
    expected = np.zeros((side, side), np.bool_)
    states = tiles[top : top + side, left : left + side]
    expected[: states.shape[0], : states.shape[1]] = states != BACKGROUND
    present = np.reshape(read_index(store, key, side * side).present, (side, side))
    for i, j in np.argwhere(present != expected)[:1]:
        chunk = f"{store.where(key)}: level {shard.level} chunk ({top + i}, {left + j})"
        raise FormatError(f"{chunk} is {'here' if present[i, j] else 'missing'}, against what tiles/{shard.level} says")
