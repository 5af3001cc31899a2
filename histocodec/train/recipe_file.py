"""Recipe files: finds and reads them.

Reading is strict. A key that is unknown or missing, or a value of the wrong type, is a UsageError that names the file,
the table and the key, what was found and what is allowed; as is whatever `histocodec.train.recipe` refuses.
"""

import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from histocodec.errors import FormatError, UsageError
from histocodec.models.config import HyperConfig, VaeConfig
from histocodec.train.recipe import HyperRecipe, Recipe, VaeRecipe, without_prefix

DEFAULT_RECIPE = "flagship"
FOLDER = Path(__file__).parent / "recipes"
NOT_IN_RECIPES: Mapping[type, Mapping[str, str]] = {
    HyperConfig: {"integer_synthesis": "every run ends with an integer synthesis"}
}  # and why
FAMILIES: Mapping[str, type[HyperRecipe] | type[VaeRecipe]] = {
    HyperConfig.family: HyperRecipe,
    VaeConfig.family: VaeRecipe,
}

Table = TypeVar("Table")


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
        raise UsageError(f"{where}{without_prefix(exc)}") from exc


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
