"""Measure what the standard score is worth: per slide, per patch, with the same numbers for all slides, and none.

    python -m histocodec.benchmarks.paper.normalisation DATA --out benchmarks/paper/results

Validation losses of differently normalised patches have different units; PSNR is of grey values and can be compared.
Without a score, pixels lie between 0 and 1, where the same weight of the divergence counts twenty times as much against
the error: "one for all" tells that effect from what the slides' own statistics bring. A score per patch has six more
numbers to store for each patch. They are not counted here; at 1:512 they would take 96 of 192 bits, as float16.
"""

import io
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from histocodec.benchmarks.paper.training_runs import RATE, Results, Setup, curves, images_of, train
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.formats.container.files import write_atomically
from histocodec.picture import Panel, side_by_side
from histocodec.slide import Pixels
from histocodec.sources.synthetic import synthetic_slide
from histocodec.train.data.patches import TrainingImage, training_image
from histocodec.train.vae.loop import VaeTrainer
from histocodec.train.vae.patches import Normalise, grid_patches, normalised

KINDS: dict[str, Normalise] = {"per slide": "slide", "one for all": "fixed", "none": "none", "per patch": "patch"}
SHOWN = 256  # pixels a side of the synthetic tissue that is shown


def reconstructed(trainer: VaeTrainer, image: TrainingImage) -> Pixels:
    """Decode what is left of an image from the posteriors' means: (H, W, 3) uint8."""
    side = trainer.model.config.stride
    pixels = grid_patches(image.pixels, side)
    mean, std = (values.expand(len(pixels), 3) for values in (image.mean, image.std))
    x, scale = normalised(pixels, mean, std, trainer.normalise)
    with torch.no_grad():
        decoded, _ = trainer.model.eval()(x)
    patches = (pixels.float() + (decoded - x) * scale).round().clamp(0, 255).to(torch.uint8)  # (n, 3, side, side)
    rows, columns = (n // side for n in image.pixels.shape[1:])
    whole = patches.view(rows, columns, 3, side, side).permute(0, 3, 1, 4, 2)
    return np.ascontiguousarray(whole.reshape(rows * side, columns * side, 3).numpy())


def picture(trainers: dict[str, VaeTrainer]) -> bytes:
    """Draw a PNG: synthetic tissue, and what each model leaves of it."""
    pixels = synthetic_slide(SHOWN, SHOWN, seed=11)
    image = training_image(pixels, "synthetic", torch.device("cpu"))
    assert image is not None
    panels = [Panel(pixels, "original", "synthetic tissue")]
    panels += [Panel(reconstructed(trainer, image), f"score {name}", "") for name, trainer in trainers.items()]
    file = io.BytesIO()
    Image.fromarray(side_by_side(panels)).save(file, "PNG")
    return file.getvalue()


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the JSON and the figures.")
@click.option("--steps", type=click.IntRange(min=1), default=600, show_default=True, help="Of training.")
@click.option("--rate", type=float, default=RATE, show_default=True, help="Learning rate.")
def main(data: Path, *, out: Path, steps: int, rate: float) -> None:
    """Train on DATA/train with each normalisation, and validate on DATA/val."""
    training, validation = images_of(data / "train"), images_of(data / "val")
    results, trainers, outcomes = Results(out, "normalisation"), {}, []
    for name, kind in KINDS.items():
        setup = Setup(name, steps=steps, rate=rate, normalise=kind)
        outcome = results.run(setup, training, validation)
        outcomes.append(outcome)
        trainers[name] = train(setup, training, validation) if results.trainer is None else results.trainer
        last = outcome.last
        click.echo(f"score {name}: validation loss {last.validation_loss:.4f}, {last.validation_psnr:.2f} dB")
    panels = {"standard score": outcomes}
    write_atomically(out / "normalisation.png", curves(panels, value="validation_psnr", label="validation PSNR, dB"))
    write_atomically(out / "normalisation-picture.png", picture(trainers))


if __name__ == "__main__":
    run_command(main)
