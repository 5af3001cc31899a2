"""The ratio ladder: compare the autoencoder, the flagship and JPEG 2000 in the same bytes, 1:32 to 1:512.

    python -m histocodec.benchmarks.paper.ladder DATA --models DIR --out benchmarks/paper/results

DIR holds `vae-32.safetensors` … `vae-512.safetensors`. The bytes of an image are those that it adds to a slide (chunks,
checksums, index entries). Those of a whole container are compared with the ratio on DATA's slides, one `encode` each.
"""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import click
import numpy as np
from PIL import Image

from histocodec.benchmarks.measure.byte_budget import RATIOS, ours_within, raw_bytes_over
from histocodec.benchmarks.measure.metrics import fidelity
from histocodec.benchmarks.measure.nuclei import agreement
from histocodec.benchmarks.measure.provenance import Machine, Model
from histocodec.benchmarks.peers.codecs import JPEG2000
from histocodec.benchmarks.peers.contender import code_at_bytes
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.extras import requires_extra
from histocodec.formats.container.files import write_atomically
from histocodec.formats.decode.open import open_slide
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.models.weights import DEFAULT_MODEL, MODELS_VARIABLE, find_model
from histocodec.picture import Panel, in_rows
from histocodec.report import progress_bar
from histocodec.slide import Pixels
from histocodec.sources.synthetic import synthetic_slide
from histocodec.text import json_text

VAE, FLAGSHIP, PEER = "vae", DEFAULT_MODEL, "jpeg2000"
NAMES = {VAE: "VAE", FLAGSHIP: "flagship", PEER: "JPEG 2000"}
METRICS = {"psnr": "PSNR, dB", "ssim": "SSIM", "ms_ssim_db": "MS-SSIM, dB", "nuclei_f1": "F1 of nuclei"}
SHOWN = 160  # pixels a side of the picture's panels
PICTURE = (1024, 1024)  # synthetic tissue, of which the panels show the middle


@dataclass(frozen=True)
class LadderRow:
    """One image by one codec at one ratio. `fits` is false where even the coarsest setting exceeds the budget."""

    image: str
    codec: str
    ratio: int
    budget: int  # bytes
    bytes: int
    fits: bool
    psnr: float
    ssim: float
    ms_ssim_db: float
    nuclei_f1: float


@dataclass(frozen=True)
class WholeSlide:
    """A slide's container, all levels: the bytes of its files, and their ratio to the raw RGB of level 0."""

    slide: str
    model: str
    ratio: int
    bytes: int
    reached: float
    psnr: float


def decoded_at(pixels: Pixels, codec: str, model: str, budget: int) -> tuple[int, Pixels]:
    """The bytes and the pixels of the finest coding of at most `budget` bytes; of the coarsest where none fits."""
    if codec == PEER:
        coded = code_at_bytes(JPEG2000, pixels, budget)
        return len(coded.data), JPEG2000.decode(coded.data)
    return ours_within(pixels, budget, model=model, device="cpu", threads=1, effort=None)


def ladder_rows(pixels: Pixels, image: str, ratio: int) -> Iterator[LadderRow]:
    """Measure every codec on pixels (H, W, 3) uint8 at one ratio."""
    budget = raw_bytes_over(ratio, pixels.shape[0] * pixels.shape[1])
    for codec in NAMES:
        size, decoded = decoded_at(pixels, codec, model_of(codec, ratio), budget)
        measured = fidelity(pixels, decoded)
        f1 = agreement(pixels, decoded).f1
        yield LadderRow(
            image, codec, ratio, budget, size, size <= budget, measured.psnr, measured.ssim, measured.ms_ssim_db, f1
        )


def model_of(codec: str, ratio: int) -> str:
    """The id of the model: the autoencoder has one for each ratio."""
    return f"vae-{ratio}" if codec == VAE else codec


def whole_slide(path: Path, ratio: int) -> WholeSlide:
    """Encode a slide with the autoencoder of a ratio, which aims at that ratio unless told otherwise."""
    with TemporaryDirectory(prefix="histocodec-ladder-") as folder, open_slide(path) as slide:
        report = encode_slide(slide, Path(folder) / "a.zarr", EncodeOptions(model=f"vae-{ratio}"))
    return WholeSlide(path.stem, f"vae-{ratio}", ratio, report.bytes, report.ratio_raw, report.psnr)


