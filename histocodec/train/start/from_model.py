"""A start from a finished model: its integers as the parameters they were rounded from, and more residual blocks.

What export rounded stays rounded, which costs nothing measurable. Residual blocks that the new config adds at the end
of a stage of `g_a` or `g_s` begin with an output of zero, so the first step has the finished model's rate and
distortion (as Chen, Goodfellow & Shlens 2016, "Net2Net", grow networks).
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
from histocodec.models.config import BLOCKS, QUALITIES, HyperConfig
from histocodec.models.gains import interpolate
from histocodec.models.hyper import HyperModel
from histocodec.models.prior.graph import MEAN_BITS, SCALE_BITS, SMALLEST_SCALE
from histocodec.models.transforms.integer import float_parameters
from histocodec.models.transforms.network import Residual
from histocodec.models.transforms.training import TrainableIntegerSynthesis
from histocodec.models.weights import ModelWeights
from histocodec.train.data.patches import FROM_MODEL_STEP, PatchSampler
from histocodec.train.data.rounded_latents import rounded_latents
from histocodec.train.start.equalise import equalise
from histocodec.train.start.from_klt import start_residual
from histocodec.train.start.integer_blocks import new_block_names, start_integer_blocks

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


def grows_from(config: HyperConfig, smaller: HyperConfig) -> bool:
    """Whether `config` is `smaller` with nothing but more residual blocks, each at the end of its stage."""
    stages = {name: getattr(config, name)[: len(getattr(smaller, name))] for name in BLOCKS}
    return replace(config, **stages, integer_synthesis=smaller.integer_synthesis) == smaller


@torch.no_grad()
def start_from_model(model: HyperModel, weights: ModelWeights, sampler: PatchSampler) -> None:
    """Overwrites the model's parameters with those of a model file. The configs must agree, except that `model` may
    have more residual blocks. Its synthesis may be an integer one where that of the file is.

    Raises UsageError where the model does not grow from the file's.
    """
    if not grows_from(model.config, weights.hyper):
        raise UsageError(
            f"model {weights.id} has other sizes than the model to train, which may only add residual blocks:"
            f" {weights.config.to_json()}, not {model.config.to_json()}"
        )
    loaded = _load(model.g_a, weights.transform("g_a"))
    _start_analysis_blocks(model, loaded, sampler)
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
    pixels = sampler(FROM_MODEL_STEP).pixels.to(next(model.parameters()).device)
    latents = rounded_latents(model, pixels, torch.linspace(0, QUALITIES - 1, len(pixels)))
    _start_synthesis(model, weights, latents)


def _start_synthesis(model: HyperModel, weights: ModelWeights, latents: Tensor) -> None:
    """Overwrites `g_s`; `latents` (B, C, h, w), gains undone, show what it will see."""
    arrays, integers = weights.arrays, weights.hyper.integer_synthesis
    if isinstance(model.g_s, TrainableIntegerSynthesis):
        if not integers:
            raise UsageError(
                f"model {weights.id} has a synthesis in floating point; to train integers, start from an integer one"
            )
        model.g_s.load_arrays(arrays)
        start_integer_blocks(model.g_s, new_block_names(model.g_s, list(arrays)), latents)
        return
    g_s = model.float_synthesis
    loaded = _load(g_s, float_parameters(weights.hyper, arrays) if integers else weights.transform("g_s"))
    new16, new8 = (_new_blocks(name, getattr(g_s, name), loaded) for name in ("blocks16", "blocks8"))
    for block in (*new16, *new8):
        block.project.weight.zero_()
        cast(Tensor, block.project.bias).zero_()
    if integers:
        equalise(g_s, latents)
    at16 = g_s.blocks16(latents)
    _start_blocks(new16, at16)
    _start_blocks(new8, g_s.blocks8(g_s.up(at16)))


def _load(network: nn.Module, arrays: Mapping[str, NDArray[np.float32]]) -> set[str]:
    """Copies these tensors into a network that may have more; returns their names."""
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    return set(arrays)


def _at_anchors(samples: NDArray[Any], model: HyperModel) -> Tensor:
    """Values (Q, …) at every quality → the values (A, …) at the anchors that they were interpolated from."""
    shares = interpolate(torch.eye(model.config.anchors), torch.arange(QUALITIES, dtype=torch.float32)).double()
    anchors: Tensor = torch.linalg.lstsq(shares, torch.from_numpy(samples.astype(np.float64))).solution
    return anchors.float()


def _start_analysis_blocks(model: HyperModel, loaded: set[str], sampler: PatchSampler) -> None:
    """Starts the residual blocks of `g_a` that were not loaded."""
    g_a = model.g_a
    new8, new16 = (_new_blocks(name, getattr(g_a, name), loaded) for name in ("blocks8", "blocks16"))
    for block in (*new8, *new16):
        block.project.weight.zero_()
        cast(Tensor, block.project.bias).zero_()
    pixels = torch.cat([sampler(FROM_MODEL_STEP + i).pixels for i in range(BATCHES)])
    at8 = g_a.blocks8(g_a.head(F.pixel_unshuffle(pixels.to(next(g_a.parameters()).device), 8)))
    _start_blocks(new8, at8)
    _start_blocks(new16, g_a.blocks16(g_a.down(at8)))


def _new_blocks(stage: str, blocks: nn.Module, loaded: set[str]) -> list[Residual]:
    """The residual blocks of a stage of which no tensor was loaded."""
    numbered = enumerate(cast(nn.Sequential, blocks))
    return [cast(Residual, block) for i, block in numbered if f"{stage}.{i}.expand.weight" not in loaded]


def _start_blocks(blocks: list[Residual], seen: Tensor) -> None:
    """Random features of what the blocks see, (B, C, h, w), and an output of zero."""
    for block in blocks:
        start_residual(block, seen.std((0, 2, 3)).clamp(min=1e-3).cpu())
        block.project.weight.zero_()
