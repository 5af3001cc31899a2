"""Make the golden files of one format version and model family. Run once for each; golden files are never rewritten.

    python -m tests.tools.make_golden v2
    python -m tests.tools.make_golden v2-vae

Those of version 1, `v1` and `v1-vae`, were made likewise when version 1 was written; those of version 2 have the same
models. These are seeded, not trained, and their tables have three symbols, so that everything stays at a few kilobytes.
What counts is that the bytes and the decoded integers never change.
"""

import gzip
import hashlib
import json
import os
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save

from histocodec.codec.chunk import chunk_codec
from histocodec.entropy import TableSet, quantise_pmf
from histocodec.formats.container.attributes_json import MAX_INLINE
from histocodec.models.config import HyperConfig, VaeConfig
from histocodec.models.export import export_model
from histocodec.models.hyper import HyperModel
from histocodec.models.prior.graph import MEAN_BITS, SCALES
from histocodec.models.vae.network import VaeDecoder, VaeEncoder
from histocodec.models.weights import FORMAT, ModelWeights, load_model, parse_model
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL_IDS = {"v1": "golden-1", "v1-vae": "golden-vae-1", "v2": "golden-1", "v2-vae": "golden-vae-1"}
CREATED = "1764547200"  # 2025-12-01T00:00:00Z, in seconds
LOSSLESS_FLOOR = 60.0  # dB, which these models reach nowhere
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
    """A model with sparse transforms and a random prior, which together exercise every field of the format."""
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
    return export_model(model, MODEL_IDS["v2"], tables=golden_tables())


def golden_tables() -> TableSet:
    """Frequency tables of three symbols each."""
    rows = []
    for index in range(SCALES << MEAN_BITS):
        spread = 0.02 + 0.9 * index / (SCALES << MEAN_BITS)
        rows.append(quantise_pmf(np.array([spread / 3, 1 - spread, spread / 3, spread / 3])))
    count = len(rows)
    return TableSet(np.full(count, -1, np.int16), np.full(count, 3, np.uint16), np.concatenate(rows))


def golden_vae() -> ModelWeights:
    """An autoencoder with small random weights, and means and scales of all kinds."""
    config = VaeConfig(latent_channels=8, stride=32, ratio=None, widths=(4, 4, 8, 8), bottleneck=4)
    random = np.random.default_rng(2)
    arrays: dict[str, np.ndarray] = {}
    for part, network in (("g_a", VaeEncoder(config, folded=True)), ("g_s", VaeDecoder(config, folded=True))):
        for name, tensor in network.state_dict().items():
            arrays[f"{part}.{name}"] = (random.integers(-8, 9, tuple(tensor.shape)) / 24).astype(np.float16)
    gain = np.exp2(np.arange(101)[:, None] / 20 + np.arange(8) / 8)
    arrays |= {
        "gain": gain.astype(np.float32),
        "inverse_gain": (1 / gain).astype(np.float32),
        "prior.latent_mean": random.integers(-20, 21, (101, 8)).astype(np.int16),
        "prior.latent_index": random.integers(0, SCALES, (101, 8)).astype(np.uint8),
    }
    tables = golden_tables()
    arrays |= {"tables.low": tables.low, "tables.size": tables.size, "tables.freq": tables.freq}
    name = MODEL_IDS["v2-vae"]
    metadata = {"format": FORMAT, "id": name, "family": config.family, "config": config.to_json()}
    return parse_model(save(arrays, metadata=metadata), name=name)


def golden_latents() -> np.ndarray:
    """(8, 8, 8) int16 with zeros beyond an extent, small values and escapes."""
    rng = np.random.default_rng(1)
    y = np.zeros((8, 8, 8), np.int16)
    y[:7, :6, :8] = rng.integers(-2, 3, (7, 6, 8))
    y[0, 0, 0], y[3, 2, 1] = 700, -32768
    return y


def make(name: str) -> None:
    """Write the golden files of `v2` or `v2-vae` to their folder: slide.hc.zarr.zip, whose levels are all coded, and
    lossless.hc.zarr.zip, all of whose chunks are also stored as pixels and whose maps are arrays."""
    from histocodec.formats.container import write
    from histocodec.formats.decode.slide import open_compressed
    from histocodec.formats.encode.encode import encode_slide
    from histocodec.formats.encode.options import EncodeOptions

    folder, model_id = GOLDEN / name, MODEL_IDS[name]
    if folder.exists() or not name.startswith("v2"):
        raise SystemExit(f"{folder}: golden files are never rewritten")
    folder.mkdir(parents=True)
    model = folder / f"{model_id}.safetensors"
    model.write_bytes(gzip.decompress((GOLDEN / f"v1{name[2:]}" / f"{model_id}.safetensors.gz").read_bytes()))
    weights = load_model(model)
    os.environ |= {"HISTOCODEC_MODELS": str(folder), "SOURCE_DATE_EPOCH": CREATED}
    whole = synthetic_slide(150, 130, seed=5)
    plain = EncodeOptions(quality=80, model=str(model), device="cpu", background="code", keep_label=True)
    facts: dict[str, object] = {"model_sha256": weights.sha256, "decoder_sha256": weights.decoder_sha256}
    facts["chunk"] = chunk_codec(weights).encode(golden_latents(), 37).hex()
    for kind, options in (("slide", plain), ("lossless", replace(plain, min_psnr=LOSSLESS_FLOOR, embed_model=True))):
        write.MAX_INLINE = MAX_INLINE if kind == "slide" else 0  # so that both places for maps are there
        container = folder / f"{kind}.hc.zarr"
        image = whole if kind == "slide" else np.ascontiguousarray(whole[50:90, 30:80])  # fewer bytes of pixels
        slide = ArraySlide(image, name="golden", mpp=(0.25, 0.5), icc_profile=b"profile")
        slide.associated = {"label": synthetic_slide(8, 6, seed=1)}
        encode_slide(slide, container, options)
        with open_compressed(container, device="cpu") as opened:
            pixels = opened.read(opened.levels[0].region, 0)
            latents = np.asarray(opened.latents(0)[:])
            provenance = opened.container.attributes.provenance
        facts[kind] = {
            "digest": provenance.digest,
            "uid": provenance.uid,
            "created": provenance.created,
            "latents_sha256": hashlib.sha256(latents.astype("<i2").tobytes()).hexdigest(),
            "mean_pixels": [[round(float(v), 2) for v in row] for row in pixels[::26, ::30].mean(2)],
        }
        with zipfile.ZipFile(folder / f"{kind}.hc.zarr.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(container.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(container).as_posix())
        shutil.rmtree(container)
    (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    shutil.copy(GOLDEN / f"v1{name[2:]}" / f"{model_id}.safetensors.gz", folder)
    model.unlink()


if __name__ == "__main__":
    make(sys.argv[1])
