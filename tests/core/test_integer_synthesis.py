"""The integer synthesis: the same pixels by every engine, and nearly those of the synthesis it comes from."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from histocodec.codec.transform import Transform
from histocodec.errors import FormatError
from histocodec.formats.decode.chunks import ChunkReader
from histocodec.formats.decode.slide import open_compressed
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.geometry import ChunkKey, Margin
from histocodec.models.config import HyperConfig
from histocodec.models.export import export_model
from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.exact import FloatEngine, IntegerSynthesis
from histocodec.models.transforms.fast import Int8Engine, int8_products_exact
from histocodec.models.transforms.integer import float_parameters, synthesis_layers
from histocodec.models.transforms.network import Hidden, Synthesis
from histocodec.models.weights import DEFAULT_MODEL, MODELS_VARIABLE, ModelWeights, find_model
from histocodec.normalise import ChannelStats
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from histocodec.train.start.equalise import equalise
from histocodec.train.start.from_model import start_from_model
from tests.support.tiny import (
    TINY,
    tiny_integer_network,
    tiny_integer_weights,
    tiny_network,
    tiny_sampler,
    tiny_weights,
)

CPU = torch.device("cpu")
STATS = ChannelStats(np.array([180.0, 140.0, 175.0], np.float32), np.array([40.0, 45.0, 35.0], np.float32))
needs_bytes = pytest.mark.skipif(not int8_products_exact(), reason="this processor has no exact int8 products")


def latents(config: HyperConfig = TINY, *, spread: float = 1.0, side: int = 12) -> torch.Tensor:
    values = np.random.default_rng(5).normal(0, spread, (2, config.latent_channels, side, side))
    return torch.from_numpy(values.astype(np.float32))


def coded() -> torch.Tensor:
    """Latents of tissue."""
    return torch.round(4 * tiny_network().g_a(tiny_sampler()(0).pixels)) / 4


def synthesis(weights: ModelWeights, engine: type[FloatEngine] | type[Int8Engine]) -> IntegerSynthesis:
    config, arrays = weights.hyper, weights.arrays
    made = FloatEngine(config, arrays, CPU) if engine is FloatEngine else Int8Engine(config, arrays)
    return IntegerSynthesis(config, made)


def decoded(made: IntegerSynthesis, y: torch.Tensor, margin: Margin | None = None) -> torch.Tensor:
    with torch.inference_mode():
        return made.window(y, margin or Margin()).clone()


@needs_bytes
@pytest.mark.parametrize("margin", [Margin(), Margin(2, 0, 1, 2)], ids=["whole", "with a margin"])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0, 1e4])
def test_int8_products_and_floats_give_the_same_pixels(spread: float, margin: Margin) -> None:
    y = latents(spread=spread)
    floats, whole = (decoded(synthesis(tiny_integer_weights(), e), y, margin) for e in (FloatEngine, Int8Engine))
    assert floats.std() > 0
    assert torch.equal(floats, whole)


@needs_bytes
def test_int8_products_and_floats_give_the_same_pixels_for_the_shipped_model() -> None:
    weights = find_model(DEFAULT_MODEL)
    if not weights.hyper.integer_synthesis:
        pytest.skip("the shipped model's synthesis is in floating point")
    for spread in (0.3, 3.0, 300.0):
        y = latents(weights.hyper, spread=spread, side=9)
        floats, whole = (decoded(synthesis(weights, e), y) for e in (FloatEngine, Int8Engine))
        assert torch.equal(floats, whole)


def test_what_trains_is_what_decodes() -> None:
    network, y = tiny_integer_network(), latents(spread=2.0)
    weights = export_model(network, "exported")
    with torch.no_grad():
        expected = torch.nn.functional.pixel_unshuffle(network.g_s(y), 8)
    assert torch.equal(decoded(synthesis(weights, FloatEngine), y), expected)


def test_the_integer_synthesis_is_close_to_the_one_it_comes_from() -> None:
    weights, network = tiny_integer_weights(), tiny_network()
    with torch.no_grad():
        y = coded()
        expected = torch.nn.functional.pixel_unshuffle(network.g_s(y), 8)
        smooth = Synthesis(TINY)
        smooth.load_state_dict({n: torch.from_numpy(a) for n, a in float_parameters(TINY, weights.arrays).items()})
        without_rounding = torch.nn.functional.pixel_unshuffle(smooth(y), 8)
    found = decoded(synthesis(weights, FloatEngine), y)
    for other in (expected, without_rounding):
        assert float((found - other).square().mean()) < 2e-4 * float(expected.square().mean())
    assert not torch.equal(found, without_rounding)


def test_a_window_is_the_crop_of_the_whole() -> None:
    made, halo, y = synthesis(tiny_integer_weights(), FloatEngine), TINY.synthesis_halo, latents(side=16)
    whole = decoded(made, y)
    part = decoded(made, y[:, :, 4 - halo : 10 + halo, : 8 + halo], Margin(halo, 0, halo, halo))
    assert torch.equal(part, whole[:, :, 8:20, :16])


def test_what_is_darker_than_tissue_is_not_cut_off() -> None:
    """Ink: eight times as far from the mean as anything that the model was calibrated on."""
    weights, network = tiny_integer_weights(), tiny_network()
    flat = torch.full((1, 3, 128, 128), -16.0)
    with torch.no_grad():
        y = network.g_a(flat)
        expected = network.g_s(y).mean()
    assert float(decoded(synthesis(weights, FloatEngine), y).mean()) == pytest.approx(float(expected), rel=0.05)


def test_pixels_do_not_depend_on_the_type_of_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "tiny-integer.safetensors"
    model.write_bytes(tiny_integer_weights().data)
    pixels = synthetic_slide(700, 300, seed=2)
    encode_slide(
        ArraySlide(pixels, name="a"), tmp_path / "a.zarr", EncodeOptions(model=str(model), quality=60, effort=1)
    )
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path))
    with open_compressed(tmp_path / "a.zarr") as slide:
        quality = slide.container.attributes.levels[0].quality
        y = slide.latents(0)[:].astype(np.float32) * tiny_integer_weights().inverse_gain(quality)[:, None, None]
        shown = slide.read_array(0, 0, 700, 300)
    each = [
        Transform(tiny_integer_weights(), CPU, dtype=dtype).synthesise([y], Margin(), slide_stats(tmp_path / "a.zarr"))[
            0
        ]
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert np.array_equal(*each)
    assert np.array_equal(each[0][:300, :700], shown)
    assert np.abs(shown.astype(int) - pixels).mean() < 20


def slide_stats(path: Path) -> ChannelStats:
    from histocodec.formats.container.read import open_container

    return open_container(path).stats().channels


def test_blocks_side_by_side_are_what_each_is_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, around = tmp_path / "tiny-integer.safetensors", []
    model.write_bytes(tiny_integer_weights().data)
    pixels = synthetic_slide(1300, 900, seed=4)  # 3 × 2 blocks, of which the last of a row has no neighbour left
    options = EncodeOptions(model=str(model), quality=60, effort=0, background="code")
    encode_slide(ArraySlide(pixels, name="a"), tmp_path / "a.zarr", options)
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path))
    window = ChunkReader.chunk_window

    def watched(self: ChunkReader, key: ChunkKey, count: int = 1) -> tuple[np.ndarray, Margin]:
        around.append((key.row, key.column, count))
        return window(self, key, count)

    monkeypatch.setattr(ChunkReader, "chunk_window", watched)
    with open_compressed(tmp_path / "a.zarr", device="cpu", workers=1) as slide:
        whole = slide.read_array(0, 0, 1300, 900)
    assert around == [(0, 0, 2), (0, 2, 1), (1, 0, 2), (1, 2, 1)]
    with open_compressed(tmp_path / "a.zarr", device="cpu", workers=1) as slide:
        for y in (0, 512):
            for x in (0, 512, 1024):
                width, height = min(512, 1300 - x), min(512, 900 - y)
                assert np.array_equal(slide.read_array(x, y, width, height), whole[y : y + height, x : x + width])
    every = {(row, column, 1) for row in (0, 1) for column in (0, 1, 2)}
    assert {(0, 0, 1), (0, 1, 1)} <= set(around[4:]) <= every  # those at the edge are small enough to read directly


def test_a_gradient_passes_the_rounding() -> None:
    """Latents and weights that follow it decode to something nearer to what was wanted."""
    network, pixels = tiny_integer_network(), tiny_sampler()(0).pixels
    y = (coded() * 0.8).detach().requires_grad_(True)
    optimizer = torch.optim.Adam([{"params": [y], "lr": 3e-2}, {"params": [*network.g_s.parameters()], "lr": 1e-3}])
    errors = []
    for _ in range(20):
        error = (network.g_s(y) - pixels).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.8 * errors[0]
    assert all(float(p.grad.abs().sum()) > 0 for p in network.g_s.parameters())


def test_a_start_from_an_integer_synthesis_decodes_as_before() -> None:
    network = HyperModel(TINY).eval()
    start_from_model(network, tiny_integer_weights(), tiny_sampler())
    with torch.no_grad():
        expected = tiny_network().g_s(coded())
        difference = network.g_s(coded()) - expected
    assert float(difference.square().mean()) < 2e-4 * float(expected.square().mean())


def test_a_start_from_an_integer_synthesis_has_units_in_which_it_can_learn() -> None:
    """Out of the file, activations reach 255 and the largest weights are hundreds of times the smallest."""
    weights = tiny_integer_weights()
    plain = Synthesis(TINY)
    arrays = float_parameters(replace(TINY, integer_synthesis=True), weights.arrays)
    plain.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    balanced = copy.deepcopy(plain)
    equalise(balanced, coded())
    with torch.no_grad():
        expected, found = plain(coded()), balanced(coded())
        assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
        before, after = Hidden(), Hidden()
        plain.window(coded(), Margin(), before)
        balanced.window(coded(), Margin(), after)
    sizes = [[float(h.square().mean().sqrt()) for block in some for h in block] for some in (before, after)]
    assert min(sizes[0]) > 5
    assert all(0.3 < size < 1.5 for size in sizes[1])
    assert float(balanced.tail.weight.detach().norm(dim=0).std()) < 1e-5


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    weights = tiny_integer_weights()
    ModelWeights(
        weights.id, weights.sha256, weights.config, {**weights.arrays, name: change(weights.arrays[name])}, b""
    )


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("g_s.scale", lambda a: a * 0, "above 0"),
        ("g_s.scale", lambda a: a * np.float32(np.nan), "finite"),
        ("g_s.up.fine", lambda a: a + 1, "0 to 47"),
        ("g_s.tail.fine", lambda a: a - 200, "0 to 191"),
        ("g_s.tail.shift", lambda a: a + 17, "at most 16"),
        ("g_s.tail.bias", lambda a: a + 2**24, "accumulator"),
        ("g_s.blocks16.0.project.shift", lambda a: a * 0 + 16, "24 bits"),
        ("g_s.blocks8.0.expand.weight", lambda a: a[:-1], "is needed"),
        ("g_s.up.weight", lambda a: a.astype(np.int16), "is needed"),
    ],
)
def test_a_model_whose_numbers_could_be_inexact_is_refused(
    name: str, change: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        changed(name, change)


def test_a_synthesis_without_all_its_tensors_is_refused() -> None:
    weights = tiny_weights()
    with pytest.raises(FormatError, match=r"g_s\.scale is missing"):
        ModelWeights(weights.id, weights.sha256, replace(TINY, integer_synthesis=True), weights.arrays, b"")
    with pytest.raises(FormatError, match="true or false"):
        replace(TINY, integer_synthesis=1)


def test_every_layer_is_named_once() -> None:
    names = [layer.name for layer in synthesis_layers(HyperConfig())]
    assert len(names) == len(set(names)) == 4 * 2 + 2 + 1 + 2 * 3 + 1
