"""Model files: one safetensors file holds a whole codec, and its SHA-256 is the codec's identity.

They are read with numpy alone, so that latents can be decoded without torch, and never unpickled. What each tensor
means is written in `formats/SPEC.md`, "The model file".
"""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors

from histocodec.entropy import TableSet
from histocodec.errors import FormatError, MissingModelError, UnsupportedError, UsageError
from histocodec.models.config import MODEL_ID, QUALITIES, HyperConfig, ModelConfig, VaeConfig
from histocodec.models.decoder_file import DIGITS, decoder_file, decoder_file_name
from histocodec.models.prior.graph import (
    COMPRESS_PEAK,
    HYPER_CLIP,
    LINEAR_CLIP,
    MEAN_BITS,
    SCALES,
    check_accumulators,
    layers,
)
from histocodec.models.transforms.floating import float_synthesis_tensors
from histocodec.models.transforms.integer import check_synthesis, synthesis_tensors
from histocodec.strict_json import parse_strict_json

DEFAULT_MODEL = "hyper-6"
MODELS_VARIABLE = "HISTOCODEC_MODELS"  # environment variable with more folders of model files, as in PATH
DATA_VARIABLE = "XDG_DATA_HOME"  # likewise the folder of a user's data, as the XDG Base Directory Specification has it
MAX_BYTES = 256 << 20  # of a model file: fifty times the largest that ships
FORMAT = "histocodec.model/1"
MOST_GAIN = 2.0**20  # in magnitude: ten thousand times any model's, and no latent times this overflows float32
_CONFIGS: Mapping[str, type[HyperConfig] | type[VaeConfig]] = {c.family: c for c in (HyperConfig, VaeConfig)}


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """A model file that was checked. `arrays` holds its tensors by name; `tables` are built from three of them. Raises
    FormatError where a tensor is missing, has another shape or dtype, has values that are not finite, or could make
    integer arithmetic inexact."""

    id: str
    sha256: str
    config: ModelConfig
    arrays: Mapping[str, NDArray[Any]]
    data: bytes = field(repr=False)  # the file, for --embed-model
    tables: TableSet = field(init=False, repr=False)

    def __post_init__(self) -> None:
        expected = dict(_expected(self.config))
        for name, (shape, dtype) in expected.items():
            array = self.arrays.get(name)
            if array is None:
                raise FormatError(f"model {self.id}: tensor {name} is missing")
            if array.dtype != dtype or array.shape != shape:
                raise FormatError(
                    f"model {self.id}: tensor {name} is {array.dtype} {array.shape}; {dtype} {shape} is needed"
                )
        unknown = [name for name in self.arrays if name.startswith("g_s.") and name not in expected]
        if unknown:
            raise FormatError(f"model {self.id}: tensor {unknown[0][:80]} is none of its synthesis")
        self._check_finite()
        if isinstance(self.config, HyperConfig):
            self._check_most("prior.hyper_index", SCALES - 1)
            self._check_most("prior.compress", COMPRESS_PEAK)
            if int(np.abs(self.arrays["prior.hyper_mean"].astype(np.int64)).max()) > HYPER_CLIP << MEAN_BITS:
                raise FormatError(f"model {self.id}: prior.hyper_mean goes beyond ±{HYPER_CLIP}, which is all z can be")
            try:
                check_accumulators(self.config, self.arrays)
                if self.config.integer_synthesis:
                    check_synthesis(self.config, self.arrays)
            except FormatError as exc:
                raise FormatError(f"model {self.id}: {exc}") from exc
        else:
            self._check_most("prior.latent_index", SCALES - 1)
        tables = TableSet(*(self.arrays[f"tables.{name}"] for name in ("low", "size", "freq")))
        if len(tables) != SCALES << MEAN_BITS:
            raise FormatError(f"model {self.id}: {len(tables)} frequency tables; {SCALES << MEAN_BITS} are needed")
        object.__setattr__(self, "tables", tables)

    def _check_finite(self) -> None:
        """Gains and weights in floating point: NaN or infinity would decode to colours that nobody encoded."""
        for name, array in self.arrays.items():
            if name.startswith(("g_a.", "g_s.")) and array.dtype.kind not in "fiu":
                raise FormatError(f"model {self.id}: tensor {name} is {array.dtype}; float16 is needed")
            with np.errstate(over="ignore"):  # of float64, whose largest values float32 does not have
                if array.dtype.kind == "f" and not np.isfinite(array.astype(np.float32, copy=False)).all():
                    raise FormatError(
                        f"model {self.id}: tensor {name} has values that are not finite in float32; all must be. "
                        "The file is damaged or its training failed: get it anew, or use another model"
                    )

        for name in ("gain", "inverse_gain"):
            largest = float(np.abs(self.arrays[name]).max())
            if largest > MOST_GAIN:
                raise FormatError(
                    f"model {self.id}: {name} has the magnitude {largest:g}; up to {MOST_GAIN:g} is allowed"
                )

    def _check_most(self, name: str, limit: int) -> None:
        if self.arrays[name].max() > limit:
            raise FormatError(f"model {self.id}: {name} has {self.arrays[name].max()}; at most {limit} is allowed")

    @cached_property
    def decoder(self) -> bytes:
        """The decoder's file, which is enough to decode: see `decoder_file`."""
        return decoder_file(_metadata(self.data, self.id), self.arrays)

    @cached_property
    def decoder_sha256(self) -> str:
        """The SHA-256 of the decoder's file, by which containers of version 2 name the model."""
        return hashlib.sha256(self.decoder).hexdigest()

    @property
    def notes(self) -> dict[str, str]:
        """The file's metadata but for format, id, family and config: how the model was trained."""
        required = ("format", "id", "family", "config")
        return {key: value for key, value in _metadata(self.data, self.id).items() if key not in required}

    def transform(self, part: Literal["g_a", "g_s"]) -> dict[str, NDArray[np.float32]]:
        """The tensors of a transform, float32, by their names in its `state_dict`. Raises UsageError for the
        analysis of a model that can only decode."""
        if part == "g_a":
            self.check_encodes()
        prefix = f"{part}."
        return {k.removeprefix(prefix): v.astype(np.float32) for k, v in self.arrays.items() if k.startswith(prefix)}

    @property
    def encodes(self) -> bool:
        """Whether the model has an analysis. Without one it only decodes."""
        return any(name.startswith("g_a.") for name in self.arrays)

    def check_encodes(self) -> None:
        """Raises UsageError for a model without an analysis, which is enough to decode."""
        if not self.encodes:
            raise UsageError(
                f"model {self.id}: has no analysis (g_a.*), so it only decodes; encode with another model, "
                f"{DEFAULT_MODEL} for instance"
            )

    @property
    def hyper(self) -> HyperConfig:
        """The config of a `hyper` model. Raises UsageError for any other."""
        if not isinstance(self.config, HyperConfig):
            raise UsageError(f"model {self.id} is of the family {self.config.family}; hyper is needed")
        return self.config

    def gain(self, quality: int) -> NDArray[np.float32]:
        """What the analysis is multiplied by before rounding, at a quality in 0 … 100: (C,) float32."""
        gain: NDArray[np.float32] = self.arrays["gain"][quality]
        return gain

    def inverse_gain(self, quality: int) -> NDArray[np.float32]:
        """What latents are multiplied by before the synthesis, at a quality in 0 … 100: (C,) float32."""
        inverse: NDArray[np.float32] = self.arrays["inverse_gain"][quality]
        return inverse


