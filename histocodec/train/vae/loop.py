"""Training of the variational autoencoder of Nasr et al. 2023: mean squared error + 0.1 · divergence, Adam, clipped
gradients, early stopping.

Both terms are means, the error over all values and the divergence over the latent dimensions, as in the VAE of PyTorch
Lightning Bolts, whose defaults (Adam at 1e-4, 0.1) are the paper's, too. An epoch is one pass over the patches.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from histocodec.errors import FormatError, UsageError
from histocodec.fidelity import psnr
from histocodec.models.vae.network import VaeModel
from histocodec.train.data.patches import TrainingImage
from histocodec.train.schedule import Schedule
from histocodec.train.vae.patches import FixedPatches, Normalise, PatchEpochs

DIVERGENCE_WEIGHT = 0.1
LINEAR = ("g_a.shortcut", "g_a.mean", "log_variance", "g_s.dense", "g_s.shortcut")
LINEAR_RATE = 0.1  # share of the learning rate for these where they begin as a KLT: they are good already
CLIP_NORM = 0.5
MOST_EMPTY = 16  # epochs in a row without a batch: few images, much reduced, may fill none, and the next time one
VALIDATION_BATCH = 256
LEAST_MSE = 1e-6  # so that PSNR stays finite


@dataclass(frozen=True)
class EpochResult:
    """One epoch: means over the training's batches and over the validation patches, which are decoded from the
    posterior's mean. `error` is the mean squared error of normalised values, `divergence` is in nats per dimension, and
    the PSNR, in dB, is that of all validation patches together in grey values. Without validation data its results are
    None."""

    epoch: int
    step: int
    loss: float
    error: float
    divergence: float
    validation_loss: float | None
    validation_psnr: float | None
    seconds: float


@dataclass
class VaeTrainer:
    """Model, optimiser and the best state so far. Everything random is a function of seed and epoch, so that a run that
    resumes after any epoch ends where an undisturbed one does. Raises UsageError where the validation data shows no
    tissue."""

    model: VaeModel
    epochs: PatchEpochs
    rate: float = 1e-4
    patience: int = 10
    validation: Sequence[TrainingImage] = ()
    divergence_weight: float = DIVERGENCE_WEIGHT
    epoch: int = 0
    step: int = 0
    history: list[EpochResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.optimizer = torch.optim.Adam(self._groups(), lr=self.rate)
        self.best: dict[str, Tensor] = deepcopy(self.model.state_dict())
        side = self.model.config.stride
        self._fixed = FixedPatches.of(self.validation, side, self.normalise) if self.validation else None
        if self._fixed is not None and not len(self._fixed):
            raise UsageError(f"the validation data has no patch of {side} x {side} pixels that shows tissue")

    def _groups(self) -> list[dict[str, Any]]:
        slow = LINEAR if self.model.config.shortcut else ()
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            groups.setdefault(LINEAR_RATE if name.startswith(slow) else 1.0, []).append(parameter)
        return [{"params": parameters, "share": share} for share, parameters in groups.items()]

    @property
    def normalise(self) -> Normalise:
        """How patches are normalised, in training and in validation."""
        return self.epochs.normalise

    @property
    def finished_early(self) -> bool:
        """Whether the validation loss has not fallen for `patience` epochs."""
        losses = [result.validation_loss for result in self.history if result.validation_loss is not None]
        return len(losses) > self.patience and losses.index(min(losses)) < len(losses) - self.patience

    def run(self, schedule: Schedule, report: Callable[[EpochResult], None]) -> None:
        """Trains to the end of the schedule or until it stops early, calling `report` after every epoch. Then `model`
        is the best that was validated, or the last where there is no validation data.

        Raises UsageError where the data does not fill a batch, FormatError where the loss is no longer finite.
        """
        empty = 0
        while self.step < schedule.steps and not self.finished_early:
            result = self._epoch(schedule)
            if result is None:
                empty += 1
                if empty == MOST_EMPTY:
                    raise UsageError(f"the training data has less than one batch of {self.epochs.batch} patches")
                continue
            empty = 0
            self.history.append(result)
            losses = [h.validation_loss for h in self.history if h.validation_loss is not None]
            if not losses or result.validation_loss == min(losses):
                self.best = deepcopy(self.model.state_dict())
            report(result)
        self.model.load_state_dict(self.best)
        self.model.eval()

    def _epoch(self, schedule: Schedule) -> EpochResult | None:
        """Trains for one epoch. None where it had no batch."""
        began, sums, count = time.perf_counter(), torch.zeros(3), 0
        torch.manual_seed(self.epochs.seed * 1_000_003 + self.epoch)
        self.model.train()
        for patches, _ in self.epochs(self.epoch):
            if self.step == schedule.steps:
                break
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * group["share"] * schedule.factor(self.step)
            sums += torch.stack(self._step(patches)).cpu()
            self.step, count = self.step + 1, count + 1
        self.epoch += 1
        if not count:
            return None
        loss, error, divergence = (float(value) for value in sums / count)
        if not math.isfinite(loss):
            raise FormatError(
                f"training diverged before step {self.step}: the loss is not finite; lower the recipe's rate"
            )
        weight = self.divergence_weight
        validated = None if self._fixed is None else validate(self.model, self._fixed, divergence_weight=weight)
        validation_loss, psnr = (None, None) if validated is None else validated
        seconds = time.perf_counter() - began
        return EpochResult(self.epoch, self.step, loss, error, divergence, validation_loss, psnr, seconds)

    def _step(self, patches: Tensor) -> list[Tensor]:
        patches = patches.contiguous(memory_format=torch.channels_last)
        with torch.autocast(patches.device.type, torch.bfloat16):
            decoded, divergence = self.model(patches)
        error, nats = (decoded.float() - patches).square().mean(), divergence.mean()
        loss = error + self.divergence_weight * nats
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        return [loss.detach(), error.detach(), nats.detach()]

    def save(self, path: Path) -> None:
        """Writes a checkpoint beside `path` and renames it, so that it is complete or absent."""
        state = {
            "config": self.model.config.to_json(), "seed": self.epochs.seed, "batch": self.epochs.batch,
            "model": self.model.state_dict(), "best": self.best,
            "optimizer": self.optimizer.state_dict(), "epoch": self.epoch, "step": self.step,
            "divergence_weight": self.divergence_weight,
            "history": json.dumps([asdict(result) for result in self.history]),
        }  # fmt: skip
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint. Raises FormatError where it is none or of a model of other sizes, and UsageError
        where it is of another seed or batch."""
        device = next(self.model.parameters()).device
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
            config, history = state["config"], [EpochResult(**result) for result in json.loads(state["history"])]
            weight = float(state["divergence_weight"])
        except Exception as exc:  # torch raises many kinds for a file that is none of its own
            raise FormatError(f"{path}: is no checkpoint of a vae: {exc}") from exc
        if config != self.model.config.to_json():
            raise FormatError(f"{path}: is of a model of other sizes: {config}; use its recipe, or another --out")
        for name, expected in (("seed", self.epochs.seed), ("batch", self.epochs.batch)):
            found = state.get(name, expected)  # 0.1.0 wrote neither
            if found != expected:
                raise UsageError(
                    f"{path}: the checkpoint is of a run whose {name} is {found}, not {expected};"
                    " use its recipe and --seed, or another --out"
                )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.epoch, self.step = state["best"], int(state["epoch"]), int(state["step"])
        self.divergence_weight = weight
        self.history = history


@torch.no_grad()
def validate(
    model: VaeModel, fixed: FixedPatches, *, divergence_weight: float = DIVERGENCE_WEIGHT
) -> tuple[float, float]:
    """The loss of these patches, and the PSNR in dB of their rounded pixels, decoded from the posterior's mean."""
    model.eval()
    losses, squares = 0.0, 0.0
    for patches, scale, pixels in fixed.batches(VALIDATION_BATCH):
        x, original = patches.contiguous(memory_format=torch.channels_last), pixels.float()
        decoded, divergence = model(x)
        per_patch = (decoded - x).square().flatten(1).mean(1) + divergence_weight * divergence.mean(1)
        losses += float(per_patch.sum())
        grey = (original + (decoded - x) * scale).round().clamp(0, 255)  # since original is x · scale + mean
        squares += float((grey - original).square().sum(dtype=torch.float64))
    return losses / len(fixed), psnr(max(squares / fixed.pixels.numel(), LEAST_MSE), 1)
