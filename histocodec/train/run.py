"""A run of a `hyper` recipe: data in; checkpoints, a log and at last a model file out."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from histocodec.errors import UsageError
from histocodec.models.config import HyperConfig
from histocodec.models.export import export_model, model_file
from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.training import TrainableIntegerSynthesis
from histocodec.models.weights import ModelWeights, find_model
from histocodec.train.captured import CapturedTrainer
from histocodec.train.data.patches import PatchSampler, TrainingImage
from histocodec.train.data.pyramid_patches import PyramidSampler
from histocodec.train.data.stored_latents import SynthesisExample, stored_crops, tables_of_crops, windows_of_step
from histocodec.train.evaluate import rate_distortion_points
from histocodec.train.finish.activation_ranges import analysis_ranges
from histocodec.train.finish.frequency_tables import refitted_tables, symbol_counts
from histocodec.train.finish.prior_training import train_prior
from histocodec.train.finish.prune import check_hidden16, prune
from histocodec.train.finish.quantise_synthesis import quantise_synthesis, with_integer_synthesis
from histocodec.train.finish.synthesis_training import train_synthesis
from histocodec.train.loop import Trainer
from histocodec.train.progress import Progress, TrainingLog, minutes_left, stage_reporter
from histocodec.train.recipe import HyperRecipe, MainStage
from histocodec.train.setup import RunOptions, Setup, commit, set_up, write_model, write_options
from histocodec.train.start.from_model import deepened, grows_from

Report = Callable[[str], None]


def run_training(recipe: HyperRecipe, options: RunOptions, report: Report) -> Path:
    """Trains as the recipe says and returns the path of the model file, `<out>/<model's id>.safetensors`.

    In `out` it writes `last.pt` (the checkpoint), `log.csv`, `synthesis.csv` and `prior.csv` (a row every 20 steps of a
    stage), `validation.jsonl` (a line a checkpoint) and `options.json`. A recipe without a main stage runs on the CPU.

    Raises UsageError where `out` has a run already and `resume` is not set, and where the recipe does not fit the model
    that it starts from or the checkpoint.
    """
    start = None if recipe.start.model is None else find_model(recipe.start.model)
    if start is not None:
        _check_start(recipe, start)
    setup = set_up(options, report, on_cpu=recipe.train is None)
    capture = recipe.train is not None and recipe.train.capture
    if capture and setup.device.type != "cuda":
        raise UsageError(f"[train] capture needs a GPU, and this run is on {setup.device}; give --device cuda")
    write_options(options, recipe)
    sampler_class, trainer_class = (PyramidSampler, CapturedTrainer) if capture else (PatchSampler, Trainer)
    sampler = sampler_class(setup.training, batch=recipe.patches.batch, size=recipe.patches.size, seed=options.seed)
    if recipe.train is None:
        assert start is not None  # as the recipe has checked
        weights = _finish_alone(recipe, start, sampler, options, report)
    else:
        trainer = trainer_class(
            recipe.shape or (HyperConfig() if start is None else deepened(start.hyper)),
            sampler,
            rate=recipe.train.rate,
            device=setup.device,
            start=start,
            klt_blocks=recipe.start.klt_blocks,
            compiled=recipe.train.compile,
            integers=recipe.train.integers,
            prior_rate=recipe.train.prior_rate,
            edges=recipe.train.edges,
        )
        _run_main_stage(trainer, recipe.train, setup, options.out, report)
        weights = _finish(trainer, recipe, options, report)
    return write_model(weights, options.out, report)


def _check_start(recipe: HyperRecipe, start: ModelWeights) -> None:
    """Raises UsageError where the recipe's stages cannot follow on this model."""
    if recipe.synthesis.stored_crops and not start.hyper.integer_synthesis:
        raise UsageError(
            f"[synthesis] stored_crops needs a start from a model with an integer synthesis; that of {start.id} is in"
            " floating point"
        )
    if recipe.shape is not None and not grows_from(recipe.shape, start.hyper):
        raise UsageError(
            f"[shape] is {recipe.shape.to_json()}; that of {start.id} with residual blocks added at the end of its"
            f" stages is needed: {start.hyper.to_json()}"
        )
    if recipe.train is not None and recipe.train.integers and not start.hyper.integer_synthesis:
        raise UsageError(
            f"[train] integers needs a start from a model with an integer synthesis; that of {start.id} is in floating"
            " point"
        )
    if recipe.prune is not None:
        if recipe.train is None and start.hyper.integer_synthesis:
            raise UsageError(
                f"[prune] needs a synthesis in floating point; model {start.id} has an integer synthesis already"
            )
        check_hidden16(recipe.prune.hidden16, start.hyper)


