"""The analysis by int8 products, natively or by PyTorch: nearly what float32 gives."""

import numpy as np
import pytest
import torch

from histocodec.codec.transform import Transform
from histocodec.errors import FormatError
from histocodec.geometry import Margin
from histocodec.kernels.instructions import runs_natively
from histocodec.models.export import export_model
from histocodec.models.transforms.fast import int8_products_exact
from histocodec.models.weights import ModelWeights
from histocodec.normalise import ChannelStats
from histocodec.sources.synthetic import synthetic_slide
from tests.support.tiny import TINY, tiny_network, tiny_weights_with_ranges

CPU = torch.device("cpu")
STATS = ChannelStats(np.array([180.0, 140.0, 175.0], np.float32), np.array([40.0, 45.0, 35.0], np.float32))
pytestmark = pytest.mark.skipif(not int8_products_exact(), reason="this processor has no exact int8 products")


@pytest.fixture(autouse=True, params=["native", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What computes the analysis: native kernels, or PyTorch's int8 products where there are none."""
    if request.param == "torch":
        monkeypatch.setattr("histocodec.codec.transform.runs_natively", lambda: False)
    elif not runs_natively():
        pytest.skip("native kernels are not the fastest way here")


def y(dtype: torch.dtype | None, pixels: np.ndarray, margin: Margin | None = None) -> np.ndarray:
    return Transform(tiny_weights_with_ranges(), CPU, dtype=dtype).analyse(pixels, margin or Margin(), STATS)


def test_int8_products_are_close_to_float32() -> None:
    pixels = synthetic_slide(256, 192, seed=6)
    exact, found = (y(dtype, pixels) for dtype in (torch.float32, None))
    assert not np.array_equal(found, exact)
    assert float(np.square(found - exact).mean()) < 2e-4 * float(np.square(exact).mean())


def test_a_window_is_the_crop_of_the_whole() -> None:
    pixels, halo = synthetic_slide(320, 320, seed=6), TINY.analysis_halo
    whole = y(None, pixels)
    left, top = 5, 6
    part = pixels[16 * (top - halo) : 16 * (top + 8 + halo), 16 * (left - halo) : 16 * (left + 7 + halo)]
    np.testing.assert_allclose(y(None, part, Margin(halo, halo, halo, halo)), whole[:, 6:14, 5:12], atol=0.02)


def test_a_model_without_ranges_runs_in_floating_point() -> None:
    plain = export_model(tiny_network(), "tiny-plain")
    pixels = synthetic_slide(128, 128, seed=6)
    default, half = (Transform(plain, CPU, dtype=d) for d in (None, Transform(plain, CPU).dtype))
    assert np.array_equal(default.analyse(pixels, Margin(), STATS), half.analyse(pixels, Margin(), STATS))


@pytest.mark.parametrize("change", ["missing", "short", "not finite"])
def test_a_range_that_does_not_fit_is_refused(change: str) -> None:
    arrays = dict(tiny_weights_with_ranges().arrays)
    name = "reach.blocks16.0.depthwise"
    if change == "missing":
        del arrays[name]
    else:
        arrays[name] = arrays[name][:-1] if change == "short" else arrays[name] * np.float32(np.inf)
    with pytest.raises(FormatError, match=name):
        Transform(ModelWeights("a", "", TINY, arrays, b""), CPU).analyse(synthetic_slide(64, 64), Margin(), STATS)