def _expected(config: ModelConfig) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
    """Name, shape and dtype of every tensor that a decoder needs, but the tables. Torch checks the analysis when it
    loads it; a model that only decodes has none."""
    yield "gain", ((QUALITIES, config.latent_channels), "float32")
    yield "inverse_gain", ((QUALITIES, config.latent_channels), "float32")
    if isinstance(config, VaeConfig):
        yield "prior.latent_mean", ((QUALITIES, config.latent_channels), "int16")
        yield "prior.latent_index", ((QUALITIES, config.latent_channels), "uint8")
        yield from float_synthesis_tensors(config)
        return
    for layer in layers(config):
        kernel = (3, 3) if layer.kind == "depthwise" else (layer.inputs,)
        yield f"prior.{layer.name}.weight", ((layer.outputs, *kernel), "int8")
        yield f"prior.{layer.name}.bias", ((QUALITIES if layer.by_quality else 1, layer.outputs), "int32")
    yield "prior.base_index", ((QUALITIES, config.latent_channels), "int16")
    yield "prior.hyper_mean", ((QUALITIES, config.hyper_channels), "int16")
    yield "prior.hyper_index", ((QUALITIES, config.hyper_channels), "uint8")
    yield "prior.compress", ((LINEAR_CLIP + 1,), "uint8")
    yield from synthesis_tensors(config) if config.integer_synthesis else float_synthesis_tensors(config)