def figure(rows: list[LadderRow]) -> bytes:
    """Draw a PNG: each metric against the ratio, as the mean over the images on which all codecs fit."""
    with requires_extra("bench"):
        from matplotlib.figure import Figure
    drawn = Figure(figsize=(10, 2.8), dpi=160, layout="constrained")
    for place, (metric, label) in enumerate(METRICS.items(), 1):
        axes = drawn.add_subplot(1, len(METRICS), place)
        for codec, name in NAMES.items():
            points = [(ratio, mean_of(rows, codec, ratio, metric)) for ratio in RATIOS]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(RATIOS, [f"1:{ratio}" for ratio in RATIOS], fontsize=7)
        axes.set_title(label, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if place == 1:
            axes.legend(fontsize=7)
    file = io.BytesIO()
    drawn.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def mean_of(rows: list[LadderRow], codec: str, ratio: int, metric: str) -> float:
    """The mean of a metric over the images on which all codecs fit; NaN where there is none."""
    at_ratio = [row for row in rows if row.ratio == ratio]
    too_large = {row.image for row in at_ratio if not row.fits}
    values = [float(getattr(row, metric)) for row in at_ratio if row.codec == codec and row.image not in too_large]
    return fmean(values) if values else float("nan")


def picture() -> bytes:
    """Draw a PNG: the middle of synthetic tissue, with a row per codec and a column per ratio."""
    pixels = synthetic_slide(*PICTURE, seed=11)
    top, left = ((side - SHOWN) // 2 for side in PICTURE)
    middle = slice(top, top + SHOWN), slice(left, left + SHOWN)
    panels = []
    for codec, name in NAMES.items():
        panels.append(Panel(pixels[middle], "original", "synthetic tissue"))
        for ratio in RATIOS:
            budget = raw_bytes_over(ratio, PICTURE[0] * PICTURE[1])
            _, decoded = decoded_at(pixels, codec, model_of(codec, ratio), budget)
            panels.append(Panel(decoded[middle], f"{name} 1:{ratio}", f"{fidelity(pixels, decoded).psnr:.1f} dB"))
    file = io.BytesIO()
    Image.fromarray(in_rows(panels, 1 + len(RATIOS))).save(file, "PNG")
    return file.getvalue()


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--models", type=click.Path(path_type=Path), required=True, help="Folder with vae-32 … vae-512.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for ladder.json and the figures.")
def main(data: Path, *, models: Path, out: Path) -> None:
    """Measure the ladder on the images of DATA/val and the slides of DATA/slides."""
    os.environ[MODELS_VARIABLE] = str(models)
    images = sorted((data / "val").glob("*.webp"))
    slides = sorted(path for path in (data / "slides").iterdir() if path.suffix in (".svs", ".tif"))
    rows: list[LadderRow] = []
    with progress_bar("ladder") as bar:
        total = len(images) + len(slides) + 1
        for done, path in enumerate(images):
            bar(done, total, path.stem)
            with Image.open(path) as opened:
                pixels = np.asarray(opened.convert("RGB"))
            rows += [row for ratio in RATIOS for row in ladder_rows(pixels, path.stem, ratio)]
        containers = []
        for done, path in enumerate(slides, len(images)):
            bar(done, total, path.stem)
            containers += [whole_slide(path, ratio) for ratio in RATIOS]
        bar(total - 1, total, "picture")
        shown = picture()
    used = [Model.of(find_model(f"vae-{ratio}")) for ratio in RATIOS]
    means = [
        {"codec": codec, "ratio": ratio, **{name: round(mean_of(rows, codec, ratio, name), 4) for name in METRICS}}
        for codec in NAMES
        for ratio in RATIOS
    ]
    result = {"machine": Machine.here(), "models": used, "means": means, "containers": containers, "rows": rows}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "ladder.json", f"{json_text(result, indent=1)}\n".encode())
    write_atomically(out / "ladder.png", figure(rows))
    write_atomically(out / "ladder-picture.png", shown)
    for mean in means:
        click.echo(json.dumps(mean))
    for slide in containers:
        click.echo(f"{slide.slide} {slide.model}: 1:{slide.reached:.1f}, {slide.psnr:.2f} dB")


if __name__ == "__main__":
    run_command(main)
