"""The plain arrays of a container, that is, all but the latents: Zarr v3 with core codecs only, little endian, in C
order, gzip-compressed, and of one Zarr chunk each except `lossless/N`.

They are read and written without zarr: so that a hostile file cannot take more memory than its array has, and because
zarr's gzip stores the time of day, which would make two containers of the same slide differ.
"""

import json
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError, UsageError
from histocodec.formats.container.abstract_store import Store
from histocodec.formats.container.fields import Node, parse_json
from histocodec.formats.container.files import write_atomically

METADATA = "zarr.json"
# The root's metadata holds all vendor properties, which take hundreds of kilobytes with MIRAX. Parsing hostile JSON can
# take twenty times its size in memory.
MAX_METADATA = 16 << 20
GZIP_LEVEL = 9
GZIP_WINDOW = 31  # zlib's code for a gzip header and the largest window
TOLERATED = ("attributes", "consolidated_metadata")  # members that other programs may add, without a meaning here
TRANSFORMERS = "storage_transformers"  # only an empty list of them may be added: they change what the bytes mean
EXTENSIONS = ("data_type", "chunk_grid", "chunk_key_encoding")  # members that Zarr writes in several ways; see `_named`
CODEC_LISTS = ("codecs", "index_codecs")  # likewise, each of their elements
# Members of configurations, by what they configure, and what Zarr assumes where they are left out.
DEFAULTS = (("default", "separator", "/"), ("sharding_indexed", "index_location", "end"))

Json = dict[str, object]
Values = NDArray[Any]


@dataclass(frozen=True)
class Form:
    """Shape, dtype and chunks of one plain array: everything that its metadata says."""

    shape: tuple[int, ...]
    dtype: str  # uint8, int32, float16 or float32
    names: tuple[str, ...] = ()  # of its dimensions
    chunk: tuple[int, ...] | None = None  # the shape of its Zarr chunks; None: one chunk holds it all

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """The shape of its Zarr chunks."""
        return self.shape if self.chunk is None else self.chunk

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The dtype as it lies in the file: little endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def chunk_bytes(self) -> int:
        """The size of a Zarr chunk before compression."""
        return prod(self.chunk_shape) * self.stored_dtype.itemsize

    @property
    def most_stored(self) -> int:
        """The most bytes that a Zarr chunk may have after compression: deflate enlarges data by at most 5 bytes in
        16 KiB, so a larger object holds something else."""
        return self.chunk_bytes + self.chunk_bytes // 1024 + 1024

    def metadata(self) -> Json:
        """The array's zarr.json."""
        endian: Json = {} if self.stored_dtype.itemsize == 1 else {"configuration": {"endian": "little"}}
        codecs: list[object] = [
            {"name": "bytes", **endian},
            {"name": "gzip", "configuration": {"level": GZIP_LEVEL}},
        ]
        return array_metadata(self.shape, self.dtype, self.chunk_shape, codecs, self.names)


def array_metadata(
    shape: tuple[int, ...],
    dtype: str,
    chunk_shape: tuple[int, ...],
    codecs: list[object],
    names: tuple[str, ...] = (),
) -> Json:
    """The zarr.json of an array, with only the fields that Zarr demands."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if dtype.startswith("float") else 0,
        "codecs": codecs,
        **({"dimension_names": list(names)} if names else {}),
    }


def group_metadata(attributes: Json | None = None) -> Json:
    """The zarr.json of a group."""
    attached: Json = {} if attributes is None else {"attributes": attributes}
    return {"zarr_format": 3, "node_type": "group", **attached}


def write_metadata(folder: Path, metadata: Json) -> None:
    """Writes a node's zarr.json, without white space. Raises OutputError, and UsageError where no reader would take as
    many bytes."""
    text = json.dumps(metadata, separators=(",", ":"), allow_nan=False)
    if len(text) > MAX_METADATA:
        raise UsageError(f"{folder / METADATA}: would have {len(text)} bytes; up to {MAX_METADATA} can be read again")
    write_atomically(folder / METADATA, text.encode("ascii"))


def metadata_key(name: str) -> str:
    """The key of a node's zarr.json; the root's name is empty."""
    return f"{name}/{METADATA}" if name else METADATA


def read_metadata(store: Store, name: str) -> Node:
    """A node's zarr.json, unchecked. Raises FormatError where it is missing, larger than MAX_METADATA or no JSON. Half
    a surrogate pair is let pass: version 0.1.0 wrote them where a file's name was not Unicode."""
    key = metadata_key(name)
    return parse_json(store.read(key, MAX_METADATA), store.where(key), half_surrogates=True)


def check_metadata(store: Store, name: str, expected: Json) -> None:
    """Raises FormatError, naming the field, where a node's metadata do not mean what the attributes imply. Zarr 3.1 has
    several ways to write the same, and all of them are taken."""
    node = read_metadata(store, name)
    if not isinstance(node.value, dict):
        raise FormatError(f"{node.where}: is not an object")
    found = {key: value for key, value in node.value.items() if not _may_be_ignored(key, value)}
    for key in (*expected, *found):
        if key not in found or key not in expected or not _same(key, found[key], expected[key], node.where):
            needed = _short(expected.get(key))
            raise FormatError(f"{node.where}: {str(key)[:80]} is {_short(found.get(key))}; {needed} is needed")


