"""Training: batches, the main stage, its starts; it resumes bit for bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from histocodec.errors import FormatError, UsageError
from histocodec.models.config import HyperConfig
from histocodec.models.export import export_model
from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.exact import synthesised
from histocodec.models.transforms.training import TrainableIntegerSynthesis
from histocodec.sources.synthetic import synthetic_slide
from histocodec.train.data.augment import disturbed, on_background
from histocodec.train.data.images import held_out, training_files
from histocodec.train.data.patches import PatchSampler, training_image
from histocodec.train.loop import STEP_RATE, Trainer
from histocodec.train.loss import edge_error
from histocodec.train.progress import Progress
from histocodec.train.schedule import Schedule
from histocodec.train.start.from_model import deepened, start_from_model
from tests.support.tiny import (
    TINY,
    tiny_integer_network,
    tiny_integer_weights,
    tiny_network,
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


def grown() -> HyperConfig:
    return replace(TINY, synthesis16=(True, False, True, False), synthesis8=(True, True, False))


@pytest.mark.parametrize("integers", [False, True])
def test_blocks_that_a_synthesis_grows_by_change_nothing_at_first(integers: bool, sampler: PatchSampler) -> None:
    outputs = []
    for config in (TINY, grown()):
        made = Trainer(
            config, sampler, rate=1e-3, device=torch.device("cpu"), start=tiny_integer_weights(), integers=integers
        )
        made.initialise()
        with torch.no_grad():
            outputs.append(made.average(sampler(0).pixels, torch.tensor([40.0, 80.0])).pixels)
    assert torch.allclose(*outputs, atol=1e-5)


def test_a_synthesis_in_whole_numbers_trains_as_it_decodes(sampler: PatchSampler) -> None:
    made = Trainer(
        grown(), sampler, rate=1e-3, device=torch.device("cpu"), start=tiny_integer_weights(), integers=True,
        prior_rate=0.5, edges=1.0,
    )  # fmt: skip
    made.initialise()
    start = {name: value.clone() for name, value in made.model.g_s.state_dict().items()}
    made.run(Schedule(4, warmup=1), until=4, report=ignore)
    weights = export_model(made.model.eval(), "grown")
    assert weights.hyper == replace(grown(), integer_synthesis=True)
    learnt = made.model.g_s.state_dict()
    assert all(not torch.equal(start[name], learnt[name]) for name in start if name.startswith("weights.blocks8"))
    assert all(torch.equal(start[name], learnt[name]) for name in start if name.startswith(("shift", "scale", "fine")))
    latents = torch.round(4 * torch.randn(1, TINY.latent_channels, 6, 6))
    with torch.no_grad():
        trained = made.model.g_s(latents)
    decoded = F.pixel_shuffle(synthesised(weights.hyper, weights.arrays, latents), 8)
    assert torch.equal(trained, decoded)


def test_weights_that_grow_too_large_are_kept_exact() -> None:
    made = tiny_integer_network()
    synthesis = made.g_s
    assert isinstance(synthesis, TrainableIntegerSynthesis)
    unchanged = {name: value.clone() for name, value in synthesis.state_dict().items()}
    synthesis.keep_exact()
    learnt = synthesis.state_dict()
    assert all(torch.equal(unchanged[name], learnt[name]) for name in unchanged)
    with torch.no_grad():
        for name, weight in synthesis.weights.items():
            if name.endswith(("up", "project")):
                weight.mul_(4)
    with pytest.raises(FormatError, match="24"):
        export_model(made, "too-large")
    synthesis.keep_exact()
    export_model(made, "exact")


def test_a_step_moves_every_layer_by_stored_steps(sampler: PatchSampler) -> None:
    made = Trainer(
        TINY, sampler, rate=1e-3, device=torch.device("cpu"), start=tiny_integer_weights(), integers=True
    )  # fmt: skip
    made.initialise()
    synthesis = made.model.g_s
    assert isinstance(synthesis, TrainableIntegerSynthesis)
    before = {name: value.detach().clone() for name, value in synthesis.named_parameters()}
    made.run(Schedule(1, warmup=1), until=1, report=ignore)
    after = synthesis.state_dict()
    for name, size in synthesis.step_sizes().items():
        moved = ((after[name] - before[name]) / size).abs()
        assert float(moved.max()) == pytest.approx(1e-3 * STEP_RATE, rel=0.01), name  # Adam's first step


def test_integers_cannot_grow_from_floating_point(sampler: PatchSampler) -> None:
    made = Trainer(
        TINY, sampler, rate=1e-3, device=torch.device("cpu"), start=tiny_weights(), integers=True
    )  # fmt: skip
    with pytest.raises(UsageError, match="floating point"):
        made.initialise()


def test_the_error_across_edges_counts_between_smooth_blocks() -> None:
    squares = torch.zeros(3, 3, 48, 48)
    squares[0, :, 16:32, 16:32] = 2.0  # a square that shows
    squares[1] = torch.linspace(0, 9, 48)  # a ramp: its steps are small everywhere
    squares[2] = 7.0  # a wrong colour
    smooth = torch.ones(3, 1, 3, 3, dtype=torch.bool)
    error = edge_error(squares, smooth)
    edges_of_square, edges = 4 * 16, 2 * 2 * 48
    assert float(error[0]) == pytest.approx(4 * edges_of_square / edges)
    assert 0 < float(error[1]) < 0.05
    assert float(error[2]) == 0
    smooth[0, :, 1, 1] = False
    assert float(edge_error(squares, smooth)[0]) == 0


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


def test_a_patch_on_background_is_mostly_background_and_normalised_by_the_rest(sampler: PatchSampler) -> None:
    image = torch.from_numpy(synthetic_slide(256, 256, seed=1)).permute(2, 0, 1).float()
    mean, std = image.mean((1, 2)), image.std((1, 2))
    shares = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        patch, deviation = on_background((image - mean[:, None, None]) / std[:, None, None], std, rng)
        grey = patch * deviation[:, None, None]
        background = grey.flatten(1).median(1).values
        shares.append(float(((grey - background[:, None, None]).abs().amax(0) < 6).float().mean()))
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
