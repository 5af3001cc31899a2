"""CIFAR-10 against H&E at the same ratio; images of little and of much entropy; colour against grey.

    python -m histocodec.benchmarks.paper.cifar DATA --out benchmarks/paper/results

All sets have equally many 32×32 images, equally many of them held out (of H&E by case), one latent dimension, and
equally many steps. H&E patches are cut at random from DATA/train and DATA/val. Entropy is Shannon's, of an image's
grey-level histogram; the folds are split at its median.
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
from histocodec.errors import HistocodecError, UnsupportedError
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
    """(N, 3, 32, 32) uint8: a lossless grid of images, row by row. Raises UnsupportedError."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as exc:
        raise UnsupportedError(f"{path}: cannot be read as an image: {exc}") from exc
    return grid_patches(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), SIDE)


def entropy(image: Tensor) -> float:
    """Bits of the grey-level histogram of one image (3, H, W) uint8."""
    grey = image.float().mean(dim=0).round().to(torch.int64).flatten()
    shares: NDArray[np.float64] = np.bincount(grey.numpy(), minlength=256) / grey.numel()
    used = shares[shares > 0]
    return float(-(used * np.log2(used)).sum())


def by_entropy(images: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of less and of more than the median."""
    order = torch.from_numpy(np.argsort([entropy(image) for image in images], kind="stable"))
    half = len(images) // 2
    return images[order[:half]], images[order[half:]]


def split(images: Tensor, *, seed: int = 0) -> Split:
    """A set of independent images, all normalised by the statistics of those that are trained on."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    count = round(HELD_OUT * len(images))
    kept, apart = images[order[count:]], images[order[:count]]
    values = kept.float().transpose(0, 1).flatten(1)
    return tuple(  # type: ignore[return-value]  # of two
        [TrainingImage(image, values.mean(1), values.std(1), "cifar") for image in part] for part in (kept, apart)
    )


def tissue(images: Sequence[TrainingImage], count: int, *, seed: int = 0) -> list[TrainingImage]:
    """`count` patches that are not blank, at random from all images, with the statistics of their own."""
    cuts = [(image, grid_patches(image.pixels, SIDE)) for image in images]
    patches = [(image, patch) for image, cut in cuts for patch in cut[non_blank(cut)]]
    chosen = np.random.default_rng(seed).permutation(len(patches))[:count]
    return [replace(patches[i][0], pixels=patches[i][1]) for i in chosen]


def grey(images: Sequence[TrainingImage]) -> list[TrainingImage]:
    """The same without colour: the mean of the channels in each of them, and of their statistics."""
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
    """The share of the held-out pixels' variance, each channel's over the whole set, that an error leaves."""
    values = torch.stack([image.pixels for image in images]).float().transpose(0, 1).flatten(1)
    return 1 - mean_squared_error(psnr) / float(values.var(dim=1).mean())


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the JSON and the figure.")
@click.option("--steps", type=click.IntRange(min=1), default=600, show_default=True)
@click.option("--rate", type=float, default=RATE, show_default=True)
def main(data: Path, *, out: Path, steps: int, rate: float) -> None:
    """Trains on each set, and validates on what is held out of it."""
    natural = cifar_images(data / CIFAR)
    low, high = by_entropy(natural)
    apart = round(HELD_OUT * len(natural))
    stained: Split = (
        tissue(images_of(data / "train"), len(natural) - apart), tissue(images_of(data / "val"), apart)
    )  # fmt: skip
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
    try:
        main()
    except HistocodecError as exc:
        raise SystemExit(f"error: {exc}") from exc
