"""The group `embeddings/MODEL` of a container: a vector for each patch of tissue, computed from latents alone.

It is added to a finished container in one step. Nothing else in the container changes: the group has a list of SHA-256
of its own, since `integrity/files` does not list it. Follows SPEC's "Embeddings".
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from histocodec.errors import FormatError, OutputError, UnsupportedError
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.arrays import (
    MAX_METADATA,
    METADATA,
    Form,
    chunk_key,
    group_metadata,
    metadata_key,
    read_metadata,
    read_plain,
    write_metadata,
    write_plain,
)
from histocodec.formats.container.attributes import SHA256
from histocodec.formats.container.digests import file_digest, store_digest
from histocodec.formats.container.files import file_bytes, sync_folder
from histocodec.formats.container.pack import extract, write_zip
from histocodec.formats.container.read import open_container
from histocodec.formats.container.store import Location, Store
from histocodec.models.config import MODEL_ID
from histocodec.search.embedding import Embeddings, VectorKind

GROUP = "embeddings"
MEMBER = re.compile(r"embeddings/[^/]+/zarr\.json")
KEY = "histocodec_embedding"
VERSION = 1
DIGESTS = "digests"
COVERED = (f"positions/{METADATA}", "positions/c/0/0", f"vectors/{METADATA}", "vectors/c/0/0", METADATA)
DIGESTS_BYTES = sum(64 + 2 + len(name) + 1 for name in COVERED)
MAX_LENGTH = 4096  # values of a vector
MAX_VALUES = 1 << 28  # of all vectors together: 512 MiB as float16
# What is above 16 MiB must not have shrunk below a 64th: vectors and positions shrink to a third or so, while gzip lets
# half a megabyte claim 512 MiB.
MAX_SHRUNK, FREE_BYTES = 64, 16 << 20
VECTOR_NAMES, POSITION_NAMES = ("patch", "value"), ("patch", "xy")


def check_absent(path: Path, *, overwrite: bool = False) -> None:
    """Raises OutputError where the container at `path` has embeddings of its model already and `overwrite` is not
    given: to be called before any work is done."""
    container = open_container(path)
    name = f"{GROUP}/{container.attributes.model.id}"
    if not overwrite and any(key.startswith(f"{name}/") for key, _ in container.store.entries()):
        raise OutputError(f"{path / name}: exists already; --overwrite replaces it")


def write_embeddings(path: Path, embeddings: Embeddings, *, overwrite: bool = False) -> int:
    """Adds `embeddings` to the container at `path`, whole or not at all, and returns the bytes that they take on disk.
    A container that is one file is written anew. Raises OutputError where they cannot be written or, unless
    `overwrite`, where there are some already, and FormatError for a vector beyond float16."""
    check_absent(path, overwrite=overwrite)
    if path.is_file():
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as unpacked:
            extract(open_container(path).store, Path(unpacked))
            size = write_embeddings(Path(unpacked), embeddings, overwrite=overwrite)
            write_zip(Path(unpacked), path)
            return size
    target = path / GROUP / embeddings.kind.model
    count, length = embeddings.vectors.shape
    with np.errstate(over="ignore"):
        vectors = embeddings.vectors.astype(np.float16)
    if not np.isfinite(vectors).all():
        raise FormatError(
            f"{path}: has latents too large for vectors in float16; the container or its model is damaged"
        )
    try:
        # Beside the container: what a killed writer left within it would be taken for a part of the Zarr group.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder:
            staged = Path(folder) / "new"
            write_plain(staged / "vectors", _vector_form(count, length), vectors)
            write_plain(staged / "positions", _position_form(count), embeddings.positions)
            write_metadata(staged, group_metadata({KEY: _described(embeddings)}))
            lines = "".join(f"{file_digest(staged / name).hex()}  {name}\n" for name in sorted(COVERED))
            write_plain(staged / DIGESTS, _DIGESTS_FORM, np.frombuffer(lines.encode(), np.uint8))
            write_metadata(path / GROUP, group_metadata())
            if target.exists():
                target.rename(Path(folder) / "old")
            staged.rename(target)
            sync_folder(target.parent)
            return file_bytes(target)
    except OSError as exc:
        raise OutputError(f"{target}: cannot be written: {exc.strerror or exc}") from exc


def read_embeddings(location: Location) -> Embeddings:
    """The embeddings of a container, for the model that it names. Raises UnsupportedError where it has none, and
    FormatError where they are damaged, altered, or were computed from other latents."""
    container = open_container(location)
    name, where = f"{GROUP}/{container.attributes.model.id}", container.name
    if container.store.size(metadata_key(name)) is None:
        raise UnsupportedError(f"{where}: has no embeddings; `histocodec embed {where}` adds them")
    return _read(container, name)


def embedding_problems(container: Container) -> Iterator[FormatError]:
    """Everything in `embeddings/` that is not as it was written. Ignores the groups of other programs."""
    store = container.store
    groups = [key.rpartition("/")[0] for key, _ in store.entries() if MEMBER.fullmatch(key)]
    for name in sorted(groups):
        try:
            if _is_ours(store, name):
                _read(container, name)
        except FormatError as exc:
            yield exc


_DIGESTS_FORM = Form((DIGESTS_BYTES,), "uint8")


def _vector_form(count: int, length: int) -> Form:
    return Form((count, length), "float16", VECTOR_NAMES)


def _position_form(count: int) -> Form:
    return Form((count, 2), "int32", POSITION_NAMES)


def _described(embeddings: Embeddings) -> dict[str, object]:
    kind = embeddings.kind
    return {
        "version": VERSION,
        "model": {"id": kind.model, "sha256": kind.sha256},
        "embedder": kind.embedder,
        "count": len(embeddings.vectors),
        "length": kind.length,
        "level": embeddings.level,
        "patch": embeddings.patch_side,
        "latents": embeddings.latents_sha256,
    }


def _is_ours(store: Store, name: str) -> bool:
    node: object = read_metadata(store, name).value
    attributes = node.get("attributes") if isinstance(node, dict) else None
    return isinstance(attributes, dict) and KEY in attributes


def _read(container: Container, name: str) -> Embeddings:
    """The embeddings in the group `name`. Checks all that SPEC demands, the digests before any array is read."""
    store, where = container.store, container.store.where(name)
    described = read_metadata(store, name).member("attributes").member(KEY)
    version = described.member("version").integer(1, 1 << 31)
    if version > VERSION:
        raise UnsupportedError(f"{where}: embeddings of version {version}; up to {VERSION} can be read")
    f = described.fields("version", "model", "embedder", "count", "length", "level", "patch", "latents")
    model = f["model"].fields("id", "sha256")
    kind = VectorKind(
        model["id"].text(64, MODEL_ID),
        model["sha256"].text(64, SHA256),
        f["embedder"].text(64),
        f["length"].integer(1, MAX_LENGTH),
    )
    named = container.attributes.model
    if (kind.model, kind.sha256) != (named.id, named.sha256):
        raise FormatError(f"{where}: is of model {kind.model} ({kind.sha256[:12]}…); the container's is {named.id}")
    level = f["level"].integer(0, len(container.attributes.levels) - 1)
    digest = f["latents"].text(64, SHA256)
    if digest != container.latents_digest(level):
        raise FormatError(f"{where}: was computed from other latents; `histocodec embed --overwrite` makes it anew")
    count = f["count"].integer(1, MAX_VALUES // kind.length)
    forms = {"vectors": _vector_form(count, kind.length), "positions": _position_form(count)}
    for array, form in forms.items():
        _check_shrunk(store, f"{name}/{array}", form)
    _check_digests(store, name, forms)
    vectors = read_plain(store, f"{name}/vectors", forms["vectors"]).astype(np.float32)
    positions = read_plain(store, f"{name}/positions", forms["positions"])
    if not np.isfinite(vectors).all():
        raise FormatError(f"{where}/vectors: has values that are not finite")
    size = container.attributes.levels[0]
    if positions.min() < 0 or positions[:, 0].max() >= size.width or positions[:, 1].max() >= size.height:
        raise FormatError(f"{where}/positions: has positions outside the slide's {size.width} x {size.height}")
    patch = f["patch"].integer(1, 1 << 20)
    span = patch * container.attributes.levels[level].downsample
    mpp = container.attributes.mpp_at(level)
    return Embeddings(kind, level, patch, span, mpp, digest, vectors, positions)


def _check_shrunk(store: Store, name: str, form: Form) -> None:
    """Raises FormatError where an array claims far more memory than its file can stand for, before any is taken."""
    key = chunk_key(name, (0,) * len(form.shape))
    size = store.size(key)  # what is missing is refused when it is read
    if size is not None and form.chunk_bytes > max(FREE_BYTES, MAX_SHRUNK * size):
        raise FormatError(
            f"{store.where(key)}: has {size} bytes for an array of {form.chunk_bytes}; above {FREE_BYTES >> 20} MiB, "
            f"at least a {MAX_SHRUNK}th is needed. `histocodec embed --overwrite` makes it anew"
        )


def _check_digests(store: Store, group: str, forms: Mapping[str, Form]) -> None:
    """Raises FormatError where a file is not the one that was written. Hashes no more than a sound file may have, a
    few megabytes at a time."""
    lines = read_plain(store, f"{group}/{DIGESTS}", _DIGESTS_FORM).tobytes().decode("utf-8", "replace").splitlines()
    for number, name in enumerate(sorted(COVERED)):
        key, form = f"{group}/{name}", forms.get(name.partition("/c/")[0])
        size, most = store.size(key), MAX_METADATA if form is None else form.most_stored
        if size is not None and size > most:
            raise FormatError(f"{store.where(key)}: has {size} bytes; at most {most} are allowed")
        if lines[number : number + 1] != [f"{store_digest(store, key).hex()}  {name}"]:
            raise FormatError(f"{store.where(key)}: was altered (its SHA-256 is not the one that was written)")
