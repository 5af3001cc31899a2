"""The container's plain arrays: Zarr v3 with core codecs only, read without zarr and within known bounds.

Every such array is little endian, in C order, gzip-compressed. All but `lossless/N` are one chunk. The bytes
are written here and not by zarr because its gzip stores the time of day, so that the same slide would never
give the same container twice.
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
from histocodec.formats.container.fields import Node, parse_json
from histocodec.formats.container.files import read_bounded, write_atomically

METADATA = "zarr.json"
# The root's holds all vendor properties, of which MIRAX has hundreds of kilobytes; and a hostile one takes
# twenty times its size in memory when it is parsed.
MAX_METADATA = 16 << 20
GZIP_LEVEL = 9
GZIP_WINDOW = 31  # zlib's notation for a gzip header around the largest window
TOLERATED = ("attributes", "storage_transformers", "consolidated_metadata")  # what other programs may add

Json = dict[str, object]
Values = NDArray[Any]


@dataclass(frozen=True)
class Form:
    """Shape, dtype and chunking of one plain array: everything that its metadata says."""

    shape: tuple[int, ...]
    dtype: str  # uint8, int32, float16 or float32
    names: tuple[str, ...] = ()  # of its dimensions
    chunk: tuple[int, ...] | None = None  # None: one chunk holds it all

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        return self.shape if self.chunk is None else self.chunk

    @property
    def stored(self) -> np.dtype[Any]:
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def chunk_bytes(self) -> int:
        return prod(self.chunk_shape) * self.stored.itemsize

    def metadata(self) -> Json:
        endian: Json = {} if self.stored.itemsize == 1 else {"configuration": {"endian": "little"}}
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
    """The zarr.json of an array, with no field that Zarr does not demand."""
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
    attached: Json = {} if attributes is None else {"attributes": attributes}
    return {"zarr_format": 3, "node_type": "group", **attached}


def write_metadata(folder: Path, metadata: Json) -> None:
    text = json.dumps(metadata, separators=(",", ":"), allow_nan=False)
    write_atomically(folder / METADATA, text.encode("ascii"))


def read_metadata(folder: Path) -> Node:
    file = folder / METADATA
    return parse_json(read_bounded(file, MAX_METADATA), str(file))


def check_metadata(folder: Path, expected: Json) -> None:
    """Raises FormatError, naming the field, where a node's metadata is not what the attributes imply."""
    node = read_metadata(folder)
    if not isinstance(node.value, dict):
        raise FormatError(f"{node.where}: is not an object")
    found = {key: value for key, value in node.value.items() if key not in TOLERATED}
    expected = {key: value for key, value in expected.items() if key not in TOLERATED}
    for key in (*expected, *found):
        if key not in found or key not in expected or not _same(found[key], expected[key]):
            wanted = _short(expected.get(key))
            raise FormatError(f"{node.where}: {str(key)[:80]} is {_short(found.get(key))}; {wanted} is needed")


def _same(found: object, expected: object) -> bool:
    """Equal as JSON, where True is not 1; an integer may be written as 1.0."""
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    return json.dumps(_plain(found), sort_keys=True) == json.dumps(_plain(expected), sort_keys=True)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "…"


def chunk_path(folder: Path, coordinates: tuple[int, ...]) -> Path:
    return folder.joinpath("c", *(str(c) for c in coordinates))


def pack_values(values: Values, form: Form) -> bytes:
    """The bytes of one chunk. The same values always give the same bytes: no time, no name."""
    if values.shape != form.chunk_shape or values.dtype != np.dtype(form.dtype):
        raise UsageError(f"an array of {values.dtype} {values.shape}, where {form.dtype} {form.chunk_shape} is stored")
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_WINDOW)
    raw = np.ascontiguousarray(values, form.stored)
    return packer.compress(raw.tobytes()) + packer.flush()


def unpack_values(data: bytes, form: Form, name: str) -> Values:
    """The values in the bytes of one chunk; never allocates more than the form's size."""
    unpacker = zlib.decompressobj(GZIP_WINDOW)
    try:
        raw = unpacker.decompress(data, form.chunk_bytes + 1)
    except zlib.error as exc:
        raise FormatError(f"{name}: is not sound gzip data: {exc}") from exc
    if len(raw) != form.chunk_bytes or not unpacker.eof or unpacker.unused_data:
        raise FormatError(
            f"{name}: is cut short, or does not hold {form.dtype} {form.chunk_shape} ({form.chunk_bytes} bytes)"
        )
    return np.frombuffer(raw, form.stored).reshape(form.chunk_shape).astype(form.dtype)


def write_plain(folder: Path, form: Form, values: Values) -> None:
    """A whole array of one chunk. Metadata comes last: an array that can be opened is complete."""
    write_atomically(chunk_path(folder, (0,) * len(form.shape)), pack_values(values, form))
    write_metadata(folder, form.metadata())


def read_plain(folder: Path, form: Form) -> Values:
    """The values of an array of one chunk, having checked that it is what `form` says."""
    check_metadata(folder, form.metadata())
    return read_plain_chunk(folder, form, (0,) * len(form.shape))


def read_plain_chunk(folder: Path, form: Form, coordinates: tuple[int, ...]) -> Values:
    file = chunk_path(folder, coordinates)
    # Deflate enlarges by 5 bytes in 16 KiB at most; a file that is larger than that holds something else.
    data = read_bounded(file, form.chunk_bytes + form.chunk_bytes // 1024 + 1024)
    return unpack_values(data, form, str(file))
