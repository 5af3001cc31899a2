"""Training: it resumes bit for bit, splits by case, starts at the KLT, and ends in a model that codes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from histocodec.codec.chunk import HyperChunkCodec
from histocodec.entropy.cost import symbol_bits
from histocodec.errors import UsageError
from histocodec.models.config import HyperConfig
from histocodec.models.export import export_model
from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.training import TrainableIntegerSynthesis
from histocodec.models.weights import load_model
from histocodec.normalise import tissue_stats
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from histocodec.threads import Workers
from histocodec.train.data.augment import disturbed, on_glass
from histocodec.train.data.images import held_out, training_files
from histocodec.train.data.latents import Encoder, Seen, seen, tables_of_stored
from histocodec.train.data.patches import Batch, PatchSampler, training_image
from histocodec.train.finish.decoder import FLAT, pattern, refine_synthesis, variances
from histocodec.train.finish.prior import refine_prior
from histocodec.train.finish.rounding import rounded
from histocodec.train.finish.synthesis import quantised_synthesis
from histocodec.train.loop import Progress, Schedule, Trainer
from histocodec.train.run import TrainOptions, run_training
from histocodec.train.start.finetune import coded, deepened, start_from_model
from histocodec.train.start.narrow import narrow
from tests.support.tiny import (
    TINY,
    tiny_integer_network,
    tiny_integer_weights,
    tiny_model,
    tiny_network,
    tiny_sampler,
    tiny_weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sampler() -> PatchSampler:
    image = training_image(synthetic_slide(384, 384), "a", torch.device("cpu"))
    assert image is not None
    return PatchSampler([image], batch=2, size=64, seed=3)


def trainer(sampler: PatchSampler) -> Trainer:
    made = Trainer(TINY, sampler, rate=1e-3, device=torch.device("cpu"))
    made.model.load_state_dict(tiny_network().state_dict())
    made.average.load_state_dict(made.model.state_dict())
    return made


def ignore(progress: Progress) -> None:
    pass


def test_a_resumed_run_ends_where_an_undisturbed_one_does(sampler: PatchSampler, tmp_path: Path) -> None:
    schedule = Schedule(6, warmup=2, decay=2)
    undisturbed = trainer(sampler)
    undisturbed.run(schedule, until=6, report=ignore)
    first = trainer(sampler)
    first.run(schedule, until=3, report=ignore)
    first.save(tmp_path / "last.pt")
    second = trainer(sampler)
    second.load(tmp_path / "last.pt")
    assert second.step == 3
    second.run(schedule, until=6, report=ignore)
    for name in ("model", "average"):
        expected, found = getattr(undisturbed, name).state_dict(), getattr(second, name).state_dict()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_training_lowers_the_loss(sampler: PatchSampler) -> None:
    made, losses = trainer(sampler), []
    made.run(Schedule(30, warmup=1), until=30, report=lambda p: losses.append(p.loss))
    assert np.mean(losses[-8:]) < np.mean(losses[:8])


def test_a_batch_depends_on_the_step_alone(sampler: PatchSampler) -> None:
    assert torch.equal(sampler(7).pixels, sampler(7).pixels)
    assert not torch.equal(sampler(7).pixels, sampler(8).pixels)


@pytest.mark.parametrize(("step", "factor"), [(0, 0.5), (1, 1.0), (5, 1.0), (8, 0.5), (10, 0.0)])
def test_the_schedule_warms_up_holds_and_decays(step: int, factor: float) -> None:
    assert Schedule(10, warmup=2, decay=4).factor(step) == pytest.approx(factor)


@pytest.mark.parametrize("last", [{"decay": 11}, {"enlarged": 11}, {"enlarged": -1}])
def test_a_schedule_does_not_end_with_more_steps_than_it_has(last: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="10 steps"):
        Schedule(10, **last)


def test_the_split_is_by_case_and_does_not_move() -> None:
    cases = [f"case-{i}" for i in range(400)]
    apart = {case for case in cases if held_out(case, 0.25)}
    assert 60 < len(apart) < 140
    assert apart <= {case for case in cases if held_out(case, 0.5)}


def test_the_start_is_a_transform_that_already_works() -> None:
    network = tiny_network()
    image = torch.from_numpy(synthetic_slide(256, 256, seed=0)).permute(2, 0, 1)[None].float()
    mean, std = image.mean(dim=(0, 2, 3), keepdim=True), image.std(dim=(0, 2, 3), keepdim=True)
    with torch.no_grad():
        low, high = (network((image - mean) / std, torch.tensor([q])) for q in (0.0, 100.0))
    errors = [float(((out.pixels - (image - mean) / std) * std).square().mean()) for out in (low, high)]
    assert errors[1] < errors[0] < 1500
    assert errors[1] < 300
    assert float(low.y_bits) < float(high.y_bits)


def test_a_run_from_files_ends_in_a_model_that_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histocodec.train.start.klt.BLOCKS", 2000)
    monkeypatch.setattr("histocodec.train.run.TABLE_BATCHES", 2)
    data = tmp_path / "data"
    data.mkdir()
    for seed in range(2):
        Image.fromarray(synthetic_slide(320, 320, seed=seed)).save(data / f"section-{seed}.png")
    lines: list[str] = []
    options = TrainOptions(
        data=(data,), out=tmp_path / "run", steps=4, batch=2, size=64, warmup=1, checkpoint_every=2, device="cpu"
    )
    path = run_training(options, lines.append, config=TINY)
    weights = load_model(path)
    assert weights.id == "hyper-custom"
    assert weights.hyper.integer_synthesis
    y = np.random.default_rng(0).integers(-9, 10, (TINY.latent_channels, 8, 8)).astype(np.int8)
    codec = HyperChunkCodec(weights)
    assert np.array_equal(codec.decode(codec.encode(y, 50), y.shape), y)
    assert json.loads((tmp_path / "run" / "options.json").read_text())["steps"] == 4
    with pytest.raises(UsageError, match="resume"):
        run_training(options, lines.append, config=TINY)
    longer = replace(options, steps=6, resume=True, prior_steps=2, hidden16=24)
    lighter = load_model(run_training(longer, lines.append, config=TINY))
    assert (lighter.hyper.hidden16, lighter.hyper.integer_synthesis) == (24, True)
    assert len((tmp_path / "run" / "prior.csv").read_text().splitlines()) == 1
    assert any("resumed at step 4" in line for line in lines)


@pytest.mark.parametrize(("steps", "hidden"), [(0, None), (3, None), (3, 24)])
def test_no_steps_of_training_change_the_synthesis_alone(tmp_path: Path, steps: int, hidden: int | None) -> None:
    Image.fromarray(synthetic_slide(320, 320, seed=1)).save(tmp_path / "section.png")
    start = tiny_model(tmp_path)
    options = TrainOptions(
        data=(tmp_path,), out=tmp_path / "run", steps=0, start=str(start), batch=2, size=64,
        device="cpu", model_id="whole", decoder_steps=steps, hidden16=hidden,
    )  # fmt: skip
    made, before = load_model(run_training(options, ignore_line)), load_model(start)
    assert made.id == "whole"
    assert made.hyper == replace(before.hyper, integer_synthesis=True, hidden16=hidden)
    kept = [name for name in before.arrays if not name.startswith("g_s.")]
    assert all(np.array_equal(made.arrays[name], before.arrays[name]) for name in kept)
    assert (made.notes["from"], made.notes["decoder_steps"]) == (before.sha256, str(steps))


def test_a_synthesis_in_whole_numbers_learns_on_from_there(tmp_path: Path) -> None:
    Image.fromarray(synthetic_slide(320, 320, seed=1)).save(tmp_path / "section.png")
    before = tiny_integer_weights()
    (tmp_path / "whole.safetensors").write_bytes(before.data)
    options = TrainOptions(
        data=(tmp_path,), out=tmp_path / "same", steps=0, start=str(tmp_path / "whole.safetensors"), batch=2, size=64,
        device="cpu", decoder_steps=0,
    )  # fmt: skip
    same = load_model(run_training(options, ignore_line))
    assert same.hyper == before.hyper
    assert all(np.array_equal(same.arrays[name], array) for name, array in before.arrays.items() if "g_s" in name)
    more = load_model(run_training(replace(options, out=tmp_path / "more", decoder_steps=20), ignore_line))
    changed = {name for name, array in before.arrays.items() if not np.array_equal(more.arrays[name], array)}
    learnt = {name for name in changed if name.startswith("g_s.") and name.endswith((".weight", ".bias"))}
    assert learnt and all(name in learnt or name.startswith("reach.") for name in changed)
    with pytest.raises(UsageError, match="whole numbers already"):
        run_training(replace(options, out=tmp_path / "narrower", hidden16=24), ignore_line)


def test_a_pattern_counts_where_nothing_hides_it() -> None:
    grey = torch.zeros(2, 3, 64, 64)
    grey[0, :, :16] = torch.tensor([200.0, 90, 140])[:, None, None] + torch.randn(3, 16, 64)
    grey[0, :, 16:], grey[1] = 40 * torch.randn(3, 48, 64), 40 * torch.randn(3, 64, 64)
    flat = variances(grey) < FLAT
    assert flat[0, 0, 0].all()
    assert int(flat.sum()) == 4
    wrong_colour, striped = 5 * torch.ones(2, 3, 64, 64), torch.zeros(2, 3, 64, 64)
    striped[..., ::2] = 4
    none = pattern(torch.zeros(2, 3, 64, 64), flat)
    assert torch.allclose(pattern(wrong_colour, flat), none, atol=1e-3)
    found = pattern(striped, flat) - none
    assert torch.allclose(found, torch.tensor([np.log(4.5 / 0.5), 0.0], dtype=torch.float32), atol=1e-3)


def test_what_others_foretell_is_left_out_first(sampler: PatchSampler) -> None:
    network = tiny_network()
    blocks = network.float_synthesis.blocks16
    with torch.no_grad():
        for block in blocks:
            for layer in (block.expand, block.depthwise):
                if layer is not None:
                    layer.weight[24:], layer.bias[24:] = layer.weight[:24].flip(0), layer.bias[:24].flip(0)
            block.project.weight.normal_(0, 0.1)
        latents = coded(network, sampler(5).pixels, torch.tensor([30.0, 70]))
        wanted = blocks(latents)
        narrow(network, sampler, 24)
        found, changed = network.float_synthesis.blocks16(latents), wanted - latents
    assert network.config == network.float_synthesis.config == replace(TINY, hidden16=24)
    assert [block.expand.out_channels for block in network.float_synthesis.blocks16] == [24, 24]
    assert (found - wanted).square().mean() < 1e-4 * changed.square().mean()


def test_a_block_keeps_what_the_pixels_would_miss(sampler: PatchSampler) -> None:
    """Of 48 activations, 40 do nothing: they go, and nothing changes."""
    network = tiny_network()
    with torch.no_grad():
        for block in network.float_synthesis.blocks16:
            block.project.weight.normal_(0, 0.1)
            block.project.weight[:, torch.arange(48) % 6 > 0] = 0
        latents = coded(network, sampler(5).pixels, torch.tensor([30.0, 70]))
        wanted = network.float_synthesis(latents)
        narrow(network, sampler, 8)
        assert torch.allclose(network.float_synthesis(latents), wanted, atol=1e-3)


@pytest.mark.parametrize("hidden", [0, 26, 52])
def test_more_activations_than_there_are_cannot_be_left(sampler: PatchSampler, hidden: int) -> None:
    with pytest.raises(UsageError, match="a multiple of 4 up to 48"):
        narrow(tiny_network(), sampler, hidden)


def ignore_line(line: str) -> None:
    pass


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
        patch.setattr("histocodec.train.finish.rounding.rounded", lambda weight, covariance: weight)
        network.g_s = quantised_synthesis(network, tiny_sampler())
    return network


def test_rounding_weights_together_is_nearer_to_the_float_synthesis() -> None:
    network = tiny_network()
    latents = coded(network, tiny_sampler()(8).pixels, torch.tensor([20.0, 40, 60, 80]))
    wanted = network.float_synthesis(latents)
    together, apart = (
        float((made.g_s(latents) - wanted).detach().square().mean())
        for made in (tiny_integer_network(), rounded_one_by_one())
    )
    assert together < 0.9 * apart


def test_refining_the_synthesis_raises_psnr_and_leaves_all_else_alone(sampler: PatchSampler) -> None:
    network = rounded_one_by_one()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def psnr() -> float:
        batches, quality = [sampler(step) for step in range(8)], torch.tensor([40.0, 80.0])
        return float(np.mean([_psnr(network, batch, quality) for batch in batches]))

    first = psnr()
    refine_synthesis(network, sampler, steps=60, report=ignore)
    assert psnr() > first + 0.02
    after = network.state_dict()
    learnt = ("g_s.weights.", "g_s.biases.")
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith(learnt))


@torch.no_grad()
def _psnr(network: HyperModel, batch: Batch, quality: torch.Tensor) -> float:
    decoded = network.g_s(coded(network, batch.pixels, quality))
    mse = ((decoded - batch.pixels) * batch.std[:, :, None, None]).square().flatten(1).mean(1)
    return float((10 * torch.log10(255**2 / mse)).mean())


def test_refining_the_prior_lowers_the_rate_and_leaves_the_transforms_alone(sampler: PatchSampler) -> None:
    network, rates = tiny_network(), []
    before = {name: value.clone() for name, value in network.state_dict().items()}
    refine_prior(network, sampler, steps=30, rate=2e-3, report=lambda p: rates.append(p.loss))
    assert np.mean(rates[-8:]) < np.mean(rates[:8])
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("prior."))


def test_training_from_a_model_file_begins_where_it_ended(sampler: PatchSampler) -> None:
    weights = tiny_weights()
    network = HyperModel(TINY).eval()
    start_from_model(network, weights, sampler)
    again = export_model(network, weights.id)
    assert again.arrays.keys() == weights.arrays.keys()
    for name, array in weights.arrays.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(again.arrays[name], array, rtol=1e-5, err_msg=name)
        else:
            rounding = 0 if name.endswith(("weight", "low", "size", "freq")) else 1  # of what is between anchors
            assert np.abs(again.arrays[name].astype(int) - array).max() <= rounding, name


def test_blocks_that_a_start_adds_change_nothing_at_first(sampler: PatchSampler) -> None:
    batch, quality = sampler(0), torch.tensor([40.0, 80.0])
    outputs = []
    for config in (TINY, deepened(TINY)):
        network = HyperModel(config).eval()
        start_from_model(network, tiny_weights(), sampler)
        with torch.no_grad():
            outputs.append(network(batch.pixels, quality))
    assert len(network.g_a.blocks8) == len(HyperConfig().analysis8) > len(TINY.analysis8)
    assert torch.allclose(outputs[0].pixels, outputs[1].pixels)
    assert torch.allclose(outputs[0].y_bits, outputs[1].y_bits)


def test_a_model_of_other_sizes_is_no_start(sampler: PatchSampler) -> None:
    with pytest.raises(UsageError, match="other sizes"):
        start_from_model(HyperModel(replace(TINY, context_width=20)), tiny_weights(), sampler)


def test_the_prior_learns_from_integers_and_the_analysis_from_noise(sampler: PatchSampler) -> None:
    """At quality 0 all latents are zero: noise asks the analysis for smaller ones all the same."""
    network = tiny_network().train()
    output = network(sampler(0).pixels, torch.zeros(2))
    network.eval()
    assert torch.allclose(output.y_bits, network(sampler(0).pixels, torch.zeros(2)).y_bits)
    output.y_bits.sum().backward()
    assert network.g_a.down.weight.grad is not None
    assert float(network.g_a.down.weight.grad.abs().sum()) > 0


def test_a_patch_on_glass_is_mostly_glass_and_normalised_by_what_is_not(sampler: PatchSampler) -> None:
    image = torch.from_numpy(synthetic_slide(256, 256, seed=1)).permute(2, 0, 1).float()
    mean, std = image.mean((1, 2)), image.std((1, 2))
    shares = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        patch, deviation = on_glass((image - mean[:, None, None]) / std[:, None, None], std, rng)
        grey = patch * deviation[:, None, None]
        glass = grey.flatten(1).median(1).values
        shares.append(float(((grey - glass[:, None, None]).abs().amax(0) < 6).float().mean()))
        assert torch.isfinite(patch).all()
    assert np.mean(shares) > 0.5
    assert max(shares) - min(shares) > 0.1


def test_disturbed_statistics_leave_the_pixels_alone() -> None:
    patch, std = torch.randn(3, 16, 16), torch.tensor([40.0, 45.0, 35.0])
    other, other_std = disturbed(patch, std, np.random.default_rng(0))
    assert not torch.allclose(other, patch)
    difference = other * other_std[:, None, None] - patch * std[:, None, None]
    assert torch.allclose(difference, difference.mean((1, 2), keepdim=True).expand_as(difference), atol=1e-4)


def test_the_last_steps_see_larger_crops() -> None:
    image = training_image(synthetic_slide(384, 384), "a", torch.device("cpu"))
    assert image is not None
    larger = PatchSampler([image], batch=4, size=128, seed=3).enlarged()
    assert larger(0).pixels.shape == (2, 3, 192, 192)


def test_an_empty_folder_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"\.avif"):
        training_files([tmp_path])


def test_latents_are_learnt_from_as_they_are_stored(tmp_path: Path) -> None:
    Image.fromarray(synthetic_slide(400, 320, seed=1)).save(tmp_path / "section.png")
    before, lines = tiny_integer_weights(), []
    (tmp_path / "whole.safetensors").write_bytes(before.data)
    options = TrainOptions(
        data=(tmp_path,), out=tmp_path / "run", steps=0, start=str(tmp_path / "whole.safetensors"), batch=2, size=64,
        device="cpu", decoder_steps=10, stored=3,
    )  # fmt: skip
    made = load_model(run_training(options, lines.append))
    assert any("encoded 3 of 3" in line for line in lines)
    assert made.hyper == before.hyper
    assert not np.array_equal(made.arrays["g_s.tail.bias"], before.arrays["g_s.tail.bias"])
    assert not np.array_equal(made.arrays["tables.freq"], before.arrays["tables.freq"])
    with pytest.raises(UsageError, match="--stored needs"):
        run_training(replace(options, out=tmp_path / "float", start=str(tiny_model(tmp_path))), ignore_line)
    with pytest.raises(UsageError, match="no --hidden16"):
        run_training(replace(options, out=tmp_path / "narrow", hidden16=24), ignore_line)


def test_a_stored_crop_is_what_the_encoder_makes_of_it() -> None:
    """Its latents decode to its pixels; so does a window, but for what was cut away around it; tables fit them."""
    weights, workers = tiny_integer_weights(), Workers(2)
    pixels = synthetic_slide(640, 560, seed=3)
    stats = tissue_stats(ArraySlide(pixels))
    encoder = Encoder(weights, workers)
    plain, sought = (encoder.stored(pixels, stats, 70, effort) for effort in (0, 1))
    workers.close()
    assert plain.latents.shape == (TINY.latent_channels, 35, 40)
    assert not torch.equal(plain.latents, sought.latents)
    synthesis = TrainableIntegerSynthesis(weights.hyper)
    synthesis.load_arrays(weights.arrays)

    def errors(window: Seen) -> Tensor:
        rows, columns = window.inner
        error = (synthesis(window.latents) - window.pixels) * window.std[:, :, None, None]
        return error.detach()[:, :, rows, columns]

    whole = errors(seen(sought, weights, np.random.default_rng(0), 99))
    assert whole.shape == (1, 3, 560, 640)
    assert float(whole.square().mean()) < 0.1 * float(pixels.var())
    part = seen(sought, weights, np.random.default_rng(1), 20)
    assert part.latents.shape == (1, TINY.latent_channels, 20, 20)
    found = errors(part)
    places = [
        (y, x) for y in range(0, 560, 16) for x in range(0, 640, 16)
        if torch.equal(whole[:, :, y : y + found.shape[2], x : x + found.shape[3]], found)
    ]  # fmt: skip
    assert len(places) == 1  # bit for bit, wherever it was cut out
    counted, codec = tables_of_stored(weights, [plain, sought]), HyperChunkCodec(weights)
    y = F.pad(sought.latents, (0, 0, 0, 1)).numpy()
    before, after = (
        sum(float(symbol_bits(s.values - s.whole_mean, s.tables, tables).sum()) for s in codec.segments(y, 70))
        for tables in (weights.tables, counted)
    )
    assert after < before
