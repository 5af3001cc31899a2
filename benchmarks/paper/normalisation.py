"""What the standard score is worth: per slide, per patch, with the same numbers for all slides, and none at all.

    python -m histocodec.benchmarks.paper.normalisation DATA --out benchmarks/paper/results

Validation losses of differently normalised patches have different units; PSNR is in grey values and can be compared.
Without any, pixels lie between 0 and 1, where the same weight of the divergence weighs twenty times as much against the
error: "one for all" tells that from what the slides' own statistics bring.
A score per patch has six more numbers to store for each patch, which count for nothing here: at 1:512 they would take
96 of a patch's 192 bits as float16.
"""

import io
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from histocodec.benchmarks.paper.training_runs import RATE, Results, Setup, curves, images_of, train
from histocodec.errors import HistocodecError
from histocodec.formats.container.files import write_atomically
from histocodec.picture import Panel, side_by_side
from histocodec.slide import Pixels
from histocodec.sources.synthetic import synthetic_slide
from histocodec.train.data.patches import TrainingImage, training_image
from histocodec.train.vae.loop import VaeTrainer
from histocodec.train.vae.patches import Normalise, grid_patches, normalised

KINDS: dict[str, Normalise] = {"per slide": "slide", "one for all": "fixed", "none": "none", "per patch": "patch"}
SHOWN = 256  # pixels a side of the made-up tissue that is shown


def reconstructed(trainer: VaeTrainer, image: TrainingImage) -> Pixels:
    """What is left of an image, decoded from the posteriors' means."""
    side = trainer.model.config.stride
    pixels = grid_patches(image.pixels, side)
    mean, std = (values.expand(len(pixels), 3) for values in (image.mean, image.std))
    x, scale = normalised(pixels, mean, std, trainer.normalise)
    with torch.no_grad():
        decoded, _ = trainer.model.eval()(x)
    back = (pixels.float() + (decoded - x) * scale).round().clamp(0, 255).to(torch.uint8)
    rows, columns = (n // side for n in image.pixels.shape[1:])
    whole = back.view(rows, columns, 3, side, side).permute(0, 3, 1, 4, 2)
    return np.ascontiguousarray(whole.reshape(rows * side, columns * side, 3).numpy())


def picture(trainers: dict[str, VaeTrainer]) -> bytes:
    """A PNG: made-up tissue, and what each model leaves of it."""
    pixels = synthetic_slide(SHOWN, SHOWN, seed=11)
    image = training_image(pixels, "made-up", torch.device("cpu"))
    assert image is not None
    panels = [Panel(pixels, "original", "made-up tissue")]
    panels += [Panel(reconstructed(trainer, image), f"score {name}", "") for name, trainer in trainers.items()]
    file = io.BytesIO()
    Image.fromarray(side_by_side(panels)).save(file, "PNG")
    return file.getvalue()


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the JSON and the figures.")
@click.option("--steps", type=click.IntRange(min=1), default=600, show_default=True)
@click.option("--rate", type=float, default=RATE, show_default=True)
def main(data: Path, *, out: Path, steps: int, rate: float) -> None:
    """Trains on DATA/train with each normalisation, and validates on DATA/val."""
    training, validation = images_of(data / "train"), images_of(data / "val")
    results, trainers, outcomes = Results(out, "normalisation"), {}, []
    for name, kind in KINDS.items():
        setup = Setup(name, steps=steps, rate=rate, normalise=kind)
        outcome = results.run(setup, training, validation)
        outcomes.append(outcome)
        trainers[name] = train(setup, training, validation) if results.trainer is None else results.trainer
        click.echo(f"score {name}: validation loss {outcome.last.validation_loss:.4f}, "
                   f"{outcome.last.validation_psnr:.2f} dB")  # fmt: skip
    panels = {"standard score": outcomes}
    write_atomically(out / "normalisation.png", curves(panels, value="validation_psnr", label="validation PSNR, dB"))
    write_atomically(out / "normalisation-picture.png", picture(trainers))


if __name__ == "__main__":
    try:
        main()
    except HistocodecError as exc:
        raise SystemExit(f"error: {exc}") from exc
