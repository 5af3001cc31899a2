"""JSON that may be hostile: the type and range of every value are checked as it is read."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from histocodec.errors import FormatError
from histocodec.strict_json import parse_strict_json

Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True)
class Node:
    """A JSON value and its place, for messages: `slide.zarr/zarr.json: histocodec.levels[0].width`.

    Every method raises FormatError where the value is not what the method allows.
    """

    value: object
    where: str

    def fields(self, *names: str) -> dict[str, "Node"]:
        """The members of an object that has exactly these `names`."""
        members = self.members()
        missing = [name for name in names if name not in members]
        if missing:
            raise FormatError(f"{self.where}: field {missing[0]!r} is missing")
        unknown = sorted(members.keys() - set(names))
        if unknown:
            raise FormatError(f"{self.where}: field {unknown[0][:80]!r} is unknown; allowed are {', '.join(names)}")
        return {name: Node(members[name], f"{self.where}.{name}") for name in names}

    def member(self, name: str) -> "Node":
        """One member of an object that may have others."""
        members = self.members()
        if name not in members:
            raise FormatError(f"{self.where}: field {name!r} is missing")
        return Node(members[name], f"{self.where}.{name}")

    def items(self, least: int, most: int) -> "list[Node]":
        """The elements of a list with `least` to `most` of them."""
        if not isinstance(self.value, list) or not least <= len(self.value) <= most:
            raise self._refusal(f"a list of {least} to {most} values")
        return [Node(value, f"{self.where}[{i}]") for i, value in enumerate(self.value)]

    def strings(self) -> dict[str, str]:
        """The members of an object, all of which are strings."""
        members = self.members()
        for name, value in members.items():
            if not isinstance(value, str):
                raise Node(value, f"{self.where}[{name[:80]!r}]")._refusal("a string")
        return {name: str(value) for name, value in members.items()}

    def integer(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not low <= self.value <= high:
            raise self._refusal(f"an integer from {low} to {high}")
        return self.value

    def number(self, low: float, high: float) -> float:
        """A finite number from `low` to `high`, both included."""
        if not isinstance(self.value, int | float) or isinstance(self.value, bool):
            raise self._refusal("a number")
        if not (low <= self.value <= high and math.isfinite(self.value)):
            raise self._refusal(f"a number from {low:g} to {high:g}")
        return float(self.value)

    def text(self, most: int, pattern: str = r"(?s).*") -> str:
        """A string of at most `most` characters that matches `pattern` as a whole."""
        if not isinstance(self.value, str) or len(self.value) > most:
            raise self._refusal(f"a string of at most {most} characters")
        if not re.fullmatch(pattern, self.value):
            raise self._refusal(f"a string that matches {pattern}")
        return self.value

    def choice(self, options: Sequence[Choice]) -> Choice:
        """One of several strings."""
        for option in options:
            if self.value == option:
                return option
        raise self._refusal(f"one of {', '.join(options)}")

    def boolean(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self._refusal("true or false")
        return self.value

    @property
    def is_null(self) -> bool:
        """Whether the value is null."""
        return self.value is None

    def members(self) -> dict[str, object]:
        """The members of an object."""
        if not isinstance(self.value, dict):
            raise self._refusal("an object")
        return self.value

    def _refusal(self, allowed: str) -> FormatError:
        text = repr(self.value)
        return FormatError(f"{self.where}: found {text[:80]}{'…' if len(text) > 80 else ''}; allowed is {allowed}")


def parse_json(data: bytes, where: str, *, half_surrogates: bool = False) -> Node:
    """The document in `data`. Raises FormatError, which begins with `where`, for what is no JSON or what readers of
    JSON understand differently (see `parse_strict_json`), and for JSON that exhausts the parser."""
    try:
        return Node(parse_strict_json(data, half_surrogates=half_surrogates), where)
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"{where}: is not JSON as it is allowed here: {exc}") from exc
