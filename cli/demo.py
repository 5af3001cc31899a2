"""`histocodec demo`: compress a slide, check it, read it back, and show figures and a picture."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from histocodec.cli.encode import progress_note, quality_text
from histocodec.cli.options import device_option, integer, json_option, model_option, option
from histocodec.errors import FormatError
from histocodec.report import print_facts, print_json, progress_bar, say
from histocodec.text import count_text, decibel_text, ratio_text, size_text, speed_text, time_text

if TYPE_CHECKING:
    from histocodec.formats.encode.options import EncodeProgress
    from histocodec.formats.encode.report import EncodeReport
    from histocodec.geometry import Region
    from histocodec.picture import Panel
    from histocodec.slide import Mpp, Pixels, Slide

SYNTHETIC_MPP = 0.5  # microns per pixel of the synthetic slide
REGION_SIDE = 1024  # pixels of the region that is read back: 2 x 2 chunks
SHOWN_SIDE = 512  # pixels of its middle, which the picture shows unscaled
QUALITY_STEP = 30  # between the picture's two rates


@dataclass(frozen=True)
class Reading:
    """A region that was decoded twice: from disk, and from the slide's cache."""

    region: str
    first_seconds: float
    again_seconds: float


@dataclass(frozen=True)
class DemoReport:
    """The demo's figures. PSNR is in dB; speeds count the pixels of all levels."""

    slide: Path
    encoded: "EncodeReport"
    sound: bool
    verified_psnr: float | None
    worst_psnr: float | None
    verify_seconds: float
    verify_megapixels_per_second: float
    reading: Reading
    picture: Path


@click.command("demo", short_help="Compress a synthetic slide, and show what comes out.")
@option(
    "--slide", "source", type=click.Path(path_type=Path), metavar="PATH", help="Use this slide, not a synthetic one."
)
@option(
    "--size",
    type=integer(256, 65_536),
    metavar="N",
    default=8192,
    show_default=True,
    help="Side of the synthetic slide, in pixels.",
)
@option(
    "--quality",
    type=integer(0, 100),
    metavar="Q",
    default=50,
    show_default=True,
    help="Quality, 0–100. Higher is better and larger.",
)
@model_option
@option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="histocodec-demo",
    show_default=True,
    metavar="DIR",
    help="Folder for the results.",
)
@device_option
@json_option
def command(*, source: Path | None, size: int, quality: int, model: str, out: Path, device: str, as_json: bool) -> None:
    """Show what the codec does, in a minute or two.

    The demo draws a slide that looks like H&E (or takes yours), compresses it, checks the container against it, and
    decodes a region with tissue. It prints sizes, fidelity and speed, and draws the region before and after.

    \b
    Examples:
      histocodec demo
      histocodec demo --slide slide.svs --quality 60
    """
    report, problems = run_demo(source, out, size=size, quality=quality, model=model, device=device)
    if as_json:
        print_json(report)
    else:
        print_facts(report_facts(report))
    if problems:
        raise FormatError(f"{report.encoded.path}: {'; '.join(problems[:3])}")


