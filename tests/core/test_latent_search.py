"""What the search for cheaper latents is built of: derivatives by hand, and what a step teaches."""

import numpy as np
import pytest
import torch

from histocodec.codec.chunk import HyperChunkCodec
from histocodec.codec.gains import quantise
from histocodec.codec.latent_search import Floats, LatentSearch, SearchTerms, _updated_curvature, _updated_damping
from histocodec.codec.transform import Transform
from histocodec.codec.window import Window
from histocodec.fidelity import squared_error
from histocodec.geometry import Margin
from histocodec.models.config import HyperConfig
from histocodec.models.transforms.network import Hidden, Synthesis
from histocodec.models.transforms.pullback import Pullback
from histocodec.normalise import ChannelStats
from histocodec.sources.synthetic import synthetic_slide
from tests.support.tiny import tiny_weights

STATS = ChannelStats(np.array([180.0, 140.0, 175.0], np.float32), np.array([40.0, 45.0, 35.0], np.float32))
CONFIG = HyperConfig(latent_channels=16, synthesis16=(True, False, True), synthesis8=(True, True), hidden16=12)


@pytest.mark.parametrize("margin", [Margin(), Margin(3, 4, 0, 2)], ids=["whole", "with a margin"])
def test_a_derivative_by_hand_is_that_of_autograd(margin: Margin) -> None:
    torch.manual_seed(0)
    hidden: Hidden = []
    tried: Hidden = []
    synthesis = Synthesis(CONFIG).eval()
    latents = torch.randn(2, 16, 11, 12, requires_grad=True)
    decoded = synthesis.window(latents, margin, hidden)
    slope = torch.randn_like(decoded)
    (expected,) = torch.autograd.grad(decoded, latents, slope)
    with torch.inference_mode():
        x = latents.detach().contiguous(memory_format=torch.channels_last)
        again = synthesis.window(x, margin, tried)
        found = Pullback(synthesis)(slope.contiguous(memory_format=torch.channels_last), margin, tried)
    assert torch.allclose(again, decoded, atol=1e-5)
    assert [len(active) for active in hidden] == [2, 1, 2, 2, 2]
    assert found.shape == latents.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_error_of_each_position_and_its_derivative() -> None:
    transform = Transform(tiny_weights(), torch.device("cpu"), dtype=torch.float32)
    pixels = synthetic_slide(80, 96, seed=3)
    y = torch.from_numpy(transform.analyse(pixels, Margin(), STATS))[None]
    margin, own = Margin(1, 0, 1, 2), pixels[16 : 80 - 5, :48]  # which ends within the last latents
    error, slope = transform.error_and_gradient(y, margin, STATS, own)
    decoded = transform.synthesise_unrounded(y, margin, STATS)[0].permute(1, 2, 0).numpy()[: len(own)]
    assert error.shape == (4, 3)
    assert np.allclose(error[1, 2], np.square(decoded[16:32, 32:] - own[16:32, 32:]).sum(), rtol=1e-3)
    assert np.allclose(error.sum(), np.square(decoded - own).sum(), rtol=1e-3)
    assert slope is not None
    assert slope.shape == y.shape[1:]
    step = torch.from_numpy(np.random.default_rng(0).normal(size=slope.shape).astype(np.float32))[None] * 1e-3
    more, less = (transform.error_and_gradient(y + sign * step, margin, STATS, own)[0].sum() for sign in (1, -1))
    assert more - less == pytest.approx(2 * (slope * step[0].numpy()).sum(), rel=0.02)
    assert transform.error_and_gradient(y, margin, STATS, own, gradient=False)[1] is None


def test_a_position_that_shows_nothing_is_left_alone() -> None:
    transform = Transform(tiny_weights(), torch.device("cpu"))
    pixels = synthetic_slide(160, 160, seed=3)
    pixels[:, 80:] = (243, 240, 244)
    pixels[0, 159] = 0  # but for this one
    window = Window(transform.analyse(pixels, Margin(), STATS), Margin(), pixels)
    search, rounded = (
        LatentSearch(transform, HyperChunkCodec(tiny_weights()), STATS),
        quantise(window.y, tiny_weights().gain(60), np.dtype(np.int16)),
    )
    found = search.search(rounded, window, search.measure(window, 60), 8)
    changed = (found != rounded).any(axis=0)
    assert changed[:, :5].any()
    assert not changed[1:, 5:].any()
    assert not changed[:, 5:9].any()


