"""`histocodec encode`: a slide in, a container out."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import device_option, json_option, level_list, path_argument, positive, ratio
from histocodec.report import print_facts, print_json, progress_bar
from histocodec.text import decibel_text, ratio_text, size_text, time_text

if TYPE_CHECKING:
    from histocodec.formats.encode.options import EncodeProgress, EncodeReport

STAGES = {"prepare": "looking at the slide", "encode": "encoding", "measure": "measuring", "raise": "raising"}


@click.command("encode", short_help="Compress a slide.")
@path_argument("src")
@path_argument("dst")
@click.option(
    "--quality",
    type=click.FloatRange(0, 100),
    metavar="Q",
    help="From 0 to 100, in parts too; what is stored is a whole one that is worth as much. With effort, or where "
    "it is large, a faint slide may be coded at a lower one, a strong one at a higher.  [default: 50, or the model's "
    "own ratio]",
)
@click.option("--target-psnr", type=float, metavar="DB", help="Aim at this PSNR of level 0.")
@click.option("--target-bpp", type=float, metavar="BITS", help="Aim at this many bits per pixel of level 0.")
@click.option("--ratio", type=ratio, metavar="R", help="Aim at 1:R of the raw RGB, as 32 or 1:32.")
@click.option(
    "--min-psnr",
    type=float,
    metavar="DB",
    help="Give every chunk at least this PSNR: with more quality where it needs it, losslessly where that fails.",
)
@click.option(
    "--effort",
    type=click.FloatRange(0, 9),
    help="How long to look for statistics that the slide is coded best with, and for latents that cost less for what"
    " they lose, from 0 to 9, in parts too: each tenth is a step. 0 looks for neither, or on large slides for the"
    " former in a second or two, and is many times as fast as 1, the default of a model that can.",
)
@click.option(
    "--model",
    default="hyper-6",
    show_default=True,
    metavar="ID|FILE",
    help="An installed model, or a .safetensors file.",
)
@click.option(
    "--levels",
    type=level_list,
    metavar="all|0|0,2",
    default="all",
    show_default=True,
    help="Which levels to keep.",
)
@click.option(
    "--background",
    type=click.Choice(["skip", "code"]),
    default="skip",
    show_default=True,
    help="Leave bare glass out, or code it like tissue.",
)
@click.option("--mpp", type=positive, metavar="X", help="Microns per pixel, where the slide does not say.")
@device_option
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: one a core]")
@click.option("--overwrite", is_flag=True, help="Replace DST, once the new one is whole.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted encoding of the same slide.")
@click.option("--keep-label", is_flag=True, help="Keep the label's image, which may name the patient.")
@click.option("--keep-macro", is_flag=True, help="Keep the macro image, which may show the label.")
@click.option("--keep-private", is_flag=True, help="Keep properties that may name people, dates or numbers of cases.")
@click.option("--embed-model", is_flag=True, help="Store the model in DST, so that it decodes for ever.")
@json_option
def command(
    src: Path,
    dst: Path,
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
    mpp: float | None,
    device: str,
    workers: int | None,
    overwrite: bool,
    resume: bool,
    keep_label: bool,
    keep_macro: bool,
    keep_private: bool,
    embed_model: bool,
    as_json: bool,
) -> None:
    """Compress the slide SRC into the Zarr container DST.

    SRC is anything that OpenSlide, tifffile or Pillow reads, or a Zarr array. An interrupted run leaves DST
    absent and goes on with --resume.

    \b
    Examples:
      histocodec encode slide.svs slide.zarr
      histocodec encode slide.svs slide.zarr --quality 70
      histocodec encode slide.svs slide.zarr --ratio 1:64 --json
      histocodec encode slide.svs slide.zarr --min-psnr 30
    """
    from histocodec.formats.decode.open import open_slide
    from histocodec.formats.encode.encode import encode_slide
    from histocodec.formats.encode.options import EncodeOptions

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
        device=device,
        workers=workers,
        overwrite=overwrite,
        resume=resume,
        keep_label=keep_label,
        keep_macro=keep_macro,
        keep_private=keep_private,
        embed_model=embed_model,
    )
    with open_slide(src, mpp=mpp, device=device) as slide, progress_bar(src.name) as bar:

        def show(progress: "EncodeProgress") -> None:
            bar(progress.done, progress.total, progress_note(progress))

        report = encode_slide(slide, dst, options, progress=show)
    if as_json:
        print_json(report)
    else:
        print_facts([("slide", str(src)), *report_facts(report)])


def progress_note(progress: "EncodeProgress") -> str:
    """What stands beside the bar."""
    note = STAGES.get(progress.stage, progress.stage)
    if progress.megapixels_per_second > 0:
        note += f"  {progress.megapixels_per_second:.1f} MP/s"
    if progress.seconds_left is not None:
        note += f"  {time_text(round(progress.seconds_left))} left"
    return note


def raised_text(report: "EncodeReport") -> str:
    """What --min-psnr has done."""
    raised = f", {report.raised} of them raised" if report.raised else ""
    return raised + (f", {report.lossless} stored losslessly" if report.lossless else "")


def worst_text(report: "EncodeReport") -> str:
    return "" if report.worst_psnr is None else f"worst chunk {decibel_text(report.worst_psnr)}, "


def asked_text(report: "EncodeReport") -> str:
    asked = report.asked_quality
    return "" if asked in (None, report.quality) else f", on this slide worth as much as {asked:g}"


def report_facts(report: "EncodeReport") -> list[tuple[str, str]]:
    """Names and values, for people."""
    levels = "1 level" if report.levels == 1 else f"{report.levels} levels"
    facts = [
        (
            "container",
            f"{report.path}: {size_text(report.bytes)}, of which latents {size_text(report.payload_bytes)}",
        ),
        ("pixels", f"{report.width} x {report.height}, {levels}, {report.chunks} chunks coded{raised_text(report)}"),
        ("rate", f"{report.bpp:.4f} bits per pixel"),
        (
            "ratio",
            f"{ratio_text(report.ratio_raw)} against raw RGB\n"
            f"{ratio_text(report.ratio_source_file)} against the source file\n"
            f"{ratio_text(report.ratio_level0)} level 0 against level 0, of raw RGB",
        ),
        ("PSNR", f"{decibel_text(report.psnr)}, {worst_text(report)}measured by decoding"),
        ("model", f"{report.model}, quality {report.quality}{asked_text(report)}"),
        (
            "time",
            f"{time_text(report.seconds)}, {report.megapixels_per_second:.1f} MP/s on {report.device}",
        ),
    ]
    if report.dropped:
        facts.append(("left out", ", ".join(report.dropped)))
    return facts
