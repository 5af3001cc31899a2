"""A start from a finished model: its integers as the parameters they were rounded from, and a deeper analysis.

What export rounded stays rounded, which costs nothing measurable. Residual blocks that the new config adds at the end
of `g_a` begin with an output of zero, so the first step has the finished model's rate and distortion.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from histocodec.errors import UsageError
from histocodec.models.config import QUALITIES, HyperConfig
from histocodec.models.gains import interpolate
from histocodec.models.hyper import HyperModel
from histocodec.models.prior.graph import MEAN_BITS, SCALE_BITS, SMALLEST_SCALE
from histocodec.models.transforms.integer import float_parameters
from histocodec.models.transforms.network import Residual
from histocodec.models.weights import ModelWeights
from histocodec.train.data.patches import FROM_MODEL_STEP, PatchSampler
from histocodec.train.data.rounded_latents import rounded_latents
from histocodec.train.start.equalise import equalise
from histocodec.train.start.from_klt import start_residual

BATCHES = 4  # on which the scale of what new residual blocks see is measured


def deepened(config: HyperConfig) -> HyperConfig:
    """`config` as it trains: with a synthesis in floating point, and with the analysis of a new model where that only
    adds residual blocks. Readers pay nothing for a deeper analysis."""
    new = HyperConfig()
    longer = {
        name: getattr(new, name)
        for name in ("analysis8", "analysis16")
        if getattr(new, name)[: len(getattr(config, name))] == getattr(config, name)
    }
    return replace(config, integer_synthesis=False, **longer)


@torch.no_grad()
def start_from_model(model: HyperModel, weights: ModelWeights, sampler: PatchSampler) -> None:
    """Overwrites the model's parameters with those of a model file. The configs must agree, except that the analysis of
    `model` may be the `deepened` one. Raises UsageError where they do not."""
    trained = replace(weights.hyper, integer_synthesis=False)
    if model.config not in (trained, deepened(weights.hyper)):
        raise UsageError(
            f"model {weights.id} has other sizes than the model to train:"
            f" {weights.config.to_json()}, not {model.config.to_json()}"
        )
    if weights.hyper.integer_synthesis:
        _load(model.float_synthesis, float_parameters(weights.hyper, weights.arrays))
    else:
        _load(model.float_synthesis, weights.transform("g_s"))
    loaded = _load(model.g_a, weights.transform("g_a"))
    _start_new_blocks(model, loaded, sampler)
    arrays = weights.arrays
    model.gains.log_gain.copy_(_at_anchors(np.log(arrays["gain"]), model))
    model.gains.log_inverse.copy_(_at_anchors(np.log(arrays["inverse_gain"]), model))
    prior = model.prior
    for layer in prior.graph.layers.values():
        key = layer.name.replace(".", "_")
        weight = arrays[f"prior.{layer.name}.weight"].astype(np.float32) / 2.0**layer.bits
        bias = arrays[f"prior.{layer.name}.bias"] / 2.0 ** (layer.bits + layer.input_bits)
        prior.weights[key].copy_(torch.from_numpy(weight))
        prior.biases[key].copy_(_at_anchors(bias, model) if layer.by_quality else torch.from_numpy(bias[0]))
    octaves = arrays["prior.base_index"] / 2**SCALE_BITS + math.log2(SMALLEST_SCALE) - np.log2(arrays["gain"])
    prior.scale_base.copy_(torch.from_numpy(octaves.mean(axis=0)))
    prior.hyper_mean.copy_(_at_anchors(arrays["prior.hyper_mean"] / 2**MEAN_BITS, model))
    hyper_octaves = arrays["prior.hyper_index"] / 2**SCALE_BITS + math.log2(SMALLEST_SCALE)
    prior.hyper_scale.copy_(_at_anchors(hyper_octaves, model))
    if weights.hyper.integer_synthesis:
        pixels = sampler(FROM_MODEL_STEP).pixels.to(next(model.parameters()).device)
        quality = torch.linspace(0, QUALITIES - 1, len(pixels))
        equalise(model.float_synthesis, rounded_latents(model, pixels, quality))


def _load(network: nn.Module, arrays: Mapping[str, NDArray[np.float32]]) -> set[str]:
    """Copies these tensors into a network that may have more; returns their names."""
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    return set(arrays)


def _at_anchors(samples: NDArray[Any], model: HyperModel) -> Tensor:
    """Values (Q, …) at every quality → the values (A, …) at the anchors that they were interpolated from."""
    shares = interpolate(torch.eye(model.config.anchors), torch.arange(QUALITIES, dtype=torch.float32)).double()
    anchors: Tensor = torch.linalg.lstsq(shares, torch.from_numpy(samples.astype(np.float64))).solution
    return anchors.float()


def _start_new_blocks(model: HyperModel, loaded: set[str], sampler: PatchSampler) -> None:
    """Residual blocks of `g_a` that were not loaded: random features of what they see, and an output of zero."""
    g_a, cpu = model.g_a, torch.device("cpu")
    device = next(g_a.parameters()).device
    new8, new16 = (
        [cast(Residual, block) for i, block in enumerate(blocks) if f"{name}.{i}.expand.weight" not in loaded]
        for name, blocks in (("blocks8", g_a.blocks8), ("blocks16", g_a.blocks16))
    )
    for block in (*new8, *new16):
        block.project.weight.zero_()
    pixels = torch.cat([sampler(FROM_MODEL_STEP + i).pixels for i in range(BATCHES)]).to(device)
    at8 = g_a.blocks8(g_a.head(F.pixel_unshuffle(pixels, 8)))
    for blocks, seen in ((new8, at8), (new16, g_a.blocks16(g_a.down(at8)))):
        for block in blocks:
            start_residual(block, seen.std((0, 2, 3)).clamp(min=1e-3).to(cpu))
            block.project.weight.zero_()
