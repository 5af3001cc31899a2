"""From the synthesis that was trained in floating point to the integer synthesis.

Units are chosen so that each channel's largest value on training patches is at most the largest byte. A factor can be
moved past a ReLU, so nothing but rounding changes (Nagel et al. 2019, "Data-free quantization through weight
equalization and bias correction"). What is left to learn is for `histocodec.train.finish.synthesis_training`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histocodec.errors import UsageError
from histocodec.models.export import model_file
from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.integer import (
    BYTE,
    EXACT,
    FINE,
    MOST_COARSE,
    MOST_SHIFT,
    WIDE,
    SynthesisLayer,
    accumulator_peaks,
)
from histocodec.models.transforms.network import Residual
from histocodec.models.transforms.reaches import HEADROOM, LEAST, range_tensor
from histocodec.models.transforms.training import TrainableIntegerSynthesis, parameter_key
from histocodec.models.weights import ModelWeights
from histocodec.train.data.patches import CALIBRATION_END, PatchSampler
from histocodec.train.data.rounded_latents import random_qualities, rounded_latents
from histocodec.train.finish.activation_ranges import RANGE_BATCHES, ActivationRanges, analysis_ranges
from histocodec.train.finish.weight_rounding import round_weights
from histocodec.train.start.from_model import deepened, start_from_model

ROUNDING_BATCHES = 16  # on which weights are rounded
SLACK = 0.7  # of the 24 bits that are exact, since the weights go on learning


@torch.no_grad()
def quantise_synthesis(model: HyperModel, sampler: PatchSampler) -> TrainableIntegerSynthesis:
    """The integer synthesis that decodes as `model.g_s` does, up to rounding. Raises UsageError where `g_s` is one
    already."""
    g_s, device = model.float_synthesis, next(model.parameters()).device
    ranges, power16, power8 = ActivationRanges(), torch.zeros((), device=device), torch.zeros((), device=device)
    for batch in range(RANGE_BATCHES):
        step = CALIBRATION_END - 1 - batch
        latents = rounded_latents(model, sampler(step).pixels, random_qualities(sampler, step))
        x = ranges.run_blocks("blocks16", g_s.blocks16, latents)
        ranges.note("up", "seen", x)
        power16 = power16 + x.square().mean((0, 2, 3)) / RANGE_BATCHES
        x = ranges.run_blocks("blocks8", g_s.blocks8, g_s.up(x))
        ranges.note("tail", "seen", x)
        power8 = power8 + x.square().mean((0, 2, 3)) / RANGE_BATCHES
    result = TrainableIntegerSynthesis(model.config).to(device)
    unit16, unit8 = (127 / _stream_peak(ranges, *names) for names in (("blocks16", "up"), ("blocks8", "tail")))
    cast(Tensor, result.scale).copy_(unit16)
    for name, unit in (("blocks16", unit16), ("blocks8", unit8)):
        for i, module in enumerate(getattr(g_s, name)):
            block, prefix = cast(Residual, module), f"{name}.{i}"
            hidden = 255 / _activation_peak(ranges, prefix, "expand")
            _fill(result, f"{prefix}.expand", block.expand.weight[:, :, 0, 0], block.expand.bias, unit, hidden)
            if block.depthwise is not None:
                hidden_after = 255 / _activation_peak(ranges, prefix, "depthwise")
                taps, bias = block.depthwise.weight[:, 0] / hidden[:, None, None], block.depthwise.bias
                _fill(result, f"{prefix}.depthwise", taps, bias, None, hidden_after)
                hidden = hidden_after
            _fill(result, f"{prefix}.project", block.project.weight[:, :, 0, 0], block.project.bias, hidden, unit)
    tail, equal = g_s.tail.weight[:, :, 0, 0], torch.ones(192, device=device)
    up = g_s.up.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (row, column, channel), latent
    energy8 = tail.square().sum(0).repeat(4)  # of the pixels, for a unit of an output of `up`
    up_bias = cast(Tensor, g_s.up.bias).repeat(4)
    _fill_wide(result, "up", up, up_bias, energy8, unit16, power16, unit8.repeat(4))
    _fill_wide(result, "tail", tail, cast(Tensor, g_s.tail.bias), equal, unit8, power8, equal)
    _choose_shifts(result)
    steps = range(CALIBRATION_END - RANGE_BATCHES - ROUNDING_BATCHES, CALIBRATION_END - RANGE_BATCHES)
    round_weights(
        result, [rounded_latents(model, sampler(step).pixels, random_qualities(sampler, step)) for step in steps]
    )
    return result


def with_integer_synthesis(
    weights: ModelWeights,
    sampler: PatchSampler,
    model_id: str,
    *,
    prune: Callable[[HyperModel], None] | None = None,
    refine: Callable[[HyperModel], None] | None = None,
    notes: Mapping[str, str] | None = None,
) -> ModelWeights:
    """The model file of a finished model whose synthesis is put into integers, and whose analysis can be run by int8
    products. All else stays, so latents cost what they did.

    `prune` may change the synthesis before, and `refine` train it after. A model that has an integer synthesis already
    keeps it, and `refine` goes on from there; `prune` then raises UsageError.
    """
    model = HyperModel(deepened(weights.hyper)).eval()
    start_from_model(model, weights, sampler)
    if weights.hyper.integer_synthesis:
        if prune is not None:
            raise UsageError(f"model {weights.id} has an integer synthesis already; only one in floats can be pruned")
        model.config = weights.hyper
        model.g_s = TrainableIntegerSynthesis(weights.hyper)
        model.g_s.load_arrays(weights.arrays)
    else:
        if prune is not None:
            prune(model)
        model.g_s = quantise_synthesis(model, sampler)
    if refine is not None:
        refine(model)
    kept = {name: array for name, array in weights.arrays.items() if not name.startswith("g_s.")}
    config = replace(weights.hyper, integer_synthesis=True, hidden16=model.config.hidden16)
    arrays = {**kept, **model.g_s.arrays(), **analysis_ranges(model, sampler)}
    return model_file(arrays, config, model_id, {**weights.notes, **(notes or {}), "from": weights.sha256})


def _activation_peak(ranges: ActivationRanges, block: str, part: str) -> Tensor:
    return (ranges.largest[range_tensor(block, part)] * HEADROOM).clamp(min=LEAST)


def _stream_peak(ranges: ActivationRanges, blocks: str, wide: str) -> Tensor:
    """The peak of each channel of a stream, from what enters its first block to what the wide layer after them sees."""
    prefix = f"reach.{blocks}."
    seen = [peak for name, peak in ranges.largest.items() if name.startswith(prefix) and name.endswith(".seen")]
    return (torch.stack([*seen, ranges.largest[range_tensor(wide, "seen")]]).amax(0) * HEADROOM).clamp(min=LEAST)


def _fill(
    result: TrainableIntegerSynthesis,
    name: str,
    weight: Tensor,
    bias: Tensor | None,
    entry: Tensor | None,
    unit: Tensor,
) -> None:
    """Fills a layer in new units: its inputs are `entry` times as large as before, its outputs `unit` times."""
    key = parameter_key(result.layers[name])
    weight = weight * unit.view(-1, *[1] * (weight.dim() - 1))
    result.weights[key].copy_(weight if entry is None else weight / entry)
    assert bias is not None
    result.biases[key].copy_(bias * unit)


def _fill_wide(
    result: TrainableIntegerSynthesis,
    name: str,
    weight: Tensor,
    bias: Tensor,
    importance: Tensor,
    entry: Tensor,
    power: Tensor,
    unit: Tensor,
) -> None:
    """Fills `up` or `tail`. A channel is seen no finer than where its own rounding does as much harm as that of its
    weights, whose step the largest weight of a row decides. The harm is weighed by the `importance` (O,) of the
    outputs; `power` (C,) is the mean square of the inputs. The channels whose rounding then still matters most are
    seen finely."""
    step = (weight.abs() / entry).amax(1) / BYTE
    weight_harm = (importance * step.square()).sum() * power.clamp(min=LEAST**2)
    input_harm = (importance[:, None] * weight.square()).sum(0)
    coarse, fine = result.coarse(name), result.fine(name)
    coarse.copy_((entry * (weight_harm / input_harm.clamp(min=LEAST**2)) ** 0.25).log2().round().clamp(0, MOST_COARSE))
    seen = entry * torch.exp2(-coarse)
    fine.copy_((input_harm / seen.square()).topk(len(fine)).indices.sort().values)
    weight = torch.cat((weight, weight[:, fine] / FINE, torch.zeros_like(weight[:, fine])), 1)
    _fill(result, name, weight, bias, torch.cat((seen, seen[fine], seen[fine])), unit)


def _choose_shifts(synthesis: TrainableIntegerSynthesis) -> None:
    """Chooses the finest shifts with which weights are int8, and accumulators and stream exact."""
    config = synthesis.config
    peaks = {name: _peaks(synthesis, layer) for name, layer in synthesis.layers.items()}
    streams = {"blocks16": np.full(config.latent_channels, float(WIDE))}
    streams["blocks8"] = peaks["up"].reshape(4, -1).max(axis=0)
    for name, peak in peaks.items():
        if name.endswith(".project"):
            streams[name.split(".")[0]] += peak
    for name, layer in synthesis.layers.items():
        weight = synthesis.weights[parameter_key(layer)].detach().abs().flatten(1).amax(1).cpu().double().numpy()
        most = np.minimum(127 / np.maximum(weight, 1e-9), SLACK * EXACT / peaks[name])
        if name == "up" or name.endswith(".project"):
            stream = streams["blocks8" if name == "up" else name.split(".")[0]]
            most = np.minimum(most, SLACK * EXACT / np.tile(stream, 4 if name == "up" else 1))
        shift = np.floor(np.log2(most)).clip(0, MOST_SHIFT)
        synthesis.shift(layer).copy_(torch.from_numpy(shift))


def _peaks(synthesis: TrainableIntegerSynthesis, layer: SynthesisLayer) -> NDArray[np.float64]:
    """The largest value of each output, in its units."""
    key = parameter_key(layer)
    weight, bias = (v[key].detach().cpu().double().numpy() for v in (synthesis.weights, synthesis.biases))
    return np.maximum(accumulator_peaks(layer, weight, bias), LEAST)
