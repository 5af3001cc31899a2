"""A run of a `vae` recipe: data in; checkpoints, a log and at last a model file out."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import astuple, fields
from pathlib import Path

import torch
from torch import Tensor

from histocodec.models.vae.export import export_vae
from histocodec.models.vae.network import VaeModel
from histocodec.train.recipe import VaeRecipe
from histocodec.train.setup import RunOptions, commit, set_up, write_model, write_options
from histocodec.train.vae.from_klt import start_from_klt
from histocodec.train.vae.loop import DIVERGENCE_WEIGHT, MOST_EMPTY, EpochResult, VaeTrainer
from histocodec.train.vae.patches import PatchEpochs

FITTED_EPOCHS = 2  # epochs of patches that steps, tables and a linear start are fitted to
KLT_EPOCH = 1_000_000  # the first of those for the start: training never comes that far


def run_vae_training(recipe: VaeRecipe, options: RunOptions, report: Callable[[str], None]) -> Path:
    """Trains as the recipe says and returns the path of the model file, `<out>/<model's id>.safetensors`.

    In `out` it writes `last.pt` (the checkpoint of each epoch), `log.csv` (a row an epoch) and `options.json`. Raises
    UsageError where `out` has a run already and `resume` is not set.
    """
    config, stage = recipe.config, recipe.train
    setup = set_up(options, report)
    out, checkpoint = options.out, setup.checkpoint
    epochs = PatchEpochs(setup.training, batch=recipe.patches.batch, side=config.stride, seed=options.seed)
    torch.manual_seed(options.seed)
    model, weight = VaeModel(config), DIVERGENCE_WEIGHT
    if recipe.start.klt and not checkpoint.exists():
        weight = start_from_klt(model, fitting_batches(epochs, KLT_EPOCH))
    trainer = VaeTrainer(
        model.to(setup.device),
        epochs,
        rate=stage.rate,
        patience=stage.patience,
        validation=setup.validation,
        divergence_weight=weight,
    )
    if checkpoint.exists():
        trainer.load(checkpoint)
        report(f"resumed after epoch {trainer.epoch}, step {trainer.step}")
    write_options(options, recipe)

    def after_epoch(result: EpochResult) -> None:
        trainer.save(checkpoint)
        _write_log(out / "log.csv", trainer.history)
        validated = (
            ""
            if result.validation_loss is None
            else f"  validation loss {result.validation_loss:.4f}, {result.validation_psnr:.2f} dB"
        )
        report(f"epoch {result.epoch}, step {result.step}/{stage.steps}  loss {result.loss:.4f}{validated}  "
               f"{result.seconds:.0f} s")  # fmt: skip

    trainer.run(stage.rates, after_epoch)
    if trainer.finished_early:
        report(f"stopped: the validation loss has not fallen for {stage.patience} epochs")
    report("fitting steps and frequency tables")
    notes = {
        "steps": str(trainer.step),
        "batch": f"{recipe.patches.batch}x{config.stride}",
        "recipe": recipe.name,
        "commit": commit(),
    }
    weights = export_vae(trainer.model, recipe.model.id, fitting_batches(epochs, trainer.epoch + 1), notes=notes)
    return write_model(weights, out, report)


def fitting_batches(epochs: PatchEpochs, first: int) -> Iterator[Tensor]:
    """Patches (B, 3, S, S) of FITTED_EPOCHS epochs from `first` on, and of later ones where these fill no batch."""
    any_batch = False
    for number in range(MOST_EMPTY):
        if any_batch and number >= FITTED_EPOCHS:
            return
        for patches, _ in epochs(first + number):
            any_batch = True
            yield patches


def _write_log(path: Path, history: list[EpochResult]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(EpochResult))
        writer.writerows(astuple(result) for result in history)
