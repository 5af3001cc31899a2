"""Model files on the disk: the installed ones, listed, added and exported, and a decoder beside containers."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from histocodec.errors import FormatError, HistocodecError, OutputError, UsageError
from histocodec.formats.container.files import read_bounded, write_atomically
from histocodec.models.decoder_file import decoder_file_name
from histocodec.models.weights import (
    MODELS_VARIABLE,
    ModelWeights,
    files_of,
    find_model,
    load_model,
    model_folders,
    parse_model,
    user_folder,
)

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class InstalledModel:
    """A model file: its id and family, the SHA-256 of the file and of its decoder's file, by which containers of
    version 1 and 2 name it, its size in bytes, whether it can encode, and where it is."""

    id: str
    family: str
    sha256: str
    decoder_sha256: str
    bytes: int
    encodes: bool
    path: str

    @property
    def is_found(self) -> bool:
        """Whether the file has a name under which containers look for their model."""
        return Path(self.path).name in (f"{self.id}{SUFFIX}", decoder_file_name(self.id, self.decoder_sha256))

    @classmethod
    def of(cls, weights: ModelWeights, path: Path) -> "InstalledModel":
        """The facts about a model in a file."""
        return cls(
            weights.id,
            weights.config.family,
            weights.sha256,
            weights.decoder_sha256,
            len(weights.data),
            weights.encodes,
            str(path),
        )


def installed_models() -> tuple[list[InstalledModel], list[str]]:
    """The models in the folders where models are looked for, in the order of the search, and what is wrong with other
    files there."""
    models, problems = [], []
    for folder in dict.fromkeys(model_folders()):
        for file in files_of(folder, f"*{SUFFIX}"):
            try:
                weights = load_model(file)
            except HistocodecError as exc:
                problems.append(str(exc))
                continue
            models.append(InstalledModel.of(weights, file))
            if not models[-1].is_found:
                problems.append(
                    f"{file}: holds the model {weights.id!r}, whose containers do not find it under this name; call it "
                    f"{_file_name(weights)}"
                )
    return models, problems


def add_model(file: Path, *, overwrite: bool = False) -> tuple[InstalledModel, bool]:
    """Installs a model file for the user: in the first folder of HISTOCODEC_MODELS, if that is set, else in the user's
    own. Returns what is installed now, and False if it was already.

    Raises OutputError where another model of this id is installed, unless it may be overwritten: then the new one is
    used to encode, and of the old one the decoder stays. Raises what `load_model` raises.
    """
    weights = load_model(file)
    target = _folder_to_add() / _file_name(weights)
    installed = [model for model in installed_models()[0] if model.id == weights.id and model.is_found]
    for model in installed:
        decodes_alike = not weights.encodes and model.decoder_sha256 == weights.decoder_sha256
        if model.sha256 == weights.sha256 or decodes_alike:
            return model, False
    others = [model.path for model in installed if Path(model.path).name == target.name]
    if os.path.exists(target):
        others.append(str(target))
    if others and not overwrite:
        raise OutputError(
            f"{file}: another model {weights.id!r} is installed, {others[0]}; with --overwrite this one is used from "
            "now on, and of the other the decoder stays"
        )
    before = None
    with suppress(HistocodecError):  # it is not there, or damaged, and nothing of it is worth keeping
        before = load_model(target)
    if before is not None:
        write_atomically(target.with_name(decoder_file_name(before.id, before.decoder_sha256)), before.decoder)
    write_atomically(target, weights.data)
    return InstalledModel.of(weights, target), True


def export_model(model: str, file: Path, *, decoder_only: bool = False, overwrite: bool = False) -> InstalledModel:
    """Writes the file of an installed model, by its id, or that of its decoder. Returns what was written. Raises
    UsageError for a name that is none of a model's, OutputError where the file is there already or cannot be written,
    and MissingModelError."""
    if file.suffix != SUFFIX:
        raise UsageError(f"{file}: the name of a model file must end in {SUFFIX}")
    if os.path.isdir(file) or (os.path.exists(file) and not overwrite):
        raise OutputError(f"{file}: exists already; --overwrite replaces a file")
    if not os.path.isdir(file.parent):
        raise OutputError(f"{file}: the folder {file.parent} does not exist")
    weights = find_model(model)
    if decoder_only:
        weights = parse_model(weights.decoder, name=model)
    write_atomically(file, weights.data)
    return InstalledModel.of(weights, file)


# Beside containers.


def beside_file(container: Path, weights: ModelWeights) -> Path:
    """The decoder's file beside a container: one for all containers of a folder and model."""
    return container.absolute().parent / decoder_file_name(weights.id, weights.decoder_sha256)


def check_beside(container: Path, weights: ModelWeights) -> bool:
    """Whether the decoder's file is beside a container already. Raises OutputError where something else has its
    name."""
    file = beside_file(container, weights)
    if not os.path.lexists(file):
        return False
    try:
        same = read_bounded(file, len(weights.decoder)) == weights.decoder
    except FormatError:
        same = False
    if not same:
        raise OutputError(f"{file}: is not the decoder of model {weights.id}, whose name it has; remove it first")
    return True


def write_beside(container: Path, weights: ModelWeights) -> None:
    """Writes the decoder's file beside a container, where it is not there yet. Raises OutputError."""
    if not check_beside(container, weights):
        write_atomically(beside_file(container, weights), weights.decoder)


def _file_name(weights: ModelWeights) -> str:
    """What a model's file is called where it is installed."""
    return f"{weights.id}{SUFFIX}" if weights.encodes else decoder_file_name(weights.id, weights.decoder_sha256)


def _folder_to_add() -> Path:
    named = [part for part in os.environ.get(MODELS_VARIABLE, "").split(os.pathsep) if part]
    folder = Path(named[0]) if named else user_folder()
    if not named and not folder.is_absolute():
        raise UsageError(f"the user has no home folder for models; set {MODELS_VARIABLE} to a folder")
    return folder
