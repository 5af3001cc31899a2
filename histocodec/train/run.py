"""`histocodec train`: data in, checkpoints, a log and at last a model file out."""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from histocodec.errors import UsageError
from histocodec.models.config import HyperConfig
from histocodec.models.export import export_model, model_file
from histocodec.models.hyper import HyperModel
from histocodec.models.weights import ModelWeights, find_model
from histocodec.train.data.images import case_of, held_out, load_images, training_files
from histocodec.train.data.latents import Seen, seen_in_step, stored_crops, tables_of_stored
from histocodec.train.data.patches import PatchSampler, TrainingImage
from histocodec.train.evaluate import rate_distortion_points
from histocodec.train.finish.decoder import RATE, refine_synthesis
from histocodec.train.finish.prior import refine_prior
from histocodec.train.finish.reaches import analysis_reaches
from histocodec.train.finish.synthesis import in_whole_numbers, quantised_synthesis
from histocodec.train.finish.tables import refitted_tables, symbol_counts
from histocodec.train.loop import Progress, Schedule, Trainer, TrainingLog
from histocodec.train.start.finetune import deepened
from histocodec.train.start.narrow import narrow

TABLE_BATCHES = 200  # for the refitted tables: 8 × 256² each, some 100 million symbols


@dataclass(frozen=True)
class RunOptions:
    """What every run is told, whatever it trains."""

    data: tuple[Path, ...]
    out: Path
    seed: int = 0
    device: str = "auto"
    holdout: float = 0.0  # share of the cases that are kept for validation
    validation: tuple[Path, ...] = ()
    resume: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """What a run is. `steps` is the length of the main stage: a resumed run goes on to it. With none, and a model to
    start from, all that changes is that its synthesis becomes one of whole numbers, and learns `decoder_steps` long."""

    steps: int = 10_000
    batch: int = 8
    size: int = 256
    rate: float = 5e-4
    schedule: str = "wsd"
    decay: int | None = None  # None: the last half
    enlarged: int | None = None  # None: the last quarter
    warmup: int = 200
    hidden16: int | None = None  # then so many activations are left in a block of `synthesis16`; None: all
    decoder_steps: int | None = None  # then, of the synthesis alone, in whole numbers; None: a tenth of `steps`
    decoder_rate: float = RATE
    stored: int = 0  # crops of each image whose latents as the encoder leaves them are learnt from, too
    prior_steps: int = 0  # a last stretch for the prior alone; see `histocodec.train.finish.prior`
    prior_rate: float = 8e-4
    start: str | None = None  # a finished model's id or file; None: the KLT
    checkpoint_every: int = 500
    compile: bool = False
    model_id: str = "hyper-custom"

    def __post_init__(self) -> None:
        if self.size % 64 or self.size < 64:
            raise UsageError(f"--size {self.size}: a multiple of 64 is needed")
        least = 1 if self.start is None else 0
        rates = self.rate, self.decoder_rate, self.prior_rate
        if self.batch < 1 or self.steps < least or min(rates) <= 0 or not 0 <= self.holdout < 1:
            raise UsageError("--batch and, without --from, --steps are at least 1, rates above 0, --holdout below 1")


