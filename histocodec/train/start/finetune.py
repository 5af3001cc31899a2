"""A start from a finished model: its integers as the parameters they were rounded from, and a deeper analysis.

What export rounded stays rounded, which costs nothing measurable. Blocks that the new config adds at the end of `g_a`
begin as nothing, so that the first step has the finished model's rate and distortion.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

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
from histocodec.train.data.patches import PatchSampler
from histocodec.train.start.balance import balance
from histocodec.train.start.klt import start_residual

BATCHES = 4  # on which the scale of what new blocks see is measured
FIRST_BATCH = 1 << 29  # steps never reached


def deepened(config: HyperConfig) -> HyperConfig:
    """`config` as it trains: in floating point, and with the analysis of a new model, where that only adds blocks.
    Readers pay nothing for it."""
    new = HyperConfig()
    longer = {
        name: getattr(new, name)
        for name in ("analysis8", "analysis16")
        if getattr(new, name)[: len(getattr(config, name))] == getattr(config, name)
    }
    return replace(config, integer_synthesis=False, **longer)


@torch.no_grad()
def start_from_model(model: HyperModel, weights: ModelWeights, sampler: PatchSampler) -> None:
    """Overwrites the model's parameters with those of `weights`, whose config is `model`'s but for blocks that the
    analysis lacks. Raises UsageError for any other."""
    trained = replace(weights.hyper, integer_synthesis=False)
    if model.config not in (trained, deepened(weights.hyper)):
        raise UsageError(f"model {weights.id} has other sizes than the one to train: {weights.config.to_json()}")
    if weights.hyper.integer_synthesis:
        _load(model.float_synthesis, float_parameters(weights.hyper, weights.arrays))
    else:
        _take(model.float_synthesis, weights, "g_s")
    old = _take(model.g_a, weights, "g_a")
    _start_new_blocks(model, old, sampler)
    arrays = weights.arrays
    model.gains.log_gain.copy_(_anchored(np.log(arrays["gain"]), model))
    model.gains.log_inverse.copy_(_anchored(np.log(arrays["inverse_gain"]), model))
    prior = model.prior
    for layer in prior.graph.layers.values():
        key = layer.name.replace(".", "_")
        weight = arrays[f"prior.{layer.name}.weight"].astype(np.float32) / 2.0**layer.bits
        bias = arrays[f"prior.{layer.name}.bias"] / 2.0 ** (layer.bits + layer.input_bits)
        prior.weights[key].copy_(torch.from_numpy(weight))
        prior.biases[key].copy_(_anchored(bias, model) if layer.by_quality else torch.from_numpy(bias[0]))
    octaves = arrays["prior.base_index"] / 2**SCALE_BITS + math.log2(SMALLEST_SCALE) - np.log2(arrays["gain"])
    prior.scale_base.copy_(torch.from_numpy(octaves.mean(axis=0)))
    prior.hyper_mean.copy_(_anchored(arrays["prior.hyper_mean"] / 2**MEAN_BITS, model))
    hyper_octaves = arrays["prior.hyper_index"] / 2**SCALE_BITS + math.log2(SMALLEST_SCALE)
    prior.hyper_scale.copy_(_anchored(hyper_octaves, model))
    if weights.hyper.integer_synthesis:
        pixels = sampler(FIRST_BATCH).pixels.to(next(model.parameters()).device)
        balance(model.float_synthesis, coded(model, pixels, torch.linspace(0, QUALITIES - 1, len(pixels))))


def coded(model: HyperModel, pixels: Tensor, quality: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The latents of a batch, rounded, with their gain undone; `dtype` is that of the analysis."""
    log_gain, log_inverse = model.gains(quality.to(pixels.device))
    with torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype != torch.float32):
        y = model.g_a(pixels).float()
    y = torch.floor(y * log_gain.exp()[:, :, None, None] + 0.5)
    return cast(Tensor, y * log_inverse.exp()[:, :, None, None])


def _take(network: nn.Module, weights: ModelWeights, part: Literal["g_a", "g_s"]) -> set[str]:
    """Copies the tensors of a transform; the names of those that there were."""
    return _load(network, weights.transform(part))


def _load(network: nn.Module, arrays: Mapping[str, NDArray[np.float32]]) -> set[str]:
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    return set(arrays)


def _anchored(samples: NDArray[Any], model: HyperModel) -> Tensor:
    """(Q, …) values at every quality → the (A, …) at the anchors from which they were interpolated."""
    shares = interpolate(torch.eye(model.config.anchors), torch.arange(QUALITIES, dtype=torch.float32)).double()
    found: Tensor = torch.linalg.lstsq(shares, torch.from_numpy(samples.astype(np.float64))).solution
    return found.float()


def _start_new_blocks(model: HyperModel, known: set[str], sampler: PatchSampler) -> None:
    """Blocks of `g_a` that are not `known`: random features of what they see, and no output yet."""
    g_a, cpu = model.g_a, torch.device("cpu")
    device = next(g_a.parameters()).device
    new8, new16 = (
        [cast(Residual, block) for i, block in enumerate(blocks) if f"{name}.{i}.expand.weight" not in known]
        for name, blocks in (("blocks8", g_a.blocks8), ("blocks16", g_a.blocks16))
    )
    for block in (*new8, *new16):
        block.project.weight.zero_()
    pixels = torch.cat([sampler(FIRST_BATCH + i).pixels for i in range(BATCHES)]).to(device)
    at8 = g_a.blocks8(g_a.head(F.pixel_unshuffle(pixels, 8)))
    for blocks, seen in ((new8, at8), (new16, g_a.blocks16(g_a.down(at8)))):
        for block in blocks:
            start_residual(block, seen.std((0, 2, 3)).clamp(min=1e-3).to(cpu))
            block.project.weight.zero_()
