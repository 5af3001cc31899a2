"""What exact pixels take: our latents and what they lack, beside lossless JPEG XL, JPEG-LS and JPEG 2000.

    python -m histocodec.benchmarks.studies.exact VAL/*.webp HIGH/*.webp

Every image, or the tissue of every slide, is coded at one quality; what the pixels lack is then coded in squares of 512
pixels, as a container would, so that nothing is lost, or no sample is off by more than a bound.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import imagecodecs
import numpy as np

from histocodec.benchmarks.measure.images import choose, read
from histocodec.benchmarks.measure.our_codec import OurCodec
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.codec import exact
from histocodec.models.weights import DEFAULT_MODEL
from histocodec.report import print_json, say
from histocodec.slide import Pixels

SQUARE = 1024  # pixels a side of what is taken of a slide
CHUNK = 512
JPEGXL_EFFORT = 7


@dataclass(frozen=True)
class Row:
    """Bits per pixel of one image with samples off by `error` at most: our latents, what the pixels lack beside them,
    and peers. JPEG-LS bounds the error, too; JPEG XL and JPEG 2000 only lose nothing."""

    image: str
    quality: float
    error: int
    latents: float
    exact: float
    jpegxl: float | None
    jpegls: float
    jpeg2000: float | None

    @property
    def ours(self) -> float:
        """All that we take."""
        return self.latents + self.exact


def measure(pixels: Pixels, name: str, quality: float, errors: Sequence[int]) -> Iterator[Row]:
    """Code pixels (h, w, 3) at one quality, and with each bound. Decodes everything, and checks it."""
    pixels = np.ascontiguousarray(pixels)
    bits = 8 / (pixels.shape[0] * pixels.shape[1])
    with TemporaryDirectory(prefix="histocodec-exact-") as folder:
        codec = OurCodec(pixels, quality, DEFAULT_MODEL, "cpu", 1, Path(folder), effort=0)
        latents = codec.prepare().payload_bytes * bits
        base = codec.read()
    for error in errors:
        total = 0
        for y in range(0, pixels.shape[0], CHUNK):
            for x in range(0, pixels.shape[1], CHUNK):
                whole, under = (np.ascontiguousarray(image[y : y + CHUNK, x : x + CHUNK]) for image in (pixels, base))
                data = exact.encode(whole, under, error)
                off = int(abs(exact.decode(data, under).astype(np.int16) - whole).max())
                assert off <= error, f"{name}: a sample is off by {off}"
                total += len(data)
        yield Row(
            name,
            quality,
            error,
            latents,
            total * bits,
            None if error else bits * len(imagecodecs.jpegxl_encode(pixels, effort=JPEGXL_EFFORT, lossless=True)),
            bits * len(imagecodecs.jpegls_encode(pixels, level=error)),
            None if error else bits * len(imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True)),
        )


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each image and bound, and the mean difference from each peer."""
    lines = [
        "| image | quality | largest error | latents | what they lack | ours | JPEG XL | JPEG-LS | JPEG 2000 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def beside(row: Row, peer: float | None) -> str:
        return "–" if peer is None else f"{peer:.2f} ({100 * (row.ours / peer - 1):+.1f} %)"

    for row in rows:
        peers = " | ".join(beside(row, peer) for peer in (row.jpegxl, row.jpegls, row.jpeg2000))
        lines.append(
            f"| {row.image} | {row.quality:g} | {row.error} | {row.latents:.2f} | {row.exact:.2f} | {row.ours:.2f} "
            f"| {peers} |"
        )
    for error in dict.fromkeys(row.error for row in rows):
        same = [row for row in rows if row.error == error]
        means = []
        for peer in ("jpegxl", "jpegls", "jpeg2000"):
            ratios = [row.ours / getattr(row, peer) - 1 for row in same if getattr(row, peer) is not None]
            means.append(f"{100 * float(np.mean(ratios)):+.1f} %" if ratios else "–")
        lines.append(f"| mean | | {error} | | | | {' | '.join(means)} |")
    return "\n".join(lines)


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--quality", default=25.0, show_default=True, help="Of the latents.")
@click.option("--error", "errors", type=int, multiple=True, default=(0, 2), show_default=True, help="In grey values.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(images: Sequence[Path], *, quality: float, errors: Sequence[int], as_json: bool) -> None:
    """Count the bits that IMAGES take with samples off by nothing, or by a bound at most."""
    rows: list[Row] = []
    for sample in choose(images, variants=("native",), regions=1, side=SQUARE, seed=0):
        say(f"coding {sample.name}")
        rows += measure(read(sample).pixels, sample.name, quality, errors)
    if as_json:
        print_json({"rows": rows})
    else:
        click.echo(table(rows))


if __name__ == "__main__":
    run_command(main)
