"""`histocodec demo`: a slide through the whole machine, with the figures printed and a picture to look at."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import device_option, json_option
from histocodec.errors import FormatError
from histocodec.report import print_facts, print_json, progress_bar, say
from histocodec.text import decibel_text, ratio_text, size_text, time_text

if TYPE_CHECKING:
    from histocodec.formats.encode.options import EncodeReport
    from histocodec.geometry import Region
    from histocodec.picture import Panel
    from histocodec.slide import Mpp, Pixels, Slide

SYNTHETIC_MPP = 0.5
SIDE = 1024  # pixels of the region that is read back: four chunks
SHOWN = 512  # of which the picture shows the middle, pixel by pixel
APART = 30  # quality steps between the picture's two rates


@dataclass(frozen=True)
class Reading:
    """One region, decoded twice: from disk, and from what the reader had kept."""

    region: str
    first_seconds: float
    again_seconds: float


@dataclass(frozen=True)
class DemoReport:
    slide: Path
    encoded: "EncodeReport"
    sound: bool
    verified_psnr: float | None
    worst_psnr: float | None
    verify_seconds: float
    verify_megapixels_per_second: float
    reading: Reading
    picture: Path


@click.command("demo", short_help="Make a slide, compress it, read it back, show the figures.")
@click.option(
    "--slide",
    "own",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Your slide, instead of a made-up one.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="histocodec-demo",
    show_default=True,
    metavar="DIR",
    help="The folder for the results.",
)
@click.option("--quality", type=click.IntRange(0, 100), default=50, show_default=True)
@click.option("--model", default="hyper-6", show_default=True, metavar="ID|FILE")
@click.option(
    "--size",
    type=click.IntRange(256, 65_536),
    default=8192,
    show_default=True,
    help="Pixels on a side of the made-up slide.",
)
@device_option
@json_option
def command(*, own: Path | None, out: Path, quality: int, model: str, size: int, device: str, as_json: bool) -> None:
    """Show what the codec does, in a minute or two.

    Makes an H&E-like slide (or takes yours), compresses it, checks the container against the slide, decodes a
    region where there is tissue, prints the figures and writes a picture of the region beside its decoded
    selves at two rates.

    \b
    Examples:
      histocodec demo
      histocodec demo --slide slide.svs --quality 60
    """
    from histocodec.formats.decode.images import write_region
    from histocodec.formats.decode.open import open_slide
    from histocodec.formats.decode.slide import open_compressed
    from histocodec.formats.decode.verify import verify
    from histocodec.formats.encode.encode import encode_slide
    from histocodec.formats.encode.options import EncodeOptions
    from histocodec.picture import side_by_side
    from histocodec.sources import with_pyramid
    from histocodec.tissue import busiest_region

    options = EncodeOptions(quality=quality, model=model, device=device, overwrite=True)
    out.mkdir(parents=True, exist_ok=True)
    path = own or _made_up_slide(out / "slide.tif", size)
    container = out / "slide.zarr"
    with open_slide(path, device=device) as opened:
        slide = with_pyramid(opened)
        say(f"compressing {path}")
        with progress_bar("compressing") as bar:
            encoded = encode_slide(
                slide, container, options, progress=lambda progress: bar(progress.done, progress.total)
            )
        say("checking every chunk against the slide")
        with progress_bar("checking") as bar:
            checked = verify(container, against=slide, device=device, progress=bar)
        region = busiest_region(slide, SIDE)
        original = slide.read(region, 0)
        with open_compressed(container, device=device) as compressed:
            reading = _timed_reading(compressed, region)
        say("compressing the region at two rates, for the picture")
        panels = _panels(original, slide.mpp, quality=quality, model=model, device=device)
    picture = out / "side-by-side.png"
    write_region(picture, side_by_side(panels), mpp=None, icc=None)
    megapixels = sum(level.region.area for level in slide.levels) / 1e6
    report = DemoReport(
        slide=path,
        encoded=encoded,
        sound=checked.ok,
        verified_psnr=checked.psnr,
        worst_psnr=checked.worst_psnr,
        verify_seconds=checked.seconds,
        verify_megapixels_per_second=megapixels / checked.seconds,
        reading=reading,
        picture=picture,
    )
    if as_json:
        print_json(report)
    else:
        print_facts(_facts(report))
    if not checked.ok:
        raise FormatError(f"{container}: {'; '.join(checked.problems[:3])}")


def _made_up_slide(path: Path, size: int) -> Path:
    from histocodec.formats.decode.images import write_pyramid
    from histocodec.sources import ArraySlide
    from histocodec.sources.synthetic import synthetic_slide

    say(f"drawing a made-up slide of {size} x {size} pixels")
    slide = ArraySlide(synthetic_slide(size, size), name="made-up slide", mpp=SYNTHETIC_MPP)
    with progress_bar("writing it") as bar:
        write_pyramid(path, slide, progress=bar)
    return path


def _timed_reading(slide: "Slide", region: "Region") -> Reading:
    start = time.perf_counter()
    slide.read(region, 0)
    middle = time.perf_counter()
    slide.read(region, 0)
    return Reading(str(region), middle - start, time.perf_counter() - middle)


def _panels(pixels: "Pixels", mpp: "Mpp | None", *, quality: int, model: str, device: str) -> Sequence["Panel"]:
    """The middle of the region: as it was, and decoded at two rates. The region is compressed by itself, so
    that the bits in the captions are those of just these pixels."""
    import numpy as np

    from histocodec.formats.decode.slide import open_compressed
    from histocodec.formats.encode.encode import encode_slide
    from histocodec.formats.encode.options import EncodeOptions
    from histocodec.geometry import Region
    from histocodec.picture import Panel
    from histocodec.sources import ArraySlide

    height, width = pixels.shape[:2]
    whole = Region(0, 0, width, height)
    shown = Region((width - SHOWN) // 2, (height - SHOWN) // 2, SHOWN, SHOWN).intersect(whole)
    middle = shown.within(whole)
    panels = [Panel(pixels[middle], "original", "24 bits per pixel")]
    other = quality - APART if quality >= APART else quality + APART
    for one in sorted({quality, other}, reverse=True):
        with TemporaryDirectory(prefix="histocodec-demo-") as folder:
            path = Path(folder) / "region.zarr"
            options = EncodeOptions(quality=one, model=model, device=device, levels=(0,))
            report = encode_slide(ArraySlide(pixels, name="region", mpp=mpp), path, options)
            with open_compressed(path, device=device) as slide:
                decoded = slide.read(whole, 0)
        error = float(np.mean((decoded.astype(np.float64) - pixels) ** 2))
        psnr = 10 * np.log10(255**2 / error) if error else np.inf
        bpp = 8 * report.payload_bytes / whole.area
        panels.append(
            Panel(
                decoded[middle],
                f"histocodec, quality {one}",
                f"{bpp:.2f} bits per pixel ({ratio_text(24 / bpp)}), {decibel_text(float(psnr))}",
            )
        )
    return panels


def _source_size(encoded: "EncodeReport") -> str:
    """The slide's own bytes; several files, with some vendors."""
    ratio = encoded.ratio_source_file
    return "" if ratio is None else f", {size_text(round(encoded.bytes * ratio))}"


