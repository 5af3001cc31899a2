"""The main stage of training a `hyper` model: everything at once, by the rate–distortion loss, with checkpoints from
which it resumes bit for bit."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from histocodec.errors import FormatError, UsageError
from histocodec.models.config import QUALITIES, HyperConfig
from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.training import TrainableIntegerSynthesis
from histocodec.models.weights import ModelWeights
from histocodec.train.data.patches import Batch, PatchSampler
from histocodec.train.loss import Loss, rate_distortion
from histocodec.train.progress import Progress
from histocodec.train.schedule import Schedule
from histocodec.train.start.from_klt import BLOCKS, start_from_klt
from histocodec.train.start.from_model import start_from_model

GAIN_RATE = 10.0  # the gains learn this much faster: their gradients are those of a logarithm
HEADS_RATE = 0.5  # of the prior's rate, for its last layers
STEP_RATE = 200.0  # steps of a stored weight by which a learning rate of 1 moves an integer synthesis
BETAS = (0.9, 0.99)  # of Adam
CLIP_NORM = 2.0
KLT = "klt"  # as the start in a checkpoint; of a finished model it is its SHA-256


class Trainer:
    """Model, moving average and optimiser at one step. Everything random is a function of seed and step.

    It begins from the KLT of `klt_blocks` 16×16 blocks, or from the finished model `start`. `rate` is the highest
    learning rate, and that of the prior `prior_rate` times as high. With `integers` the synthesis trains in whole
    numbers, as it decodes; `edges` is the weight of the error across the edges of blocks (`rate_distortion`).
    """

    def __init__(
        self,
        config: HyperConfig,
        sampler: PatchSampler,
        *,
        rate: float,
        device: torch.device,
        start: ModelWeights | None = None,
        klt_blocks: int = BLOCKS,
        ema: float = 0.999,
        compiled: bool = False,
        integers: bool = False,
        prior_rate: float = 1.0,
        edges: float = 0.0,
    ) -> None:
        torch.manual_seed(sampler.seed)
        self.sampler, self.rate, self.device, self.ema_decay = sampler, rate, device, ema
        self.start, self.klt_blocks = start, klt_blocks
        self.model, self.average = HyperModel(config), HyperModel(config)
        if integers:
            self.model.g_s, self.average.g_s = (TrainableIntegerSynthesis(config) for _ in range(2))
        self.model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        self.average.to(device).eval().requires_grad_(False)
        self.optimizer = self._new_optimizer(self._groups(prior_rate))
        objective = partial(rate_distortion, edges=edges)
        self._objective = torch.compile(objective, dynamic=False) if compiled else objective
        self.step = 0

    def _new_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Adam:
        return torch.optim.Adam(groups, lr=self.rate, betas=BETAS, fused=True)

    def _group_options(self) -> dict[str, Any]:
        """What a group of parameters in a checkpoint of another device must not decide."""
        return {"capturable": False}

    def _groups(self, prior_rate: float) -> list[dict[str, Any]]:
        """The parameters by the `scale` of their learning rate. In an integer synthesis that is in stored steps."""
        groups: dict[str, list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            part = name.split(".")[0]
            if part == "g_s" and isinstance(self.model.g_s, TrainableIntegerSynthesis):
                part = "integers"
            elif part == "prior" and "heads" in name:
                part = "heads"
            groups.setdefault(part, []).append(parameter)
        scales = {"gains": GAIN_RATE, "prior": prior_rate, "heads": prior_rate, "integers": STEP_RATE}
        if prior_rate != 1:
            scales["heads"] *= HEADS_RATE
        return [{"params": params, "scale": scales.get(part, 1.0)} for part, params in groups.items()]

    def initialise(self) -> None:
        """Sets the parameters before the first step, from the KLT or from the finished model."""
        if self.start is None:
            start_from_klt(self.model, self.sampler, blocks=self.klt_blocks)
        else:
            start_from_model(self.model, self.start, self.sampler)
        self.average.load_state_dict(self.model.state_dict())

    def run(self, schedule: Schedule, *, until: int, report: Callable[[Progress], None]) -> None:
        """Trains up to step `until` of the schedule, calling `report` after every step. Raises FormatError where the
        loss is no longer finite."""
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
        torch.manual_seed(self.sampler.seed * 1_000_033 + self.step)  # for the uniform noise of the rate
        quality = torch.rand(len(batch.pixels), generator=generator).to(self.device) * (QUALITIES - 1)
        self._set_rates(factor)
        loss = self._learn(batch, quality)
        if not bool(torch.isfinite(loss.total)):
            raise FormatError(
                f"training diverged at step {self.step}: the loss is not finite; lower the recipe's [train] rate"
            )
        decay = min(self.ema_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            averages: list[Tensor] = list(self.average.parameters())
            parameters: list[Tensor] = list(self.model.parameters())
            torch._foreach_lerp_(averages, parameters, 1 - decay)
        return loss

    def _set_rates(self, factor: float) -> None:
        """Sets the learning rates to this share of the highest."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor * group["scale"]

    def _learn(self, batch: Batch, quality: Tensor) -> Loss:
        """One step of all parameters."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = self._objective(self.model, batch, quality)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self._take_step()
        return loss

    def _take_step(self) -> None:
        """Moves the parameters; those of an integer synthesis by as many of their stored steps as Adam says, since its
        layers have units of very different sizes."""
        synthesis = self.model.g_s
        if not isinstance(synthesis, TrainableIntegerSynthesis):
            self.optimizer.step()
            return
        sizes, parameters = synthesis.step_sizes(), dict(synthesis.named_parameters())
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.optimizer.step()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name] + sizes[name] * (parameter - before[name]))
        synthesis.keep_exact()

    def _fixed(self) -> dict[str, str | int]:
        """What a run that resumes must share with the one that wrote the checkpoint, beside the config."""
        return {
            "start": KLT if self.start is None else self.start.sha256,
            "seed": self.sampler.seed,
            "batch": self.sampler.batch,
            "size": self.sampler.size,
            "synthesis": "integers" if isinstance(self.model.g_s, TrainableIntegerSynthesis) else "floats",
        }

    def save(self, path: Path) -> None:
        """Writes a checkpoint beside `path` and renames it, so that it is complete or absent."""
        partial = path.with_suffix(".partial")
        state = {
            **self._fixed(),
            "config": self.model.config.to_json(),
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint. Raises UsageError where it is of another model, start, seed or patches, and
        FormatError where it is no checkpoint."""
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            step, config = int(state["step"]), HyperConfig.from_json(state["config"])
        except Exception as exc:  # torch raises many kinds for a file that is none of its own
            raise FormatError(f"{path}: is no checkpoint of a hyper model: {exc}") from exc
        if config != self.model.config:
            raise UsageError(
                f"{path}: the checkpoint is of another model: {config.to_json()}; use its recipe, or another --out"
            )
        for name, expected in self._fixed().items():
            found = state.get(name, expected)  # 0.1.0 wrote the config alone
            if found != expected:
                raise UsageError(
                    f"{path}: the checkpoint is of a run whose {name} is {found}, not {expected};"
                    " use its recipe and --seed, or another --out"
                )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group.update(self._group_options())
        self.step = step
