"""The native synthesis gives the oracle's pixels with every instruction set, at every size, margin and value."""

from typing import Any

import numpy as np
import pytest
import torch

from histocodec.errors import UsageError
from histocodec.geometry import Margin
from histocodec.kernels import instructions
from histocodec.kernels.instructions import NAMES, VARIABLE, fastest
from histocodec.kernels.pixels import shuffled
from histocodec.models.config import HyperConfig
from histocodec.models.transforms.exact import FloatEngine, IntegerSynthesis, extreme_synthesis
from histocodec.models.transforms.integer import Arrays, synthesis_tensors
from histocodec.models.transforms.native import NativeSynthesis
from histocodec.models.weights import DEFAULT_MODEL, find_model
from histocodec.normalise import ChannelStats
from tests.support.tiny import TINY, tiny_integer_weights

STATS = ChannelStats(np.array([180.0, 140.0, 175.0], np.float32), np.array([40.0, 45.0, 35.0], np.float32))
each_set = pytest.mark.parametrize("instructions", range(len(NAMES)), ids=NAMES)


def expected(config: HyperConfig, arrays: Arrays, latents: np.ndarray, margin: Margin) -> np.ndarray:
    with torch.inference_mode():
        synthesis = IntegerSynthesis(config, FloatEngine(config, arrays, torch.device("cpu")))
        planes = synthesis.window(torch.from_numpy(np.ascontiguousarray(latents))[None], margin)[0]
    return shuffled(planes.permute(1, 2, 0).contiguous().numpy(), STATS.mean, STATS.std)


def assert_exact(
    config: HyperConfig, arrays: Arrays, latents: np.ndarray, margin: Margin, native: NativeSynthesis
) -> None:
    found = native.pixels(latents, margin, STATS.mean, STATS.std)
    assert np.array_equal(found, expected(config, arrays, latents, margin))


def random_latents(rng: np.random.Generator, config: HyperConfig, spread: float, rows: int, columns: int) -> np.ndarray:
    values = rng.normal(0, spread, (config.latent_channels, rows, columns))
    return np.asarray(values, np.float32)


def random_model(rng: np.random.Generator, **sizes: Any) -> tuple[HyperConfig, dict[str, np.ndarray]]:
    """Weights over the whole range of bytes, and shifts that keep activations apart."""
    config = HyperConfig(integer_synthesis=True, **sizes)
    arrays: dict[str, np.ndarray] = {}
    for name, (shape, _) in synthesis_tensors(config):
        if name.endswith(".weight"):
            arrays[name] = rng.integers(-128, 128, shape).astype(np.int8)
        elif name.endswith(".bias"):
            arrays[name] = rng.integers(-99999, 99999, shape, np.int32)
        elif name.endswith(".fine"):
            arrays[name] = rng.integers(0, config.latent_channels if ".up." in name else 192, shape).astype(np.int16)
        elif name.endswith(".coarse"):
            arrays[name] = rng.integers(0, 9, shape).astype(np.uint8)
        elif name.endswith(".shift"):
            arrays[name] = rng.integers(9, 13, shape).astype(np.uint8)
        else:
            arrays[name] = rng.uniform(0.1, 90, shape).astype(np.float32)
    return config, arrays


@each_set
def test_the_shipped_models_pixels_are_the_oracles(instructions: int) -> None:
    weights, rng = find_model(DEFAULT_MODEL), np.random.default_rng(instructions)
    native = NativeSynthesis(weights.hyper, weights.arrays, instructions=instructions)
    for spread, rows, columns, margin in (
        (0.3, 7, 9, Margin()),
        (3.0, 8, 15, Margin(3, 3, 3, 3)),
        (300.0, 5, 6, Margin(0, 2, 3, 0)),
        (1e5, 3, 3, Margin()),
    ):
        latents = random_latents(rng, weights.hyper, spread, rows, columns)
        assert_exact(weights.hyper, weights.arrays, latents, margin, native)


@each_set
def test_any_size_margin_and_value_gives_the_oracles_pixels(instructions: int) -> None:
    weights, rng = tiny_integer_weights(), np.random.default_rng(10 + instructions)
    native = NativeSynthesis(TINY, weights.arrays, instructions=instructions)
    for _ in range(25):
        top, left, bottom, right = rng.integers(0, TINY.synthesis_halo + 2, 4)
        margin = Margin(int(top), int(left), int(bottom), int(right))
        rows, columns = top + bottom + rng.integers(1, 9), left + right + rng.integers(1, 17)
        latents = random_latents(rng, TINY, 10 ** rng.uniform(-2, 5), rows, columns)
        assert_exact(TINY, weights.arrays, latents, margin, native)