def parse_model(data: bytes, *, name: str) -> ModelWeights:
    """The model in the bytes of a file; `name` is for messages. Raises FormatError where they are no sound model file,
    and UnsupportedError where the model's family is unknown."""
    if len(data) > MAX_BYTES:
        raise FormatError(f"{name}: has more than {MAX_BYTES} bytes, the most that a model file may have")
    metadata = _metadata(data, name)
    if metadata.get("format") != FORMAT:
        raise FormatError(f"{name}: format {metadata.get('format')!r}; {FORMAT!r} is needed")
    model_id = metadata.get("id", "")
    if not re.fullmatch(MODEL_ID, model_id):
        raise FormatError(f"{name}: id {model_id[:80]!r}; a string that matches {MODEL_ID} is needed")
    try:
        arrays = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise FormatError(f"{name}: not a sound safetensors file: {exc}") from exc
    for array in arrays.values():
        array.setflags(write=False)
    missing = [key for key in ("tables.low", "tables.size", "tables.freq") if key not in arrays]
    if missing:
        raise FormatError(f"{name}: tensor {missing[0]} is missing")
    family = metadata.get("family", HyperConfig.family)
    if family not in _CONFIGS:
        raise UnsupportedError(f"{name}: of the family {family!r}; this version knows {', '.join(_CONFIGS)}")
    config = _CONFIGS[family].from_json(metadata.get("config", ""))
    return ModelWeights(model_id, hashlib.sha256(data).hexdigest(), config, arrays, data)


def _metadata(data: bytes, name: str) -> dict[str, str]:
    """The string-to-string metadata of a safetensors header, in which no name occurs twice, a tensor's neither."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(len(data) - 8, 1 << 20):
        raise FormatError(f"{name}: not a safetensors file (its header would have {size} bytes)")
    try:
        header = parse_strict_json(data[8 : 8 + size])
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"{name}: not a safetensors file, or an ambiguous one: {exc}") from exc
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{name}: not a safetensors file: its __metadata__ is no object of strings")
    return {key: str(value) for key, value in metadata.items()}


def load_model(path: str | os.PathLike[str]) -> ModelWeights:
    """The model in a file. Raises MissingModelError where it cannot be read, and as `parse_model` does."""
    file = Path(path)
    try:
        if file.exists() and not file.is_file():  # a pipe, on which reading could wait for ever
            raise FormatError(f"{file}: is no regular file; a model file is needed")
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as exc:
        raise MissingModelError(f"{file}: the model file cannot be read: {exc.strerror or exc}") from exc
    return parse_model(data, name=str(file))


def user_folder() -> Path:
    """The user's own folder of models, which need not exist: histocodec/models in XDG_DATA_HOME or ~/.local/share."""
    named = os.environ.get(DATA_VARIABLE, "")
    data = named if os.path.isabs(named) else os.path.expanduser("~/.local/share")
    return Path(data, "histocodec", "models")


