"""`import histocodec` costs nothing, and what it offers is there."""

import dataclasses
import subprocess
import sys
from typing import get_type_hints

import pytest

import histocodec
from histocodec import errors

HEAVY = {"torch", "numba", "zarr", "numpy", "PIL", "openslide", "tifffile", "imagecodecs", "scipy", "rich"}


def modules_after(code: str) -> set[str]:
    """What a fresh interpreter has loaded after running the code; its own output is dropped."""
    report = "import sys; print('|'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, timeout=60
    )
    return {name.split(".")[0] for name in done.stderr.splitlines()[-1].split("|")}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import histocodec") & HEAVY


@pytest.mark.parametrize("command", ["", "encode", "decode", "info", "verify", "seal", "models", "train", "demo"])
def test_help_and_version_load_nothing_heavy(command: str) -> None:
    arguments = [*([command] if command else []), "--help"]
    assert not modules_after(f"from histocodec.cli.main import run; assert run({arguments}) == 0") & HEAVY


def test_version_loads_nothing_heavy() -> None:
    assert not modules_after("from histocodec.cli.main import run; assert run(['--version']) == 0") & HEAVY


def test_every_name_of_the_facade_is_there() -> None:
    for name in histocodec.__all__:
        assert getattr(histocodec, name) is not None
        assert name in dir(histocodec)


def test_every_error_is_of_the_facade_and_of_one_root() -> None:
    found = [
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    for error in found:
        assert issubclass(error, histocodec.HistocodecError)
        assert getattr(histocodec, error.__name__) is error


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        histocodec.nonsense  # noqa: B018


def test_the_keywords_of_encode_are_the_fields_of_its_options() -> None:
    fields = {field.name for field in dataclasses.fields(histocodec.EncodeOptions)}
    assert set(histocodec.EncodeChoices.__annotations__) == fields
    hints, choices = get_type_hints(histocodec.EncodeOptions), get_type_hints(histocodec.EncodeChoices)
    assert hints == choices
