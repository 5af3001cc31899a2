"""`histocodec train --model vae`: data in, checkpoints, a log and at last a model file out."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from histocodec.errors import UsageError
from histocodec.models.config import MOST_LATENTS, MOST_RATIO, VaeConfig
from histocodec.models.vae.export import export_vae
from histocodec.models.vae.network import VaeModel
from histocodec.train.loop import Schedule
from histocodec.train.run import RunOptions, begin, commit, write_options
from histocodec.train.vae.klt import start_from_klt
from histocodec.train.vae.loop import DIVERGENCE_WEIGHT, MOST_EMPTY, PATIENCE, EpochResult, VaeTrainer
from histocodec.train.vae.patches import PatchEpochs

BITS_PER_DIMENSION = 1.5  # of a patch at the nominal ratio: where 0.1 of the divergence weighs as much as its error
FITTED_EPOCHS = 2  # whose patches steps and tables, and a linear start, are fitted to
KLT_EPOCH = 1_000_000  # the first of those for the start: training never comes that far


@dataclass(frozen=True)
class VaeTrainOptions(RunOptions):
    """What a run is. `steps` is the most there are: it stops earlier when the validation loss no longer falls."""

    latent_dim: int = 128
    patch: int = 64  # pixels a side
    ratio: float | None = None  # a whole one in the model; None: that of BITS_PER_DIMENSION
    klt: bool = False  # a shortcut in the model, the start as a Karhunen–Loève transform, and the divergence by `ratio`
    steps: int = 10_000
    batch: int = 128
    rate: float = 1e-4
    warmup: int = 0
    decay: int = 0  # steps at the end in which the rate falls linearly to zero
    patience: int = PATIENCE
    model_id: str = "vae-custom"

    def __post_init__(self) -> None:
        if min(self.batch, self.steps, self.patience) < 1 or self.rate <= 0 or not 0 <= self.holdout < 1:
            raise UsageError(
                "--batch, --steps and --patience are at least 1, --rate is above 0, --holdout is from 0 to below 1"
            )
        if self.ratio is not None and not 1 <= self.ratio <= MOST_RATIO:
            raise UsageError(f"--ratio {self.ratio:g}: 1 to {MOST_RATIO} is allowed")

    @property
    def config(self) -> VaeConfig:
        """Raises UsageError where there is no such model."""
        if self.latent_dim % 4 or not 4 <= self.latent_dim <= MOST_LATENTS:
            raise UsageError(f"--latent-dim {self.latent_dim}: a multiple of 4 from 4 to {MOST_LATENTS} is needed")
        nominal = 24 * self.patch**2 / (BITS_PER_DIMENSION * self.latent_dim)  # at least 16
        ratio = min(nominal, MOST_RATIO) if self.ratio is None else self.ratio
        config = VaeConfig(latent_channels=self.latent_dim, stride=self.patch, ratio=round(ratio), shortcut=self.klt)
        if self.klt and self.latent_dim > config.features:
            raise UsageError(
                f"--latent-dim {self.latent_dim}: with --klt, {config.features} are the most for --patch {self.patch}"
            )
        return config


def run_vae_training(
    options: VaeTrainOptions, report: Callable[[str], None], *, config: VaeConfig | None = None
) -> Path:
    """Trains and returns the path of the model file, `<out>/<model_id>.safetensors`.

    In `out`: `last.pt` (the checkpoint of each epoch), `log.csv` (a row an epoch) and `options.json`. Raises UsageError
    where a run is there already and `resume` is not set.
    """
    config = config or options.config
    begun = begin(options, report)
    out, checkpoint = options.out, begun.checkpoint
    epochs = PatchEpochs(begun.training, batch=options.batch, side=config.stride, seed=options.seed)
    torch.manual_seed(options.seed)
    model, weight = VaeModel(config), DIVERGENCE_WEIGHT
    if options.klt and not checkpoint.exists():
        weight = start_from_klt(model, fitting_batches(epochs, KLT_EPOCH))
    trainer = VaeTrainer(
        model.to(begun.device),
        epochs,
        rate=options.rate,
        patience=options.patience,
        validation=begun.validation,
        divergence_weight=weight,
    )
    if checkpoint.exists():
        trainer.load(checkpoint)
        report(f"resumed after epoch {trainer.epoch}, step {trainer.step}")
    write_options(options)

    def after_epoch(result: EpochResult) -> None:
        trainer.save(checkpoint)
        _write_log(out / "log.csv", trainer.history)
        validated = (
            ""
            if result.validation_loss is None
            else (f"  validation loss {result.validation_loss:.4f}, {result.validation_psnr:.2f} dB")
        )
        report(f"epoch {result.epoch}, step {result.step}/{options.steps}  loss {result.loss:.4f}{validated}  "
               f"{result.seconds:.0f} s")  # fmt: skip

    trainer.run(Schedule(options.steps, warmup=options.warmup, decay=options.decay), after_epoch)
    if trainer.finished_early:
        report(f"stopped: the validation loss has not fallen for {options.patience} epochs")
    report("fitting steps and frequency tables")
    notes = {"steps": str(trainer.step), "batch": f"{options.batch}x{config.stride}", "commit": commit()}
    weights = export_vae(trainer.model, options.model_id, fitting_batches(epochs, trainer.epoch + 1), notes=notes)
    path = out / f"{options.model_id}.safetensors"
    path.write_bytes(weights.data)
    report(f"{path}: {len(weights.data)} bytes, SHA-256 {weights.sha256}")
    return path


def fitting_batches(epochs: PatchEpochs, first: int) -> Iterator[Tensor]:
    """Patches (B, 3, S, S) of FITTED_EPOCHS epochs from `first` on; of those after them where these fill no batch."""
    found = False
    for number in range(MOST_EMPTY):
        if found and number >= FITTED_EPOCHS:
            return
        for patches, _ in epochs(first + number):
            found = True
            yield patches


def _write_log(path: Path, history: list[EpochResult]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(EpochResult))
        writer.writerows(astuple(result) for result in history)