def model_folders() -> list[Path]:
    """The folders in which models are looked for: those of HISTOCODEC_MODELS, then the user's, then the package's."""
    named = [Path(part) for part in os.environ.get(MODELS_VARIABLE, "").split(os.pathsep) if part]
    return [*named, user_folder(), Path(__file__).parent.parent / "weights"]


def files_of(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder whose names match a pattern, sorted. None where nobody may look: the home of another user,
    say."""
    files = (folder / name for name in sorted(glob.glob(pattern, root_dir=folder)))
    return [file for file in files if os.path.isfile(file)]


def find_model(
    model_id: str = DEFAULT_MODEL, sha256: str | None = None, *, beside: Sequence[Path] = ()
) -> ModelWeights:
    """The model of this id, or in this file, if it ends in .safetensors; and with this SHA-256, of its file or its
    decoder's, if one is given. With a SHA-256 a decoder's file will do, and it is looked for in the folders `beside`,
    too, after those of `model_folders`.

    Raises MissingModelError where it is not installed, and as `load_model` does. What was read is cached.
    """
    if model_id.endswith(".safetensors"):
        weights = _load_cached(model_id, _version(Path(model_id)))
        if sha256 not in (None, weights.sha256, weights.decoder_sha256):
            raise MissingModelError(f"{model_id}: has SHA-256 {weights.sha256[:16]}…; {str(sha256)[:16]}… is needed")
        return weights
    if "/" in model_id or os.sep in model_id or model_id.startswith("."):
        raise MissingModelError(f"model {model_id!r} is no id: letters, digits, '-' and '.' are allowed")
    return _with_id(model_id) if sha256 is None else _with_sha256(model_id, sha256, beside)


def _with_id(model_id: str) -> ModelWeights:
    """The first model of this id, whose decoder may be all that is there."""
    digits, escaped = "[0-9a-f]" * DIGITS, glob.escape(model_id)
    for pattern in (f"{escaped}.safetensors", f"{escaped}.{digits}.decoder.safetensors"):
        for folder in model_folders():
            for file in files_of(folder, pattern):
                return _load_cached(str(file), _version(file))
    installed = sorted({file.stem for folder in model_folders() for file in files_of(folder, "*.safetensors")})
    raise MissingModelError(
        f"model {model_id!r} is not installed: installed are {', '.join(installed) or 'none'}. "
        "`histocodec models add FILE` installs a model"
    )


def _with_sha256(model_id: str, sha256: str, beside: Sequence[Path]) -> ModelWeights:
    """The model with this SHA-256. A file that is damaged is an error only if no other file has the model."""
    found, damage, decoder = [], None, decoder_file_name(model_id, sha256)
    for folder in (*model_folders(), *beside):
        for file in (folder / f"{model_id}.safetensors", folder / decoder):
            try:
                if not os.path.isfile(file):
                    continue
                weights = _load_cached(str(file), _version(file))
            except (FormatError, UnsupportedError) as exc:
                damage = damage or exc
                continue
            if sha256 in (weights.sha256, weights.decoder_sha256):
                return weights
            found.append(f"{file} has SHA-256 {weights.decoder_sha256[:16]}…")
    if damage is not None:
        raise damage
    elsewhere = f", nor is {decoder} in {beside[-1]}" if beside else ""
    others = "".join(f"; {text}" for text in found)
    raise MissingModelError(
        f"model {model_id!r} with SHA-256 {sha256} is not installed{elsewhere}{others}. Whoever made the container has "
        f"the file: `histocodec models export {model_id} FILE`. Install it with `histocodec models add FILE`"
    )


def _version(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError as exc:
        raise MissingModelError(f"{file}: the model file cannot be read: {exc.strerror or exc}") from exc
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _load_cached(path: str, version: tuple[int, int]) -> ModelWeights:
    return load_model(path)
