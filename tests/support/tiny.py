"""Tiny models for tests: every part of a real one, started from a KLT of synthetic tissue, without training."""

from functools import lru_cache
from pathlib import Path

import torch

from histocodec.models.config import HyperConfig, VaeConfig
from histocodec.models.export import export_model
from histocodec.models.hyper import HyperModel
from histocodec.models.vae.export import export_vae
from histocodec.models.vae.network import VaeModel
from histocodec.models.weights import ModelWeights
from histocodec.sources.synthetic import synthetic_slide
from histocodec.train.data.patches import PatchSampler, training_image
from histocodec.train.finish.activation_ranges import analysis_ranges
from histocodec.train.finish.quantise_synthesis import quantise_synthesis
from histocodec.train.start.from_klt import start_from_klt
from histocodec.train.vae.patches import FixedPatches

TINY = HyperConfig(
    latent_channels=48,
    hyper_channels=8,
    hyper_width=16,
    context_width=16,
    analysis8=(True,),
    analysis16=(True, False),
    synthesis16=(True, False),
    synthesis8=(True,),
    anchors=3,
)


def tiny_network(seed: int = 0, config: HyperConfig = TINY) -> HyperModel:
    """A seeded network after its KLT start, in evaluation mode."""
    torch.manual_seed(seed)
    image = training_image(synthetic_slide(512, 512, seed=seed), "tiny", torch.device("cpu"))
    assert image is not None
    model = HyperModel(config)
    start_from_klt(model, PatchSampler([image], batch=4, size=128, seed=seed), blocks=1000)
    with torch.no_grad():  # random weights in the prior, so that every path is exercised
        for name, weight in model.prior.weights.items():
            if "heads" in name or "predict" in name:
                weight.normal_(0, 0.05)
        for bias in model.prior.biases.values():
            bias.normal_(0, 0.05)
    return model.eval()


@lru_cache(maxsize=2)
def tiny_weights(seed: int = 0) -> ModelWeights:
    """The tiny model, exported. Cached; takes about a second."""
    return export_model(tiny_network(seed), f"tiny-{seed}")


@lru_cache(maxsize=1)
def tiny_weights_with_ranges() -> ModelWeights:
    """The tiny model with the ranges of its analysis, whose blocks do something."""
    network = tiny_network()
    with torch.no_grad():
        for block in (*network.g_a.blocks8, *network.g_a.blocks16):
            block.project.weight *= 8
    return export_model(network, "tiny-ranges", ranges=analysis_ranges(network, tiny_sampler()))


@lru_cache(maxsize=1)
def tiny_integer_weights() -> ModelWeights:
    """The tiny model with an integer synthesis."""
    return export_model(tiny_integer_network(), "tiny-integer")


def tiny_integer_network() -> HyperModel:
    """The network of `tiny_integer_weights`."""
    network = tiny_network()
    network.g_s = quantise_synthesis(network, tiny_sampler())
    return network


@lru_cache(maxsize=1)
def tiny_sampler() -> PatchSampler:
    """Patches of one synthetic image."""
    image = training_image(synthetic_slide(512, 512, seed=0), "tiny", torch.device("cpu"))
    assert image is not None
    return PatchSampler([image], batch=4, size=64, seed=0)


def tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write the model to a file, for `--model PATH`."""
    path = folder / f"tiny-{seed}.safetensors"
    path.write_bytes(tiny_weights(seed).data)
    return path


TINY_VAE = VaeConfig(latent_channels=32, stride=64, ratio=512, widths=(4, 8, 8, 8), bottleneck=8)


def tiny_vae_network(config: VaeConfig = TINY_VAE) -> VaeModel:
    """A seeded autoencoder whose batch normalisations have seen synthetic tissue, in evaluation mode."""
    torch.manual_seed(0)
    model = VaeModel(config).train()
    patches = tiny_vae_patches(config.stride)
    with torch.no_grad():
        for _ in range(20):
            model(patches)
        model.g_a.mean.weight *= 30  # the means differ from patch to patch, as after training
    return model.eval()


def tiny_vae_patches(side: int) -> torch.Tensor:
    """(B, 3, side, side) patches of one synthetic image."""
    image = training_image(synthetic_slide(512, 512, seed=1), "tiny", torch.device("cpu"))
    assert image is not None
    return next(FixedPatches.of([image], side).batches(1000))[0]


@lru_cache(maxsize=4)
def tiny_vae_weights(config: VaeConfig = TINY_VAE) -> ModelWeights:
    """The tiny autoencoder, exported. Cached."""
    return export_vae(tiny_vae_network(config), f"tiny-vae-{config.stride}", [tiny_vae_patches(config.stride)])


def tiny_vae_model(folder: Path, config: VaeConfig = TINY_VAE) -> Path:
    """Write the model to a file, for `--model PATH`."""
    weights = tiny_vae_weights(config)
    path = folder / f"{weights.id}.safetensors"
    path.write_bytes(weights.data)
    return path
