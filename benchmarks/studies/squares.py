"""How much of each codec's error is squares: steps at the edges of blocks of 16 × 16 pixels, in smooth places.

    python -m histocodec.benchmarks.studies.squares VAL/*.webp

Every image is coded by every codec in the same bytes. `histocodec.benchmarks.measure.squares` defines the measure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from histocodec.benchmarks.measure.byte_budget import ours_within
from histocodec.benchmarks.measure.images import choose, read
from histocodec.benchmarks.measure.provenance import installed
from histocodec.benchmarks.measure.result_rows import OURS
from histocodec.benchmarks.measure.squares import Squares, squares, total
from histocodec.benchmarks.peers.codecs import PEERS
from histocodec.benchmarks.peers.contender import code_at_bytes
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.errors import UsageError
from histocodec.fidelity import psnr, squared_error
from histocodec.models.weights import DEFAULT_MODEL
from histocodec.report import print_json, say

SQUARE = 1024  # pixels a side of what is taken of a slide
RATES = (0.05, 0.1)  # bits per pixel: where squares show
CODECS = ("jpeg2000", "jpegxl", "avif")


@dataclass(frozen=True)
class Coded:
    """One image as one codec coded it within a number of bits per pixel: what it really took, its PSNR in dB, and its
    squares."""

    image: str
    codec: str
    rate: float
    bpp: float
    psnr: float
    squares: Squares


def compare(
    images: Sequence[Path], rates: Sequence[float], *, models: Sequence[str], peers: Sequence[str], effort: float | None
) -> Iterator[Coded]:
    """Every image at every rate, by each of our models and by each peer."""
    unknown = sorted(set(peers) - set(PEERS))
    if unknown:
        raise UsageError(f"peer {unknown[0]!r} is unknown; allowed are {', '.join(PEERS)}")
    for sample in choose(images, variants=("native",), regions=1, side=SQUARE, seed=0):
        picture = read(sample)
        pixels, area = picture.pixels, picture.area
        say(f"coding {sample.name}")
        for rate in rates:
            budget = int(rate * area / 8)
            for model in models:
                with installed(model) as weights:
                    size, decoded = ours_within(
                        pixels, budget, model=weights.id, device="cpu", threads=1, effort=effort
                    )
                fidelity = psnr(squared_error(decoded, pixels), pixels.size)
                name = f"{OURS} {weights.id}"
                yield Coded(sample.name, name, rate, 8 * size / area, fidelity, squares(pixels, decoded))
            for peer in (PEERS[name][0] for name in peers):
                coded = code_at_bytes(peer, pixels, budget)
                decoded = peer.decode(coded.data)
                bpp = 8 * len(coded.data) / area
                yield Coded(sample.name, peer.name, rate, bpp, coded.psnr, squares(pixels, decoded))


def table(found: Sequence[Coded]) -> str:
    """What was found, as a Markdown table with a row for each codec and rate."""
    lines = ["| codec | asked for | bpp | PSNR | squares: excess | height, grey values |", "|---|---|---|---|---|---|"]
    for codec, rate in sorted(dict.fromkeys((row.codec, row.rate) for row in found), key=lambda key: key[1]):
        rows = [row for row in found if (row.codec, row.rate) == (codec, rate)]
        bpp, fidelity = (sum(values) / len(rows) for values in zip(*((r.bpp, r.psnr) for r in rows), strict=True))
        all_squares = total(row.squares for row in rows)
        shown = f"{100 * all_squares.excess:+.1f} % | {all_squares.height:.2f}" if all_squares.edges else "– | –"
        lines.append(f"| {codec} | {rate:g} | {bpp:.4f} | {fidelity:.2f} dB | {shown} |")
    return "\n".join(lines)


def _rates(context: click.Context, parameter: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError as exc:
        raise UsageError(f"--rate {text}: numbers, separated by commas, are needed") from exc
    if not all(0 < rate <= 24 for rate in rates):
        raise UsageError(f"--rate {text}: above 0 and at most 24 bits per pixel are allowed")
    return rates


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--rate",
    "rates",
    default=",".join(map(str, RATES)),
    show_default=True,
    callback=_rates,
    help="Bits per pixel to code within.",
)
@click.option("--model", "models", multiple=True, default=(DEFAULT_MODEL,), show_default=True, metavar="ID|FILE")
@click.option("--against", default=",".join(CODECS), show_default=True, help="Other codecs; empty for none.")
@click.option("--effort", type=float, help="Of our encoder.  [default: that of encode]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(
    images: Sequence[Path],
    *,
    rates: Sequence[float],
    models: Sequence[str],
    against: str,
    effort: float | None,
    as_json: bool,
) -> None:
    """Compare the squares that codecs draw on IMAGES, in the same bytes."""
    peers = [name for name in against.split(",") if name]
    found = list(compare(images, rates, models=models, peers=peers, effort=effort))
    if as_json:
        print_json({"coded": found})
    else:
        click.echo(table(found))


if __name__ == "__main__":
    run_command(main)
