"""`histocodec.latent` as a Zarr v3 codec, with which zarr opens the latents as an ordinary array of integers.

It is a lossless array-to-bytes codec for int8 or int16 arrays (C, n, n). zarr finds it by an entry point in the group
`zarr.codecs`. Opening an array needs neither weights nor numba; the first chunk loads them.
"""

import asyncio
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.registry import register_codec

from histocodec.errors import FormatError, UsageError
from histocodec.formats.container.attributes import SHA256
from histocodec.models.config import GROUPS, MODEL_ID, QUALITIES

if TYPE_CHECKING:  # names that move between versions of zarr, and are needed for nothing but types
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer
    from zarr.core.common import JSON
    from zarr.dtype import ZDType

    from histocodec.codec.chunk import ChunkCodec
    from histocodec.models.weights import ModelWeights

CODEC_NAME = "histocodec.latent"
DTYPES = ("int8", "int16")

_provided: dict[str, "ModelWeights"] = {}  # by SHA-256: weights that came inside a container
_folders: dict[str, list[Path]] = {}  # by SHA-256: where weights may lie that are not installed


def provide_model(weights: "ModelWeights") -> None:
    """Makes weights known to this process that are not installed, such as those embedded in a container."""
    _provided[weights.sha256] = weights


def provide_folder(sha256: str, folder: Path) -> None:
    """Makes this process look in a folder, too, for the weights with a SHA-256, once it needs them."""
    folders = _folders.setdefault(sha256, [])
    if folder not in folders:
        folders.append(folder)


def register() -> None:
    """Makes the codec known to zarr. Only needed where the package is used without being installed; harmless
    elsewhere."""
    register_codec(CODEC_NAME, LatentCodec)


@lru_cache(maxsize=4)
def _chunk_codec(model: str, sha256: str) -> "ChunkCodec":
    from histocodec.codec.chunk import chunk_codec  # here, so that reading an array's metadata stays fast
    from histocodec.models.weights import find_model

    if sha256 in _provided:
        return chunk_codec(_provided[sha256])
    return chunk_codec(find_model(model, sha256, beside=_folders.get(sha256, ())))


@dataclass(frozen=True)
class LatentCodec(ArrayBytesCodec):
    """The codec of one array, for the model with this id and SHA-256.

    `quality` marks the chunks that are written through zarr; a reader takes the quality from the chunk itself. Raises
    UsageError for a model, a SHA-256 or a quality that is not allowed.
    """

    model: str
    sha256: str
    quality: int
    is_fixed_size: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not re.fullmatch(MODEL_ID, self.model):
            raise UsageError(f"{CODEC_NAME}: model {self.model!r}; a string that matches {MODEL_ID} is needed")
        if not isinstance(self.sha256, str) or not re.fullmatch(SHA256, self.sha256):
            raise UsageError(f"{CODEC_NAME}: sha256 {self.sha256!r}; 64 lower-case hexadecimal digits are needed")
        if type(self.quality) is not int or not 0 <= self.quality < QUALITIES:
            raise UsageError(f"{CODEC_NAME}: quality {self.quality!r}; an integer from 0 to {QUALITIES - 1} is needed")

    @classmethod
    def from_dict(cls, data: "dict[str, JSON]") -> Self:
        """The codec that an array's metadata describes. Raises UsageError for another configuration."""
        configuration = data.get("configuration")
        if not isinstance(configuration, dict) or set(configuration) != {"model", "sha256", "quality"}:
            raise UsageError(f"{CODEC_NAME}: its configuration must have model, sha256 and quality, and nothing else")
        values = cast(dict[str, Any], configuration)
        return cls(model=values["model"], sha256=values["sha256"], quality=values["quality"])

    def to_dict(self) -> "dict[str, JSON]":
        """The codec as an array's metadata describes it; the inverse of `from_dict`."""
        return {
            "name": CODEC_NAME,
            "configuration": {"model": self.model, "sha256": self.sha256, "quality": self.quality},
        }

    def evolve_from_array_spec(self, array_spec: "ArraySpec") -> Self:
        """The codec itself, after checking the array's dtype. Raises UsageError for any but int8 and int16."""
        _check_dtype(array_spec.dtype)  # the only check that zarr calls for a codec within shards
        return self

    def validate(self, *, shape: tuple[int, ...], dtype: "ZDType[Any, Any]", chunk_grid: object) -> None:
        """Raises UsageError for an array whose dtype or chunks the codec cannot code."""
        _check_dtype(dtype)
        shape_of_chunks = getattr(chunk_grid, "chunk_shape", None)  # of a regular grid, whatever zarr calls its class
        if not isinstance(shape_of_chunks, tuple):
            raise UsageError(f"{CODEC_NAME}: chunk grid {type(chunk_grid).__name__}; only a regular one is allowed")
        _check_shape(shape_of_chunks)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: "ArraySpec") -> int:
        """Raises NotImplementedError: the size depends on the values."""
        raise NotImplementedError(f"{CODEC_NAME}: the size of a compressed chunk depends on its values")

    async def _decode_single(self, chunk_data: "Buffer", chunk_spec: "ArraySpec") -> "NDBuffer":
        dtype = _check_dtype(chunk_spec.dtype)
        data = chunk_data.to_bytes()
        values = await asyncio.to_thread(self.decode_chunk, data, chunk_spec.shape, dtype)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(values)

    async def _encode_single(self, chunk_data: "NDBuffer", chunk_spec: "ArraySpec") -> "Buffer":
        _check_dtype(chunk_spec.dtype)
        values = chunk_data.as_numpy_array()
        data = await asyncio.to_thread(self.encode_chunk, values)
        return chunk_spec.prototype.buffer.from_bytes(data)

    def encode_chunk(self, values: NDArray[np.integer[Any]]) -> bytes:
        """The bytes of a chunk of latents (C, n, n) int8 or int16. Raises UsageError for another shape, and
        MissingModelError."""
        _check_shape(values.shape)
        return _chunk_codec(self.model, self.sha256).encode(np.ascontiguousarray(values), self.quality)

    def decode_chunk(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[np.integer[Any]]:
        """The inverse of `encode_chunk`: the latents (C, n, n) of `dtype` in the bytes of a chunk. Raises FormatError
        where the bytes are damaged or hold values beyond `dtype`, and MissingModelError."""
        codec = _chunk_codec(self.model, self.sha256)
        channels = codec.weights.config.latent_channels
        if _check_shape(shape)[0] != channels:
            raise FormatError(f"{CODEC_NAME}: chunks of {shape[0]} channels; model {self.model} has {channels}")
        values = codec.decode(data, shape)  # int16
        limits = np.iinfo(dtype)
        low, high = int(values.min()), int(values.max())
        if low < limits.min or high > limits.max:
            raise FormatError(f"a latent chunk holds values from {low} to {high}; its array is {dtype}")
        return values.astype(dtype, copy=False)


def _check_dtype(dtype: "ZDType[Any, Any]") -> np.dtype[Any]:
    native: np.dtype[Any] = dtype.to_native_dtype()
    if native.name not in DTYPES:
        raise UsageError(f"{CODEC_NAME}: arrays of {native.name}; only {' and '.join(DTYPES)} can be coded")
    return np.dtype(native.name)


def _check_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] < 4 or shape[1] % 4 or shape[0] % GROUPS:
        raise UsageError(
            f"{CODEC_NAME}: chunks of shape {tuple(shape)}; (C, n, n) with C and n multiples of 4 are needed"
        )
    return shape[0], shape[1], shape[2]
