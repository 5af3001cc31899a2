"""`histocodec train`: slides and images in, a model file out."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from histocodec.cli.options import device_option, json_option, positive, ratio
from histocodec.errors import UsageError
from histocodec.report import print_facts, print_json, say

ONLY = {
    **dict.fromkeys(("size", "schedule", "enlarged", "prior_steps", "start", "checkpoint_every", "compiled"), "hyper"),
    **dict.fromkeys(("hidden16", "decoder_steps", "decoder_rate", "stored"), "hyper"),
    **dict.fromkeys(("latent_dim", "patch", "ratio", "klt", "patience"), "vae"),
}  # options that one family has, by their parameters' names


@click.command("train", short_help="Train a model on your own slides.")
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="For checkpoints, the log and the model.",
)
@click.option(
    "--model",
    "family",
    type=click.Choice(["hyper", "vae"]),
    default="hyper",
    show_default=True,
    help="The flagship, or the autoencoder of Nasr et al. 2023.",
)
@click.option("--model-id", help="What the model will be called.  [default: hyper-custom or vae-custom]")
@click.option(
    "--steps",
    type=click.IntRange(min=0),
    default=10_000,
    show_default=True,
    help="0, with --from, changes the decoder of a model alone: into whole numbers.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Patches a step.  [default: 8, vae 128]")
@click.option("--size", type=click.IntRange(min=64), default=256, show_default=True, help="Pixels on a patch's side.")
@click.option("--rate", type=positive, metavar="R", help="The highest learning rate.  [default: 5e-4, vae 1e-4]")
@click.option("--schedule", type=click.Choice(["wsd", "cosine"]), default="wsd", show_default=True)
@click.option("--decay", type=click.IntRange(min=0), help="Steps at the end of wsd.  [default: the last half, vae 0]")
@click.option(
    "--enlarged",
    type=click.IntRange(min=0),
    help="Steps at the end on crops half as wide again.  [default: the last quarter]",
)
@click.option("--warmup", type=click.IntRange(min=0), help="Steps at the start.  [default: 200, vae 0]")
@click.option(
    "--hidden16",
    type=click.IntRange(min=4),
    metavar="N",
    help="Then leave so many activations in each block of the decoder at 1/16, of 256: fewer are faster.",
)
@click.option(
    "--decoder-steps",
    type=click.IntRange(min=0),
    help="Then steps for the decoder alone, in the whole numbers in which it is stored.  [default: a tenth of --steps]",
)
@click.option(
    "--decoder-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=0.02,
    show_default=True,
    help="Learning rate of those, in steps of a weight as it is stored.",
)
@click.option(
    "--stored",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="With --from a finished model and --steps 0: the decoder learns from N crops of each image as the encoder"
    " stores them, too, and the entropy coder's tables are fitted to those.",
)
@click.option(
    "--prior-steps",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="At last steps for the entropy model alone; they change no pixel, only the rate.",
)
@click.option("--from", "start", metavar="MODEL", help="A finished model to start from, an id or a file.")
@click.option(
    "--latent-dim",
    type=click.IntRange(4, 1020),
    default=128,
    show_default=True,
    help="vae: numbers a patch; the paper has 8 to 256.",
)
@click.option(
    "--patch",
    type=click.Choice(["32", "64", "128"]),
    default="64",
    show_default=True,
    help="vae: pixels on a patch's side.",
)
@click.option(
    "--ratio", type=ratio, metavar="R", help="vae: what encode aims at unasked.  [default: 1.5 bits a number]"
)
@click.option(
    "--klt",
    is_flag=True,
    help="vae: begin as a Karhunen-Loeve transform, which stays as a path beside the network, and weigh the divergence"
    " as --ratio asks.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="vae: epochs without a lower validation loss, after which it stops.",
)
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
@click.pass_context
def command(
    context: click.Context,
    data: tuple[Path, ...],
    *,
    out: Path,
    family: str,
    model_id: str | None,
    steps: int,
    batch: int | None,
    size: int,
    rate: float | None,
    schedule: str,
    decay: int | None,
    enlarged: int | None,
    warmup: int | None,
    prior_steps: int,
    hidden16: int | None,
    decoder_steps: int | None,
    decoder_rate: float,
    stored: int,
    start: str | None,
    latent_dim: int,
    patch: str,
    ratio: float | None,
    klt: bool,
    patience: int,
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
      histocodec train slides/ --out runs/tuned --model-id mine-2 --from hyper-6 --rate 2e-4
      histocodec train slides/ --out runs/vae --model vae --latent-dim 128 --holdout 0.1
      histocodec encode slide.svs slide.zarr --model runs/mine/mine-1.safetensors
    """
    for name, of in ONLY.items():
        if of != family and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = next(p for p in context.command.params if p.name == name).opts[0]
            raise UsageError(f"{option} is for --model {of}, not for {family}")
    shared: dict[str, Any] = {
        "data": data, "out": out, "steps": steps, "batch": batch, "rate": rate, "decay": decay, "warmup": warmup,
        "seed": seed, "device": device, "holdout": holdout, "validation": validation, "resume": resume,
        "threads": threads, "model_id": model_id,
    }  # fmt: skip
    given = {name: value for name, value in shared.items() if value is not None}  # others have each family's default
    if family == "vae":
        from histocodec.train.vae.run import VaeTrainOptions, run_vae_training

        wanted = VaeTrainOptions(
            **given, latent_dim=latent_dim, patch=int(patch), ratio=ratio, klt=klt, patience=patience
        )
        model = run_vae_training(wanted, say)
    else:
        from histocodec.train.run import TrainOptions, run_training

        options = TrainOptions(
            **given,
            size=size,
            schedule=schedule,
            enlarged=enlarged,
            prior_steps=prior_steps,
            hidden16=hidden16,
            decoder_steps=decoder_steps,
            decoder_rate=decoder_rate,
            stored=stored,
            start=start,
            checkpoint_every=checkpoint_every,
            compile=compiled,
        )
        model = run_training(options, say)
    if as_json:
        from safetensors import safe_open

        with safe_open(model, "np") as file:
            done = int(file.metadata()["steps"])  # fewer than were asked for, where it stopped early
        print_json({"model": model, "bytes": model.stat().st_size, "steps": done})
    else:
        print_facts([("model", str(model))])
