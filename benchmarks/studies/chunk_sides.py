"""What chunks of 256 × 256 pixels cost beside those of 512, and what they save.

    python -m histocodec.benchmarks.studies.chunk_sides VAL/*.webp slide.svs

Every image is encoded with both sides at several qualities, without a search, so that the latents are the same and so
are the pixels: only the bytes differ. Of slides above 2048 pixels a side a square of tissue is taken. Then patches are
drawn at random, and what a cold read of each decodes is counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from histocodec.benchmarks.measure.images import choose, read
from histocodec.benchmarks.measure.our_codec import chunk_bytes
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.errors import UsageError
from histocodec.formats.container.shard import PAIR_BYTES
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import CHUNK_SIDES, EncodeOptions
from histocodec.geometry import Region
from histocodec.models.weights import DEFAULT_MODEL
from histocodec.report import print_json, say
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide

PATCH = 256  # pixels a side of what is read at random
SQUARE = 2048  # pixels a side of what is taken of a slide
QUALITIES = (19, 35, 53, 72)  # about 0.06, 0.15, 0.36 and 0.75 bits per pixel of tissue


@dataclass(frozen=True)
class Coded:
    """One image, coded at one quality with chunks of one side: the bytes of its chunks with their CRCs and entries in
    the index of a shard, and its PSNR in dB."""

    group: str
    image: str
    quality: int
    chunk: int
    pixels: int
    bytes: int
    psnr: float


@dataclass(frozen=True)
class PatchCost:
    """What a cold read of a patch takes on average: chunks whose latents are decoded, the pixels of these chunks, the
    pixels that are synthesised, and the bytes of the chunks."""

    group: str
    chunk: int
    patches: int
    chunks: float
    decoded_pixels: float
    synthesised_pixels: float
    bytes: float


def coded(group: str, image: str, pixels: Pixels, quality: int, chunk: int, model: str, path: Path) -> Coded:
    """Encode an image into the container `path`."""
    options = EncodeOptions(
        quality=quality, model=model, effort=0, chunk=chunk, levels=(0,), background="code", overview=None,
        device="cpu", overwrite=True,
    )  # fmt: skip
    report = encode_slide(ArraySlide(pixels, name=image), path, options)
    with open_compressed(path, device="cpu") as slide:
        size = chunk_bytes(slide.container, 0) + PAIR_BYTES * slide.container.tiles(0).size
    return Coded(group, image, quality, chunk, pixels.shape[0] * pixels.shape[1], size, report.psnr)


def patch_cost(group: str, slide: CompressedSlide, *, patches: int, seed: int = 0) -> PatchCost:
    """What reads of random patches of level 0 decode, each with nothing cached. Nothing is decoded here."""
    level, decoder, attributes = slide.levels[0], slide.decoder, slide.container.attributes
    reader, rng, costs = decoder.reader, np.random.default_rng(seed), []
    sizes = slide.container.maps(0).size  # type: ignore[attr-defined]  # it was just written, in version 2
    for _ in range(patches):
        x, y = rng.integers(level.width - PATCH + 1), rng.integers(level.height - PATCH + 1)
        region = Region(int(x), int(y), PATCH, PATCH)
        if decoder.prefers_direct(0, region):
            areas = [reader.latents_of(region)]
        else:
            areas = [reader.area_of(key) for key in attributes.chunks_in(0, region)]
        windows = [reader.window_of(0, area)[0] for area in areas]
        keys = {key for window in windows for key in reader.chunks_in(0, window)}
        costs.append(
            (
                len(keys),
                len(keys) * attributes.chunk_side**2,
                sum(window.area for window in windows) * attributes.model.stride**2,
                sum(int(sizes[key.row, key.column]) for key in keys),
            )
        )
    return PatchCost(group, attributes.chunk_side, patches, *np.mean(costs, axis=0).tolist())


def compare(
    images: Sequence[Path], qualities: Sequence[int], *, model: str, patches: int
) -> Iterator[Coded | PatchCost]:
    """Every image at every quality with both sides of chunks; patches of the images that are large enough, at the last
    quality."""
    samples = choose(images, variants=("native",), regions=1, side=SQUARE, seed=0)
    with TemporaryDirectory(prefix="histocodec-chunks-") as folder:
        for sample in samples:
            say(f"coding {sample.name}")
            pixels = read(sample).pixels
            for chunk in CHUNK_SIDES:
                path = Path(folder) / f"{chunk}.hc.zarr"
                for quality in qualities:
                    yield coded(sample.group, sample.name, pixels, quality, chunk, model, path)
                if min(pixels.shape[:2]) >= 4 * PATCH:
                    with open_compressed(path, device="cpu") as slide:
                        yield patch_cost(sample.group, slide, patches=patches)


def tables(found: Sequence[Coded | PatchCost]) -> str:
    """What was found, as two Markdown tables: by source and quality, then by source."""
    small, large = CHUNK_SIDES
    lines = [
        f"| images | quality | bpp with {large} | bytes with {small} | PSNR with {large} | with {small} |",
        "|---|---|---|---|---|---|",
    ]
    rows = [row for row in found if isinstance(row, Coded)]
    for group, quality in dict.fromkeys((row.group, row.quality) for row in rows):
        same = [row for row in rows if (row.group, row.quality) == (group, quality)]
        by_side = {side: [row for row in same if row.chunk == side] for side in CHUNK_SIDES}
        bytes_of = {side: sum(row.bytes for row in rows) for side, rows in by_side.items()}
        psnr = {side: np.mean([row.psnr for row in rows]) for side, rows in by_side.items()}
        count = len(by_side[large])
        bpp = 8 * bytes_of[large] / sum(row.pixels for row in by_side[large])
        more = 100 * (bytes_of[small] / bytes_of[large] - 1)
        lines.append(
            f"| {group} ({count}) | {quality} | {bpp:.3f} | {more:+.2f} % | {psnr[large]:.3f} | {psnr[small]:.3f} |"
        )
    lines += [
        "",
        f"| a random patch of {PATCH} × {PATCH} | side | chunks | their pixels | pixels synthesised | bytes |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.group} | {row.chunk} | {row.chunks:.2f} | {row.decoded_pixels:,.0f} | {row.synthesised_pixels:,.0f} "
        f"| {row.bytes:,.0f} |"
        for row in found
        if isinstance(row, PatchCost)
    ]
    return "\n".join(lines)


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as exc:
        raise UsageError(f"--quality {text}: whole numbers, separated by commas, are needed") from exc


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--quality",
    "qualities",
    default=",".join(map(str, QUALITIES)),
    show_default=True,
    callback=_numbers,
    help="To encode at.",
)
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="ID|FILE")
@click.option("--patches", default=1000, show_default=True, help="To draw of each image of 1024 pixels or more a side.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def main(images: Sequence[Path], *, qualities: Sequence[int], model: str, patches: int, as_json: bool) -> None:
    """Compare chunks of 256 and 512 pixels a side on IMAGES."""
    found = list(compare(images, qualities, model=model, patches=patches))
    if as_json:
        print_json(
            {
                "coded": [row for row in found if isinstance(row, Coded)],
                "patches": [row for row in found if isinstance(row, PatchCost)],
            }
        )
    else:
        click.echo(tables(found))


if __name__ == "__main__":
    run_command(main)