def test_the_background_is_right_at_the_quality_below_too(monkeypatch: pytest.MonkeyPatch) -> None:
    transform, background = Transform(tiny_weights(), torch.device("cpu"), dtype=torch.float32), (243, 240, 244)
    stats = transform.aligned(STATS, background, 60)
    pixels = synthetic_slide(160, 160, seed=3)
    pixels[:, 80:] = background
    window = Window(transform.analyse(pixels, Margin(), stats), Margin(), pixels)
    asked: list[tuple[int, float]] = []

    def rounded(self: LatentSearch, window: Window, quality: int, stats: ChannelStats) -> tuple[Floats, Floats]:
        _, error = found = _rounded_cost(self, window, quality, stats)
        asked.append((quality, float(error[:, 9:].sum())))
        return found

    _rounded_cost = LatentSearch._rounded_cost
    monkeypatch.setattr(LatentSearch, "_rounded_cost", rounded)
    for exact in (background, None):
        LatentSearch(transform, HyperChunkCodec(tiny_weights()), stats, exact).measure(window, 60)
    (below, error), here, (_, wrong), again = asked
    assert below < 60
    assert here == again == (60, pytest.approx(here[1]))
    assert error < 0.7 * wrong  # far from tissue: what is left is a pattern that the tiny model draws on any background


def test_a_search_never_ends_dearer_than_it_began() -> None:
    transform, codec = Transform(tiny_weights(), torch.device("cpu")), HyperChunkCodec(tiny_weights())
    pixels = synthetic_slide(160, 160, seed=3)
    window = Window(transform.analyse(pixels, Margin(), STATS), Margin(), pixels)
    rounded = quantise(window.y, tiny_weights().gain(60), np.dtype(np.int16))
    trained = tiny_weights().hyper.rate_weight(60) / 3
    terms = SearchTerms(60, np.full(48, 1e-9, np.float32), trained, None)
    found = LatentSearch(transform, codec, STATS).search(rounded, window, terms, 3)
    shown = [
        transform.synthesise([(x * tiny_weights().inverse_gain(60)[:, None, None]).astype(np.float32)], Margin(), STATS)
        for x in (rounded, found)
    ]
    bits = [8 * len(codec.encode(np.pad(x, ((0, 0), (0, 2), (0, 2))), 60)) for x in (rounded, found)]
    before, after = (squared_error(one[0], pixels) for one in shown)
    assert bits[1] + trained * after < 1.01 * (bits[0] + trained * before)


def test_a_position_that_bent_more_than_expected_is_updated_damping() -> None:
    damping = np.ones((1, 9), np.float32)
    alone = np.zeros((1, 9))
    alone[0, 1], alone[0, 7] = 2.0, 2.0
    bent = np.array([[0, 8.0, 0, 0, 0, 0, 0, 0.5, 0]])
    found = _updated_damping(damping, bent, alone, np.ones((1, 9), bool))
    assert np.allclose(found[0, :3], 0.8 * 2)  # halfway from 1 to 4, and a little bolder
    assert np.allclose(found[0, 3:6], 0.8)  # nothing moved near it
    assert np.allclose(found[0, 6:], 0.8 * np.sqrt(0.3))  # not below what is allowed
    assert np.allclose(_updated_damping(damping, bent, alone, np.zeros((1, 9), bool))[0, :3], 1.1 * 2)


def test_a_channel_that_bent_more_than_others_is_curved_more() -> None:
    moved = np.array([1600.0, 1600.0, 0.0])
    found = _updated_curvature(np.ones(3, np.float32), moved * (1.0, 4.0, 9.0), moved)
    assert found[1] / found[0] == pytest.approx(4, rel=0.05)
    assert found[0] * found[1] == pytest.approx(1, rel=0.01)  # what they have in common is not theirs