def _may_be_ignored(key: str, value: object) -> bool:
    """Whether a member of an array's metadata has no meaning here: it says so itself, or is known to have none."""
    if key == TRANSFORMERS:
        return value == []
    says_so = isinstance(value, dict) and value.get("must_understand") is False
    return key in TOLERATED or (says_so and key not in EXTENSIONS)


def _canonical(key: str, value: object) -> object:
    """A member of an array's metadata in one of the ways in which Zarr may write it."""
    if key in EXTENSIONS:
        return _named(value)
    if key in CODEC_LISTS and isinstance(value, list):
        return [_named(codec) for codec in value]
    return value


def _named(extension: object) -> object:
    """A data type, a grid, a codec …: "bytes" is {"name": "bytes"}, and so is one with an empty configuration. Whether
    it must be understood is of no account, since it is."""
    if isinstance(extension, str):
        return {"name": extension}
    if not isinstance(extension, dict):
        return extension
    named = {key: value for key, value in extension.items() if key != "must_understand" or not isinstance(value, bool)}
    configuration = named.pop("configuration", {})
    if isinstance(configuration, dict):
        configuration = {key: _canonical(key, value) for key, value in configuration.items()}
    return named if configuration == {} else {**named, "configuration": configuration}


def _same(key: str, found: object, expected: object, where: str) -> bool:
    """Whether two values of a member mean the same: as JSON, True is not 1, but an integer may be written as 1.0."""
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    try:
        ours, theirs = (_normalised(_canonical(key, value)) for value in (expected, found))
        ways = (theirs, without_defaults(theirs))
        return json.dumps(ours, sort_keys=True) in [json.dumps(way, sort_keys=True) for way in ways]
    except RecursionError as exc:
        raise FormatError(f"{where}: {key[:80]} is nested too deeply") from exc


def without_defaults(value: object) -> object:
    """A part of an array's metadata without what Zarr assumes where it is left out: that chunk keys have slashes, and
    that the index of a shard is at its end. Some readers need the slashes, so only what they cannot read goes without
    them."""
    if isinstance(value, list):
        return [without_defaults(member) for member in value]
    if not isinstance(value, dict):
        return value
    kept = {key: without_defaults(member) for key, member in value.items()}
    for name, member, default in DEFAULTS:
        configuration = kept.get("configuration")
        if kept.get("name") == name and isinstance(configuration, dict) and configuration.get(member) == default:
            kept["configuration"] = {key: other for key, other in configuration.items() if key != member}
    return {key: member for key, member in kept.items() if (key, member) != ("configuration", {})}


def _normalised(value: object) -> object:
    if isinstance(value, dict):
        return {key: _normalised(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_normalised(member) for member in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "…"


def chunk_key(name: str, coordinates: tuple[int, ...]) -> str:
    """The key of one Zarr chunk of the array `name`."""
    return "/".join((name, "c", *(str(c) for c in coordinates)))


def chunk_path(folder: Path, coordinates: tuple[int, ...]) -> Path:
    """The file of one Zarr chunk of the array in `folder`."""
    return folder.joinpath("c", *(str(c) for c in coordinates))


def pack_values(values: Values, form: Form) -> bytes:
    """One Zarr chunk of a form, compressed. Equal values give equal bytes: the gzip header has neither time nor name.
    Raises UsageError for values of another shape or dtype."""
    if values.shape != form.chunk_shape or values.dtype != np.dtype(form.dtype):
        raise UsageError(f"an array of {values.dtype} {values.shape}; {form.dtype} {form.chunk_shape} is needed")
    return pack_bytes(np.ascontiguousarray(values, form.stored_dtype).tobytes())


def pack_bytes(raw: bytes) -> bytes:
    """Bytes as one gzip member, without time and name."""
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_WINDOW)
    return packer.compress(raw) + packer.flush()


def unpack_values(data: bytes, form: Form, name: str) -> Values:
    """The inverse of `pack_values`: the values of one Zarr chunk. Allocates no more than the form's size. Raises
    FormatError, which begins with `name`, where the data are damaged or of another size."""
    unpacker = zlib.decompressobj(GZIP_WINDOW)
    try:
        raw = unpacker.decompress(data, form.chunk_bytes + 1)
    except zlib.error as exc:
        raise FormatError(f"{name}: is not sound gzip data: {exc}") from exc
    if len(raw) != form.chunk_bytes or not unpacker.eof or unpacker.unused_data:
        raise FormatError(
            f"{name}: is cut short, or does not hold {form.dtype} {form.chunk_shape} ({form.chunk_bytes} bytes)"
        )
    return np.frombuffer(raw, form.stored_dtype).reshape(form.chunk_shape).astype(form.dtype)


def write_plain(folder: Path, form: Form, values: Values) -> None:
    """Writes an array of one Zarr chunk. The metadata comes last, so that an array that can be opened is complete."""
    write_atomically(chunk_path(folder, (0,) * len(form.shape)), pack_values(values, form))
    write_metadata(folder, form.metadata())


def read_plain(store: Store, name: str, form: Form) -> Values:
    """The values of an array of one Zarr chunk. Raises FormatError where its metadata or its data are not what `form`
    says."""
    check_metadata(store, name, form.metadata())
    return read_plain_chunk(store, name, form, (0,) * len(form.shape))


def read_plain_chunk(store: Store, name: str, form: Form, coordinates: tuple[int, ...]) -> Values:
    """The values of one Zarr chunk, at its full size even at the array's edge. Raises FormatError."""
    key = chunk_key(name, coordinates)
    data = store.read(key, form.most_stored)
    return unpack_values(data, form, store.where(key))
