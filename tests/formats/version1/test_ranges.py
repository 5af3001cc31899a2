"""Values beyond any sense are refused when they are read, in containers of version 1, in plain words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from histocodec.cli.main import run
from histocodec.errors import FormatError, UsageError
from histocodec.formats.container.arrays import write_plain
from histocodec.formats.container.fields import Node
from histocodec.formats.container.read import open_container
from histocodec.formats.container.version1.attributes import from_json
from histocodec.formats.container.version1.container import ContainerV1
from histocodec.formats.container.version1.layout import block_error_form, plain_arrays
from histocodec.formats.encode.options import EncodeOptions
from histocodec.formats.encode.scope import selected_levels
from histocodec.geometry import Level
from histocodec.slide import WHITE
from histocodec.sources import ArraySlide
from tests.support.containers import SCHEMA, attributes
from tests.support.version1 import to_json, write_block_error

Captured = pytest.CaptureFixture[str]
HUGE = 3e38  # nearly the largest float32
DECODED = ["stats/mean", "stats/std", "stats/background_latent"]
MEASURED = ["psnr/0", "block_error/0"]
ABSURD = {
    "stats/mean": [HUGE, -HUGE, 2.0**20 + 1], "stats/std": [HUGE, 2.0**20 + 1, 1e-40, 0.0],
    "stats/background_latent": [HUGE, -HUGE, 2.0**31],
    "psnr/0": [HUGE, 200.1, -1e-3, -np.inf], "block_error/0": [HUGE, 255.5, np.inf, -1.0],
}  # fmt: skip


@pytest.fixture
def container(golden_v1: Path) -> ContainerV1:
    container = open_container(golden_v1)
    assert isinstance(container, ContainerV1)
    form = block_error_form(container.attributes, 0)
    write_block_error(golden_v1, container.attributes, 0, np.ones(form.shape, np.float32))
    return container


def store(container: ContainerV1, name: str, value: float) -> None:
    """Write an array anew with the last of its values replaced, as somebody who forges a container would."""
    described = container.attributes
    form = block_error_form(described, 0) if name == "block_error/0" else plain_arrays(described)[name]
    values = container.block_error(0) if name == "block_error/0" else container.array(name)
    assert values is not None
    values = values.copy()
    values.flat[-1] = value
    write_plain(container.path / name, form, values)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in ABSURD for value in ABSURD[name]])
def test_values_beyond_any_sense_are_refused_when_they_are_read(
    container: ContainerV1, name: str, value: float
) -> None:
    store(container, name, value)
    with pytest.raises(FormatError, match=rf"{name}: has .* not allowed there"):
        container.block_error(0) if name == "block_error/0" else container.array(name)


@pytest.mark.parametrize("name", DECODED)
def test_statistics_beyond_any_sense_are_not_decoded(
    container: ContainerV1, tmp_path: Path, capsys: Captured, name: str
) -> None:
    store(container, name, HUGE)
    assert run(["decode", str(container.path), str(tmp_path / "a.png")]) == 3
    assert f"{name}: has 3" in capsys.readouterr().err
    assert run(["verify", str(container.path)]) != 0
    assert name in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", MEASURED)
def test_measurements_beyond_any_sense_are_reported(
    container: ContainerV1, tmp_path: Path, capsys: Captured, name: str
) -> None:
    store(container, name, HUGE)
    if name == "psnr/0":  # the map shows nothing else
        assert run(["info", str(container.path), "--map", str(tmp_path / "map.png")]) == 3
        assert f"{name}: has 3" in capsys.readouterr().err
    assert run(["verify", str(container.path)]) != 0
    assert name in "".join(capsys.readouterr())


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(to_json(attributes())))
    change(found)
    return found


@pytest.mark.parametrize("side", ["width", "height"])
def test_a_level_larger_than_the_one_before_it_is_refused(side: str) -> None:
    found = changed(lambda a: a["levels"][1].update({side: 151}))
    with pytest.raises(FormatError, match=r"levels\[1\]: has .* from the largest to the smallest"):
        from_json(Node(found, "x"))


def test_levels_of_one_size_are_in_order() -> None:
    found = changed(lambda a: a["levels"][1].update(width=150, height=100))
    assert len(from_json(Node(found, "x")).levels) == 2


@pytest.mark.parametrize(("level", "downsample"), [(0, 2.0), (0, 1.0001), (0, 0.5), (1, 0.9)])
def test_level_0_has_the_downsample_1_and_no_other_has_less(level: int, downsample: float) -> None:
    found = changed(lambda a: a["levels"][level].update(downsample=downsample))
    with pytest.raises(FormatError, match=rf"levels\[{level}\].downsample"):
        from_json(Node(found, "x"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, SCHEMA)


def test_a_slide_whose_level_0_is_no_level_0_is_refused_before_the_work() -> None:
    slide = ArraySlide(np.full((8, 8, 3), WHITE, np.uint8))
    slide.levels = (Level(8, 8, 4.0),)
    with pytest.raises(UsageError, match="level 0 has the downsample 4"):
        selected_levels(slide, EncodeOptions())
