"""The integer synthesis as it trains: float parameters, rounding in the forward pass, straight-through gradients
(Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons").

Exporting is therefore only rounding (`histocodec.models.export`), and `tests/core/test_integer_synthesis.py` checks
that what trains is what decodes.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from histocodec.models.config import HyperConfig
from histocodec.models.transforms.integer import (
    BYTE,
    ENTRY_BITS,
    EXACT,
    FINE,
    FINE8,
    PARTS,
    WIDE,
    WIDE_LAYERS,
    Arrays,
    SynthesisLayer,
    fine16,
    synthesis_layers,
)

Observer = Callable[[str, Tensor, Tensor], None]  # is shown a layer's name, inputs and outputs
EXACT_SHARE = 0.98  # of what float32 holds exactly: rounding can add half a step to each weight
BIAS_STEP = 64.0  # stored steps of a bias that count as one: a single one changes nothing that matters


def straight_limited(x: Tensor, low: int, high: int) -> Tensor:
    """clip(round(x), low, high), ties to even. A gradient passes where nothing is clipped."""
    return cast(Tensor, _StraightLimited.apply(x, low, high))  # type: ignore[no-untyped-call]  # of torch


class _StraightLimited(torch.autograd.Function):
    """`straight_limited` in two passes over its elements, where autograd would take five."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: int, high: int) -> Tensor:
        """See `straight_limited`."""
        limited = x.clamp(low, high)
        ctx.save_for_backward(limited == x)
        return limited.round_()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient where nothing was clipped."""
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None


class TrainableIntegerSynthesis(nn.Module):
    """The integer `g_s` with float weights and biases in the units of a layer's output; the shifts are fixed.

    `scale` (C,) is the factor by which latents are multiplied as they enter. With `rounding` off it computes without
    any rounding, for calibration; `observer`, where set, is shown every layer's inputs and outputs.
    """

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        self.config, self.rounding = config, True
        self.observer: Observer | None = None
        self.layers = {layer.name: layer for layer in synthesis_layers(config)}
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        self.register_buffer("scale", torch.ones(config.latent_channels))
        self.register_buffer("fine_up", torch.arange(fine16(config)))
        self.register_buffer("fine_tail", torch.arange(FINE8))
        self.register_buffer("coarse_up", torch.zeros(config.latent_channels))
        self.register_buffer("coarse_tail", torch.zeros(config.width8))
        for layer in self.layers.values():
            self.weights[parameter_key(layer)] = nn.Parameter(torch.zeros(layer.weight_shape))
            self.biases[parameter_key(layer)] = nn.Parameter(torch.zeros(layer.outputs))
            self.register_buffer(f"shift_{parameter_key(layer)}", torch.zeros(layer.outputs))

    def shift(self, layer: SynthesisLayer) -> Tensor:
        """The shift of each output of a layer, (outputs,) float."""
        return cast(Tensor, getattr(self, f"shift_{parameter_key(layer)}"))

    def fine(self, name: str) -> Tensor:
        """The channels that layer `up` or `tail` sees finely, (F,) int64."""
        return cast(Tensor, getattr(self, f"fine_{name}"))

    def coarse(self, name: str) -> Tensor:
        """By what power of two the input of layer `up` or `tail` is coarser than the stream, (C,) float."""
        return cast(Tensor, getattr(self, f"coarse_{name}"))

    def integers(self, layer: SynthesisLayer) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer in the file's units, as floats that hold integers. With `rounding` off they are
        not rounded, and lack the weights that make up for rounding."""
        unit = torch.exp2(self.shift(layer))
        weight, bias = self.weights[parameter_key(layer)], self.biases[parameter_key(layer)] * unit
        weight = weight * unit.view(-1, *[1] * (weight.dim() - 1))
        if self.rounding:
            return straight_limited(weight, -127, 127), straight_limited(bias, -(2**23), 2**23)
        if layer.name in WIDE_LAYERS:
            count = len(self.fine(layer.name))
            weight = F.pad(weight[:, :-count], (0, count))
        return weight, bias

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The tensors of a model file, as `histocodec.models.transforms.integer.synthesis_tensors` lists them."""
        arrays: dict[str, NDArray[Any]] = {"g_s.scale": cast(Tensor, self.scale).cpu().numpy().astype(np.float32)}
        for name in WIDE_LAYERS:
            arrays[f"g_s.{name}.fine"] = self.fine(name).cpu().numpy().astype(np.int16)
            arrays[f"g_s.{name}.coarse"] = self.coarse(name).cpu().numpy().astype(np.uint8)
        for layer in self.layers.values():
            values = (*self.integers(layer), self.shift(layer))
            for part, value, dtype in zip(PARTS, values, (np.int8, np.int32, np.uint8), strict=True):
                arrays[f"g_s.{layer.name}.{part}"] = value.detach().cpu().numpy().astype(dtype)
        return arrays

    def step_sizes(self) -> dict[str, Tensor]:
        """For each parameter, by its name, what one step of a stored weight is in its units, or BIAS_STEP steps of a
        stored bias: each broadcasts over the parameter. Learning rates in these units suit all layers alike."""
        sizes: dict[str, Tensor] = {}
        for layer in self.layers.values():
            key, step = parameter_key(layer), torch.exp2(-self.shift(layer))
            sizes[f"weights.{key}"] = step.view(-1, *[1] * (len(layer.weight_shape) - 1))
            sizes[f"biases.{key}"] = BIAS_STEP * step
        return sizes

    @torch.no_grad()
    def keep_exact(self) -> None:
        """Scales down, in place, what float32 might not hold exactly in a model file, as `check_synthesis` has it:
        rows of weights whose accumulators are too large, and those that add up to a channel of a stream that is.
        Without it a run could end in weights that no file may have. What grows a little from step to step stays within
        bounds; what is far too large already, rounding can leave beyond them."""
        most, sizes = EXACT_SHARE * EXACT, self.step_sizes()
        for key, weight in self.weights.items():
            step = sizes[f"weights.{key}"]
            weight.copy_(torch.maximum(torch.minimum(weight, 127 * step), -127 * step))
        for stage, entry in (("blocks16", WIDE), ("blocks8", 0)):  # up to WIDE enters the first with the latents
            adding = [layer for layer in self.layers.values() if _adds_to(layer, stage)]
            bits = torch.full((), float(ENTRY_BITS), device=cast(Tensor, self.scale).device)
            reach = torch.zeros((), device=cast(Tensor, self.scale).device)
            for layer in adding:
                peak = self._accumulator_peak(layer).clamp(max=most) * torch.exp2(-self.shift(layer))
                bits, reach = (
                    torch.maximum(bits, _by_channel(layer, self.shift(layer))),
                    reach + _by_channel(layer, peak),
                )
            factor = ((most * torch.exp2(-bits) - entry) / reach.clamp(min=1)).clamp(0, 1)
            for layer in adding:
                self._scale(layer, factor.repeat(4) if layer.name == "up" else factor)
        for layer in self.layers.values():
            self._scale(layer, (most / self._accumulator_peak(layer)).clamp(max=1))

    def _accumulator_peak(self, layer: SynthesisLayer) -> Tensor:
        """The largest |accumulator| of each output, (outputs,) float: that of `accumulator_peaks`."""
        weight, bias = self.integers(layer)
        return weight.abs().flatten(1).sum(1) * layer.peak + bias.abs()

    def _scale(self, layer: SynthesisLayer, factor: Tensor) -> None:
        key = parameter_key(layer)
        self.weights[key].mul_(factor.view(-1, *[1] * (len(layer.weight_shape) - 1)))
        self.biases[key].mul_(factor)

    @torch.no_grad()
    def load_arrays(self, arrays: Arrays) -> None:
        """Takes parameters and shifts from the tensors of a model file: the opposite of `arrays`. Layers that the file
        does not have stay as they are."""
        cast(Tensor, self.scale).copy_(torch.tensor(arrays["g_s.scale"]))
        for name in WIDE_LAYERS:
            self.fine(name).copy_(torch.tensor(arrays[f"g_s.{name}.fine"]))
            self.coarse(name).copy_(torch.tensor(arrays[f"g_s.{name}.coarse"]))
        for layer in self.layers.values():
            if f"g_s.{layer.name}.weight" not in arrays:
                continue
            parts = (arrays[f"g_s.{layer.name}.{part}"].astype(np.float32) for part in PARTS)
            weight, bias, shift = (torch.from_numpy(part) for part in parts)
            factor = torch.exp2(-shift)
            self.shift(layer).copy_(shift)
            self.weights[parameter_key(layer)].copy_(weight * factor.view(-1, *[1] * (weight.dim() - 1)))
            self.biases[parameter_key(layer)].copy_(bias * factor)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) float, gains undone → pixels (B, 3, 16h, 16w) float, normalised."""
        unit = 2**ENTRY_BITS
        x = latents * cast(Tensor, self.scale)[:, None, None]
        x = self._limited(x * unit, -WIDE * unit, WIDE * unit) / unit
        x = F.pixel_shuffle(self._channel_first(self._wide("up", self._blocks("blocks16", x))), 2)
        return F.pixel_shuffle(self._wide("tail", self._blocks("blocks8", x)), 8)

    def _blocks(self, name: str, x: Tensor) -> Tensor:
        for i, spatial in enumerate(self.config.synthesis16 if name == "blocks16" else self.config.synthesis8):
            h = self._activation(f"{name}.{i}.expand", self._limited(x, -BYTE, BYTE - 1))
            if spatial:
                h = self._activation(f"{name}.{i}.depthwise", h)
            x = x + self._layer(f"{name}.{i}.project", h)
        return x

    def _activation(self, name: str, a: Tensor) -> Tensor:
        return self._limited(self._layer(name, a), 0, 255)

    def _wide(self, name: str, x: Tensor) -> Tensor:
        x = x * torch.exp2(-self.coarse(name))[:, None, None]
        integer = self._limited(x, -WIDE, WIDE - 1)
        fine_integer = integer.detach()[:, self.fine(name)]
        fine = ((x.detach()[:, self.fine(name)] - fine_integer) * FINE).round().clamp(-BYTE, BYTE - 1)
        return self._layer(name, torch.cat((integer, fine, (fine_integer / FINE).round()), 1))

    def _layer(self, name: str, a: Tensor) -> Tensor:
        layer = self.layers[name]
        weight, bias = self.integers(layer)
        factor = torch.exp2(-self.shift(layer))
        weight = weight * factor.view(-1, *[1] * (weight.dim() - 1))
        if layer.kind == "depthwise":
            result = F.conv2d(a, weight[:, None], bias * factor, padding=1, groups=layer.outputs)
        else:
            result = F.conv2d(a, weight[:, :, None, None], bias * factor)
        if self.observer is not None:
            self.observer(name, a, result)
        return result

    def _limited(self, x: Tensor, low: int, high: int) -> Tensor:
        return straight_limited(x, low, high) if self.rounding else x.clamp(low, high)

    def _channel_first(self, x: Tensor) -> Tensor:
        """(B, 4·C, h, w) whose channels are (row, column, channel) → (channel, row, column), as `F.pixel_shuffle`
        expects."""
        batch, channels, rows, columns = x.shape
        return x.view(batch, 4, channels // 4, rows, columns).transpose(1, 2).reshape(batch, channels, rows, columns)


def _adds_to(layer: SynthesisLayer, stage: str) -> bool:
    """Whether a layer's outputs are added to the stream of this stage, or are where it begins."""
    return (layer.name == "up" and stage == "blocks8") or (
        layer.name.startswith(f"{stage}.") and layer.name.endswith(".project")
    )


def _by_channel(layer: SynthesisLayer, values: Tensor) -> Tensor:
    """Values of a layer's outputs → the largest for each channel of the stream; `up` has four outputs a channel."""
    return values.view(4, -1).amax(0) if layer.name == "up" else values


def parameter_key(layer: SynthesisLayer) -> str:
    """The key of a layer in `weights` and `biases`, where no dot is allowed."""
    return layer.name.replace(".", "_")
