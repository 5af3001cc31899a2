"""The file of a model's decoder: all tensors but those that only an encoder uses, in one canonical form.

Equal decoders give equal bytes, so the SHA-256 of this file names what containers of version 2 need, whoever has the
whole model and whoever has only this file. Follows SPEC's "The decoder's file".
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENCODER_ONLY = ("g_a.", "reach.")  # prefixes of the tensors of the analysis
DIGITS = 12  # of the SHA-256, in the name of a decoder's file
_DTYPES = {
    "float16": "F16",
    "float32": "F32",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "uint8": "U8",
    "uint16": "U16",
}


def decoder_file_name(model_id: str, sha256: str) -> str:
    """What a decoder's file is called where there may be several models: beside containers, and where it is
    installed."""
    return f"{model_id}.{sha256[:DIGITS]}.decoder.safetensors"


def decoder_file(metadata: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The decoder's safetensors file of a model with these tensors. Of the metadata, `format`, `id`, `family` and
    `config` stay, the last word for word."""
    names = sorted(name for name in arrays if not name.startswith(ENCODER_ONLY))
    header: dict[str, object] = {
        "__metadata__": {key: metadata[key] for key in ("config", "family", "format", "id") if key in metadata}
    }
    parts, position = [], 0
    for name in names:
        array = arrays[name]
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "data_offsets": [position, position + len(data)],
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
        }
        parts.append(data)
        position += len(data)
    text = json.dumps(header, separators=(",", ":"), sort_keys=True, ensure_ascii=True).encode("ascii")
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return b"".join((len(text).to_bytes(8, "little"), text, *parts))
