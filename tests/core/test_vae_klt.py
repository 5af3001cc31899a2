"""The linear start of the autoencoder: what theory says of it is what it does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from histocodec.errors import UsageError
from histocodec.models.config import VaeConfig
from histocodec.models.vae.export import nominal_bits
from histocodec.models.vae.network import VaeModel
from histocodec.models.weights import load_model
from histocodec.train.recipe import Model, VaePatches, VaeRecipe, VaeShape, VaeStage, VaeStart
from histocodec.train.schedule import Schedule
from histocodec.train.setup import RunOptions
from histocodec.train.vae.from_klt import CODED_SHARE, cosine_transform, start_from_klt, water_level
from histocodec.train.vae.loop import LINEAR_RATE, EpochResult, VaeTrainer
from histocodec.train.vae.patches import PatchEpochs
from histocodec.train.vae.run import run_vae_training
from tests.support.tiny import TINY_VAE
from tests.support.training import folder_of_images, image

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = replace(TINY_VAE, latent_channels=24, stride=32, ratio=256, bottleneck=16, shortcut=True)


def patches() -> torch.Tensor:
    return torch.cat([batch for batch, _ in PatchEpochs([image(1), image(2)], batch=8, side=32, seed=3)(0)])


def started(config: VaeConfig = SMALL) -> tuple[VaeModel, float]:
    torch.manual_seed(0)
    model = VaeModel(config)
    return model, start_from_klt(model, [patches()])


def test_the_cosine_transform_is_orthonormal_and_sorted_by_frequency() -> None:
    rows = cosine_transform(4)
    assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-6)
    changes = (rows.sign().diff(dim=1) != 0).sum(dim=1)
    assert changes.tolist() == [0, 1, 2, 3]


def test_the_water_level_spends_the_bits() -> None:
    energy = torch.tensor([16.0, 4.0, 1.0, 0.25])
    assert water_level(energy, 3.0) == pytest.approx(1.0, rel=2e-3)  # 2 + 1 + 0 + 0 bits
    assert water_level(energy, 6.0) == pytest.approx(0.25, rel=2e-3)  # 3 + 2 + 1 + 0


def test_it_begins_with_the_error_and_the_bits_of_theory() -> None:
    model, weight = started()
    x = patches()
    level = weight * 3 * 32**2 / (2 * 24)
    with torch.no_grad():
        model.g_a.reduce.norm.weight.zero_()  # type: ignore[union-attr,operator]  # the linear path alone
        model.train()
        decoded, divergence = model(x)
        _, log_variance = model.posterior(x)
        kept = linear(model, x)
        best, _ = model.eval()(x)
    bits = float(divergence.sum(dim=1).mean()) / 0.6931471805599453
    assert bits == pytest.approx(nominal_bits(SMALL) * CODED_SHARE, rel=0.05)
    energy = level / log_variance.exp().mean(dim=0)
    assert bool((energy > level).any())
    lost = float((x - kept).square().sum()) / len(x)
    theory = float(energy.clamp(max=level).sum())
    assert float((decoded - x).square().sum()) / len(x) == pytest.approx(lost + theory, rel=0.1)
    assert float((best - x).square().sum()) / len(x) < lost + theory


def linear(model: VaeModel, x: torch.Tensor) -> torch.Tensor:
    """What is left of patches when the coefficients that became latents are kept exactly."""
    assert model.g_a.shortcut is not None and model.g_s.shortcut is not None
    features = model.g_a.shortcut(F.pixel_unshuffle(x, 16)).flatten(1)
    kept = model.g_a.mean.weight / model.g_a.mean.weight.norm(dim=1, keepdim=True)
    centre = model.g_s.dense.bias
    projected = (features - centre) @ kept.T @ kept + centre
    return F.pixel_shuffle(model.g_s.shortcut(projected.view(-1, 16, 2, 2)), 16)


def test_more_bits_leave_less_error() -> None:
    x, errors = patches(), []
    for ratio in (1024, 256, 64):
        model, _ = started(replace(SMALL, ratio=ratio))
        with torch.no_grad():
            model.train()
            errors.append(float((model(x)[0] - x).square().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_what_is_linear_learns_slower() -> None:
    model, weight = started()
    trainer = VaeTrainer(model, PatchEpochs([image(1)], batch=8, side=32, seed=3), divergence_weight=weight)
    assert [group["share"] for group in trainer.optimizer.param_groups] == [1.0, LINEAR_RATE]
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(list(model.parameters()))
    plain = VaeTrainer(VaeModel(replace(SMALL, shortcut=False)), trainer.epochs)
    assert [group["share"] for group in plain.optimizer.param_groups] == [1.0]


def test_a_checkpoint_keeps_the_weight_of_the_divergence(tmp_path: Path) -> None:
    losses = []

    def note(result: EpochResult) -> None:
        losses.append(result.loss)

    epochs = PatchEpochs([image(1)], batch=8, side=32, seed=3)
    first = VaeTrainer(started()[0], epochs, divergence_weight=0.7)
    first.save(tmp_path / "last.pt")
    first.run(Schedule(2, warmup=0), note)
    second = VaeTrainer(started()[0], epochs)
    second.load(tmp_path / "last.pt")
    assert second.divergence_weight == 0.7
    second.run(Schedule(2, warmup=0), note)
    assert losses[: len(losses) // 2] == losses[len(losses) // 2 :]


def test_without_patches_there_is_no_start() -> None:
    with pytest.raises(UsageError, match="no patch to start from"):
        start_from_klt(VaeModel(SMALL), [])


def test_a_run_from_the_linear_start_ends_in_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    recipe = VaeRecipe(
        model=Model("vae", "mine"),
        train=VaeStage(2),
        shape=VaeShape(SMALL.latent_channels, SMALL.stride, SMALL.ratio, SMALL.widths, SMALL.bottleneck),
        patches=VaePatches(8),
        start=VaeStart(klt=True),
    )
    options = RunOptions((folder_of_images(tmp_path / "data"),), tmp_path / "run", device="cpu")
    first = load_model(run_vae_training(recipe, options, lines.append))
    assert first.config == SMALL
    monkeypatch.setattr("histocodec.train.vae.run.start_from_klt", lambda *_: pytest.fail("it has begun already"))
    again = load_model(run_vae_training(recipe, replace(options, resume=True), lines.append))
    assert all(torch.equal(torch.tensor(again.arrays[name]), torch.tensor(a)) for name, a in first.arrays.items())
