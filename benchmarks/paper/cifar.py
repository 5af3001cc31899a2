"""Compare CIFAR-10 with H&E at the same ratio, images of little with images of much entropy, and colour with grey.

    python -m histocodec.benchmarks.paper.cifar DATA --out benchmarks/paper/results

All sets have equally many 32×32 images, equally many of them held out (of H&E by case), the same latent dimension and
the same number of steps. H&E patches are cut at random from DATA/train and DATA/val. Entropy is Shannon's, of the
grey-level histogram of an image; CIFAR-10 is split at its median.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from histocodec.benchmarks.paper.training_runs import RATE, Results, Setup, bits_of, curves, images_of
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.errors import UnsupportedError
from histocodec.fidelity import mean_squared_error
from histocodec.formats.container.files import write_atomically
from histocodec.train.data.patches import TrainingImage
from histocodec.train.vae.patches import grid_patches, non_blank

SIDE = 32
DIMENSION = 32  # of 3,072 values: 1:96 as the paper counts
HELD_OUT = 0.2  # of a set
CIFAR = Path("cifar10") / "cifar10-first-2000.webp"

Split = tuple[list[TrainingImage], list[TrainingImage]]


def cifar_images(path: Path) -> Tensor:
    """Cut a lossless grid of images, row by row, into (N, 3, 32, 32) uint8.

    Raises UnsupportedError where the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as exc:
        raise UnsupportedError(f"{path}: cannot be read as an image: {exc}") from exc
    return grid_patches(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), SIDE)


def entropy(image: Tensor) -> float:
    """The entropy of the grey-level histogram of one image (3, H, W) uint8, in bits."""
    grey = image.float().mean(dim=0).round().to(torch.int64).flatten()
    shares: NDArray[np.float64] = np.bincount(grey.numpy(), minlength=256) / grey.numel()
    used = shares[shares > 0]
    return float(-(used * np.log2(used)).sum())


def by_entropy(images: Tensor) -> tuple[Tensor, Tensor]:
    """Split images (N, 3, H, W) uint8 at the median of their entropy: the lower half, then the upper."""
    order = torch.from_numpy(np.argsort([entropy(image) for image in images], kind="stable"))
    half = len(images) // 2
    return images[order[:half]], images[order[half:]]


def split(images: Tensor, *, seed: int = 0) -> Split:
    """Split independent images (N, 3, H, W) uint8 at random into training and validation; both are normalised by the
    statistics of the training images."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    count = round(HELD_OUT * len(images))
    training, validation = images[order[count:]], images[order[:count]]
    values = training.float().transpose(0, 1).flatten(1)
    mean, std = values.mean(1), values.std(1)
    return (
        [TrainingImage(image, mean, std, "cifar") for image in training],
        [TrainingImage(image, mean, std, "cifar") for image in validation],
    )


def tissue(images: Sequence[TrainingImage], count: int, *, seed: int = 0) -> list[TrainingImage]:
    """Choose `count` patches that are not blank at random from all images, each with its image's statistics."""
    grids = [(image, grid_patches(image.pixels, SIDE)) for image in images]
    patches = [(image, patch) for image, grid in grids for patch in grid[non_blank(grid)]]
    chosen = np.random.default_rng(seed).permutation(len(patches))[:count]
    return [replace(patches[i][0], pixels=patches[i][1]) for i in chosen]


def grey(images: Sequence[TrainingImage]) -> list[TrainingImage]:
    """The same images without colour: each channel is the mean of all, and so are the statistics."""
    return [
        TrainingImage(
            image.pixels.float().mean(0).round().to(torch.uint8).expand_as(image.pixels).contiguous(),
            image.mean.mean().expand(3),
            image.std.mean().expand(3),
            image.case,
        )
        for image in images
    ]


def kept_variance(psnr: float, images: Sequence[TrainingImage]) -> float:
    """The share of the images' variance that an error of this PSNR, in dB, leaves; the variance is each channel's over
    the whole set."""
    values = torch.stack([image.pixels for image in images]).float().transpose(0, 1).flatten(1)
    return 1 - mean_squared_error(psnr) / float(values.var(dim=1).mean())


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the JSON and the figure.")
@click.option("--steps", type=click.IntRange(min=1), default=600, show_default=True, help="Of training.")
@click.option("--rate", type=float, default=RATE, show_default=True, help="Learning rate.")
def main(data: Path, *, out: Path, steps: int, rate: float) -> None:
    """Train on each set of images in DATA, and validate on what is held out of it."""
    natural = cifar_images(data / CIFAR)
    low, high = by_entropy(natural)
    held_out = round(HELD_OUT * len(natural))
    stained: Split = (
        tissue(images_of(data / "train"), len(natural) - held_out),
        tissue(images_of(data / "val"), held_out),
    )
    colourful = split(natural)
    sets: dict[str, Callable[[], Split]] = {
        "H&E": lambda: stained,
        "CIFAR-10": lambda: colourful,
        "CIFAR-10, low entropy": lambda: split(low),
        "CIFAR-10, high entropy": lambda: split(high),
        "H&E, grey": lambda: (grey(stained[0]), grey(stained[1])),
        "CIFAR-10, grey": lambda: (grey(colourful[0]), grey(colourful[1])),
    }
    results, outcomes, summary = Results(out, "cifar"), [], {}
    for name, make in sets.items():
        training, validation = make()
        setup = Setup(name, DIMENSION, SIDE, steps=steps, rate=rate, augment=False)
        outcome = results.run(setup, training, validation)
        outcomes.append(outcome)
        psnr = outcome.last.validation_psnr
        assert psnr is not None
        measured = [image for image in validation if bool(non_blank(image.pixels[None]))]  # as the PSNR is
        summary[name] = {
            "images": len(training) + len(validation),
            "entropy": float(np.mean([entropy(image.pixels) for image in measured])),
            "validation_loss": outcome.last.validation_loss,
            "psnr": psnr,
            "kept_variance": kept_variance(psnr, measured),
            "bits": bits_of(outcome.last.divergence, setup),
        }
        click.echo(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in summary[name].items()))
    results.write(summary=summary)
    figure = curves({"32×32 images": outcomes}, value="validation_psnr", label="validation PSNR, dB")
    write_atomically(out / "cifar.png", figure)


if __name__ == "__main__":
    run_command(main)