def _facts(report: DemoReport) -> list[tuple[str, str]]:
    encoded, reading = report.encoded, report.reading
    return [
        ("slide", f"{report.slide}: {encoded.width} x {encoded.height} pixels{_source_size(encoded)}"),
        (
            "container",
            f"{encoded.path}: {size_text(encoded.bytes)}, {encoded.levels} levels, model {encoded.model}",
        ),
        ("rate", f"{encoded.bpp:.3f} bits per pixel, at quality {encoded.quality}"),
        (
            "ratio",
            f"{ratio_text(encoded.ratio_raw)} against raw RGB\n"
            f"{ratio_text(encoded.ratio_source_file)} against the slide's file\n"
            f"{ratio_text(encoded.ratio_level0)} level 0 against level 0, of raw RGB",
        ),
        ("PSNR", f"{decibel_text(encoded.psnr)} at level 0, worst chunk {decibel_text(report.worst_psnr)}"),
        ("verified", "every chunk is sound" if report.sound else "DAMAGED"),
        (
            "encoding",
            f"{time_text(encoded.seconds)}, {encoded.megapixels_per_second:.1f} MP/s on {encoded.device}",
        ),
        (
            "checking",
            f"{time_text(report.verify_seconds)}, {report.verify_megapixels_per_second:.1f} MP/s, "
            "the slide's own decoding included",
        ),
        (
            "a region",
            f"{reading.region}: {1000 * reading.first_seconds:.0f} ms, once more {1000 * reading.again_seconds:.1f} ms",
        ),
        ("picture", str(report.picture)),
    ]