def run_training(options: TrainOptions, report: Callable[[str], None], *, config: HyperConfig | None = None) -> Path:
    """Trains and returns the path of the model file, `<out>/<model_id>.safetensors`.

    In `out`: `last.pt` (the checkpoint), `log.csv`, `decoder.csv` and `prior.csv` (a row every 20 steps),
    `validation.jsonl` (a line a checkpoint) and `options.json`. Raises UsageError where a run is there already and
    `resume` is not set.
    """
    finished = options.start is not None and options.steps == 0  # all but its synthesis
    begun = begin(replace(options, device="cpu") if finished else options, report)
    out, checkpoint = options.out, begun.checkpoint
    sampler = PatchSampler(begun.training, batch=options.batch, size=options.size, seed=options.seed)
    start = None if options.start is None else find_model(options.start)
    decoder_steps = options.steps // 10 if options.decoder_steps is None else options.decoder_steps

    def lighten(model: HyperModel) -> None:
        if options.hidden16 is not None:
            narrow(model, sampler, options.hidden16)

    def refine_decoder(model: HyperModel, stored: Callable[[int], Sequence[Seen]] = lambda step: ()) -> None:
        after = _after_each("decoder", decoder_steps, out, report)
        refine_synthesis(model, sampler, steps=decoder_steps, rate=options.decoder_rate, report=after, stored=stored)

    whole = start is not None and start.hyper.integer_synthesis
    if options.stored and not (whole and finished and options.hidden16 is None):
        raise UsageError("--stored needs --steps 0, no --hidden16, and --from a model that is in whole numbers already")
    if start is not None and finished:
        weights = _with_another_synthesis(
            start, sampler, options, None if options.hidden16 is None else lighten, refine_decoder, report
        )
        return _written(weights, options, report)
    config = config or (HyperConfig() if start is None else deepened(start.hyper))
    trainer = Trainer(config, sampler, rate=options.rate, device=begun.device, compiled=options.compile)
    if checkpoint.exists():
        trainer.load(checkpoint)
        report(f"resumed at step {trainer.step}")
    else:
        trainer.start(start)
    write_options(options)
    decay = options.steps // 2 if options.decay is None else options.decay
    enlarged = options.steps // 4 if options.enlarged is None else options.enlarged
    schedule = Schedule(options.steps, warmup=options.warmup, decay=decay, kind=options.schedule, enlarged=enlarged)
    log = TrainingLog(out / "log.csv", every=20)

    def after_step(progress: Progress) -> None:
        row = log.add(progress)
        if row is not None:
            left = (options.steps - row.step) * row.seconds_per_step / 60
            report(f"step {row.step}/{options.steps}  loss {row.loss:.4f}  bpp {row.bpp:.3f}  mse {row.mse:.1f}  "
                   f"{row.seconds_per_step:.2f} s/step  {left:.0f} min left")  # fmt: skip
        if progress.step % options.checkpoint_every == 0:
            trainer.save(checkpoint)
            _validate(trainer, begun.validation, out, report)

    trainer.run(schedule, until=options.steps, report=after_step)
    trainer.save(checkpoint)
    model = trainer.average
    lighten(model)
    model.g_s = quantised_synthesis(model, sampler)
    refine_decoder(model)
    if options.prior_steps:
        after = _after_each("prior", options.prior_steps, out, report)
        refine_prior(
            model.requires_grad_(True), sampler, steps=options.prior_steps, rate=options.prior_rate, report=after
        )
    return finish(trainer, options, report)


def _with_another_synthesis(
    start: ModelWeights,
    sampler: PatchSampler,
    options: TrainOptions,
    lighten: Callable[[HyperModel], None] | None,
    refine: Callable[..., None],
    report: Callable[[str], None],
) -> ModelWeights:
    """A finished model with its synthesis made, or kept, one of whole numbers and refined; from what is stored, too,
    where that is asked for, to which its tables are then fitted."""
    notes = {"decoder_steps": str(options.decoder_steps or 0)}
    if not options.stored:
        return in_whole_numbers(start, sampler, options.model_id, lighten=lighten, refine=refine, notes=notes)
    notes["stored"] = str(options.stored)
    crops = stored_crops(
        start, sampler.images, crops=options.stored, seed=options.seed, threads=options.threads, report=report
    )
    windows = partial(seen_in_step, crops, start, seed=options.seed)
    made = in_whole_numbers(start, sampler, options.model_id, refine=partial(refine, stored=windows), notes=notes)
    arrays = {**made.arrays, "tables.freq": tables_of_stored(start, crops).freq}
    return model_file(arrays, made.hyper, made.id, made.notes)


