"""`histocodec train`: make a model file from slides and images, by a recipe."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import (
    SectionedCommand,
    device_option,
    integer,
    json_option,
    option,
    path_arguments,
)
from histocodec.errors import UsageError
from histocodec.report import print_facts, print_json, say

if TYPE_CHECKING:
    from histocodec.train.recipe import Recipe

SECTIONS = {
    "Model": ("recipe", "model_id", "start", "list_recipes"),
    "Data": ("validation", "holdout"),
    "Execution": ("out", "resume", "seed", "device", "threads", "as_json"),
}


def share(text: str) -> float:
    """Parse a share: a number from 0 to below 1."""
    try:
        value = float(text)
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is not a number") from exc
    if not 0 <= value < 1:
        raise click.BadParameter(f"{text} is not allowed; give a number from 0 to below 1")
    return value


def list_recipes(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print name, summary and file of each recipe that is installed, and exit."""
    if not value:
        return
    from histocodec.train.recipe_file import read_recipe, recipe_files

    print_facts([(file.stem, f"{read_recipe(file).summary}\n{file}") for file in recipe_files()])
    context.exit()


@click.command("train", cls=SectionedCommand, sections=SECTIONS, short_help="Train a model on your own slides.")
@path_arguments("data", "DATA...")
@option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder for checkpoints, the log and the model.",
)
@option(
    "--recipe",
    default="flagship",
    show_default=True,
    metavar="NAME|FILE",
    help="What to train: an installed recipe, or a .toml file.",
)
@option("--model-id", metavar="ID", show_default="the recipe's", help="Name of the model, and of its file.")
@option(
    "--from",
    "start",
    metavar="ID|FILE",
    show_default="the recipe's",
    help="Finished model to start from, if the recipe starts from one.",
)
@option(
    "--list-recipes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=list_recipes,
    help="List the installed recipes and their files, and exit.",
)
@option(
    "--validation",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="Slides or images of other cases, measured at each checkpoint. Repeatable.",
)
@option(
    "--holdout",
    type=share,
    metavar="SHARE",
    default="0",
    show_default=True,
    help="Share of the cases of DATA that is kept for validation.",
)
@option("--resume", is_flag=True, help="Continue the run in DIR from its checkpoint, bit for bit.")
@option("--seed", type=integer(0), metavar="N", default="0", show_default=True, help="Seed of everything random.")
@device_option
@option("--threads", type=integer(1, 1024), metavar="N", show_default="PyTorch's choice", help="Number of CPU threads.")
@json_option
def command(
    data: tuple[Path, ...],
    *,
    out: Path,
    recipe: str,
    model_id: str | None,
    start: str | None,
    validation: tuple[Path, ...],
    holdout: float,
    resume: bool,
    seed: int,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train a model on DATA: slides, images, and folders of them.

    A recipe says what is trained and for how long. To change one, copy its file, which --list-recipes names. Images of
    one case never serve for training and for validation.

    \b
    Examples:
      histocodec train slides/ --out runs/mine --model-id mine-1 --holdout 0.1
      histocodec train slides/ --out runs/tuned --recipe fine-tune --model-id mine-2
      histocodec train slides/ --out runs/tuned --recipe fine-tune --model-id mine-2 --resume
      histocodec encode slide.svs slide.hcz --model runs/mine/mine-1.safetensors
    """
    from histocodec.train.recipe import HyperRecipe
    from histocodec.train.recipe_file import find_recipe
    from histocodec.train.setup import RunOptions

    chosen = _adapted(find_recipe(recipe), model_id, start)
    options = RunOptions(
        data=data,
        out=out,
        seed=seed,
        device=device,
        holdout=holdout,
        validation=validation,
        resume=resume,
        threads=threads,
    )
    if isinstance(chosen, HyperRecipe):
        from histocodec.train.run import run_training

        model = run_training(chosen, options, say)
    else:
        from histocodec.train.vae.run import run_vae_training

        model = run_vae_training(chosen, options, say)
    if as_json:
        from safetensors import safe_open

        with safe_open(model, "np") as file:
            steps = int(file.metadata().get("steps", 0))  # fewer than the recipe's, if it stopped early
        print_json({"model": model, "bytes": model.stat().st_size, "steps": steps})
    else:
        print_facts([("model", str(model))])


def _adapted(recipe: "Recipe", model_id: str | None, start: str | None) -> "Recipe":
    """Put the options that change a recipe into it."""
    from histocodec.train.recipe import HyperRecipe, HyperStart

    if model_id is not None:
        recipe = replace(recipe, model=replace(recipe.model, id=model_id))
    if start is None:
        return recipe
    if not isinstance(recipe, HyperRecipe) or recipe.start.model is None:
        raise UsageError(f"--from {start}: recipe {recipe.name} starts from no model; fine-tune is one that does")
    return replace(recipe, start=HyperStart(start))
