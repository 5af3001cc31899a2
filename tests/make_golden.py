"""Makes the golden files of one format version. Run once per version; what it wrote is never rewritten.

    python -m tests.make_golden 1

The model is made of seeded integers, not trained, with tables of three symbols, so that everything stays at a few
kilobytes; what counts is that its bytes and its decoded integers stay what they are.
"""

import gzip
import hashlib
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

from histocodec.codec import LatentCoder
from histocodec.entropy import TableSet, quantise_pmf
from histocodec.models.config import HyperConfig
from histocodec.models.export import export_model
from histocodec.models.hyper import HyperModel
from histocodec.models.prior import MEAN_BITS, SCALES
from histocodec.models.weights import ModelWeights
from histocodec.sources import ArraySlide
from histocodec.synthetic import synthetic_slide

GOLDEN = Path(__file__).parent / "golden"
MODEL_ID = "golden-1"
CONFIG = HyperConfig(
    latent_channels=8,
    hyper_channels=4,
    hyper_width=4,
    context_width=4,
    analysis8=(True,),
    analysis16=(False,),
    synthesis16=(False,),
    synthesis8=(True,),
    anchors=2,
)


def golden_model() -> ModelWeights:
    """Transforms that are sparse, a prior that is random: together it exercises every field of the format."""
    generator = torch.Generator().manual_seed(1)
    model = HyperModel(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for i in range(192):
            model.g_a.head.weight[i, i] = 1
            model.g_s.tail.weight[i, i] = 1
        for channel in range(8):  # each latent is the mean of a few pixels of its 16×16 block, spread back
            for plane in range(channel, 192, 8):
                model.g_a.down.weight[channel, plane] = 1 / 64
                model.g_s.up.weight[channel, plane] = 1.5
        for name, weight in model.prior.weights.items():
            scale = 0.25 if "heads" in name or "predict" in name else 0.5
            weight.copy_((torch.rand(weight.shape, generator=generator) - 0.5) * scale)
        for bias in model.prior.biases.values():
            bias.copy_(torch.rand(bias.shape, generator=generator) * 0.5)
        model.prior.scale_base.copy_(torch.linspace(2, -1, 8))
        model.gains.log_gain[:] = torch.tensor([0.0, 3.0])[:, None]
        model.gains.log_inverse[:] = -model.gains.log_gain
    rows = []
    for index in range(SCALES << MEAN_BITS):
        spread = 0.02 + 0.9 * index / (SCALES << MEAN_BITS)
        rows.append(quantise_pmf(np.array([spread / 3, 1 - spread, spread / 3, spread / 3])))
    count = len(rows)
    tables = TableSet(np.full(count, -1, np.int16), np.full(count, 3, np.uint16), np.concatenate(rows))
    return export_model(model, MODEL_ID, tables=tables)


def golden_latents() -> np.ndarray:
    """(8, 8, 8) int16 with zeros beyond an extent, small values and escapes."""
    rng = np.random.default_rng(1)
    y = np.zeros((8, 8, 8), np.int16)
    y[:7, :6, :8] = rng.integers(-2, 3, (7, 6, 8))
    y[0, 0, 0], y[3, 2, 1] = 700, -32768
    return y


def make(version: int) -> None:
    from histocodec.formats.options import EncodeOptions
    from histocodec.formats.reader import open_compressed
    from histocodec.formats.writer import encode_slide

    folder = GOLDEN / f"v{version}"
    if folder.exists():
        raise SystemExit(f"{folder} exists; golden files are never rewritten")
    folder.mkdir(parents=True)
    weights = golden_model()
    model = folder / f"{MODEL_ID}.safetensors"
    model.write_bytes(weights.data)
    os.environ["HISTOCODEC_MODELS"] = str(folder)
    container = folder / "slide.zarr"
    slide = ArraySlide(synthetic_slide(150, 130, seed=5), name="golden", mpp=(0.25, 0.5), icc_profile=b"profile")
    encode_slide(slide, container, EncodeOptions(quality=80, model=str(model), device="cpu", background="code"))
    with open_compressed(container, device="cpu") as opened:
        pixels = opened.read(opened.levels[0].region, 0)
        latents = np.asarray(opened.latents(0)[:])
    chunk = LatentCoder(weights).encode(golden_latents(), 37)
    facts = {
        "model_sha256": weights.sha256,
        "chunk": chunk.hex(),
        "latents_sha256": hashlib.sha256(latents.astype("<i2").tobytes()).hexdigest(),
        "mean_pixels": [[round(float(v), 2) for v in row] for row in pixels.reshape(130, 150, 3)[::26, ::30].mean(2)],
    }
    (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    with zipfile.ZipFile(folder / "slide.zarr.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(container.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(container).as_posix())
    shutil.rmtree(container)
    (folder / f"{MODEL_ID}.safetensors.gz").write_bytes(gzip.compress(weights.data, mtime=0))
    model.unlink()


if __name__ == "__main__":
    make(int(sys.argv[1]))