def _after_each(stretch: str, steps: int, out: Path, report: Callable[[str], None]) -> Callable[[Progress], None]:
    """What follows each step of a last stretch: `<stretch>.csv`, and a line every 20 steps."""
    log = TrainingLog(out / f"{stretch}.csv", every=20)

    def after_step(progress: Progress) -> None:
        row = log.add(progress)
        if row is not None:
            left = (steps - row.step) * row.seconds_per_step / 60
            report(f"{stretch} step {row.step}/{steps}  loss {row.loss:.4f}  {left:.0f} min left")

    return after_step


def finish(trainer: Trainer, options: TrainOptions, report: Callable[[str], None]) -> Path:
    """Refits the tables and writes the model file of the moving average."""
    report("refitting the frequency tables")
    batches = (trainer.sampler(trainer.step + 1 + i) for i in range(TABLE_BATCHES))
    tables = refitted_tables(symbol_counts(trainer.average, batches, seed=options.seed))
    notes = {"steps": str(trainer.step), "batch": f"{options.batch}x{options.size}", "commit": commit()}
    reaches = analysis_reaches(trainer.average, trainer.sampler)
    weights = export_model(trainer.average, options.model_id, tables=tables, ranges=reaches, notes=notes)
    return _written(weights, options, report)


def _written(weights: ModelWeights, options: TrainOptions, report: Callable[[str], None]) -> Path:
    path = options.out / f"{options.model_id}.safetensors"
    path.write_bytes(weights.data)
    report(f"{path}: {len(weights.data)} bytes, SHA-256 {weights.sha256}")
    return path


@dataclass(frozen=True)
class Begun:
    """A run whose data is loaded. The checkpoint is there where it is to go on."""

    device: torch.device
    checkpoint: Path
    training: list[TrainingImage]
    validation: list[TrainingImage]


def begin(options: RunOptions, report: Callable[[str], None]) -> Begun:
    """Makes the folder of a run and loads its images. Raises UsageError where a run is there already and `resume` is
    not set, where a case would serve for training and validation, or where there is nothing to train on."""
    from histocodec.device import choose_device

    device, checkpoint = choose_device(options.device), options.out / "last.pt"
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists() and not options.resume:
        raise UsageError(f"{checkpoint}: a run is there already; --resume goes on with it, another --out starts anew")
    training, validation = _images(options, device)
    report(f"{len(training)} training images, {len(validation)} for validation, on {device}")
    return Begun(device, checkpoint, training, validation)


def write_options(options: RunOptions) -> None:
    """`options.json`, with the commit."""
    described = {**asdict(options), "commit": commit()}
    (options.out / "options.json").write_text(json.dumps(described, default=str, indent=1))


def _images(options: RunOptions, device: torch.device) -> tuple[list[TrainingImage], list[TrainingImage]]:
    files = training_files(options.data)
    kept = [file for file in files if not held_out(case_of(file), options.holdout)]
    apart = [file for file in files if held_out(case_of(file), options.holdout)]
    if options.validation:
        apart += training_files(options.validation)
    cases = {case_of(file) for file in kept}
    mixed = sorted({case_of(file) for file in apart} & cases)
    if mixed:
        raise UsageError(f"case {mixed[0]} is in the training and in the validation data; split by case")
    images = list(load_images(kept, device=device, seed=options.seed))
    if not images:
        raise UsageError("the training data shows nothing but glass")
    return images, list(load_images(apart, device=device, seed=options.seed))


def _validate(trainer: Trainer, images: list[TrainingImage], out: Path, report: Callable[[str], None]) -> None:
    if not images:
        return
    points = rate_distortion_points(trainer.average, images)
    with (out / "validation.jsonl").open("a") as file:
        file.write(json.dumps({"step": trainer.step, "points": [asdict(point) for point in points]}) + "\n")
    report("validation  " + "  ".join(f"{p.bpp:.3f} bpp {p.psnr:.2f} dB" for p in points))


def commit() -> str:
    """The commit that trains, where the package is a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
