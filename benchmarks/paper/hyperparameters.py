"""Vary batch size and latent dimension: validation loss and PSNR over the same number of patches.

python -m histocodec.benchmarks.paper.hyperparameters DATA --out benchmarks/paper/results
"""

from dataclasses import replace
from pathlib import Path

import click

from histocodec.benchmarks.paper.training_runs import RATE, Results, Setup, bits_of, curves, images_of
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.formats.container.files import write_atomically

BATCHES = (32, 64, 128, 256)
DIMENSIONS = (8, 16, 32, 64, 128, 256)
BATCH, DIMENSION = 128, 64  # while the other is varied


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the JSON and the figure.")
@click.option("--steps", type=click.IntRange(min=1), default=400, show_default=True, help="Of a batch of 128.")
@click.option("--rate", type=float, default=RATE, show_default=True, help="Learning rate.")
def main(data: Path, *, out: Path, steps: int, rate: float) -> None:
    """Train on DATA/train with each setting, and validate on DATA/val."""
    training, validation = images_of(data / "train"), images_of(data / "val")
    results = Results(out, "hyperparameters")
    sized = [
        Setup(f"batch {batch}", DIMENSION, batch=batch, steps=max(1, steps * BATCH // batch), rate=rate)
        for batch in BATCHES
    ]
    wide = [Setup(f"dimension {dimension}", dimension, batch=BATCH, steps=steps, rate=rate) for dimension in DIMENSIONS]
    by_batch = [results.run(setup, training, validation) for setup in sized]
    shared = by_batch[BATCHES.index(BATCH)]  # the same run but for its name
    by_dimension = [
        replace(shared, setup=setup) if setup.latent_dim == DIMENSION else results.run(setup, training, validation)
        for setup in wide
    ]
    panels = {"batch size, latent dimension 64": by_batch, "latent dimension, batch 128": by_dimension}
    for outcome in (outcome for outcomes in panels.values() for outcome in outcomes):
        last = outcome.last
        bits = bits_of(last.divergence, outcome.setup)
        click.echo(
            f"{outcome.setup.name}: validation loss {last.validation_loss:.4f}, {last.validation_psnr:.2f} dB, "
            f"{bits:.0f} bits a patch by the divergence"
        )
    figure = curves(panels, value="validation_loss", label="validation loss")
    write_atomically(out / "hyperparameters.png", figure)


if __name__ == "__main__":
    run_command(main)
