"""From the synthesis that was trained in floating point to one in whole numbers.

Units are chosen so that what each channel is seen to reach on training patches is at most the largest byte; a factor
can be moved past a ReLU, so nothing but rounding changes (Nagel et al. 2019, "Data-free quantization through weight
equalization and bias correction"). What is left to learn is for `histocodec.train.finish.decoder`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histocodec.errors import UsageError
from histocodec.models.config import QUALITIES
from histocodec.models.export import model_file
from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.analysis import HEADROOM, LEAST, range_tensor
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
from histocodec.models.transforms.training import TrainableIntegerSynthesis
from histocodec.models.weights import ModelWeights
from histocodec.train.data.patches import PatchSampler
from histocodec.train.finish.reaches import BATCHES, FIRST_STEP, Reaches, analysis_reaches
from histocodec.train.finish.rounding import round_weights
from histocodec.train.start.finetune import coded, deepened, start_from_model

ROUNDED = 16  # batches on which weights are rounded
SLACK = 0.7  # of 24 bits for the stream, since the weights go on learning


@torch.no_grad()
def quantised_synthesis(model: HyperModel, sampler: PatchSampler) -> TrainableIntegerSynthesis:
    """`model.g_s` in whole numbers. Raises UsageError where it is already."""
    g_s, device = model.float_synthesis, next(model.parameters()).device
    reaches, power16, power8 = Reaches(), torch.zeros((), device=device), torch.zeros((), device=device)
    for batch in range(BATCHES):
        step = FIRST_STEP - 1 - batch
        latents = coded(model, sampler(step).pixels, random_qualities(sampler, step))
        x = reaches.blocks("blocks16", g_s.blocks16, latents)
        reaches.note("up", "seen", x)
        power16 = power16 + x.square().mean((0, 2, 3)) / BATCHES
        x = reaches.blocks("blocks8", g_s.blocks8, g_s.up(x))
        reaches.note("tail", "seen", x)
        power8 = power8 + x.square().mean((0, 2, 3)) / BATCHES
    result = TrainableIntegerSynthesis(model.config).to(device)
    at16, at8 = (127 / _top(reaches, name, wide) for name, wide in (("blocks16", "up"), ("blocks8", "tail")))
    cast(Tensor, result.scale).copy_(at16)
    for name, unit in (("blocks16", at16), ("blocks8", at8)):
        for i, module in enumerate(getattr(g_s, name)):
            block, prefix = cast(Residual, module), f"{name}.{i}"
            hidden = 255 / _hidden(reaches, prefix, "expand")
            _fill(result, f"{prefix}.expand", block.expand.weight[:, :, 0, 0], block.expand.bias, unit, hidden)
            if block.depthwise is not None:
                deeper = 255 / _hidden(reaches, prefix, "depthwise")
                taps, bias = block.depthwise.weight[:, 0] / hidden[:, None, None], block.depthwise.bias
                _fill(result, f"{prefix}.depthwise", taps, bias, None, deeper)
                hidden = deeper
            _fill(result, f"{prefix}.project", block.project.weight[:, :, 0, 0], block.project.bias, hidden, unit)
    tail, one = g_s.tail.weight[:, :, 0, 0], torch.ones(192, device=device)
    up = g_s.up.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (row, column, channel), latent
    energy8 = tail.square().sum(0).repeat(4)  # of pixels, for a unit of what `up` gives
    up_bias = cast(Tensor, g_s.up.bias).repeat(4)
    _fill_wide(result, "up", up, up_bias, energy8, at16, power16, at8.repeat(4))
    _fill_wide(result, "tail", tail, cast(Tensor, g_s.tail.bias), one, at8, power8, one)
    _choose_shifts(result)
    steps = range(FIRST_STEP - BATCHES - ROUNDED, FIRST_STEP - BATCHES)
    round_weights(result, [coded(model, sampler(step).pixels, random_qualities(sampler, step)) for step in steps])
    return result


def in_whole_numbers(
    weights: ModelWeights,
    sampler: PatchSampler,
    model_id: str,
    *,
    refine: Callable[[HyperModel], None] | None = None,
    lighten: Callable[[HyperModel], None] | None = None,
    notes: Mapping[str, str] | None = None,
) -> ModelWeights:
    """A finished model whose synthesis is in whole numbers, and whose analysis can be run in bytes; all else stays, so
    latents cost what they did. `lighten` may change the synthesis before, and `refine` train it after. One that is in
    whole numbers already goes on from those. Raises UsageError where it then is to be lightened."""
    model = HyperModel(deepened(weights.hyper)).eval()
    start_from_model(model, weights, sampler)
    if weights.hyper.integer_synthesis:
        if lighten is not None:
            raise UsageError(f"model {weights.id}: its synthesis is in whole numbers already, as wide as it stays")
        model.config = weights.hyper
        model.g_s = TrainableIntegerSynthesis(weights.hyper)
        model.g_s.load_arrays(weights.arrays)
    else:
        if lighten is not None:
            lighten(model)
        model.g_s = quantised_synthesis(model, sampler)
    if refine is not None:
        refine(model)
    kept = {name: array for name, array in weights.arrays.items() if not name.startswith("g_s.")}
    config = replace(weights.hyper, integer_synthesis=True, hidden16=model.config.hidden16)
    arrays = {**kept, **model.g_s.arrays(), **analysis_reaches(model, sampler)}
    return model_file(arrays, config, model_id, {**weights.notes, **(notes or {}), "from": weights.sha256})


def random_qualities(sampler: PatchSampler, step: int) -> Tensor:
    """One for each patch of a step, (B,)"""
    generator = torch.Generator().manual_seed(sampler.seed * 1_000_003 + step)
    return (torch.rand(sampler.batch, generator=generator) * (QUALITIES - 1)).round()


def _hidden(reaches: Reaches, block: str, part: str) -> Tensor:
    return (reaches.largest[range_tensor(block, part)] * HEADROOM).clamp(min=LEAST)


def _top(reaches: Reaches, blocks: str, wide: str) -> Tensor:
    """What the channels of a stream reach, from what enters its first block to what the layer after them sees."""
    seen = [reach for name, reach in reaches.largest.items() if name.startswith(f"reach.{blocks}.") and "seen" in name]
    return (torch.stack([*seen, reaches.largest[range_tensor(wide, "seen")]]).amax(0) * HEADROOM).clamp(min=LEAST)


def _fill(
    result: TrainableIntegerSynthesis,
    name: str,
    weight: Tensor,
    bias: Tensor | None,
    entry: Tensor | None,
    unit: Tensor,
) -> None:
    """A layer in new units: what enters is `entry` times as large as before, what leaves is `unit` times."""
    key = name.replace(".", "_")
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
    """`up` or `tail`. A channel is seen no finer than where its own rounding does as much harm as that of its weights,
    whose step the largest weight of a row decides; the harm is weighed by the `importance` (O,) of the outputs, and
    `power` (C,) is the mean square of what is seen. The channels whose rounding then still matters most are fine."""
    step = (weight.abs() / entry).amax(1) / BYTE
    harm = (importance * step.square()).sum() * power.clamp(min=LEAST**2)
    own = (importance[:, None] * weight.square()).sum(0)
    coarse, fine = result.coarse(name), result.fine(name)
    coarse.copy_((entry * (harm / own.clamp(min=LEAST**2)) ** 0.25).log2().round().clamp(0, MOST_COARSE))
    seen = entry * torch.exp2(-coarse)
    fine.copy_((own / seen.square()).topk(len(fine)).indices.sort().values)
    weight = torch.cat((weight, weight[:, fine] / FINE, torch.zeros_like(weight[:, fine])), 1)
    _fill(result, name, weight, bias, torch.cat((seen, seen[fine], seen[fine])), unit)


def _choose_shifts(synthesis: TrainableIntegerSynthesis) -> None:
    """The finest steps with which weights are bytes, accumulators and stream exact."""
    config = synthesis.config
    peaks = {name: _peaks(synthesis, layer) for name, layer in synthesis.layers.items()}
    streams = {"blocks16": np.full(config.latent_channels, float(WIDE))}
    streams["blocks8"] = peaks["up"].reshape(4, -1).max(axis=0)
    for name, peak in peaks.items():
        if name.endswith(".project"):
            streams[name.split(".")[0]] += peak
    for name, layer in synthesis.layers.items():
        weight = synthesis.weights[name.replace(".", "_")].detach().abs().flatten(1).amax(1).cpu().double().numpy()
        most = np.minimum(127 / np.maximum(weight, 1e-9), SLACK * EXACT / peaks[name])
        if name == "up" or name.endswith(".project"):
            stream = streams["blocks8" if name == "up" else name.split(".")[0]]
            most = np.minimum(most, SLACK * EXACT / np.tile(stream, 4 if name == "up" else 1))
        shift = np.floor(np.log2(most)).clip(0, MOST_SHIFT)
        synthesis.shift(layer).copy_(torch.from_numpy(shift))


def _peaks(synthesis: TrainableIntegerSynthesis, layer: SynthesisLayer) -> NDArray[np.float64]:
    """The largest value of each output, in its units."""
    key = layer.name.replace(".", "_")
    weight, bias = (v[key].detach().cpu().double().numpy() for v in (synthesis.weights, synthesis.biases))
    return np.maximum(accumulator_peaks(layer, weight, bias), LEAST)
