"""The synthesis in whole numbers as it trains: real parameters, rounding in the forward pass, straight-through
gradients. Exporting is only rounding (`histocodec.models.export`), and `tests/test_integer_synthesis.py` holds the
two together."""

from collections.abc import Callable, Mapping
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
    FINE,
    FINE8,
    PARTS,
    WIDE,
    SynthesisLayer,
    fine16,
    synthesis_layers,
)


def straight_limited(x: Tensor, low: int, high: int) -> Tensor:
    """clip(round(x), low, high), ties to even; a gradient passes where nothing is clipped."""
    limited = x.clamp(low, high)
    return limited + (limited.round() - limited).detach()


class QuantisedSynthesis(nn.Module):
    """`g_s` in the units of its integers: real weights and biases, and the shifts, which stay. `scale` (C,) is what
    latents are multiplied by as they enter."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        self.config, self.rounding = config, True
        self.observer: Callable[[str, Tensor, Tensor], None] | None = None  # shown each layer's inputs and outputs
        self.layers = {layer.name: layer for layer in synthesis_layers(config)}
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        self.register_buffer("scale", torch.ones(config.latent_channels))
        self.register_buffer("fine_up", torch.arange(fine16(config)))
        self.register_buffer("fine_tail", torch.arange(FINE8))
        self.register_buffer("coarse_up", torch.zeros(config.latent_channels))
        self.register_buffer("coarse_tail", torch.zeros(config.width8))
        for layer in self.layers.values():
            self.weights[_key(layer)] = nn.Parameter(torch.zeros(layer.weight_shape))
            self.biases[_key(layer)] = nn.Parameter(torch.zeros(layer.outputs))
            self.register_buffer(f"shift_{_key(layer)}", torch.zeros(layer.outputs))

    def shift(self, layer: SynthesisLayer) -> Tensor:
        return cast(Tensor, getattr(self, f"shift_{_key(layer)}"))

    def fine(self, name: str) -> Tensor:
        """The channels of which `up` or `tail` sees sixteenths, too."""
        return cast(Tensor, getattr(self, f"fine_{name}"))

    def coarse(self, name: str) -> Tensor:
        """By what power of two what `up` or `tail` sees is coarser than the stream, (C,)."""
        return cast(Tensor, getattr(self, f"coarse_{name}"))

    def integers(self, layer: SynthesisLayer) -> tuple[Tensor, Tensor]:
        """Weight and bias, rounded; without `rounding` as they are, less what makes up for it."""
        unit = torch.exp2(self.shift(layer))
        weight, bias = self.weights[_key(layer)], self.biases[_key(layer)] * unit
        weight = weight * unit.view(-1, *[1] * (weight.dim() - 1))
        if self.rounding:
            return straight_limited(weight, -127, 127), straight_limited(bias, -(2**23), 2**23)
        if layer.name in ("up", "tail"):
            count = len(self.fine(layer.name))
            weight = F.pad(weight[:, :-count], (0, count))
        return weight, bias

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The tensors of a model file."""
        found: dict[str, NDArray[Any]] = {"g_s.scale": cast(Tensor, self.scale).cpu().numpy().astype(np.float32)}
        for name in ("up", "tail"):
            found[f"g_s.{name}.fine"] = self.fine(name).cpu().numpy().astype(np.int16)
            found[f"g_s.{name}.coarse"] = self.coarse(name).cpu().numpy().astype(np.uint8)
        for layer in self.layers.values():
            values = (*self.integers(layer), self.shift(layer))
            for part, value, dtype in zip(PARTS, values, (np.int8, np.int32, np.uint8), strict=True):
                found[f"g_s.{layer.name}.{part}"] = value.detach().cpu().numpy().astype(dtype)
        return found

    @torch.no_grad()
    def load_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The opposite of `arrays`."""
        cast(Tensor, self.scale).copy_(torch.tensor(arrays["g_s.scale"]))
        for name in ("up", "tail"):
            self.fine(name).copy_(torch.tensor(arrays[f"g_s.{name}.fine"]))
            self.coarse(name).copy_(torch.tensor(arrays[f"g_s.{name}.coarse"]))
        for layer in self.layers.values():
            parts = (arrays[f"g_s.{layer.name}.{part}"].astype(np.float32) for part in PARTS)
            weight, bias, shift = (torch.from_numpy(part) for part in parts)
            factor = torch.exp2(-shift)
            self.shift(layer).copy_(shift)
            self.weights[_key(layer)].copy_(weight * factor.view(-1, *[1] * (weight.dim() - 1)))
            self.biases[_key(layer)].copy_(bias * factor)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) float, gains undone → (B, 3, 16h, 16w) normalised float."""
        unit = 2**ENTRY_BITS
        x = latents * cast(Tensor, self.scale)[:, None, None]
        x = self._limited(x * unit, -WIDE * unit, WIDE * unit) / unit
        x = F.pixel_shuffle(self._by_channel(self._wide("up", self._blocks("blocks16", x))), 2)
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
        whole = self._limited(x, -WIDE, WIDE - 1)
        some = whole.detach()[:, self.fine(name)]
        fine = ((x.detach()[:, self.fine(name)] - some) * FINE).round().clamp(-BYTE, BYTE - 1)
        return self._layer(name, torch.cat((whole, fine, (some / FINE).round()), 1))

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

    def _by_channel(self, x: Tensor) -> Tensor:
        """(B, 4·C, h, w), row and column first → channel first, as `pixel_shuffle` wants it"""
        batch, channels, rows, columns = x.shape
        return x.view(batch, 4, channels // 4, rows, columns).transpose(1, 2).reshape(batch, channels, rows, columns)


def _key(layer: SynthesisLayer) -> str:
    return layer.name.replace(".", "_")
