"""How a trained model is finished: pruned, its synthesis in integers, synthesis and prior trained alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from histocodec.codec.chunk import HyperChunkCodec
from histocodec.entropy.cost import symbol_bits
from histocodec.errors import UsageError
from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.training import TrainableIntegerSynthesis
from histocodec.normalise import tissue_stats
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from histocodec.threads import Workers
from histocodec.train.data.patches import Batch, PatchSampler, training_image
from histocodec.train.data.rounded_latents import rounded_latents
from histocodec.train.data.stored_latents import CropEncoder, SynthesisExample, random_window, tables_of_crops
from histocodec.train.finish.prior_training import train_prior
from histocodec.train.finish.prune import prune
from histocodec.train.finish.quantise_synthesis import quantise_synthesis
from histocodec.train.finish.synthesis_training import FLAT, pattern, train_synthesis
from histocodec.train.finish.weight_rounding import rounded
from histocodec.train.loss import block_variance
from histocodec.train.progress import Progress
from tests.support.tiny import (
    TINY,
    tiny_integer_network,
    tiny_integer_weights,
    tiny_network,
    tiny_sampler,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sampler() -> PatchSampler:
    image = training_image(synthetic_slide(384, 384), "a", torch.device("cpu"))
    assert image is not None
    return PatchSampler([image], batch=2, size=64, seed=3)


def test_a_pattern_counts_where_nothing_hides_it() -> None:
    grey = torch.zeros(2, 3, 64, 64)
    grey[0, :, :16] = torch.tensor([200.0, 90, 140])[:, None, None] + torch.randn(3, 16, 64)
    grey[0, :, 16:], grey[1] = 40 * torch.randn(3, 48, 64), 40 * torch.randn(3, 64, 64)
    flat = block_variance(grey) < FLAT
    assert flat[0, 0, 0].all()
    assert int(flat.sum()) == 4
    wrong_colour, striped = 5 * torch.ones(2, 3, 64, 64), torch.zeros(2, 3, 64, 64)
    striped[..., ::2] = 4
    none = pattern(torch.zeros(2, 3, 64, 64), flat)
    assert torch.allclose(pattern(wrong_colour, flat), none, atol=1e-3)
    found = pattern(striped, flat) - none
    assert torch.allclose(found, torch.tensor([np.log(4.5 / 0.5), 0.0], dtype=torch.float32), atol=1e-3)


def test_pruning_takes_what_others_predict_first(sampler: PatchSampler) -> None:
    network = tiny_network()
    blocks = network.float_synthesis.blocks16
    with torch.no_grad():
        for block in blocks:
            for layer in (block.expand, block.depthwise):
                if layer is not None:
                    layer.weight[24:], layer.bias[24:] = layer.weight[:24].flip(0), layer.bias[:24].flip(0)
            block.project.weight.normal_(0, 0.1)
        latents = rounded_latents(network, sampler(5).pixels, torch.tensor([30.0, 70]))
        wanted = blocks(latents)
        prune(network, sampler, 24)
        found, changed = network.float_synthesis.blocks16(latents), wanted - latents
    assert network.config == network.float_synthesis.config == replace(TINY, hidden16=24)
    assert [block.expand.out_channels for block in network.float_synthesis.blocks16] == [24, 24]
    assert (found - wanted).square().mean() < 1e-4 * changed.square().mean()


def test_pruning_keeps_what_the_pixels_would_miss(sampler: PatchSampler) -> None:
    """Of 48 activations, 40 do nothing: they go, and nothing changes."""
    network = tiny_network()
    with torch.no_grad():
        for block in network.float_synthesis.blocks16:
            block.project.weight.normal_(0, 0.1)
            block.project.weight[:, torch.arange(48) % 6 > 0] = 0
        latents = rounded_latents(network, sampler(5).pixels, torch.tensor([30.0, 70]))
        wanted = network.float_synthesis(latents)
        prune(network, sampler, 8)
        assert torch.allclose(network.float_synthesis(latents), wanted, atol=1e-3)


@pytest.mark.parametrize("hidden", [0, 26, 52])
def test_more_activations_than_there_are_cannot_stay(sampler: PatchSampler, hidden: int) -> None:
    with pytest.raises(UsageError, match="a multiple of 4 up to 48"):
        prune(tiny_network(), sampler, hidden)


def squared_error(weight: torch.Tensor, rounded: torch.Tensor, covariance: torch.Tensor) -> float:
    error = (weight - rounded)[:, None]
    return float((error @ covariance @ error.transpose(1, 2)).sum())


@pytest.mark.parametrize("groups", [1, 40])
def test_rounding_errors_make_up_for_each_other_where_inputs_go_together(groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 50 * torch.randn(40, 9, generator=generator, dtype=torch.float64)
    mixed = torch.randn(groups, 9, 9, generator=generator, dtype=torch.float64)
    covariance = mixed @ mixed.transpose(1, 2)
    found = rounded(weight, covariance)
    assert torch.equal(found, found.round())
    assert found.abs().max() == 127  # of weights up to 200
    inside = weight.abs().amax(1) < 120
    some = covariance if groups == 1 else covariance[inside]
    errors = [squared_error(weight[inside], values[inside], some) for values in (found, weight.round())]
    assert errors[0] < 0.6 * errors[1]
    apart = torch.eye(9, dtype=torch.float64).expand(groups, 9, 9)
    assert torch.equal(rounded(weight, apart), weight.round().clamp(-127, 127))


def rounded_one_by_one() -> HyperModel:
    network = tiny_network()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histocodec.train.finish.weight_rounding.rounded", lambda weight, covariance: weight)
        network.g_s = quantise_synthesis(network, tiny_sampler())
    return network


def test_rounding_weights_together_is_nearer_to_the_float_synthesis() -> None:
    network = tiny_network()
    latents = rounded_latents(network, tiny_sampler()(8).pixels, torch.tensor([20.0, 40, 60, 80]))
    wanted = network.float_synthesis(latents)
    together, apart = (
        float((made.g_s(latents) - wanted).detach().square().mean())
        for made in (tiny_integer_network(), rounded_one_by_one())
    )
    assert together < 0.9 * apart


def test_training_the_synthesis_alone_raises_psnr_and_leaves_all_else_alone(sampler: PatchSampler) -> None:
    network = rounded_one_by_one()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def psnr() -> float:
        batches, quality = [sampler(step) for step in range(8)], torch.tensor([40.0, 80.0])
        return float(np.mean([_psnr(network, batch, quality) for batch in batches]))

    first = psnr()
    train_synthesis(network, sampler, steps=60, report=ignore)
    assert psnr() > first + 0.02
    after = network.state_dict()
    learnt = ("g_s.weights.", "g_s.biases.")
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith(learnt))


@torch.no_grad()
def _psnr(network: HyperModel, batch: Batch, quality: torch.Tensor) -> float:
    decoded = network.g_s(rounded_latents(network, batch.pixels, quality))
    mse = ((decoded - batch.pixels) * batch.std[:, :, None, None]).square().flatten(1).mean(1)
    return float((10 * torch.log10(255**2 / mse)).mean())


def test_training_the_prior_alone_lowers_the_rate_and_leaves_the_transforms_alone(sampler: PatchSampler) -> None:
    network, rates = tiny_network(), []
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train_prior(network, sampler, steps=30, rate=2e-3, report=lambda p: rates.append(p.loss))
    assert np.mean(rates[-8:]) < np.mean(rates[:8])
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("prior."))


def test_a_stored_crop_is_what_the_encoder_makes_of_it() -> None:
    """Its latents decode to its pixels; so does a window, but for what was cut away around it; tables fit them."""
    weights, workers = tiny_integer_weights(), Workers(2)
    pixels = synthetic_slide(640, 560, seed=3)
    stats = tissue_stats(ArraySlide(pixels))
    encoder = CropEncoder(weights, workers)
    plain, sought = (encoder.encode(pixels, stats, 70, effort) for effort in (0, 1))
    workers.close()
    assert plain.latents.shape == (TINY.latent_channels, 35, 40)
    assert not torch.equal(plain.latents, sought.latents)
    synthesis = TrainableIntegerSynthesis(weights.hyper)
    synthesis.load_arrays(weights.arrays)

    def errors(window: SynthesisExample) -> Tensor:
        rows, columns = window.inner
        error = (synthesis(window.latents) - window.pixels) * window.std[:, :, None, None]
        return error.detach()[:, :, rows, columns]

    whole = errors(random_window(sought, weights, np.random.default_rng(0), 99))
    assert whole.shape == (1, 3, 560, 640)
    assert float(whole.square().mean()) < 0.1 * float(pixels.var())
    part = random_window(sought, weights, np.random.default_rng(1), 20)
    assert part.latents.shape == (1, TINY.latent_channels, 20, 20)
    found = errors(part)
    places = [
        (y, x) for y in range(0, 560, 16) for x in range(0, 640, 16)
        if torch.equal(whole[:, :, y : y + found.shape[2], x : x + found.shape[3]], found)
    ]  # fmt: skip
    assert len(places) == 1  # bit for bit, wherever it was cut out
    counted, codec = tables_of_crops(weights, [plain, sought]), HyperChunkCodec(weights)
    y = F.pad(sought.latents, (0, 0, 0, 1)).numpy()
    before, after = (
        sum(float(symbol_bits(s.values - s.whole_mean, s.tables, tables).sum()) for s in codec.segments(y, 70))
        for tables in (weights.tables, counted)
    )
    assert after < before


def ignore(progress: Progress) -> None:
    pass
