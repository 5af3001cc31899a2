"""Bytes against quality: histocodec and JPEG 2000 on whole images, in real bytes, each image decoded again.

    python -m histocodec.benchmarks.rate IMAGES… [--model ID|FILE] [--out results.json]

Three counts of our own bytes, for they answer different questions; JPEG 2000's are its whole codestream:

    bytes            shards of latents with their index, and the statistics: what reading the pixels needs
    in_slide_bytes   coded chunks with their checksums and index entries: what they cost within a large slide;
                     an image of one chunk pays for a shard's 64 index entries and the statistics by itself
    container_bytes  every file of the container, its metadata, maps and checksums included
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import click
import numpy as np

from histocodec.benchmarks.bjontegaard import BdRate, Curve, bd_rate, bytes_difference
from histocodec.benchmarks.peers import JPEG2000, JPEG2000_TILES, TILE, Contender, ladder
from histocodec.benchmarks.provenance import Machine, Model, at_hand, run, save, versions
from histocodec.cli.options import device_option, json_option
from histocodec.cli.report import print_json, say
from histocodec.errors import UsageError
from histocodec.formats.container import Container
from histocodec.formats.measure import psnr, squared_error
from histocodec.formats.options import EncodeOptions
from histocodec.formats.reader import open_compressed
from histocodec.formats.shard import PAIR_BYTES, read_index
from histocodec.formats.source import open_slide
from histocodec.formats.writer import encode_slide
from histocodec.models.config import QUALITIES
from histocodec.models.weights import DEFAULT_MODEL
from histocodec.slide import Pixels, Slide
from histocodec.transform import choose_device

OURS = "histocodec"
EVERYTHING = "all"
BANDS = {
    "0.05-0.25": (0.05, 0.25),
    "0.25-0.75": (0.25, 0.75),
    "0.75-1.5": (0.75, 1.5),
    "0.05-1.5": (0.05, 1.5),
}
PSNRS = (24.0, 26.0, 28.0, 30.0, 32.0, 34.0, 36.0)  # dB at which bytes are compared
BEYOND = 0.5  # dB by which the peers' curves reach beyond ours, so that all of ours is compared

Count = Literal["bytes", "in_slide_bytes", "container_bytes"]
COUNTS: tuple[Count, ...] = get_args(Count)


@dataclass(frozen=True)
class Row:
    """One image at one setting. `bpp` is that of `bytes`."""

    codec: str
    setting: float  # ours: the quality; JPEG 2000: the PSNR asked for
    bytes: int
    in_slide_bytes: int
    container_bytes: int
    bpp: float
    psnr: float


@dataclass(frozen=True)
class Comparison:
    """Ours against one peer on one image, in per cent of its bytes: negative is fewer. Bands are the peer's
    bits per pixel; `all` is every quality that both reach."""

    peer: str
    bd_rate: Mapping[Count, Mapping[str, BdRate | None]]
    at_psnr: Mapping[Count, Mapping[str, float | None]]  # over the PSNR in dB


@dataclass(frozen=True)
class ImageResult:
    image: str
    group: str
    width: int
    height: int
    monotone: bool  # every higher quality has more bytes and a higher PSNR
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Mean:
    """Over the images where there is a value."""

    percent: float
    images: int


@dataclass(frozen=True)
class GroupResult:
    group: str
    images: int
    peer: str
    bd_rate: Mapping[Count, Mapping[str, Mean | None]]
    at_psnr: Mapping[Count, Mapping[str, Mean | None]]


@dataclass(frozen=True)
class RateResult:
    machine: Machine
    versions: Mapping[str, str]
    model: Model
    device: str
    qualities: tuple[int, ...]
    groups: tuple[GroupResult, ...]
    images: tuple[ImageResult, ...]


def measure_image(slide: Slide, *, qualities: Sequence[int], model: str, device: str) -> ImageResult:
    """The whole of level 0, by us at each quality and by each peer over the same range."""
    level = slide.levels[0]
    pixels = slide.read(level.region, 0)
    ours = [_our_row(slide, pixels, quality, model, device) for quality in qualities]
    peers: list[Contender] = [JPEG2000]
    if max(level.width, level.height) > TILE:
        peers.append(JPEG2000_TILES)
    reached = [row.psnr for row in ours if np.isfinite(row.psnr)]
    rows, comparisons = list(ours), []
    for peer in peers if reached else []:
        theirs = _peer_rows(peer, pixels, min(reached) - BEYOND, max(reached) + BEYOND)
        rows += theirs
        comparisons.append(compare(ours, theirs, level.region.area))
    name = Path(slide.name).name
    return ImageResult(
        name,
        Path(name).stem.split("-")[0],
        level.width,
        level.height,
        all(a.bytes < b.bytes and a.psnr < b.psnr for a, b in pairwise(ours)),
        tuple(rows),
        tuple(comparisons),
    )


def compare(ours: Sequence[Row], theirs: Sequence[Row], pixels: int) -> Comparison:
    """Of one image that has so many pixels."""
    anchor = Curve.of((row.bytes, row.psnr) for row in theirs)
    rates: dict[Count, dict[str, BdRate | None]] = {}
    at_psnr: dict[Count, dict[str, float | None]] = {}
    for count in COUNTS:
        test = Curve.of((getattr(row, count), row.psnr) for row in ours)
        both = None if anchor is None or test is None else (anchor, test)
        rates[count] = {EVERYTHING: both and bd_rate(*both)}
        for band, (low, high) in BANDS.items():
            limits = (low * pixels / 8, high * pixels / 8)
            rates[count][band] = both and bd_rate(*both, anchor_bytes=limits)
        at_psnr[count] = {f"{at:g}": both and bytes_difference(*both, at) for at in PSNRS}
    return Comparison(theirs[0].codec, rates, at_psnr)


def group_results(images: Sequence[ImageResult]) -> tuple[GroupResult, ...]:
    """Means over the images of each source; never over several sources, whose images are as many as happened
    to be at hand."""
    found = []
    for group in sorted({image.group for image in images}):
        members = [image for image in images if image.group == group]
        for peer in dict.fromkeys(one.peer for image in members for one in image.comparisons):
            chosen = [one for image in members for one in image.comparisons if one.peer == peer]
            rates = {
                count: {
                    band: _mean([rate.percent for one in chosen if (rate := one.bd_rate[count][band])])
                    for band in (EVERYTHING, *BANDS)
                }
                for count in COUNTS
            }
            at_psnr = {
                count: {
                    at: _mean([value for one in chosen if (value := one.at_psnr[count][at]) is not None])
                    for at in (f"{at:g}" for at in PSNRS)
                }
                for count in COUNTS
            }
            found.append(GroupResult(group, len(members), peer, rates, at_psnr))
    return tuple(found)


def _our_row(slide: Slide, pixels: Pixels, quality: int, model: str, device: str) -> Row:
    with TemporaryDirectory(prefix="histocodec-rate-") as folder:
        path = Path(folder) / "image.zarr"
        options = EncodeOptions(quality=quality, model=model, levels=(0,), background="code", device=device)
        report = encode_slide(slide, path, options)
        in_slide = _chunk_bytes(Container.open(path))
        with open_compressed(path, device=device) as opened:
            decoded = opened.read(opened.levels[0].region, 0)
    return Row(
        OURS,
        quality,
        report.payload_bytes,
        in_slide,
        report.bytes,
        8 * report.payload_bytes / (report.width * report.height),
        psnr(squared_error(decoded, pixels), pixels.size),
    )


def _chunk_bytes(container: Container) -> int:
    """Level 0's chunks, each with its checksum and its entry in the index."""
    total, slots = 0, container.attributes.shard**2
    for row, column in np.argwhere(container.present_shards(0)).tolist():
        entries = read_index(container.shard_path(0, row, column), slots).entries
        total += sum(entry[1] + PAIR_BYTES for entry in entries if entry is not None)
    return total


