"""Which loss can be seen: errors in decibels beside the colour differences that a model of the eye predicts.

    python -m histocodec.benchmarks.studies.visible VAL/*.webp

Images are coded at several qualities and compared with themselves by S-CIELAB (Zhang and Wandell, 1997: the image is
blurred as the eye blurs it, in three channels of opposite colours) and CIEDE2000. A difference of 1 can just be
noticed side by side, under good conditions; one of 2.3 is usually taken for a just noticeable one (Mahy and others,
1994). The colours of the fidelity map follow from the tables.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from numpy.typing import NDArray

from histocodec.benchmarks.measure.images import choose, read
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.extras import requires_extra
from histocodec.fidelity import psnr, psnr_map
from histocodec.formats.decode.slide import open_compressed
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.models.weights import DEFAULT_MODEL
from histocodec.report import print_json, say
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide

SIDE = 512  # pixels of what is taken of each image: a chunk
BLOCK = 16  # pixels, as those of the block error
QUALITIES = (5, 15, 25, 35, 45, 55, 65, 75, 85, 95)
PIXEL_PITCH, DISTANCE = 0.27, 600.0  # mm, of a 24-inch display at arm's length
SAMPLES_PER_DEGREE = DISTANCE * np.tan(np.radians(1)) / PIXEL_PITCH  # 39 pixels
NOTICED, JUST_NOTICEABLE = 1.0, 2.3

# S-CIELAB: opposite colours from XYZ, and weights and full widths at half maximum, in degrees, of their Gaussians.
OPPONENT = np.array([[0.279, 0.72, -0.107], [-0.449, 0.29, -0.077], [0.086, -0.59, 0.501]])
BLURS = (
    ((0.921, 0.0283), (0.105, 0.133), (-0.108, 4.336)),
    ((0.531, 0.0392), (0.330, 0.494)),
    ((0.488, 0.0536), (0.371, 0.386)),
)


@dataclass(frozen=True)
class Bin:
    """What has errors of `low` to `low` + 1 dB: how many, the median colour difference, and the shares, of 0 to 1, that
    can just be noticed and that are just noticeable. Of a chunk, the shares are those of its blocks."""

    of: str
    low: int
    count: int
    difference: float
    noticed: float
    just_noticeable: float


def colour_difference(a: Pixels, b: Pixels) -> NDArray[np.float64]:
    """CIEDE2000 of two images (H, W, 3) uint8 as the eye sees them at 1:1, (H, W)."""
    with requires_extra("bench"):
        from skimage.color import deltaE_ciede2000, xyz2lab

    difference: NDArray[np.float64] = deltaE_ciede2000(xyz2lab(_blurred(a)), xyz2lab(_blurred(b)))
    return difference


def _blurred(pixels: Pixels) -> NDArray[np.float64]:
    """The image in XYZ, blurred as the eye blurs it."""
    with requires_extra("bench"):
        from scipy.ndimage import gaussian_filter
        from skimage.color import rgb2xyz

    opponent = rgb2xyz(pixels) @ OPPONENT.T
    for channel, blurs in enumerate(BLURS):
        total = sum(weight for weight, _ in blurs)
        plane = opponent[..., channel]
        opponent[..., channel] = sum(
            weight / total * gaussian_filter(plane, width * SAMPLES_PER_DEGREE / 2.355, mode="nearest", truncate=3)
            for weight, width in blurs
        )
    xyz: NDArray[np.float64] = np.clip(opponent @ np.linalg.inv(OPPONENT).T, 0, None)
    return xyz


def _of_blocks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each block, of an image whose sides are multiples of BLOCK."""
    rows, columns = values.shape[0] // BLOCK, values.shape[1] // BLOCK
    squares = values[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    means: NDArray[np.float64] = squares.mean((1, 3))
    return means


def measure(
    images: Sequence[Path], qualities: Sequence[int], *, model: str
) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """Of each image at each quality: its PSNR, and (blocks, 2), the dB and the colour difference of each block."""
    samples = choose(images, variants=("native",), regions=1, side=SIDE, seed=0)
    with TemporaryDirectory(prefix="histocodec-visible-") as folder:
        for sample in samples:
            say(f"coding {sample.name}")
            pixels = np.ascontiguousarray(read(sample).pixels[:SIDE, :SIDE])
            for quality in qualities:
                path = Path(folder) / "image.hcz"
                options = EncodeOptions(
                    quality=quality, model=model, effort=0, levels=(0,), background="code", overview=None,
                    device="cpu", overwrite=True,
                )  # fmt: skip
                encode_slide(ArraySlide(pixels, name=sample.name), path, options)
                with open_compressed(path, device="cpu") as slide:
                    decoded = slide.read(slide.levels[0].region, 0)
                squares = _of_blocks(np.square(pixels.astype(np.float64) - decoded).mean(2))
                decibels = psnr_map(squares, np.ones_like(squares))
                difference = _of_blocks(colour_difference(pixels, decoded))
                yield (
                    psnr(float(squares.mean()), 1),
                    np.stack([decibels, difference], -1).reshape(-1, 2),
                )


def bins(found: Sequence[tuple[float, NDArray[np.float64]]]) -> Iterator[Bin]:
    """Blocks by their own dB, then chunks by their PSNR."""
    blocks = np.concatenate([blocks for _, blocks in found])
    for low in range(16, 56):
        difference = blocks[(blocks[:, 0] >= low) & (blocks[:, 0] < low + 1), 1]
        if difference.size >= 100:
            yield _bin("block", low, difference.size, difference)
    for low in range(16, 56):
        chosen = [blocks[:, 1] for decibels, blocks in found if low <= decibels < low + 1]
        if chosen:
            yield _bin("chunk", low, len(chosen), np.concatenate(chosen))


def _bin(of: str, low: int, count: int, difference: NDArray[np.float64]) -> Bin:
    shares = (float((difference > limit).mean()) for limit in (NOTICED, JUST_NOTICEABLE))
    return Bin(of, low, count, float(np.median(difference)), *shares)


def table(rows: Sequence[Bin]) -> str:
    """The bins as Markdown."""
    lines = [
        f"| of a | dB | number | median ΔE | above {NOTICED:g} | above {JUST_NOTICEABLE:g} |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.of} | {row.low} to {row.low + 1} | {row.count} | {row.difference:.2f} | {100 * row.noticed:.1f} % "
        f"| {100 * row.just_noticeable:.1f} % |"
        for row in rows
    ]
    return "\n".join(lines)


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="ID|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(images: Sequence[Path], *, model: str, as_json: bool) -> None:
    """Say which errors of IMAGES a model of the eye notices."""
    rows = list(bins(list(measure(images, QUALITIES, model=model))))
    if as_json:
        print_json({"bins": rows})
    else:
        click.echo(table(rows))


if __name__ == "__main__":
    run_command(main)
