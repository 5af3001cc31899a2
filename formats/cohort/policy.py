"""What an archive decides once: a TOML file that says how slides are encoded and what their containers are called.

[encode]                       # of every slide; the names are those of `histocodec encode`
quality = 50
source_name = "hash"

[names]
pattern = "{organ}/{stem}.hcz"

[[rule]]                       # of slides whose labels fit; a later rule has the last word
when = { stain = "IHC*", scanner = ["Aperio", "Hamamatsu"] }
quality = 70
"""

import hashlib
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from string import Formatter

from histocodec.errors import FormatError, UsageError
from histocodec.formats.encode.options import EncodeOptions

RATES = ("quality", "target_psnr", "target_bpp", "ratio")  # of which a slide has one
# What a policy decides. How and where a slide is encoded is decided when the cohort is run.
SETTABLE = (
    *RATES, "min_psnr", "effort", "model", "levels", "background", "on_error", "chunk", "overview", "keep_label",
    "keep_macro", "keep_private", "source_name", "embed_model", "model_beside",
)  # fmt: skip
DEFAULT_PATTERN = "{name}.hcz"
PATTERN_WORDS = ("name", "stem", "folder", "hash")
SUFFIXES = (".hcz", ".zarr")  # of containers
MOST_NAME = 1000  # characters of a container's name, its folders included

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Rule:
    """Options for the slides whose labels fit: each label in `when` has one of these values, which may hold `*` and
    `?`."""

    when: Mapping[str, tuple[str, ...]]
    options: Mapping[str, object]

    def fits(self, labels: Labels) -> bool:
        """Whether a slide with these labels is meant."""
        return all(
            name in labels and any(_is_like(labels[name].lower(), value.lower()) for value in values)
            for name, values in self.when.items()
        )


@dataclass(frozen=True)
class Policy:
    """The options of all slides, the rules for some, and the pattern of the containers' names."""

    options: Mapping[str, object] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    pattern: str = DEFAULT_PATTERN

    def options_of(self, labels: Labels) -> dict[str, object]:
        """The options of a slide with these labels, as JSON has them. A rate of a later rule takes the place of an
        earlier one, whichever of the four it is."""
        chosen = dict(self.options)
        for rule in self.rules:
            if rule.fits(labels):
                chosen = merged(chosen, rule.options)
        return chosen

    def name_of(self, name: str, labels: Labels) -> str:
        """The name of a slide's container below the folder of results, with `/` between folders. `name` is the slide's
        own, without its suffix, below the folder it was found in. Raises UsageError for a name that cannot be used."""
        path = PurePosixPath(name)
        folder = "" if str(path.parent) == "." else str(path.parent)
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        words = {**labels, "name": name, "stem": path.name, "folder": folder, "hash": digest}
        try:
            made = unicodedata.normalize("NFC", self.pattern.format_map(words))
        except KeyError as exc:
            raise UsageError(
                f"[names] pattern {self.pattern!r}: the slide {name} has no {exc.args[0]}; it has "
                f"{', '.join((*PATTERN_WORDS, *labels))}"
            ) from exc
        return checked_name(re.sub("/+", "/", made).lstrip("/"))  # `{folder}/` of a slide in no folder

    def label_names(self) -> set[str]:
        """The labels that rules and pattern ask for."""
        named = {word for _, word, _, _ in Formatter().parse(self.pattern) if word}
        return {name for rule in self.rules for name in rule.when} | (named - {*PATTERN_WORDS})


def _is_like(label: str, value: str) -> bool:
    return label == value or fnmatchcase(label, value.replace("[", "[[]"))


def merged(options: Mapping[str, object], more: Mapping[str, object]) -> dict[str, object]:
    """Options with others in their place; of the four rates, only the latest is left."""
    given = any(name in more for name in RATES)
    return {name: value for name, value in options.items() if not (given and name in RATES)} | dict(more)


def checked_name(name: str) -> str:
    """A container's name. Raises UsageError where it leaves the folder of results, or names no container."""
    parts = name.split("/")
    printable = all(character.isprintable() for character in name) and "\\" not in name
    if not printable or len(name) > MOST_NAME or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{name[:200]!r}: is no name for a container; it must stay in the folder, without .. and \\")
    if not name.lower().endswith(SUFFIXES):
        raise UsageError(f"{name}: is no name for a container; it must end in {' or '.join(SUFFIXES)}")
    return name


