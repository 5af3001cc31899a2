"""The training loop: rate–distortion loss, schedule, moving average, checkpoints that resume bit for bit."""

import csv
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from histocodec.errors import FormatError, UsageError
from histocodec.models.config import QUALITIES, HyperConfig
from histocodec.models.hyper import HyperModel
from histocodec.models.weights import ModelWeights
from histocodec.train.data.patches import Batch, PatchSampler
from histocodec.train.start.finetune import start_from_model
from histocodec.train.start.klt import start_from_klt

BALANCE = 0.005  # λ at which the loss has weight 1; see `Loss`
GAIN_RATE = 10.0  # the gains learn this much faster: their gradients are those of a logarithm
CLIP_NORM = 2.0


@dataclass(frozen=True)
class Schedule:
    """Warm-up, stable rate, then decay to zero over the last `decay` steps: linear ("wsd") or, over everything
    after the warm-up, a cosine ("cosine"). The last `enlarged` steps are on larger crops."""

    steps: int
    warmup: int = 200
    decay: int = 0
    kind: str = "wsd"
    enlarged: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("wsd", "cosine"):
            raise UsageError(f"schedule {self.kind!r}: wsd or cosine is allowed")
        last = {"decay": self.decay, "enlarged crops": self.enlarged}
        if self.steps < 1 or self.warmup < 0 or any(not 0 <= count <= self.steps for count in last.values()):
            raise UsageError(f"schedule: of {self.steps} steps {last} are not possible")

    def factor(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        if self.kind == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return warm * (min(1.0, (self.steps - step) / self.decay) if self.decay else 1.0)


@dataclass(frozen=True)
class Loss:
    """(λ·MSE + bpp)·(BALANCE/λ)^½, averaged over the batch; the weight keeps every quality's gradient alike."""

    total: Tensor
    mse: Tensor  # (B,) on the 0–255 scale
    bpp: Tensor  # (B,)


def rate_distortion(model: HyperModel, batch: Batch, quality: Tensor) -> Loss:
    output = model(batch.pixels, quality)
    difference = (output.pixels - batch.pixels) * batch.std[:, :, None, None]
    mse = difference.square().flatten(1).mean(1)
    bpp = (output.y_bits + output.z_bits) / (batch.pixels.shape[2] * batch.pixels.shape[3])
    config = model.config
    rate = config.lambda_min * (config.lambda_max / config.lambda_min) ** (quality / (QUALITIES - 1))
    return Loss(((rate * mse + bpp) * (BALANCE / rate).sqrt()).mean(), mse, bpp)


@dataclass(frozen=True)
class Progress:
    """What the loop reports after a step."""

    step: int
    loss: float
    mse: float
    bpp: float
    seconds_per_step: float


class Trainer:
    """Model, moving average and optimiser at one step. Everything random is a function of (seed, step)."""

    def __init__(
        self,
        config: HyperConfig,
        sampler: PatchSampler,
        *,
        rate: float,
        device: torch.device,
        ema: float = 0.999,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(sampler.seed)
        self.sampler, self.rate, self.device, self.ema_decay = sampler, rate, device, ema
        self.model = HyperModel(config).to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.average = HyperModel(config).to(device).eval().requires_grad_(False)
        gains = list(self.model.gains.parameters())
        others = [p for n, p in self.model.named_parameters() if not n.startswith("gains.")]
        groups = [{"params": others, "scale": 1.0}, {"params": gains, "scale": GAIN_RATE}]
        self.optimizer = torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.99), fused=True)
        self._objective = torch.compile(rate_distortion, dynamic=False) if compiled else rate_distortion
        self.step = 0

    def start(self, model: ModelWeights | None = None) -> None:
        """From the KLT, or from a finished model."""
        if model is None:
            start_from_klt(self.model, self.sampler)
        else:
            start_from_model(self.model, model, self.sampler)
        self.average.load_state_dict(self.model.state_dict())

    def run(self, schedule: Schedule, *, until: int, report: Callable[[Progress], None]) -> None:
        """Trains up to step `until` (of `schedule.steps`), calling `report` after every step."""
        self.model.train()
        larger = self.sampler.enlarged()

        def batch_of(step: int) -> Batch:
            return (larger if step >= schedule.steps - schedule.enlarged else self.sampler)(step)

        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(batch_of, self.step)
            while self.step < until:
                began = time.perf_counter()
                batch = following.result()
                following = pool.submit(batch_of, self.step + 1)
                loss = self._update(batch, schedule.factor(self.step))
                self.step += 1
                seconds = time.perf_counter() - began
                mse, bpp = float(loss.mse.detach().mean()), float(loss.bpp.detach().mean())
                report(Progress(self.step, float(loss.total.detach()), mse, bpp, seconds))

    def _update(self, batch: Batch, factor: float) -> Loss:
        generator = torch.Generator().manual_seed(self.sampler.seed * 1_000_003 + self.step)
        torch.manual_seed(self.sampler.seed * 1_000_033 + self.step)  # the noise of the rate
        quality = torch.rand(len(batch.pixels), generator=generator).to(self.device) * (QUALITIES - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor * group["scale"]
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = self._objective(self.model, batch, quality)
        if not bool(torch.isfinite(loss.total)):
            raise FormatError(f"training diverged at step {self.step}: the loss is not finite; lower --rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        decay = min(self.ema_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            averages: list[Tensor] = list(self.average.parameters())
            parameters: list[Tensor] = list(self.model.parameters())
            torch._foreach_lerp_(averages, parameters, 1 - decay)
        return loss

    def save(self, path: Path) -> None:
        """Writes beside `path`, then renames: a checkpoint is complete or absent."""
        partial = path.with_suffix(".partial")
        state = {
            "config": self.model.config.to_json(),
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        if HyperConfig.from_json(state["config"]) != self.model.config:
            raise UsageError(f"{path}: the checkpoint is of another model: {state['config']}")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])


class TrainingLog:
    """One CSV row every `every` steps, means over those steps; a resumed run goes on below."""

    COLUMNS = ("step", "loss", "mse", "bpp", "seconds_per_step")

    def __init__(self, path: Path, *, every: int) -> None:
        self.path, self.every = path, every
        self._pending: list[Progress] = []
        if not path.exists():
            self._append(self.COLUMNS)

    def add(self, progress: Progress) -> Progress | None:
        """The means when a row was written, else None."""
        self._pending.append(progress)
        if progress.step % self.every:
            return None
        count = len(self._pending)
        means = [sum(getattr(p, name) for p in self._pending) / count for name in self.COLUMNS[1:]]
        self._pending.clear()
        row = Progress(progress.step, *means)
        self._append([str(row.step), *(f"{value:.5f}" for value in means)])
        return row

    def _append(self, row: list[str] | tuple[str, ...]) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(row)
