"""The search's errors are those of the decoder's arithmetic, and its derivatives those of autograd but for rounding."""

from typing import Any

import numpy as np
import pytest
import torch

from histocodec.codec.chunk import HyperChunkCodec
from histocodec.codec.gains import dequantise, quantise
from histocodec.codec.latent_search import LatentSearch
from histocodec.codec.transform import Transform
from histocodec.codec.window import Window
from histocodec.geometry import Margin
from histocodec.kernels.instructions import NAMES
from histocodec.models.transforms.native import NativeSynthesis
from histocodec.models.transforms.native_gradient import NO_PIXEL, NativeGradient, unshuffled_target
from histocodec.models.weights import DEFAULT_MODEL, ModelWeights, find_model
from histocodec.normalise import ChannelStats
from histocodec.sources.synthetic import synthetic_slide
from tests.support.tiny import tiny_integer_weights

STATS = ChannelStats(np.array([180.0, 140.0, 175.0], np.float32), np.array([40.0, 45.0, 35.0], np.float32))
QUALITY = 50
MARGINS = (Margin(), Margin(3, 3, 3, 3), Margin(0, 2, 3, 1))
CPU = torch.device("cpu")


def example(weights: ModelWeights, margin: Margin, *, height: int = 117, width: int = 150) -> tuple[Any, Window]:
    """Rounded latents of a window of this margin, whose chunk ends within its last latents."""
    transform = Transform(weights, CPU)
    whole = synthetic_slide(
        16 * (margin.left + margin.right + -(-width // 16)),
        16 * (margin.top + margin.bottom + -(-height // 16)),
        seed=3,
    )
    y = transform.analyse(whole, Margin(), STATS)
    pixels = whole[16 * margin.top :, 16 * margin.left :][:height, :width]
    return quantise(y, weights.gain(QUALITY), np.dtype(np.int16)), Window(y, margin, pixels)


def native(weights: ModelWeights, latents: Any, window: Window, instructions: int | None = None) -> NativeGradient:
    transform = Transform(weights, CPU, dtype=torch.float32)
    found = transform.native_gradient(scaled(weights, latents), window.margin, STATS, window.pixels, QUALITY)
    assert found is not None
    if instructions is not None:
        synthesis = NativeSynthesis(weights.hyper, weights.arrays, instructions=instructions)
        inverse_gain = weights.inverse_gain(QUALITY)
        found = NativeGradient(synthesis, weights.hyper, weights.arrays, inverse_gain, found.sizes)
    return found


def scaled(weights: ModelWeights, latents: Any) -> torch.Tensor:
    return torch.from_numpy(dequantise(latents, weights.inverse_gain(QUALITY)))[None]


def found_by(gradient: NativeGradient, latents: Any, window: Window) -> tuple[Any, Any]:
    target = unshuffled_target(window.pixels, 16)
    error, slope = gradient(latents, window.margin, target, STATS.mean, STATS.std)
    assert slope is not None
    return error, slope


@pytest.mark.parametrize("margin", MARGINS, ids=str)
@pytest.mark.parametrize("name", ["tiny", "shipped"])
def test_errors_are_the_decoders_and_derivatives_nearly_those_of_autograd(name: str, margin: Margin) -> None:
    weights = tiny_integer_weights() if name == "tiny" else find_model(DEFAULT_MODEL)
    latents, window = example(weights, margin)
    error, slope = found_by(native(weights, latents, window), latents, window)
    transform = Transform(weights, CPU, dtype=torch.float32)
    expected_error, whole = transform.error_and_gradient(scaled(weights, latents), margin, STATS, window.pixels)
    assert whole is not None
    expected = whole[window.inner] * weights.inverse_gain(QUALITY)[:, None, None]
    assert error.shape == expected_error.shape
    assert np.allclose(error, expected_error, rtol=1e-5)
    assert slope.shape == expected.shape
    for place in (..., (slice(None), 0), (slice(None), slice(None), -1)):  # where edges would show, too
        assert np.corrcoef(slope[place].ravel(), expected[place].ravel())[0, 1] > 0.98
        off = np.square(slope[place] - expected[place]).sum() / np.square(expected[place]).sum()
        assert off < 0.15**2


@pytest.mark.parametrize("instructions", range(1, len(NAMES)), ids=NAMES[1:])
def test_every_instruction_set_gives_the_same_derivatives(instructions: int) -> None:
    weights = tiny_integer_weights()
    latents, window = example(weights, MARGINS[2])
    expected = found_by(native(weights, latents, window, 0), latents, window)
    found = found_by(native(weights, latents, window, instructions), latents, window)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


def test_working_memory_of_another_window_changes_nothing() -> None:
    weights = tiny_integer_weights()
    latents, window = example(weights, MARGINS[1])
    gradient = native(weights, latents, window)
    first = found_by(gradient, latents, window)
    other, large = example(weights, Margin(), height=200, width=250)
    found_by(gradient, other * 9, large)
    again = found_by(gradient, latents, window)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])


def test_pixels_beyond_the_edge_have_no_error() -> None:
    target = unshuffled_target(np.full((20, 8, 3), 7, np.uint8), 16)
    assert target.shape == (4, 2, 192)
    assert (target[:2, 0] == 7).all()
    assert (target[2, 0].reshape(3, 8, 8)[:, 4:] == NO_PIXEL).all()
    assert (target[:, 1] == NO_PIXEL).all()
    weights = tiny_integer_weights()
    latents, window = example(weights, Margin(), height=16, width=16)
    target = unshuffled_target(window.pixels[:0], 16)
    assert target.shape == (0, 2, 192)
    blank = np.full((2, 2, 192), NO_PIXEL, np.int16)
    error, slope = native(weights, latents, window)(latents, Margin(), blank, STATS.mean, STATS.std)
    assert slope is not None
    assert error.sum() == np.abs(slope).max() == 0


def test_the_search_takes_it_where_it_is_there() -> None:
    weights = tiny_integer_weights()
    latents, window = example(weights, Margin())
    transform = Transform(weights, CPU)
    search = LatentSearch(transform, HyperChunkCodec(weights), STATS)
    terms = search.measure(window, QUALITY)
    assert terms.gradient is not None
    found = search.search(latents, window, terms, 4)
    assert (found != latents).any()
    assert np.array_equal(found, search.search(latents, window, terms, 4))
