"""What every run begins and ends with: the user's options, the folder, the training images, and the model file."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from histocodec.device import choose_device
from histocodec.errors import UsageError
from histocodec.models.weights import ModelWeights
from histocodec.train.data.images import case_of, held_out, load_images, training_files
from histocodec.train.data.patches import TrainingImage
from histocodec.train.recipe import Recipe


@dataclass(frozen=True)
class RunOptions:
    """What the user says of a run, whatever its recipe: slides, images and folders to train on, and the folder to write
    to. `holdout` is the share of the cases of `data` that is kept for validation, beside what `validation` names;
    `threads` are CPU threads, by default torch's own choice. Raises UsageError where `holdout` is not from 0 to below
    1."""

    data: tuple[Path, ...]
    out: Path
    seed: int = 0
    device: str = "auto"
    holdout: float = 0.0
    validation: tuple[Path, ...] = ()
    resume: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise UsageError(f"--holdout is {self.holdout}; 0 to below 1 is allowed")


@dataclass(frozen=True)
class Setup:
    """A run whose images are loaded. `checkpoint` exists where the run is to resume."""

    device: torch.device
    checkpoint: Path
    training: list[TrainingImage]
    validation: list[TrainingImage]


def set_up(options: RunOptions, report: Callable[[str], None], *, on_cpu: bool = False) -> Setup:
    """Makes the folder of a run and loads its images, on the CPU where `on_cpu` says so.

    Raises UsageError where the folder has a run already and `resume` is not set, where a case would serve for training
    and validation, and where there is nothing to train on.
    """
    device, checkpoint = choose_device("cpu" if on_cpu else options.device), options.out / "last.pt"
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists() and not options.resume:
        raise UsageError(f"{checkpoint}: a run is there already; go on with it by --resume, or choose another --out")
    training, validation = _images(options, device)
    report(f"{len(training)} training images, {len(validation)} for validation, on {device}")
    return Setup(device, checkpoint, training, validation)


def _images(options: RunOptions, device: torch.device) -> tuple[list[TrainingImage], list[TrainingImage]]:
    files = training_files(options.data)
    training = [file for file in files if not held_out(case_of(file), options.holdout)]
    validation = [file for file in files if held_out(case_of(file), options.holdout)]
    if options.validation:
        validation += training_files(options.validation)
    cases = {case_of(file) for file in training}
    mixed = sorted({case_of(file) for file in validation} & cases)
    if mixed:
        raise UsageError(f"case {mixed[0]} is in the training and in the validation data; split the data by case")
    images = list(load_images(training, device=device, seed=options.seed))
    if not images:
        raise UsageError("the training data shows nothing but background; images of tissue are needed")
    return images, list(load_images(validation, device=device, seed=options.seed))


def write_options(options: RunOptions, recipe: Recipe) -> None:
    """Writes `options.json`: the user's options, the recipe, and the commit."""
    described = {**asdict(options), "recipe": asdict(recipe), "commit": commit()}
    (options.out / "options.json").write_text(json.dumps(described, default=str, indent=1))


def commit() -> str:
    """The commit that trains, where the package is a checkout, else "unknown"."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def write_model(weights: ModelWeights, out: Path, report: Callable[[str], None]) -> Path:
    """Writes `<out>/<model's id>.safetensors` and returns its path."""
    path = out / f"{weights.id}.safetensors"
    path.write_bytes(weights.data)
    report(f"{path}: {len(weights.data)} bytes, SHA-256 {weights.sha256}")
    return path
