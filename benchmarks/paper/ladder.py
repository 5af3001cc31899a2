"""The ratio ladder: the autoencoder, the flagship and JPEG 2000 on the same images in the same bytes, 1:32 to 1:512.

    python -m histocodec.benchmarks.paper.ladder DATA --models DIR --out benchmarks/paper/results

DIR has `vae-32.safetensors` … `vae-512.safetensors`. Bytes of an image are those that it adds to a slide (chunks,
checksums, index entries); those of a whole container are compared with the ratio on DATA's slides, one `encode` each.
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
from histocodec.errors import HistocodecError
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
PICTURE = (1024, 1024)  # made-up tissue, of which the panels show the middle


@dataclass(frozen=True)
class Step:
    """One image by one codec at one ratio. `fits` is false where even the coarsest has more bytes than wanted."""

    image: str
    codec: str
    ratio: int
    wanted: int
    bytes: int
    fits: bool
    psnr: float
    ssim: float
    ms_ssim_db: float
    nuclei_f1: float


@dataclass(frozen=True)
class Whole:
    """A slide's container, all levels: bytes of its files, and how they compare with level 0's raw RGB."""

    slide: str
    model: str
    ratio: int
    bytes: int
    reached: float
    psnr: float


def decoded_at(pixels: Pixels, codec: str, model: str, wanted: int) -> tuple[int, Pixels]:
    """Bytes and pixels of the finest that a codec has within so many bytes, its coarsest where it has none."""
    if codec == PEER:
        one = code_at_bytes(JPEG2000, pixels, wanted)
        return len(one.data), JPEG2000.decode(one.data)
    return ours_within(pixels, wanted, model=model, device="cpu", threads=1, effort=None)


def steps(pixels: Pixels, image: str, ratio: int) -> Iterator[Step]:
    wanted = raw_bytes_over(ratio, pixels.shape[0] * pixels.shape[1])
    for codec in NAMES:
        size, decoded = decoded_at(pixels, codec, model_of(codec, ratio), wanted)
        found = fidelity(pixels, decoded)
        f1 = agreement(pixels, decoded).f1
        yield Step(image, codec, ratio, wanted, size, size <= wanted, found.psnr, found.ssim, found.ms_ssim_db, f1)


def model_of(codec: str, ratio: int) -> str:
    return f"vae-{ratio}" if codec == VAE else codec


def whole(path: Path, ratio: int) -> Whole:
    """One encode of a slide with the autoencoder of a ratio, which is what it aims at unasked."""
    with TemporaryDirectory(prefix="histocodec-ladder-") as folder, open_slide(path) as slide:
        report = encode_slide(slide, Path(folder) / "a.zarr", EncodeOptions(model=f"vae-{ratio}"))
    return Whole(path.stem, f"vae-{ratio}", ratio, report.bytes, report.ratio_raw, report.psnr)


def figure(rows: list[Step]) -> bytes:
    """A PNG: each metric against the ratio, means over the images in which all codecs fit."""
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


def mean_of(rows: list[Step], codec: str, ratio: int, metric: str) -> float:
    fitting = {one.image for one in rows if one.ratio == ratio} - {
        one.image for one in rows if one.ratio == ratio and not one.fits
    }
    values = [
        float(getattr(one, metric)) for one in rows if (one.codec, one.ratio) == (codec, ratio) and one.image in fitting
    ]
    return fmean(values) if values else float("nan")


def picture() -> bytes:
    """A PNG: the middle of made-up tissue, a row a codec, a column a ratio."""
    pixels = synthetic_slide(*PICTURE, seed=11)
    top, left = ((side - SHOWN) // 2 for side in PICTURE)
    middle = slice(top, top + SHOWN), slice(left, left + SHOWN)
    panels = []
    for codec, name in NAMES.items():
        panels.append(Panel(pixels[middle], "original", "made-up tissue"))
        for ratio in RATIOS:
            wanted = raw_bytes_over(ratio, PICTURE[0] * PICTURE[1])
            _, decoded = decoded_at(pixels, codec, model_of(codec, ratio), wanted)
            panels.append(Panel(decoded[middle], f"{name} 1:{ratio}", f"{fidelity(pixels, decoded).psnr:.1f} dB"))
    file = io.BytesIO()
    Image.fromarray(in_rows(panels, 1 + len(RATIOS))).save(file, "PNG")
    return file.getvalue()


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--models", type=click.Path(path_type=Path), required=True, help="Folder with vae-32 … vae-512.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for ladder.json and the figures.")
def main(data: Path, *, models: Path, out: Path) -> None:
    """The ladder on the images of DATA/val and the slides of DATA/slides."""
    os.environ[MODELS_VARIABLE] = str(models)
    images = sorted((data / "val").glob("*.webp"))
    slides = sorted(path for path in (data / "slides").iterdir() if path.suffix in (".svs", ".tif"))
    rows: list[Step] = []
    with progress_bar("ladder") as bar:
        total = len(images) + len(slides) + 1
        for done, path in enumerate(images):
            bar(done, total, path.stem)
            with Image.open(path) as opened:
                pixels = np.asarray(opened.convert("RGB"))
            rows += [step for ratio in RATIOS for step in steps(pixels, path.stem, ratio)]
        containers = []
        for done, path in enumerate(slides, len(images)):
            bar(done, total, path.stem)
            containers += [whole(path, ratio) for ratio in RATIOS]
        bar(total - 1, total, "picture")
        shown = picture()
    used = [Model.of(find_model(f"vae-{ratio}")) for ratio in RATIOS]
    means = [
        {"codec": codec, "ratio": ratio, **{name: round(mean_of(rows, codec, ratio, name), 4) for name in METRICS}}
        for codec in NAMES
        for ratio in RATIOS
    ]
    found = {"machine": Machine.here(), "models": used, "means": means, "containers": containers, "rows": rows}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "ladder.json", f"{json_text(found, indent=1)}\n".encode())
    write_atomically(out / "ladder.png", figure(rows))
    write_atomically(out / "ladder-picture.png", shown)
    for mean in means:
        click.echo(json.dumps(mean))
    for one in containers:
        click.echo(f"{one.slide} {one.model}: 1:{one.reached:.1f}, {one.psnr:.2f} dB")


if __name__ == "__main__":
    try:
        main()
    except HistocodecError as exc:
        raise SystemExit(f"error: {exc}") from exc