def run_demo(
    source: Path | None, out: Path, *, size: int, quality: int, model: str, device: str
) -> tuple[DemoReport, tuple[str, ...]]:
    """Run the demo in the folder `out`; `source` is a slide, or None for a synthetic one of `size` x `size` pixels.

    Returns the report, and what `verify` found wrong with the container.
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
    path = source or _draw_slide(out / "slide.tif", size)
    container, picture = out / "slide.hcz", out / "side-by-side.png"
    with open_slide(path, device=device) as opened:
        slide = with_pyramid(opened)
        say(f"compressing {path}")
        with progress_bar("compressing") as bar:

            def show(progress: "EncodeProgress") -> None:
                bar(progress.done, progress.total, progress_note(progress))

            encoded = encode_slide(slide, container, options, progress=show)
        say("checking every chunk against the slide")
        with progress_bar("checking") as bar:
            checked = verify(container, against=slide, device=device, progress=bar)
        region = busiest_region(slide, REGION_SIDE)
        original = slide.read(region, 0)
        with open_compressed(container, device=device) as compressed:
            reading = _timed_reading(compressed, region)
        say("compressing a region at two qualities for the picture")
        panels = _panels(original, slide.mpp, quality=quality, model=model, device=device)
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
    return report, checked.problems


def report_facts(report: DemoReport) -> list[tuple[str, str]]:
    """Return names and values of a report, for people."""
    encoded, reading = report.encoded, report.reading
    size = f"{encoded.width} x {encoded.height} pixels{_source_size_text(encoded)}"
    levels = count_text(encoded.levels, "level")
    first, again = 1000 * reading.first_seconds, 1000 * reading.again_seconds
    return [
        ("slide", f"{report.slide}: {size}"),
        ("container", f"{encoded.path}: {size_text(encoded.bytes)}, {levels}, model {encoded.model}"),
        ("rate", f"{encoded.bpp:.3f} bits per pixel of level 0, {quality_text(encoded)}"),
        (
            "ratio",
            f"{ratio_text(encoded.ratio_raw)} to raw RGB of level 0\n"
            f"{ratio_text(encoded.ratio_source_file)} to the slide's file\n"
            f"{ratio_text(encoded.ratio_level0)} to raw RGB, both of level 0 alone",
        ),
        ("PSNR", f"{decibel_text(encoded.psnr)} at level 0; worst chunk {decibel_text(report.worst_psnr)}"),
        ("check", "every chunk is sound" if report.sound else "DAMAGED"),
        ("encode", f"{time_text(encoded.seconds)}, {speed_text(encoded.megapixels_per_second)} on {encoded.device}"),
        (
            "verify",
            f"{time_text(report.verify_seconds)}, {speed_text(report.verify_megapixels_per_second)}, "
            "reading the slide included",
        ),
        ("region", f"{reading.region}: {first:.0f} ms, from the cache {again:.1f} ms"),
        ("picture", str(report.picture)),
    ]


def _source_size_text(encoded: "EncodeReport") -> str:
    """The bytes of the slide itself, which some vendors spread over several files."""
    ratio = encoded.ratio_source_file
    return "" if ratio is None else f", {size_text(round(encoded.bytes * ratio))}"


def _draw_slide(path: Path, size: int) -> Path:
    from histocodec.formats.export.tiff import write_pyramid
    from histocodec.sources import ArraySlide
    from histocodec.sources.synthetic import synthetic_slide

    say(f"drawing a synthetic slide of {size} x {size} pixels")
    slide = ArraySlide(synthetic_slide(size, size), name="synthetic slide", mpp=SYNTHETIC_MPP)
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
    """The middle of the region: the original, and decoded at two qualities.

    The region is compressed by itself, so that the bits in the captions are those of these pixels alone.
    """
    from histocodec.fidelity import psnr, squared_error
    from histocodec.formats.decode.slide import open_compressed
    from histocodec.formats.encode.encode import encode_slide
    from histocodec.formats.encode.options import EncodeOptions
    from histocodec.geometry import Region
    from histocodec.picture import Panel
    from histocodec.sources import ArraySlide

    height, width = pixels.shape[:2]
    region = Region(0, 0, width, height)
    shown = Region((width - SHOWN_SIDE) // 2, (height - SHOWN_SIDE) // 2, SHOWN_SIDE, SHOWN_SIDE).intersect(region)
    middle = shown.within(region)
    panels = [Panel(pixels[middle], "original", "24 bits per pixel")]
    other = quality - QUALITY_STEP if quality >= QUALITY_STEP else quality + QUALITY_STEP
    for panel_quality in sorted((quality, other), reverse=True):
        with TemporaryDirectory(prefix="histocodec-demo-") as folder:
            path = Path(folder) / "region.zarr"
            options = EncodeOptions(quality=panel_quality, model=model, device=device, levels=(0,))
            report = encode_slide(ArraySlide(pixels, name="region", mpp=mpp), path, options)
            with open_compressed(path, device=device) as slide:
                decoded = slide.read(region, 0)
        bpp = 8 * report.payload_bytes / region.area
        fidelity = decibel_text(psnr(squared_error(decoded, pixels), pixels.size))
        note = f"{bpp:.2f} bits per pixel ({ratio_text(24 / bpp)}), {fidelity}"
        panels.append(Panel(decoded[middle], f"histocodec, quality {panel_quality}", note))
    return panels
