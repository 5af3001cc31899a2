"""The native analysis gives the y of float32 but for a hundredth of a step, with every instruction set."""

import numpy as np
import pytest
import torch

from histocodec.codec.networks import analysis_network
from histocodec.codec.transform import Transform
from histocodec.geometry import Margin
from histocodec.kernels.instructions import NAMES
from histocodec.models.transforms.native_analysis import NativeAnalysis
from histocodec.models.transforms.network import Analysis
from histocodec.models.weights import DEFAULT_MODEL, ModelWeights, find_model
from histocodec.normalise import ChannelStats
from histocodec.sources.synthetic import synthetic_slide
from tests.support.tiny import tiny_weights_with_ranges

STATS = ChannelStats(np.array([180.0, 140.0, 175.0], np.float32), np.array([40.0, 45.0, 35.0], np.float32))
CPU = torch.device("cpu")


def native(weights: ModelWeights, instructions: int | None = None) -> NativeAnalysis:
    return NativeAnalysis(weights.hyper, weights.transform("g_a"), weights.arrays, instructions=instructions)


@pytest.mark.parametrize("margin", [Margin(), Margin(5, 5, 5, 5), Margin(0, 2, 7, 1)], ids=str)
@pytest.mark.parametrize("name", ["tiny", "shipped"])
def test_y_is_that_of_float32_but_for_rounding(name: str, margin: Margin) -> None:
    weights = tiny_weights_with_ranges() if name == "tiny" else find_model(DEFAULT_MODEL)
    margin = Margin(
        *(min(side, weights.config.analysis_halo) for side in (margin.top, margin.left, margin.bottom, margin.right))
    )
    margin, pixels = margin.within(weights.config.analysis_halo), synthetic_slide(272, 240, seed=3)
    expected = Transform(weights, CPU, dtype=torch.float32).analyse(pixels, margin, STATS)
    found = native(weights).y(pixels, margin, STATS.mean, STATS.std)
    assert found.shape == expected.shape
    gain = weights.gain(70)[:, None, None]
    rms = np.sqrt(np.square((found - expected) * gain).mean())
    signal = np.sqrt(np.square(expected * gain).mean())
    assert rms < max(0.01, 0.01 * signal)
    edge = (found - expected)[:, [0, -1]] * gain
    assert np.sqrt(np.square(edge).mean()) < max(0.02, 0.02 * signal)


@pytest.mark.parametrize("instructions", range(1, len(NAMES)), ids=NAMES[1:])
def test_every_instruction_set_gives_the_same_y(instructions: int) -> None:
    weights, pixels = tiny_weights_with_ranges(), synthetic_slide(144, 112, seed=3)
    expected, found = (
        native(weights, n).y(pixels, Margin(1, 0, 2, 1), STATS.mean, STATS.std) for n in (0, instructions)
    )
    assert np.array_equal(found, expected)


def test_other_statistics_are_another_first_layer() -> None:
    weights, pixels = tiny_weights_with_ranges(), synthetic_slide(96, 96, seed=3)
    analysis, network = native(weights), analysis_network(weights)
    assert isinstance(network, Analysis)
    for mean, std in ((STATS.mean, STATS.std), (STATS.mean - 30, STATS.std * np.float32(1.7)), (STATS.mean, STATS.std)):
        with torch.inference_mode():
            planes = torch.from_numpy((pixels - mean) / std)
            expected = network(planes.permute(2, 0, 1)[None])[0].numpy()
        found = analysis.y(pixels, Margin(), mean, std)
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_encoders_take_it_unless_they_ask_for_a_dtype() -> None:
    weights, pixels = tiny_weights_with_ranges(), synthetic_slide(96, 96, seed=3)
    found = Transform(weights, CPU).analyse(pixels, Margin(), STATS)
    assert np.array_equal(found, native(weights).y(pixels, Margin(), STATS.mean, STATS.std))
    assert not np.array_equal(found, Transform(weights, CPU, dtype=torch.float32).analyse(pixels, Margin(), STATS))