def encode_options(options: Mapping[str, object], **more: object) -> EncodeOptions:
    """The `EncodeOptions` of what a policy or a ledger says. Raises UsageError."""
    values = {**options, **more}
    if isinstance(values.get("levels"), list):
        values["levels"] = tuple(values["levels"])  # type: ignore[arg-type]  # a list, as was just seen
    return EncodeOptions(**values)  # type: ignore[arg-type]  # whose types `_option` has checked


def read_policy(path: Path) -> Policy:
    """Reads a policy. Raises UsageError where there is no such file, FormatError where it says what a policy cannot."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise FormatError(f"{path}: is no TOML: {exc}") from exc
    where = str(path)
    _only(document, ("encode", "names", "rule"), where)
    names = _table(document.get("names", {}), f"{where}: names")
    _only(names, ("pattern",), f"{where}: names")
    pattern = names.get("pattern", DEFAULT_PATTERN)
    if not isinstance(pattern, str):
        raise FormatError(f"{where}: names.pattern: found {pattern!r}; allowed is a text such as {DEFAULT_PATTERN!r}")
    _check_pattern(pattern, f"{where}: names.pattern")
    rules = document.get("rule", [])
    if not isinstance(rules, list):
        raise FormatError(f"{where}: rule: rules are written as [[rule]], each with a table of its own")
    base = _options(document.get("encode", {}), f"{where}: encode")
    return Policy(
        base, tuple(_rule(rule, base, f"{where}: rule {number}") for number, rule in enumerate(rules, 1)), pattern
    )


def _check_pattern(pattern: str, where: str) -> None:
    try:
        pieces = list(Formatter().parse(pattern))
    except ValueError as exc:
        raise FormatError(f"{where}: found {pattern!r}, which is no pattern: {exc}") from exc
    for _, word, form, conversion in pieces:
        if word is not None and (not word.isidentifier() or form or conversion):
            raise FormatError(f"{where}: found {{{word}}}; allowed are {', '.join(PATTERN_WORDS)} and labels")


def _rule(value: object, base: Mapping[str, object], where: str) -> Rule:
    table = _table(value, where)
    when = _table(table.pop("when", None), f"{where}: when")
    if not when:
        raise FormatError(f"{where}: has no `when`; say which slides it is for, or write its options under [encode]")
    options = _options(table, where)
    encode_options(merged(base, options))
    return Rule({name: _values(values, f"{where}: when.{name}") for name, values in when.items()}, options)


def _options(value: object, where: str) -> dict[str, object]:
    table = _table(value, where)
    _only(table, SETTABLE, where)
    options = {name: _option(name, option, f"{where}.{name}") for name, option in table.items()}
    try:
        encode_options(options)
    except UsageError as exc:
        raise FormatError(f"{where}: {exc}") from exc
    return options


def _option(name: str, value: object, where: str) -> object:
    """One option, whose type is that of the field. Raises FormatError."""
    kinds = {item.name: str(item.type) for item in fields(EncodeOptions)}
    kind = kinds[name]
    if name == "levels":
        if isinstance(value, list) and value and all(type(level) is int and level >= 0 for level in value):
            return sorted(set(value))
        raise FormatError(f"{where}: found {value!r}; allowed are numbers of levels, such as [0, 2]")
    if name == "overview" and value == "none":
        return None
    allowed: tuple[tuple[str, type, str], ...] = (
        ("bool", bool, "true or false"),
        ("float", float, "a number"),
        ("int", int, "an integer"),
        ("str", str, "a text"),
    )
    for word, type_, words in allowed:
        if word in kind:
            number = type_ is float and type(value) is int
            if type(value) is type_ or number:
                return value
            raise FormatError(f"{where}: found {value!r}; allowed is {words}")
    raise AssertionError(name)


def _values(value: object, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in values):
        raise FormatError(f"{where}: found {value!r}; allowed is a text, a number, or a list of these")
    return tuple(item if isinstance(item, str) else f"{item:g}" for item in values)


def _table(value: object, where: str) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FormatError(f"{where}: found {value!r}; allowed is a table")
    return dict(value)


def _only(table: Iterable[str], allowed: Iterable[str], where: str) -> None:
    unknown = sorted(set(table) - set(allowed))
    if unknown:
        raise FormatError(f"{where}: {unknown[0]!r} is unknown; allowed are {', '.join(allowed)}")
