"""Training on a GPU with a step that is one CUDA graph: nothing is launched but the graph and the next patches.

Launching hundreds of small kernels takes longer than computing them: a step of 32 patches of 256 × 256 pixels took
34 ms on an H100, and 6.5 ms as a graph on an H200 (benchmarks/experiments/022-training-on.md).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from histocodec.train.data.patches import Batch
from histocodec.train.loop import BETAS, Trainer
from histocodec.train.loss import Loss
from histocodec.train.progress import Progress
from histocodec.train.schedule import Schedule

WARM_STEPS = 3  # that compile, choose algorithms and fill caches, before the step is captured; they are undone


class CapturedTrainer(Trainer):
    """A `Trainer` on a GPU whose step is captured before the first, and again where a batch has another shape.

    It learns what a `Trainer` learns, but a resumed run is not bit for bit the undisturbed one: its noise differs.
    """

    _graph: torch.cuda.CUDAGraph | None = None
    _inputs: tuple[Tensor, Tensor, Tensor]  # pixels, std and quality, where the graph reads them
    _outputs: Loss  # where the graph writes

    def _new_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Adam:
        return torch.optim.Adam([{**group, **self._group_options()} for group in groups], betas=BETAS, fused=True)

    def _group_options(self) -> dict[str, Any]:
        return {"capturable": True, "lr": torch.tensor(self.rate, device=self.device)}  # the graph reads the rate

    def run(self, schedule: Schedule, *, until: int, report: Callable[[Progress], None]) -> None:
        """See `Trainer.run`."""
        self.model.train()
        first = self.sampler(self.step)
        self._capture((first.pixels, first.std, torch.zeros(len(first.pixels), device=self.device)))
        super().run(schedule, until=until, report=report)

    def _set_rates(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(self.rate * factor * group["scale"])

    def _learn(self, batch: Batch, quality: Tensor) -> Loss:
        given = (batch.pixels, batch.std, quality)
        if self._graph is None or self._inputs[0].shape != batch.pixels.shape:
            self._capture(given)
        assert self._graph is not None
        for place, values in zip(self._inputs, given, strict=True):
            place.copy_(values)
        self._graph.replay()
        return self._outputs

    def load(self, path: Path) -> None:
        """See `Trainer.load`."""
        super().load(path)
        self._graph = None  # it uses tensors that are the optimiser's no longer

    def _capture(self, given: tuple[Tensor, Tensor, Tensor]) -> None:
        """Captures the step for inputs of these shapes. Parameters and optimiser are left as they were."""
        self._inputs = (given[0].clone(), given[1].clone(), given[2].clone())
        pixels, std, quality = self._inputs
        before = [parameter.detach().clone() for parameter in self.model.parameters()]
        moments = {
            parameter: {name: value.clone() for name, value in state.items()}
            for parameter, state in self.optimizer.state.items()
        }
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # of torch
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_STEPS):
                super()._learn(Batch(pixels, std), quality)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():  # in place, since the graph will use these very tensors
            for parameter, values in zip(self.model.parameters(), before, strict=True):
                parameter.copy_(values)
            for owner, state in self.optimizer.state.items():
                for name, value in state.items():
                    known = moments.get(owner)
                    value.zero_() if known is None else value.copy_(known[name])
        self._graph = torch.cuda.CUDAGraph()
        # Where this is no first capture, another thread draws the next patches meanwhile, and may.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            loss = super()._learn(Batch(pixels, std), quality)
        self._outputs = Loss(loss.total.detach(), loss.mse.detach(), loss.bpp.detach())