def _peer_rows(peer: Contender, pixels: Pixels, low: float, high: float) -> list[Row]:
    area = pixels.shape[0] * pixels.shape[1]
    return [
        Row(peer.name, one.setting, size, size, size, 8 * size / area, one.psnr)
        for one in ladder(peer, pixels, low, high)
        for size in (len(one.data),)
    ]


def _mean(values: Sequence[float]) -> Mean | None:
    return Mean(fmean(values), len(values)) if values else None


def _quality_list(text: str) -> tuple[int, ...]:
    try:
        qualities = sorted({int(part) for part in text.split(",")})
    except ValueError as exc:
        raise click.BadParameter(f"{text!r}; whole numbers with commas between them are needed") from exc
    if len(qualities) < 2 or not 0 <= qualities[0] <= qualities[-1] < QUALITIES:
        raise click.BadParameter(f"{text}; two or more from 0 to {QUALITIES - 1} are needed")
    return tuple(qualities)


@click.command("rate")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="ID|FILE")
@click.option(
    "--qualities",
    type=_quality_list,
    default=",".join(map(str, range(0, QUALITIES, 10))),
    show_default=True,
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="A file for the result, as JSON."
)
@device_option
@json_option
def command(
    *,
    images: tuple[Path, ...],
    model: str,
    qualities: tuple[int, ...],
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Bytes against PSNR-RGB on whole images, beside JPEG 2000.

    An image belongs to the group that its name begins with, up to the first "-"; figures are means over the
    images of a group.
    """
    missing = [path for path in images if not path.exists()]
    if missing:
        raise UsageError(f"{missing[0]}: does not exist")
    machine, results = Machine.here(), []
    with at_hand(model) as weights:
        for number, path in enumerate(images, 1):
            with open_slide(path, device=device) as slide:
                result = measure_image(slide, qualities=qualities, model=model, device=device)
            results.append(result)
            say(f"{number}/{len(images)}  {_line(result)}")
    found = RateResult(
        machine=machine,
        versions=versions(),
        model=Model.of(weights),
        device=str(choose_device(device)),
        qualities=qualities,
        groups=group_results(results),
        images=tuple(results),
    )
    if out is not None:
        save(found, out)
    if as_json:
        print_json(found)
    else:
        _print_table(found)


def _line(result: ImageResult) -> str:
    rates = [
        f"{one.peer} {_percent_text(one.bd_rate['bytes'][EVERYTHING])} "
        f"(in a slide {_percent_text(one.bd_rate['in_slide_bytes'][EVERYTHING])})"
        for one in result.comparisons
    ]
    shape = "" if result.monotone else "; NOT MONOTONE in quality"
    return f"{result.image}: {'; '.join(rates) or 'nothing to compare'}{shape}"


def _print_table(result: RateResult) -> None:
    click.echo(f"model {result.model.id} ({result.model.sha256[:12]}), {result.versions['openjpeg']}")
    click.echo("bytes at equal PSNR-RGB against the peer's, mean over the images [or so many of them]")
    bands = (EVERYTHING, *BANDS)
    for one in result.groups:
        click.echo(f"\n{one.group} ({one.images} images) against {one.peer}")
        click.echo(f"  {'BD-rate at bits per pixel':<26}" + "".join(f"{band:>13}" for band in bands))
        for count in COUNTS:
            cells = [_mean_text(one.bd_rate[count][band], one.images) for band in bands]
            click.echo(f"  {count:<26}" + "".join(f"{cell:>13}" for cell in cells))
        reached = [at for at, mean in one.at_psnr["bytes"].items() if mean is not None]
        click.echo(f"  {'at a PSNR of, dB':<26}" + "".join(f"{at:>13}" for at in reached))
        for count in COUNTS:
            cells = [_mean_text(one.at_psnr[count][at], one.images) for at in reached]
            click.echo(f"  {count:<26}" + "".join(f"{cell:>13}" for cell in cells))
    broken = [image.image for image in result.images if not image.monotone]
    click.echo(f"\nmonotone in quality: {'all images' if not broken else 'NOT ' + ', '.join(broken)}")


def _percent_text(rate: BdRate | Mean | None) -> str:
    return "-" if rate is None else f"{rate.percent:+.1f} %"


def _mean_text(mean: Mean | None, images: int) -> str:
    fewer = "" if mean is None or mean.images == images else f" [{mean.images}]"
    return f"{_percent_text(mean)}{fewer}"


def main() -> None:
    sys.exit(run(command, __spec__.name if __spec__ else "rate"))


if __name__ == "__main__":
    main()
