"""What the training experiments share: small autoencoders, one result file that grows run by run, and curves."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from histocodec.benchmarks.measure.provenance import Machine
from histocodec.extras import requires_extra
from histocodec.formats.container.files import write_atomically
from histocodec.models.config import VaeConfig
from histocodec.models.vae.network import VaeModel
from histocodec.report import say
from histocodec.text import jsonable
from histocodec.train.data.images import load_images, training_files
from histocodec.train.data.patches import TrainingImage
from histocodec.train.schedule import Schedule
from histocodec.train.vae.loop import EpochResult, VaeTrainer
from histocodec.train.vae.patches import Normalise, PatchEpochs

WIDTHS = (16, 32, 64, 128)  # a quarter of ResNet-18's: one run takes minutes on two cores
RATE = 1e-3  # ten times the paper's: these runs have hundreds of steps, not days


@dataclass(frozen=True)
class Setup:
    """One run: how many dimensions, pixels a side, patches a batch and steps. The learning rate falls to zero over the
    last half."""

    name: str
    latent_dim: int = 64
    side: int = 64
    batch: int = 128
    steps: int = 400
    rate: float = RATE
    normalise: Normalise = "slide"
    augment: bool = True
    seed: int = 0

    @property
    def config(self) -> VaeConfig:
        """The configuration of the model."""
        return VaeConfig(latent_channels=self.latent_dim, stride=self.side, widths=WIDTHS, ratio=None)


@dataclass(frozen=True)
class Outcome:
    """A finished run: every epoch, and how many patches the training had seen at the end of each."""

    setup: Setup
    epochs: tuple[EpochResult, ...]
    patches: tuple[int, ...]

    @property
    def last(self) -> EpochResult:
        """The last epoch."""
        return self.epochs[-1]


def train(setup: Setup, training: Sequence[TrainingImage], validation: Sequence[TrainingImage]) -> VaeTrainer:
    """Train a model and return its last state, because runs that are compared have the same number of steps."""
    torch.manual_seed(setup.seed)
    epochs = PatchEpochs(
        training, batch=setup.batch, side=setup.side, seed=setup.seed, normalise=setup.normalise, augment=setup.augment
    )
    trainer = VaeTrainer(VaeModel(setup.config), epochs, rate=setup.rate, patience=10**6, validation=validation)

    def tell(result: EpochResult) -> None:
        psnr = "" if result.validation_psnr is None else f", {result.validation_psnr:.2f} dB"
        say(f"{setup.name}: step {result.step}/{setup.steps}, loss {result.loss:.4f}{psnr}")

    trainer.run(Schedule(setup.steps, warmup=0, decay=setup.steps // 2), tell)
    return trainer


class Results:
    """`<out>/<name>.json`, with one entry per run. A run whose setup is there already is not repeated. `trainer` is
    that of the last run; None where the run was there."""

    trainer: VaeTrainer | None = None

    def __init__(self, out: Path, name: str) -> None:
        self.path = out / f"{name}.json"
        self.content: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {"runs": {}}

    def run(self, setup: Setup, training: Sequence[TrainingImage], validation: Sequence[TrainingImage]) -> Outcome:
        """Train by a setup, or return the outcome of the run that is stored."""
        entry, self.trainer = self.content["runs"].get(setup.name), None
        if entry is None or entry["setup"] != asdict(setup):
            self.trainer = train(setup, training, validation)
            entry = {"setup": asdict(setup), "epochs": [asdict(result) for result in self.trainer.history]}
            self.content["runs"][setup.name] = entry
            self.write()
        epochs = tuple(EpochResult(**result) for result in entry["epochs"])
        return Outcome(setup, epochs, tuple(result.step * setup.batch for result in epochs))

    def write(self, **members: object) -> None:
        """Write the file, with more members beside the runs."""
        more = {name: jsonable(value) for name, value in members.items()}
        self.content = {"machine": jsonable(Machine.here()), **self.content, **more}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, f"{json.dumps(self.content, indent=1)}\n".encode())


def images_of(folder: Path) -> list[TrainingImage]:
    """Load all images and slides of a folder."""
    return list(load_images(training_files([folder]), device=torch.device("cpu"), seed=0))


def curves(panels: Mapping[str, Sequence[Outcome]], *, value: str, label: str) -> bytes:
    """Draw a PNG: in each panel, the field `value` of every epoch's result against the patches that training has seen.

    Raises UnsupportedError without matplotlib.
    """
    with requires_extra("bench"):
        from matplotlib.figure import Figure
    drawn = Figure(figsize=(4.6 * len(panels), 3.4), dpi=160, layout="constrained")
    for place, (title, outcomes) in enumerate(panels.items(), 1):
        axes = drawn.add_subplot(1, len(panels), place)
        for outcome in outcomes:
            heights = [getattr(result, value) for result in outcome.epochs]
            axes.plot(outcome.patches, heights, label=outcome.setup.name, linewidth=1.2)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("patches seen", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    file = io.BytesIO()
    drawn.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def bits_of(divergence: float, setup: Setup) -> float:
    """Convert a divergence from nats per dimension to bits per patch."""
    return divergence * setup.latent_dim / math.log(2)
