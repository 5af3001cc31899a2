"""`histocodec train`: slides and images in, a model file out."""

from pathlib import Path

import click

from histocodec.cli.options import device_option, json_option, positive
from histocodec.cli.report import print_facts, print_json, say


@click.command("train", short_help="Train a model on your own slides.")
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="For checkpoints, the log and the model.",
)
@click.option("--model-id", default="hyper-custom", show_default=True, help="What the model will be called.")
@click.option("--steps", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Patches a step.")
@click.option("--size", type=click.IntRange(min=64), default=256, show_default=True, help="Pixels on a patch's side.")
@click.option("--rate", type=positive, metavar="R", default=5e-4, show_default=True, help="The highest learning rate.")
@click.option("--schedule", type=click.Choice(["wsd", "cosine"]), default="wsd", show_default=True)
@click.option("--decay", type=click.IntRange(min=0), help="Steps at the end of wsd.  [default: the last half]")
@click.option(
    "--enlarged",
    type=click.IntRange(min=0),
    help="Steps at the end on crops half as wide again.  [default: the last quarter]",
)
@click.option("--warmup", type=click.IntRange(min=0), default=200, show_default=True, help="Steps at the start.")
@click.option(
    "--prior-steps",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="A last stretch for the entropy model alone; it changes no pixel, only the rate.",
)
@click.option("--from", "start", metavar="MODEL", help="A finished model to start from, an id or a file.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--validation",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="Slides or images of other cases, measured at each checkpoint; may be given again.",
)
@click.option(
    "--holdout",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of the cases of DATA that is kept for validation.",
)
@click.option("--checkpoint-every", type=click.IntRange(min=1), default=500, show_default=True, help="Steps.")
@click.option("--resume", is_flag=True, help="Go on from DIR's checkpoint, bit for bit.")
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: torch's own choice]")
@device_option
@json_option
def command(
    data: tuple[Path, ...],
    *,
    out: Path,
    model_id: str,
    steps: int,
    batch: int,
    size: int,
    rate: float,
    schedule: str,
    decay: int | None,
    enlarged: int | None,
    warmup: int,
    prior_steps: int,
    start: str | None,
    seed: int,
    validation: tuple[Path, ...],
    holdout: float,
    checkpoint_every: int,
    resume: bool,
    compiled: bool,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Train a model on slides, images, and folders of them.

    Images of one case never serve for training and for validation.

    \b
    Examples:
      histocodec train slides/ --out runs/mine --model-id mine-1
      histocodec train slides/ --out runs/mine --model-id mine-1 --resume --steps 20000
      histocodec train slides/ --out runs/tuned --model-id mine-2 --from hyper-2 --rate 2e-4
      histocodec encode slide.svs slide.zarr --model runs/mine/mine-1.safetensors
    """
    from histocodec.train.run import TrainOptions, run_training

    options = TrainOptions(
        data=data,
        out=out,
        steps=steps,
        batch=batch,
        size=size,
        rate=rate,
        schedule=schedule,
        decay=decay,
        enlarged=enlarged,
        warmup=warmup,
        prior_steps=prior_steps,
        start=start,
        seed=seed,
        device=device,
        checkpoint_every=checkpoint_every,
        holdout=holdout,
        validation=validation,
        resume=resume,
        compile=compiled,
        threads=threads,
        model_id=model_id,
    )
    model = run_training(options, say)
    if as_json:
        print_json({"model": model, "bytes": model.stat().st_size, "steps": steps})
    else:
        print_facts([("model", str(model))])
