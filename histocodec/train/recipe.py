"""Recipes: what a run trains, from which start, in which stages. A recipe is a TOML file; README.md beside this file
says what each key means, and `recipes/` holds those that come with histocodec.

A table of the file is a dataclass here, a key one of its fields. Reading is strict: an unknown key, a wrong type, a
value out of range or a combination that makes no sense is a UsageError that names the file, the table and the key.
"""

import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from histocodec.errors import FormatError, UsageError
from histocodec.models.config import MOST_RATIO, HyperConfig, VaeConfig
from histocodec.train.schedule import Schedule

DEFAULT_RECIPE = "flagship"
FOLDER = Path(__file__).parent / "recipes"
BITS_PER_DIMENSION = 1.5  # of a vae's patch at the nominal ratio: there 0.1 · divergence weighs as much as the error

NOT_IN_RECIPES: Mapping[type, Mapping[str, str]] = {
    HyperConfig: {"integer_synthesis": "every run ends with an integer synthesis"}
}  # and why

Table = TypeVar("Table")


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise UsageError(f"{name} is {value}; at least {least} is needed")


def _above_zero(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{name} is {value}; a number above 0 is needed")


@dataclass(frozen=True)
class Model:
    """`[model]`: the family of networks, and the id of the model file that is made."""

    family: str
    id: str

    def __post_init__(self) -> None:
        if not self.id or "/" in self.id or "\\" in self.id or self.id.startswith("."):
            raise UsageError(f"id is {self.id!r}; letters, digits, '-' and '.' are allowed, and no '.' in front")


@dataclass(frozen=True)
class HyperStart:
    """`[start]` of a hyper model: a finished model, by its id or file, or without one the Karhunen–Loève transform of
    at least `klt_blocks` 16×16 blocks."""

    model: str | None = None
    klt_blocks: int = 400_000

    def __post_init__(self) -> None:
        _at_least(1, klt_blocks=self.klt_blocks)


@dataclass(frozen=True)
class HyperPatches:
    """`[patches]` of a hyper model: how many a step sees, and their side in pixels, a multiple of 64."""

    batch: int
    size: int = 256

    def __post_init__(self) -> None:
        _at_least(1, batch=self.batch)
        if self.size < 64 or self.size % 64:
            raise UsageError(f"size is {self.size}; a multiple of 64 is needed")


@dataclass(frozen=True)
class MainStage:
    """`[train]` of a hyper model: everything at once, by the rate–distortion loss.

    `rate` is the highest learning rate; `schedule` ("wsd" or "cosine"), `warmup`, `decay` and `enlarged` are those of
    `Schedule`, in steps. Checkpoints are written every `checkpoint_every` steps; `compile` uses torch.compile.
    """

    steps: int
    rate: float
    schedule: str = "wsd"
    warmup: int = 200
    decay: int = 0
    enlarged: int = 0
    checkpoint_every: int = 500
    compile: bool = False

    def __post_init__(self) -> None:
        _above_zero(rate=self.rate)
        _at_least(1, checkpoint_every=self.checkpoint_every)
        assert self.rates

    @property
    def rates(self) -> Schedule:
        """The schedule of the learning rate."""
        return Schedule(self.steps, warmup=self.warmup, decay=self.decay, kind=self.schedule, enlarged=self.enlarged)


@dataclass(frozen=True)
class PruneStage:
    """`[prune]`: how many activations stay in each residual block of the synthesis at 1/16. Fewer are faster."""

    hidden16: int


@dataclass(frozen=True)
class SynthesisStage:
    """`[synthesis]`: training of the integer synthesis alone. `rate` is in steps of a weight as it is stored. With
    `stored_crops`, so many crops of each image are encoded, and the synthesis learns from their latents, too."""

    steps: int = 0
    rate: float = 0.02
    stored_crops: int = 0

    def __post_init__(self) -> None:
        _at_least(0, steps=self.steps, stored_crops=self.stored_crops)
        _above_zero(rate=self.rate)


@dataclass(frozen=True)
class PriorStage:
    """`[prior]`: training of the prior alone; it changes no pixel, only the rate."""

    steps: int
    rate: float = 8e-4

    def __post_init__(self) -> None:
        _at_least(1, steps=self.steps)
        _above_zero(rate=self.rate)


@dataclass(frozen=True)
class Tables:
    """`[tables]`: on how many batches the frequency tables are fitted."""

    batches: int = 200

    def __post_init__(self) -> None:
        _at_least(1, batches=self.batches)


@dataclass(frozen=True)
class HyperRecipe:
    """A recipe for a `hyper` model. What precedes `model` is for people: a line on what it makes, the data it needs,
    its cost, the result to expect, and the command. `name` is that of the file.

    Without `train` a finished model keeps all but its synthesis. `shape` is by default that of the flagship, or of the
    model it starts from.
    """

    model: Model
    patches: HyperPatches
    start: HyperStart = HyperStart()
    shape: HyperConfig | None = None
    train: MainStage | None = None
    prune: PruneStage | None = None
    synthesis: SynthesisStage = SynthesisStage()
    prior: PriorStage | None = None
    tables: Tables = Tables()
    summary: str = ""
    data: str = ""
    cost: str = ""
    expected: str = ""
    command: str = ""
    name: str = "custom"

    def __post_init__(self) -> None:
        if self.model.family != HyperConfig.family:
            raise UsageError(f"[model] family is {self.model.family!r}; {HyperConfig.family!r} is needed")
        if self.start.model is not None:
            if self.shape is not None:
                raise UsageError("[shape] is not allowed with [start] model: its shape is that of the model")
            if self.start.klt_blocks != HyperStart.klt_blocks:
                raise UsageError("[start] klt_blocks is not allowed with [start] model: there is no KLT then")
        elif self.train is None:
            raise UsageError("[train] is missing; only a recipe with [start] model can do without it")
        if self.train is None and self.prior is not None:
            raise UsageError("[prior] is not allowed without [train]: the prior then stays as it is")
        if self.train is None and self.tables != Tables():
            raise UsageError("[tables] is not allowed without [train]: the tables then stay, or fit the stored crops")
        if self.synthesis.stored_crops and (self.train is not None or self.prune is not None):
            raise UsageError("[synthesis] stored_crops is not allowed with [train] or [prune]: crops are stored by the"
                             " model that the recipe starts from")  # fmt: skip


@dataclass(frozen=True)
class VaeStart:
    """`[start]` of a vae: random, or with `klt` a Karhunen–Loève transform, which stays as a path beside the network;
    the divergence is then weighed so that the bits of the ratio are spent."""

    klt: bool = False


@dataclass(frozen=True)
class VaeShape:
    """`[shape]` of a vae: the sizes of `VaeConfig`. The ratio is by default the one at which each of the latents may
    spend BITS_PER_DIMENSION."""

    latent_channels: int = VaeConfig.latent_channels
    stride: int = VaeConfig.stride
    ratio: int | None = None
    widths: tuple[int, int, int, int] = VaeConfig.widths
    bottleneck: int = VaeConfig.bottleneck


@dataclass(frozen=True)
class VaePatches:
    """`[patches]` of a vae: how many a step sees. Their side is the shape's stride."""

    batch: int = 128

    def __post_init__(self) -> None:
        _at_least(1, batch=self.batch)


@dataclass(frozen=True)
class VaeStage:
    """`[train]` of a vae: at most `steps` steps. It stops earlier, after `patience` epochs without a lower validation
    loss. `rate`, `warmup` and `decay` are as in `MainStage`."""

    steps: int
    rate: float = 1e-4
    warmup: int = 0
    decay: int = 0
    patience: int = 10

    def __post_init__(self) -> None:
        _above_zero(rate=self.rate)
        _at_least(1, patience=self.patience)
        assert self.rates

    @property
    def rates(self) -> Schedule:
        """The schedule of the learning rate."""
        return Schedule(self.steps, warmup=self.warmup, decay=self.decay)


@dataclass(frozen=True)
class VaeRecipe:
    """A recipe for a `vae` model (Nasr et al. 2023). As in `HyperRecipe`, the strings are for people."""

    model: Model
    train: VaeStage
    shape: VaeShape = VaeShape()
    patches: VaePatches = VaePatches()
    start: VaeStart = VaeStart()
    summary: str = ""
    data: str = ""
    cost: str = ""
    expected: str = ""
    command: str = ""
    name: str = "custom"

    def __post_init__(self) -> None:
        if self.model.family != VaeConfig.family:
            raise UsageError(f"[model] family is {self.model.family!r}; {VaeConfig.family!r} is needed")
        try:
            config = self.config
        except FormatError as exc:
            raise UsageError(f"[shape] {_without_prefix(exc)}") from exc
        if self.start.klt and config.latent_channels > config.features:
            raise UsageError(
                f"[shape] latent_channels is {config.latent_channels}; with [start] klt, at most {config.features} are"
                f" allowed at stride {config.stride}"
            )

    @property
    def config(self) -> VaeConfig:
        """The config of the model that is made."""
        config = VaeConfig(**asdict(self.shape), shortcut=self.start.klt)
        if config.ratio is not None:
            return config
        nominal = 24 * config.stride**2 / (BITS_PER_DIMENSION * config.latent_channels)  # at least 16
        return replace(config, ratio=round(min(nominal, MOST_RATIO)))


Recipe = HyperRecipe | VaeRecipe
FAMILIES: Mapping[str, type[HyperRecipe] | type[VaeRecipe]] = {
    HyperConfig.family: HyperRecipe,
    VaeConfig.family: VaeRecipe,
}


def recipe_files() -> list[Path]:
    """The recipes that come with histocodec, sorted by name."""
    return sorted(FOLDER.glob("*.toml"))


def find_recipe(name: str) -> Recipe:
    """The recipe in a file that ends in .toml, or the one of this name that comes with histocodec. Raises UsageError
    where there is none, or it is not sound."""
    if name.endswith(".toml"):
        return read_recipe(Path(name))
    shipped = {file.stem: file for file in recipe_files()}
    if name not in shipped:
        raise UsageError(f"recipe {name!r} does not exist; a .toml file is allowed, or {', '.join(shipped)}")
    return read_recipe(shipped[name])


def read_recipe(file: Path) -> Recipe:
    """The recipe in a TOML file. Raises UsageError where it cannot be read or is not sound."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UsageError(f"{file}: the recipe cannot be read: {exc.strerror or exc}") from exc
    except ValueError as exc:  # not TOML, or not UTF-8
        raise UsageError(f"{file}: is not TOML: {exc}") from exc
    try:
        return _recipe(values, file.stem)
    except UsageError as exc:
        raise UsageError(f"{file}: {exc}") from exc


def _recipe(values: Mapping[str, object], name: str) -> Recipe:
    model = values.get("model")
    family = model.get("family") if isinstance(model, dict) else None
    recipe_class = FAMILIES.get(family) if isinstance(family, str) else None
    if recipe_class is None:
        found = "is missing" if family is None else f"is {family!r}"
        raise UsageError(f"[model] family {found}; {' or '.join(map(repr, FAMILIES))} is needed")
    if "name" in values:
        raise UsageError("key name is unknown; a recipe's name is that of its file")
    return _table(recipe_class, {**values, "name": name}, "")


def _table(table_class: type[Table], values: Mapping[str, object], path: str) -> Table:
    """The dataclass of a table. `path` is its name, "" for the whole file."""
    assert is_dataclass(table_class)
    where, hints = f"[{path}] " if path else "", get_type_hints(table_class)
    excluded = NOT_IN_RECIPES.get(table_class, {})
    known = {field.name: field for field in fields(table_class) if field.name not in excluded}
    for key in values:
        if key in excluded:
            raise UsageError(f"{where}{key} is not allowed: {excluded[key]}")
        if key not in known:
            raise UsageError(f"{where}key {key} is unknown; allowed are {', '.join(k for k in known if k != 'name')}")
    for key, field in known.items():
        if key not in values and _required(field):
            raise UsageError(f"[{key}] is missing" if _is_table(hints[key]) else f"{where}{key} is missing")
    made = {key: _value(hints[key], value, f"{path}.{key}" if path else key) for key, value in values.items()}
    try:
        return table_class(**made)
    except (UsageError, FormatError) as exc:
        raise UsageError(f"{where}{_without_prefix(exc)}") from exc


def _without_prefix(exc: Exception) -> str:
    """The message of a config's error without the words that the table's name stands for."""
    return str(exc).removeprefix("model config: ")


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _is_table(hint: object) -> bool:
    return any(is_dataclass(option) for option in _options(hint))


def _options(hint: object) -> tuple[Any, ...]:
    """The types of `A | B` but None, or the type itself."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(option for option in get_args(hint) if option is not types.NoneType)
    return (hint,)


def _value(hint: object, value: object, path: str) -> object:
    (option,) = _options(hint)
    table, _, key = path.rpartition(".")
    where = f"[{table}] {key}" if table else path
    if is_dataclass(option):
        if not isinstance(value, dict):
            raise UsageError(f"{path} is {value!r}; a table [{path}] is needed")
        return _table(option, value, path)  # type: ignore[arg-type]  # a class, as is_dataclass does not say
    if get_origin(option) is tuple:
        inner = get_args(option)[0]
        if not isinstance(value, list) or not all(_is(inner, item) for item in value):
            raise UsageError(f"{where} is {value!r}; a list of {_PLURALS[inner]} is needed")
        return tuple(value)
    if option is float and _is(int, value):
        return float(value)  # type: ignore[arg-type]  # an int
    if not _is(option, value):
        raise UsageError(f"{where} is {value!r}; {_NAMES[option]} is needed")
    return value


def _is(kind: type, value: object) -> bool:
    return type(value) is kind


_NAMES: Mapping[type, str] = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
_PLURALS: Mapping[type, str] = {int: "integers", bool: "booleans"}
