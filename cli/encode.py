"""`histocodec encode`: compress a slide into a container."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import (
    Location,
    SectionedCommand,
    device_option,
    json_option,
    level_list,
    location,
    location_argument,
    model_option,
    number,
    option,
    overwrite_option,
    pixels_or_none,
    positive,
    ratio,
    short_name,
    shown,
    workers_option,
)
from histocodec.report import print_facts, print_json, progress_bar, say
from histocodec.text import count_text, decibel_text, ratio_text, size_text, speed_text, time_text

if TYPE_CHECKING:
    from histocodec.formats.encode.options import EncodeProgress
    from histocodec.formats.encode.report import EncodeReport

STAGES = {"prepare": "preparing", "encode": "encoding", "measure": "measuring", "raise": "raising quality"}
PROPERTY = "property "  # stands before the names of properties that were left out
REGION = "region "  # likewise of regions: LEVEL:X,Y,WIDTHxHEIGHT
SECTIONS = {
    "Size and fidelity (give at most one of the first four)": (
        "quality", "target_psnr", "target_bpp", "ratio", "min_psnr", "effort", "model",
    ),
    "What to store": (
        "levels", "background", "mpp", "chunk", "overview", "keep_label", "keep_macro", "keep_private", "source_name",
        "source_sha256", "embed_model", "model_beside",
    ),
    "Execution": ("on_error", "resume", "overwrite", "device", "workers", "as_json"),
}  # fmt: skip


@click.command("encode", cls=SectionedCommand, sections=SECTIONS, short_help="Compress a slide.")
@location_argument("src")
@click.argument("dst", required=False, type=location)
@option(
    "--quality",
    type=number(0, 100),
    metavar="Q",
    show_default="50, or the model's own ratio",
    help="Quality, 0–100. Higher is better and larger.",
)
@option("--target-psnr", type=float, metavar="DB", help="Choose the quality by the PSNR of level 0.")
@option("--target-bpp", type=float, metavar="BITS", help="Choose the quality by the bits per pixel of level 0.")
@option("--ratio", type=ratio, metavar="R", help="Choose the quality by the ratio to raw RGB: 32 or 1:32.")
@option(
    "--min-psnr",
    type=float,
    metavar="DB",
    help="Guarantee every chunk this PSNR, losslessly where no quality reaches it.",
)
@option(
    "--effort",
    type=number(0, 9),
    metavar="N",
    help="Search effort, 0–9 (default 1). Higher is smaller and slower; 0 disables the search.",
)
@model_option
@option(
    "--levels",
    type=level_list,
    metavar="all|0|0,2",
    default="all",
    show_default=True,
    help="Levels to store.",
)
@option(
    "--background",
    type=click.Choice(["skip", "code"]),
    default="skip",
    show_default=True,
    help="Skip bare glass, or code it like tissue.",
)
@option(
    "--on-error",
    type=click.Choice(["fail", "background"]),
    default="fail",
    show_default=True,
    help="Fail where SRC cannot be read, or store background there and name the places.",
)
@option("--mpp", type=positive, metavar="M", help="Microns per pixel of level 0, if the slide does not say.")
@option(
    "--chunk",
    type=click.Choice(["256", "512"]),
    default="512",
    show_default=True,
    help="Side of a chunk in pixels. 256 for random patches at 0.3 bits per pixel or more.",
)
@option(
    "--overview",
    type=pixels_or_none,
    metavar="PX|none",
    default="512",
    show_default=True,
    help="Least longer side of the overview that OME-Zarr viewers show.",
)
@option("--keep-label", is_flag=True, help="Keep the label image, which may name the patient.")
@option("--keep-macro", is_flag=True, help="Keep the macro image, which may show the label.")
@option("--keep-private", is_flag=True, help="Keep properties that may identify people, dates or cases.")
@option(
    "--source-name",
    type=click.Choice(["auto", "keep", "hash", "drop"]),
    default="auto",
    show_default=True,
    help="Keep the source's file name, its hash, or nothing; auto drops names that may tell a case.",
)
@option(
    "--source-sha256", is_flag=True, help="Store the SHA-256 of SRC, which is read again for it; an image need not be."
)
@option("--embed-model", is_flag=True, help="Store the model's decoder in DST, which then decodes anywhere.")
@option("--model-beside", is_flag=True, help="Store the model's decoder beside DST, one file for a folder of slides.")
@option("--resume", is_flag=True, help="Continue an interrupted encode of the same slide with the same options.")
@overwrite_option("DST, once the new container is complete")
@device_option
@workers_option
@json_option
def command(
    src: Location,
    dst: Location | None,
    *,
    quality: float | None,
    target_psnr: float | None,
    target_bpp: float | None,
    ratio: float | None,
    min_psnr: float | None,
    effort: float | None,
    model: str,
    levels: tuple[int, ...] | None,
    background: str,
    on_error: str,
    mpp: float | None,
    device: str,
    workers: int | None,
    overwrite: bool,
    resume: bool,
    keep_label: bool,
    keep_macro: bool,
    keep_private: bool,
    embed_model: bool,
    model_beside: bool,
    chunk: str,
    overview: int | None,
    source_name: str,
    source_sha256: bool,
    as_json: bool,
) -> None:
    """Compress the slide SRC into the container DST.

    SRC is a slide that OpenSlide or tifffile reads, an image, or a Zarr array. DST is one file if its name ends in
    .hcz, else a Zarr v3 folder; without it, SRC's name with .hcz, beside SRC. It appears once it is complete; --resume
    continues an interrupted encode. DST may be a URL (s3://, gs://, az://).

    \b
    Examples:
      histocodec encode slide.svs
      histocodec encode slide.svs slide.hcz --quality 70
      histocodec encode slide.svs slide.hc.zarr --ratio 1:64 --min-psnr 30
    """
    from histocodec.formats.decode.open import open_slide
    from histocodec.formats.encode.encode import encode_slide
    from histocodec.formats.encode.options import EncodeOptions
    from histocodec.slide import notes_of

    options = EncodeOptions(
        quality=quality,
        target_psnr=target_psnr,
        target_bpp=target_bpp,
        ratio=ratio,
        min_psnr=min_psnr,
        effort=effort,
        model=model,
        levels=levels,
        background=background,
        on_error=on_error,
        device=device,
        workers=workers,
        overwrite=overwrite,
        resume=resume,
        keep_label=keep_label,
        keep_macro=keep_macro,
        keep_private=keep_private,
        embed_model=embed_model,
        model_beside=model_beside,
        chunk=int(chunk),
        overview=overview,
        source_name=source_name,
        source_sha256=source_sha256,
    )
    dst = beside(src) if dst is None else dst
    with open_slide(src, mpp=mpp, device=device) as slide, progress_bar(short_name(src)) as bar:
        for note in notes_of(slide):
            say(f"{shown(src)}: {note}")

        def show(progress: "EncodeProgress") -> None:
            bar(progress.done, progress.total, progress_note(progress))

        report = encode_slide(slide, dst, options, progress=show)
    if as_json:
        print_json(report)
    else:
        print_facts([("slide", shown(src)), *report_facts(report)])


def beside(location: Location) -> Path:
    """Return the container that is made of a slide where none is named: slide.hcz of slide.svs and of slide.ome.tif."""
    if isinstance(location, str):
        raise click.UsageError("of a slide at a URL, DST cannot be beside it; name DST")
    src = location
    name = src.absolute().name if src.is_dir() else src.stem.removesuffix(".ome")
    return src.absolute().with_name(f"{name}.hcz") if src.is_dir() else src.with_name(f"{name}.hcz")


def progress_note(progress: "EncodeProgress") -> str:
    """Return the words beside the bar: the stage, its speed, and the time left."""
    parts = [STAGES.get(progress.stage, progress.stage)]
    if progress.megapixels_per_second > 0:
        parts.append(speed_text(progress.megapixels_per_second))
    if progress.seconds_left is not None:
        parts.append(f"{time_text(round(progress.seconds_left))} left")
    return ", ".join(parts)


def report_facts(report: "EncodeReport") -> list[tuple[str, str]]:
    """Return names and values of a report, for people."""
    facts = [
        ("container", f"{report.path}: {size_text(report.bytes)} (latents {size_text(report.payload_bytes)})"),
        ("pixels", f"{report.width} x {report.height}, {count_text(report.levels, 'level')}"),
        ("chunks", f"{report.chunks} coded{_guarantee_text(report)}"),
        ("rate", f"{report.bpp:.4f} bits per pixel of level 0"),
        (
            "ratio",
            f"{ratio_text(report.ratio_raw)} to raw RGB of level 0\n"
            f"{ratio_text(report.ratio_source_file)} to the source file\n"
            f"{ratio_text(report.ratio_level0)} to raw RGB, both of level 0 alone",
        ),
        ("PSNR", f"{decibel_text(report.psnr)} at level 0, measured by decoding{_worst_text(report)}"),
        ("model", f"{report.model}, {quality_text(report)}{_model_file_text(report)}"),
        ("digest", report.digest),
        ("time", f"{time_text(report.seconds)}, {speed_text(report.megapixels_per_second)} on {report.device}"),
    ]
    if report.dropped:
        facts.append(("left out", left_out_text(report.dropped)))
    return facts


def quality_text(report: "EncodeReport") -> str:
    """Name the stored quality, and the requested one where another was stored."""
    if report.asked_quality in (None, report.quality):
        return f"quality {report.quality}"
    return f"quality {report.quality}, on this slide equivalent to the requested {report.asked_quality:g}"


def left_out_text(dropped: Sequence[str]) -> str:
    """List what was not stored, images, regions and properties each on a line."""
    images = [name for name in dropped if not name.startswith((PROPERTY, REGION))]
    regions = [name.removeprefix(REGION) for name in dropped if name.startswith(REGION)]
    properties = [name.removeprefix(PROPERTY) for name in dropped if name.startswith(PROPERTY)]
    kinds = (("images", images), ("regions that could not be read", regions), ("properties", properties))
    return "\n".join(f"{kind}: {', '.join(names)}" for kind, names in kinds if names)


def _guarantee_text(report: "EncodeReport") -> str:
    raised = f", {report.raised} of them at a raised quality" if report.raised else ""
    return raised + (f", {report.lossless} lossless" if report.lossless else "")


def _model_file_text(report: "EncodeReport") -> str:
    return "" if report.model_file is None else f"\ndecoder in {report.model_file}"


def _worst_text(report: "EncodeReport") -> str:
    return "" if report.worst_psnr is None else f"; worst chunk {decibel_text(report.worst_psnr)}"
