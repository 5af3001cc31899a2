"""Damaged inputs: a slice of `python -m tests.tools.fuzz`, and what it, or a look at the code, once found."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from histocodec.cli.main import run
from histocodec.codec.chunk import HyperChunkCodec
from histocodec.entropy import RansEncoder
from histocodec.errors import FormatError
from histocodec.formats.container.read import open_container
from histocodec.formats.decode.slide import open_compressed
from histocodec.formats.decode.verify import verify
from histocodec.models.config import BLOCKS, MAX_BLOCKS, HyperConfig
from histocodec.models.prior.graph import HYPER_CLIP, MEAN_BITS
from histocodec.models.weights import load_model, parse_model
from tests.support.peak import linux_only
from tests.support.version1 import finish, write_array
from tests.support.version2 import resealed
from tests.tools.fuzz import SHAPE, Target, flip_all, fuzz, golden_weights, small_container, targets

Captured = pytest.CaptureFixture[str]
COUNTS = {
    "chunks": 5000, "shards": 500, "attributes": 2000, "attributes-1": 2000, "maps": 2000, "arrays": 500, "models": 300,
    "containers": 50, "containers-1": 50, "archives": 50, "zips": 300,
}  # fmt: skip


@pytest.fixture(scope="module")
def all_targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCODEC_MODELS", "")  # which the harness sets for good
        yield {target.name: target for target in targets(tmp_path_factory.mktemp("fuzz"))}


@pytest.fixture
def container(tmp_path: Path) -> Path:
    return small_container(tmp_path)


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("name", list(COUNTS))
def test_damage_is_refused_by_our_own_errors_or_harmless(all_targets: dict[str, Target], name: str) -> None:
    outcome = fuzz(all_targets[name], COUNTS[name], seed=1)
    assert outcome.accepted  # else the harness gives nothing but noise, which the first check refuses
    assert outcome.refused


def test_a_changed_byte_of_a_container_never_gives_wrong_pixels_silently(container: Path) -> None:
    effects = flip_all(container, step=211)
    assert effects["refused"] > 0
    assert effects["same, verified"] > 0


def test_a_changed_byte_of_version_1_never_gives_wrong_pixels_silently(golden_v1: Path) -> None:
    effects = flip_all(golden_v1, step=211, version=1)
    assert effects["refused"] > 0
    assert effects["same, verified"] > 0


# What was found.


@pytest.mark.parametrize("z", [-(2**31), -HYPER_CLIP - 1, HYPER_CLIP + 1])
def test_a_z_beyond_its_range_is_refused(z: int) -> None:
    """int32's lowest passed: it has no magnitude, so numpy's abs leaves it negative."""
    weights = golden_weights()
    channels = weights.config.hyper_channels
    mean, index = (weights.arrays[f"prior.hyper_{name}"][50].astype(np.int64) for name in ("mean", "index"))
    values = np.zeros(channels, np.int64)
    at = int(np.argmin(mean))  # so that z minus the mean is an int32
    values[at] = z
    encoder = RansEncoder(weights.tables)
    tables = (index << MEAN_BITS) + (mean & (1 << MEAN_BITS) - 1)
    encoder.write(np.maximum(values - (mean >> MEAN_BITS), -(2**31)).astype(np.int32), tables.astype(np.uint16))
    with pytest.raises(FormatError, match=f"z from {min(z, 0)} to {max(z, 0)}"):
        HyperChunkCodec(weights).decode(bytes((50, 1, 1, 1)) + encoder.finish(), SHAPE)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("value", [5, "yes", None, [1], [True] * (MAX_BLOCKS + 1), [[True]]])
def test_a_models_blocks_are_a_short_list_of_booleans(name: str, value: object) -> None:
    """A number was a TypeError when the network was built, and a long list gigabytes."""
    config = {**json.loads(HyperConfig().to_json()), name: value}
    with pytest.raises(FormatError, match=name):
        HyperConfig.from_json(json.dumps(config))


def test_a_models_config_of_endless_depth_is_refused() -> None:
    with pytest.raises(FormatError, match="config is not understood"):
        HyperConfig.from_json("[" * 100_000)


def test_a_models_width_is_an_integer() -> None:
    """192.0 equals 192, and was a TypeError when the network was built."""
    with pytest.raises(FormatError, match="width8"):
        HyperConfig.from_json(HyperConfig().to_json().replace("192", "192.0"))


@pytest.mark.parametrize("hidden", [0, 6, 1028, 128.0, "128", True])
def test_a_models_activations_are_a_multiple_of_four(hidden: object) -> None:
    with pytest.raises(FormatError, match="hidden16"):
        HyperConfig.from_json(json.dumps({**json.loads(HyperConfig().to_json()), "hidden16": hidden}))


def test_a_model_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.safetensors")
    with pytest.raises(FormatError, match="no regular file"):
        load_model(tmp_path / "m.safetensors")


def test_what_is_no_safetensors_is_no_model() -> None:
    import pickle

    for data in (b"", b"PK\x03\x04", pickle.dumps({"a": 1}), bytes(100), b"\xff" * 100):
        with pytest.raises(FormatError, match="not a safetensors file"):
            parse_model(data, name="model")


def test_a_chunk_that_is_stored_although_the_map_says_background_is_not_passed_over(golden_v1: Path) -> None:
    """A reader of version 1 believed the map, and only the SHA-256 of the map itself knew better."""
    container, attributes = golden_v1, open_container(golden_v1).attributes
    write_array(container, attributes, "tiles/0", np.zeros((1, 1), np.uint8))
    finish(container, attributes)
    with open_compressed(container, device="cpu") as slide, pytest.raises(FormatError, match="calls background"):
        slide.read(slide.levels[0].region, 0)
    assert any("tiles/0" in problem for problem in verify(container).problems)


def test_what_a_container_says_does_not_steer_the_terminal(capsys: Captured, container: Path) -> None:
    """An escape sequence went through."""
    resealed(container, lambda value: value.update(properties={"a": "\x9b \x1b[2J"}))
    assert run(["info", str(container)]) == 0
    assert "\\x9b \\x1b[2J" in capsys.readouterr().out
    assert run(["info", str(container), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"] == {"a": "\x9b \x1b[2J"}
