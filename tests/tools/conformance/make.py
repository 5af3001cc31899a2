"""Make the conformance kit of version 2. It was run once; a kit is never rewritten.

python -m tests.tools.conformance.make
"""

import gzip
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from histocodec.entropy import TableSet, quantise_pmf
from histocodec.formats.container.pack import write_zip
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.models.config import HyperConfig
from histocodec.models.export import export_model
from histocodec.models.hyper import HyperModel
from histocodec.models.prior.graph import MEAN_BITS, SCALES, SMALLEST_SCALE
from histocodec.models.transforms.network import Residual
from histocodec.models.weights import ModelWeights, load_model
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.tools.conformance import KIT, KIT_2, MODEL_ID
from tests.tools.conformance.decode_kit import latent_digests, oracle_pixels

CONFIG = HyperConfig(
    latent_channels=32,
    hyper_channels=8,
    hyper_width=8,
    context_width=8,
    analysis8=(True,),
    analysis16=(True, False),
    synthesis16=(True, False),
    synthesis8=(True, False),
    anchors=2,
)
REACH = 12  # symbols of a frequency table on either side of 0; larger values are escaped
TOLERANCE = {"float32": 1, "bfloat16": 2}  # grey values from float64: one more than any machine has shown


def conformance_model() -> ModelWeights:
    """A model with every kind of layer. Most weights are zero, so that the file is small."""
    generator = torch.Generator().manual_seed(7)
    model = HyperModel(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for i in range(192):
            model.g_a.head.weight[i, i] = 1
            model.g_s.tail.weight[i, i] = 1
        for channel in range(32):  # each latent is the mean of six pixels of its block, spread back
            for plane in range(channel, 192, 32):
                model.g_a.down.weight[channel, plane] = 1 / 24
                model.g_s.up.weight[channel, plane] = 1
        for block in (*model.g_a.modules(), *model.g_s.modules()):
            if isinstance(block, Residual):
                for layer in (block.expand, block.depthwise, block.project):
                    if layer is not None:
                        few = torch.rand(layer.weight.shape, generator=generator) < 0.01
                        layer.weight.copy_((torch.rand(layer.weight.shape, generator=generator) - 0.5).sign() * few / 4)
                if block.depthwise is not None:
                    block.depthwise.weight[:, :, 1, 1] = 0.5
        for name, weight in model.prior.weights.items():
            scale = 0.2 if "heads" in name or "predict" in name else 0.5
            weight.copy_((torch.rand(weight.shape, generator=generator) - 0.5) * scale)
        for bias in model.prior.biases.values():
            bias.copy_(torch.rand(bias.shape, generator=generator) * 0.5)
        model.prior.scale_base.copy_(torch.linspace(2, -1, 32))
        model.gains.log_gain[:] = torch.tensor([1.0, 5.0])[:, None]
        model.gains.log_inverse[:] = -model.gains.log_gain
    return export_model(model, MODEL_ID, tables=_tables())


def _tables() -> TableSet:
    """Discrete Laplacians, cut off at REACH."""
    values, rows = np.arange(-REACH, REACH + 1), []
    for index in range(SCALES << MEAN_BITS):
        scale, mean = SMALLEST_SCALE * 2 ** (index / 4 / (1 << MEAN_BITS)), (index & 7) / 8
        weights = np.exp(-np.abs(values - mean) / max(scale, 0.05))
        rows.append(quantise_pmf(np.append(weights, weights.sum() * min(0.2, scale / 200))))
    count = len(rows)
    return TableSet(np.full(count, -REACH, np.int16), np.full(count, 2 * REACH + 1, np.uint16), np.concatenate(rows))


def images() -> dict[str, tuple[Pixels, EncodeOptions]]:
    """The images of the kit, and how each is encoded."""
    wide = synthetic_slide(1100, 560, seed=11)
    wide[:, 900:] = 240  # glass, so that chunks are absent and their neighbours see what stands for them
    noise = np.random.default_rng(3).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    return {
        "wide": (wide, EncodeOptions(quality=10)),
        "deep": (synthetic_slide(150, 130, seed=5), EncodeOptions(quality=100, background="code")),
        "noise": (noise, EncodeOptions(quality=60, background="code")),
        "small": (synthetic_slide(64, 48, seed=9), EncodeOptions(quality=50, background="code")),
        "lossless": (noise[:40, :50].copy(), EncodeOptions(quality=60, background="code", min_psnr=60)),
    }


def encode(pixels: Pixels, target: Path, options: EncodeOptions, model: Path) -> None:
    slide = ArraySlide(pixels, name=target.stem, mpp=(0.5, 0.5), background=(240, 240, 240))
    encode_slide(slide, target, replace(options, effort=0, overview=64, model=str(model), device="cpu", workers=1))


def main() -> None:
    if KIT_2.exists():
        raise SystemExit(f"{KIT_2} exists; a kit is never rewritten")
    KIT_2.mkdir()
    os.environ["SOURCE_DATE_EPOCH"] = "1764547200"  # 2025-12-01
    model = KIT_2 / f"{MODEL_ID}.safetensors"
    model.write_bytes(gzip.decompress((KIT / "model.safetensors.gz").read_bytes()))
    weights = load_model(model)
    latents = {}
    for name, (pixels, options) in images().items():
        name = f"{name}-2"
        container = KIT_2 / f"{name}.hc.zarr"
        encode(pixels, container, options, model)
        latents[name] = latent_digests(container, weights)
        np.save(KIT_2 / f"{name}.npy", oracle_pixels(container, weights))
        write_zip(container, KIT_2 / f"{name}.hcz")
        shutil.rmtree(container)
    model.unlink()
    facts = {"model_sha256": weights.sha256, "latents_sha256": latents, "tolerance": TOLERANCE}
    (KIT_2 / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