@each_set
def test_extreme_weights_and_inputs_saturate_nothing(instructions: int) -> None:
    config, arrays, latents = extreme_synthesis()
    native = NativeSynthesis(config, arrays, instructions=instructions)
    for scale in (1, -1, 1000):
        assert_exact(config, arrays, scale * latents.numpy()[0], Margin(), native)


@each_set
@pytest.mark.parametrize(
    "sizes",
    [
        {"latent_channels": 4, "synthesis16": (True,), "synthesis8": ()},
        {"latent_channels": 68, "synthesis16": (), "synthesis8": (False, True, True, True)},
        {"latent_channels": 132, "hidden16": 36, "synthesis16": (False, True, True, True), "synthesis8": (True, False)},
        {"latent_channels": 64, "hidden16": 200, "synthesis16": (False,), "synthesis8": (False,)},
        {"latent_channels": 8, "synthesis16": (), "synthesis8": ()},
    ],
    ids=["narrow", "deep at 1/8", "deep at 1/16", "wide", "without blocks"],
)
def test_any_network_that_a_config_can_have_is_exact(instructions: int, sizes: dict[str, Any]) -> None:
    rng = np.random.default_rng(instructions)
    config, arrays = random_model(rng, **sizes)
    native = NativeSynthesis(config, arrays, instructions=instructions)
    halo = config.synthesis_halo
    for margin in (Margin(), Margin(halo, 0, halo, halo)):
        latents = random_latents(rng, config, 3.0, 2 * halo + 3, 2 * halo + 5)
        assert_exact(config, arrays, latents, margin, native)


def test_a_window_is_the_crop_of_the_whole() -> None:
    weights, halo = tiny_integer_weights(), TINY.synthesis_halo
    native = NativeSynthesis(TINY, weights.arrays)
    latents = random_latents(np.random.default_rng(3), TINY, 2.0, 16, 16)
    whole = native.pixels(latents, Margin(), STATS.mean, STATS.std)
    part = native.pixels(
        latents[:, 4 - halo : 10 + halo, : 8 + halo], Margin(halo, 0, halo, halo), STATS.mean, STATS.std
    )
    assert np.array_equal(part, whole[64:160, :128])


def test_images_side_by_side_are_the_window_cut_up() -> None:
    weights, halo = tiny_integer_weights(), TINY.synthesis_halo
    native, margin = NativeSynthesis(TINY, weights.arrays), Margin(0, halo, 1, 0)
    latents = random_latents(np.random.default_rng(4), TINY, 2.0, 6, halo + 11)
    whole = native.pixels(latents, margin, STATS.mean, STATS.std)
    for width, widths in ((64, [64, 64, 48]), (88, [88, 88]), (176, [176]), (512, [176])):
        images = native.images(latents, margin, STATS.mean, STATS.std, width)
        assert [image.shape[1] for image in images] == widths
        assert np.array_equal(np.concatenate(images, axis=1), whole)


def test_windows_of_many_sizes_may_follow_each_other() -> None:
    """They share the working memory, in which nothing of the last window may be taken for this one's."""
    weights = tiny_integer_weights()
    native = NativeSynthesis(TINY, weights.arrays)
    for n, (rows, columns) in enumerate(((4, 20), (9, 3), (1, 1), (4, 20), (2, 30), (12, 12))):
        latents = random_latents(np.random.default_rng(n), TINY, 50.0, rows, columns)
        assert_exact(TINY, weights.arrays, latents, Margin(), native)


def test_tiles_are_used_only_where_the_system_allows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(instructions, "features", lambda: frozenset({"amx-tile", "amx-int8", "avx512vnni", "avx512bw"}))
    monkeypatch.setattr(instructions, "_may_use_tiles", lambda: True)
    assert NAMES[fastest()] == "amx"
    monkeypatch.setattr(instructions, "_may_use_tiles", lambda: False)
    assert NAMES[fastest()] == "avx512-vnni"
    monkeypatch.setenv(VARIABLE, "amx")
    with pytest.raises(UsageError, match="tiles"):
        fastest()


def test_the_instructions_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(NAMES):
        monkeypatch.setenv(VARIABLE, name)
        assert fastest() == number
    monkeypatch.setenv(VARIABLE, "mmx")
    with pytest.raises(UsageError, match="avx512-vnni"):
        fastest()