def _run_main_stage(trainer: Trainer, stage: MainStage, setup: Setup, out: Path, report: Report) -> None:
    if setup.checkpoint.exists():
        trainer.load(setup.checkpoint)
        report(f"resumed at step {trainer.step}")
    else:
        trainer.initialise()
    log = TrainingLog(out / "log.csv")

    def after_step(progress: Progress) -> None:
        row = log.add(progress)
        if row is not None:
            report(f"step {row.step}/{stage.steps}  loss {row.loss:.4f}  bpp {row.bpp:.3f}  mse {row.mse:.1f}  "
                   f"{row.seconds_per_step:.2f} s/step  {minutes_left(row, stage.steps):.0f} min left")  # fmt: skip
        if progress.step % stage.checkpoint_every == 0:
            trainer.save(setup.checkpoint)
            _validate(trainer, setup.validation, out, report)

    trainer.run(stage.rates, until=stage.steps, report=after_step)
    trainer.save(setup.checkpoint)


def _validate(trainer: Trainer, images: list[TrainingImage], out: Path, report: Report) -> None:
    if not images:
        return
    points = rate_distortion_points(trainer.average, images)
    with (out / "validation.jsonl").open("a") as file:
        file.write(json.dumps({"step": trainer.step, "points": [asdict(point) for point in points]}) + "\n")
    report("validation  " + "  ".join(f"{p.bpp:.3f} bpp {p.psnr:.2f} dB" for p in points))


def _finish(trainer: Trainer, recipe: HyperRecipe, options: RunOptions, report: Report) -> ModelWeights:
    """The stages after the main one, on the moving average: prune, integer synthesis, prior, tables."""
    model, sampler = trainer.average, trainer.sampler
    if recipe.prune is not None:
        prune(model, sampler, recipe.prune.hidden16)
    if not isinstance(model.g_s, TrainableIntegerSynthesis):
        model.g_s = quantise_synthesis(model, sampler)
    _train_synthesis(model, recipe, sampler, options, report)
    if recipe.prior is not None:
        train_prior(
            model.requires_grad_(True),
            sampler,
            steps=recipe.prior.steps,
            rate=recipe.prior.rate,
            report=stage_reporter("prior", recipe.prior.steps, options.out, report),
        )
    report("fitting the frequency tables")
    batches = (sampler(trainer.step + 1 + i) for i in range(recipe.tables.batches))
    tables = refitted_tables(symbol_counts(model, batches, seed=options.seed))
    notes = {
        "steps": str(trainer.step),
        "batch": f"{recipe.patches.batch}x{recipe.patches.size}",
        "recipe": recipe.name,
        "commit": commit(),
    }
    return export_model(model, recipe.model.id, tables=tables, ranges=analysis_ranges(model, sampler), notes=notes)


def _finish_alone(
    recipe: HyperRecipe, start: ModelWeights, sampler: PatchSampler, options: RunOptions, report: Report
) -> ModelWeights:
    """A finished model with another synthesis: put into integers where it is not, and trained. With stored crops it
    learns from these, too, and the tables are fitted to them."""
    notes = {"decoder_steps": str(recipe.synthesis.steps), "recipe": recipe.name}
    refine = partial(_train_synthesis, recipe=recipe, sampler=sampler, options=options, report=report)
    if not recipe.synthesis.stored_crops:
        pruned = None if recipe.prune is None else partial(prune, sampler=sampler, hidden=recipe.prune.hidden16)
        return with_integer_synthesis(start, sampler, recipe.model.id, prune=pruned, refine=refine, notes=notes)
    notes["stored"] = str(recipe.synthesis.stored_crops)
    crops = stored_crops(
        start,
        sampler.images,
        crops=recipe.synthesis.stored_crops,
        seed=options.seed,
        threads=options.threads,
        report=report,
    )
    refine = partial(refine, stored=partial(windows_of_step, crops, start, seed=options.seed))
    made = with_integer_synthesis(start, sampler, recipe.model.id, refine=refine, notes=notes)
    arrays = {**made.arrays, "tables.freq": tables_of_crops(start, crops).freq}
    return model_file(arrays, made.hyper, made.id, made.notes)


def _train_synthesis(
    model: HyperModel,
    recipe: HyperRecipe,
    sampler: PatchSampler,
    options: RunOptions,
    report: Report,
    stored: Callable[[int], Sequence[SynthesisExample]] = lambda step: (),
) -> None:
    stage = recipe.synthesis
    reporter = stage_reporter("synthesis", stage.steps, options.out, report)
    train_synthesis(model, sampler, steps=stage.steps, rate=stage.rate, report=reporter, stored=stored)
