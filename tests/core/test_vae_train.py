"""Training of the autoencoder: its patches, its loss, when it stops, and the model file at the end."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from histocodec.cli.main import run
from histocodec.errors import FormatError, UsageError
from histocodec.models.vae.network import VaeModel
from histocodec.models.weights import load_model
from histocodec.train.data.patches import TrainingImage
from histocodec.train.recipe import Model, VaePatches, VaeRecipe, VaeShape, VaeStage
from histocodec.train.schedule import Schedule
from histocodec.train.setup import RunOptions
from histocodec.train.vae.loop import DIVERGENCE_WEIGHT, EpochResult, VaeTrainer, validate
from histocodec.train.vae.patches import FixedPatches, PatchEpochs, grid_patches, non_blank, normalised
from histocodec.train.vae.run import fitting_batches, run_vae_training
from tests.support.tiny import TINY_VAE
from tests.support.training import folder_of_images, image

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = replace(TINY_VAE, latent_channels=8, stride=32)


@pytest.fixture(scope="module")
def images() -> list[TrainingImage]:
    return [image(1), image(2)]


def trainer(images: list[TrainingImage], **options: object) -> VaeTrainer:
    torch.manual_seed(0)
    epochs = PatchEpochs(images, batch=8, side=32, seed=3)
    return VaeTrainer(VaeModel(SMALL), epochs, rate=1e-3, **options)  # type: ignore[arg-type]  # fields, by name


def ignore(result: EpochResult) -> None:
    pass


def test_patches_of_a_grid_do_not_overlap_and_miss_nothing() -> None:
    pixels = torch.arange(3 * 70 * 100).reshape(3, 70, 100)
    found = grid_patches(pixels, 32, top=3, left=4)
    assert found.shape == (2 * 3, 3, 32, 32)
    assert torch.equal(found[4], pixels[:, 35:67, 36:68])
    assert len(found.unique()) == found.numel()


def test_blank_patches_are_left_out() -> None:
    edge = round(0.82 * 255)  # 209: of 255 it is 0.8196
    patches = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (0, edge, edge + 1, 255)])
    assert non_blank(patches).tolist() == [True, True, False, False]
    background = TrainingImage(
        torch.full((3, 64, 64), 250, dtype=torch.uint8), torch.zeros(3), torch.ones(3), "background"
    )
    assert list(PatchEpochs([background], batch=1, side=32, seed=0)(0)) == []


def test_an_epoch_is_a_function_of_seed_and_number(images: list[TrainingImage]) -> None:
    def first(seed: int, epoch: int) -> torch.Tensor:
        return next(PatchEpochs(images, batch=8, side=32, seed=seed)(epoch))[0]

    assert torch.equal(first(3, 0), first(3, 0))
    assert not torch.equal(first(3, 0), first(3, 1))
    assert not torch.equal(first(3, 0), first(4, 0))


@pytest.mark.parametrize("normalise", ["slide", "patch", "fixed", "none"])
def test_normalisation_is_undone_by_what_is_stored(normalise: str, images: list[TrainingImage]) -> None:
    fixed = FixedPatches.of(images, 32, normalise)  # type: ignore[arg-type]  # parametrised
    batches = list(fixed.batches(50))
    assert [len(batch) for batch, _, _ in batches[:-1]] == [50] * (len(batches) - 1)
    patches, scale, pixels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(pixels, fixed.pixels)
    mean = pixels.float() - patches * scale
    flat = mean.flatten(2)
    assert torch.allclose(flat, flat[:, :, :1].expand_as(flat), atol=1e-2)  # x · std + mean, one mean a channel
    if normalise == "patch":
        assert torch.allclose(patches.mean(dim=(2, 3)), torch.zeros(len(patches), 3), atol=1e-3)
    if normalise == "none":
        assert torch.allclose(patches, pixels / 255, atol=1e-6)


def test_the_divergence_is_that_of_two_gaussians() -> None:
    torch.manual_seed(0)
    model = VaeModel(SMALL).eval()
    patches = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        mean, log_variance = model.posterior(patches)
        _, divergence = model(patches)
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0))
    assert torch.allclose(divergence, wanted, atol=1e-5)


def test_the_loss_is_the_error_and_a_tenth_of_the_divergence(images: list[TrainingImage]) -> None:
    torch.manual_seed(0)
    model = VaeModel(SMALL).eval()
    fixed = FixedPatches.of(images[:1], 32)
    patches, scale, _ = next(fixed.batches(1000))
    loss, psnr = validate(model, fixed)
    with torch.no_grad():
        decoded, divergence = model(patches)
    assert DIVERGENCE_WEIGHT == 0.1
    assert loss == pytest.approx(float((decoded - patches).square().mean() + 0.1 * divergence.mean()), rel=1e-4)
    error = (decoded * scale - patches * scale).numpy()
    assert psnr == pytest.approx(10 * np.log10(255**2 / np.square(error).mean()), abs=0.3)  # not clipped, not rounded


def test_training_lowers_the_loss(images: list[TrainingImage]) -> None:
    made = trainer(images, validation=[image(5)])
    made.run(Schedule(40, warmup=0), ignore)
    losses = [result.validation_loss for result in made.history]
    assert losses[-1] is not None and losses[0] is not None
    assert losses[-1] < losses[0]


def test_a_resumed_run_ends_where_an_undisturbed_one_does(images: list[TrainingImage], tmp_path: Path) -> None:
    undisturbed = trainer(images, validation=[image(5)])
    first = trainer(images, validation=[image(5)])

    class StopError(Exception):
        pass

    def stop(result: EpochResult) -> None:
        first.save(tmp_path / "last.pt")
        if result.epoch == 2:
            raise StopError

    schedule = Schedule(20, warmup=2, decay=10)
    undisturbed.run(schedule, ignore)
    with pytest.raises(StopError):
        first.run(schedule, stop)
    second = trainer(images, validation=[image(5)])
    second.load(tmp_path / "last.pt")
    assert second.epoch == 2
    second.run(schedule, ignore)
    expected, found = undisturbed.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert [r.validation_loss for r in second.history] == [r.validation_loss for r in undisturbed.history]


def test_a_checkpoint_of_other_sizes_is_refused(images: list[TrainingImage], tmp_path: Path) -> None:
    trainer(images).save(tmp_path / "last.pt")
    other = VaeTrainer(VaeModel(replace(SMALL, bottleneck=4)), PatchEpochs(images, batch=8, side=32, seed=3))
    with pytest.raises(FormatError, match="of a model of other sizes"):
        other.load(tmp_path / "last.pt")
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    with pytest.raises(FormatError, match="is no checkpoint"):
        other.load(tmp_path / "broken.pt")


def test_it_stops_when_nothing_improves_and_keeps_the_best(
    images: list[TrainingImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0, 0.0])
    monkeypatch.setattr("histocodec.train.vae.loop.validate", lambda *_, **__: (next(losses), 20.0))
    made, states = trainer(images, validation=[image(5)], patience=3), {}

    def keep(result: EpochResult) -> None:
        states[result.epoch] = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}

    made.run(Schedule(1000, warmup=0), keep)
    assert made.epoch == 5
    assert made.finished_early
    assert all(torch.equal(states[2][name], tensor) for name, tensor in made.model.state_dict().items())


def test_less_than_a_batch_is_refused(images: list[TrainingImage]) -> None:
    made = VaeTrainer(VaeModel(SMALL), PatchEpochs(images, batch=10_000, side=32, seed=3))
    with pytest.raises(UsageError, match="less than one batch of 10000 patches"):
        made.run(Schedule(5, warmup=0), ignore)


def test_an_epoch_that_fills_no_batch_is_passed_over() -> None:
    epochs = PatchEpochs([image(1)], batch=20, side=32, seed=3)
    counts = [len(list(epochs(number))) for number in range(8)]
    assert counts[0] and 0 in counts[:-1]
    torch.manual_seed(0)
    made = VaeTrainer(VaeModel(SMALL), epochs, rate=1e-3)
    made.run(Schedule(sum(counts), warmup=0), ignore)
    assert made.step == sum(counts)
    assert [result.epoch for result in made.history] == [i + 1 for i, count in enumerate(counts) if count]


def test_steps_are_fitted_even_where_the_next_epochs_fill_no_batch() -> None:
    class Seldom(PatchEpochs):
        def __call__(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            return super().__call__(epoch) if epoch == 7 else iter(())

    seldom = Seldom([image(1)], batch=8, side=32, seed=3)
    assert len(list(fitting_batches(seldom, 3))) == len(list(seldom(7))) > 0


def test_an_image_smaller_than_a_patch_is_enlarged() -> None:
    pixels = torch.randint(0, 200, (3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = TrainingImage(pixels, torch.full((3,), 100.0), torch.full((3,), 50.0), "small")
    epochs = PatchEpochs([small], batch=1, side=32, seed=3)
    assert all(len(list(epochs(number))) == 1 for number in range(30))  # native scale is drawn for some


def test_validation_without_tissue_is_refused(images: list[TrainingImage]) -> None:
    background = TrainingImage(
        torch.full((3, 64, 64), 240, dtype=torch.uint8), torch.zeros(3), torch.ones(3), "background"
    )
    with pytest.raises(UsageError, match="no patch of 32 x 32 pixels that shows tissue"):
        trainer(images, validation=[background])


def test_a_run_that_diverges_says_so(images: list[TrainingImage]) -> None:
    made = trainer(images)
    with torch.no_grad():
        made.model.g_s.tail.bias.fill_(float("nan"))
    with pytest.raises(FormatError, match="diverged"):
        made.run(Schedule(5, warmup=0), ignore)
    assert made.history == []


RECIPE = VaeRecipe(
    model=Model("vae", "mine"),
    train=VaeStage(4),
    shape=VaeShape(SMALL.latent_channels, SMALL.stride, SMALL.ratio, SMALL.widths, SMALL.bottleneck),
    patches=VaePatches(8),
)


def test_a_run_ends_in_a_model_that_codes(tmp_path: Path) -> None:
    data, lines = folder_of_images(tmp_path / "data"), list[str]()
    options = RunOptions((data,), tmp_path / "run", holdout=0.3, device="cpu")
    path = run_vae_training(RECIPE, options, lines.append)
    weights = load_model(path)
    assert weights.config == SMALL
    assert json.loads((tmp_path / "run" / "options.json").read_text())["recipe"]["model"]["id"] == "mine"
    assert (tmp_path / "run" / "log.csv").read_text().startswith("epoch,step,loss")
    with pytest.raises(UsageError, match="a run is there already"):
        run_vae_training(RECIPE, options, lines.append)
    again = load_model(run_vae_training(RECIPE, replace(options, resume=True), lines.append))
    assert all(np.array_equal(again.arrays[name], array) for name, array in weights.arrays.items())
    with pytest.raises(UsageError, match="whose batch is 8, not 4"):
        run_vae_training(replace(RECIPE, patches=VaePatches(4)), replace(options, resume=True), lines.append)
    with pytest.raises(UsageError, match="whose seed is 0, not 1"):
        run_vae_training(RECIPE, replace(options, seed=1, resume=True), lines.append)


def recipe_file(folder: Path, train: str) -> str:
    """A recipe for a small model, as a file."""
    file = folder / "small.toml"
    file.write_text(
        '[model]\nfamily = "vae"\nid = "small"\n[shape]\nlatent_channels = 16\nstride = 32\nwidths = [4, 8, 8, 8]\n'
        f"bottleneck = 8\n[patches]\nbatch = 8\n[train]\n{train}\n"
    )
    return str(file)


def test_the_command_line_trains(tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "data")
    arguments = ["train", str(data), "--out", str(tmp_path / "run"), "--recipe", recipe_file(tmp_path, "steps = 2"),
                 "--device", "cpu", "--json"]  # fmt: skip
    assert run(arguments) == 0
    assert load_model(tmp_path / "run" / "small.safetensors").config.latent_channels == 16


def test_the_command_line_says_how_many_steps_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = iter(range(100))
    monkeypatch.setattr("histocodec.train.vae.loop.validate", lambda *_, **__: (next(losses), 20.0))
    data = folder_of_images(tmp_path / "data")
    recipe = recipe_file(tmp_path, "steps = 1000\npatience = 1")
    arguments = ["train", str(data), "--out", str(tmp_path / "run"), "--recipe", recipe, "--holdout", "0.3",
                 "--device", "cpu", "--json"]  # fmt: skip
    assert run(arguments) == 0
    log = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert len(log) == 1 + 2  # the first epoch, which stays the best, and one more
    assert json.loads(capsys.readouterr().out)["steps"] == int(log[-1].split(",")[1]) < 1000


def test_own_statistics_of_a_flat_patch_do_not_explode() -> None:
    patches = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    x, _ = normalised(patches, torch.zeros(1, 3), torch.ones(1, 3), "patch")
    assert torch.equal(x, torch.zeros(1, 3, 8, 8))
