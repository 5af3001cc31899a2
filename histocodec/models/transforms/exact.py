"""The integer synthesis `g_s`, computed: the driver that all engines share, and the engine that serves as the oracle.

`histocodec.models.transforms.integer` defines which layers there are and what each computes. `IntegerSynthesis` runs
them in order over a window; an `Engine` computes one layer. Every engine gives the same pixels, bit for bit:
`FloatEngine` here, the CPU's int8 products in `histocodec.models.transforms.fast`, a GPU's kernels in
`histocodec.codec.gpu.synthesis`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from histocodec.geometry import Margin
from histocodec.models.config import HyperConfig
from histocodec.models.transforms.integer import (
    BYTE,
    ENTRY_BITS,
    FINE,
    PARTS,
    WIDE,
    WIDE_LAYERS,
    Arrays,
    factors,
    synthesis_layers,
    synthesis_tensors,
)
from histocodec.models.transforms.network import Hidden, trim

UNLIMITED = 1 << 16  # latents of a margin: more than any window has

BlockInput = Callable[[Tensor, Margin, int], tuple[Tensor, Tensor]]  # as `Engine.block_input`


class Engine(Protocol):
    """Computes the layers of the integer synthesis on tensors (B, C, h, w).

    The stream x, which flows past the residual blocks, is float32. Activations a are bytes, or float32 that holds
    their values, in whatever representation the engine likes.
    """

    zero: int  # how an activation of 0 is represented

    def stream(self, latents: Tensor) -> Tensor:
        """Latents, float32 with their gains undone → the stream that enters the first block."""

    def block_input(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        """The bytes of the stream x that a block sees, and the stream that it adds to: x, which has this margin,
        trimmed to `needed`. May overwrite x."""

    def upsampled_block_input(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        """`block_input` of the stream (B, C, 2h, 2w), which has this margin, from the output of `up` (B, 4·C, h, w),
        whose channels are (row, column, channel)."""

    def activation(self, name: str, a: Tensor) -> Tensor:
        """clip(round(layer(a)), 0, 255)"""

    def added(self, name: str, x: Tensor, a: Tensor) -> Tensor:
        """x + layer(a). May overwrite x."""

    def wide(self, name: str, x: Tensor) -> Tensor:
        """The output of layer `up` or `tail`, float32, which sees more of the stream x than a byte."""


class IntegerSynthesis:
    """The integer `g_s` of one model, computed by `engine`."""

    def __init__(self, config: HyperConfig, engine: Engine) -> None:
        self.config, self.engine = config, engine

    def window(self, latents: Tensor, margin: Margin, hidden: Hidden | None = None) -> Tensor:
        """Latents (B, C, h', w') float32, gains undone → unshuffled pixels (B, 192, 2h, 2w) float32, normalised,
        without the margin (in latents). Appends the activations of each residual block to `hidden`."""
        engine, config, spatial8 = self.engine, self.config, sum(self.config.synthesis8)
        x, halo16 = engine.stream(latents), -(-spatial8 // 2)
        x, margin = self._blocks("blocks16", config.synthesis16, engine.block_input, x, margin, halo16, hidden)
        x, margin = engine.wide("up", x), margin.scaled(2)
        x, margin = self._blocks("blocks8", config.synthesis8, engine.upsampled_block_input, x, margin, 0, hidden)
        return engine.wide("tail", x)

    def _blocks(
        self, name: str, blocks: tuple[bool, ...], enter: BlockInput, x: Tensor, margin: Margin, beyond: int,
        hidden: Hidden | None,
    ) -> tuple[Tensor, Margin]:  # fmt: skip
        """The stream after these blocks and its margin, at least the `beyond` elements that later layers need. The
        first block takes its input by `enter`."""
        engine = self.engine
        if not blocks:
            return enter(x, margin, UNLIMITED)[1], margin
        for i, spatial in enumerate(blocks):
            needed = sum(blocks[i + 1 :]) + beyond
            a, x = (enter if i == 0 else engine.block_input)(x, margin, needed)
            active = [engine.activation(f"{name}.{i}.expand", a)]
            if spatial:
                active.append(engine.activation(f"{name}.{i}.depthwise", active[0]))
            if hidden is not None:
                hidden.append([a.to(torch.int16) - engine.zero if engine.zero else a for a in active])
            last, margin = trim(active[-1], margin, needed)
            x = engine.added(f"{name}.{i}.project", x, last)
        return x, margin


class FloatEngine:
    """The oracle: integers in float32, which holds all of them exactly, on any device. It calls no convolution, since
    libraries may choose algorithms for those that round."""

    zero = 0

    def __init__(self, config: HyperConfig, arrays: Arrays, device: torch.device) -> None:
        self.scale = torch.from_numpy(np.array(arrays["g_s.scale"])).to(device)[:, None, None]
        self.weight: dict[str, Tensor] = {}
        self.bias: dict[str, Tensor] = {}
        self.factor: dict[str, Tensor] = {}
        self.fine = {
            name: torch.from_numpy(arrays[f"g_s.{name}.fine"].astype(np.int64)).to(device) for name in WIDE_LAYERS
        }
        self.coarse = {
            name: torch.from_numpy(factors(arrays[f"g_s.{name}.coarse"])).to(device)[:, None, None]
            for name in WIDE_LAYERS
        }
        for layer in synthesis_layers(config):
            weight, bias, shift = (arrays[f"g_s.{layer.name}.{part}"] for part in PARTS)
            self.weight[layer.name] = torch.from_numpy(weight.astype(np.float32)).to(device)
            self.bias[layer.name] = torch.from_numpy(bias.astype(np.float32)).to(device)[:, None, None]
            self.factor[layer.name] = torch.from_numpy(factors(shift)).to(device)[:, None, None]

    def stream(self, latents: Tensor) -> Tensor:
        """See `Engine.stream`."""
        return (latents * self.scale).mul_(2.0**ENTRY_BITS).round_().mul_(2.0**-ENTRY_BITS).clamp_(-WIDE, WIDE)

    def block_input(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        """See `Engine.block_input`."""
        return x.round().clamp_(-BYTE, BYTE - 1), trim(x, margin, needed)[0]

    def upsampled_block_input(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        """See `Engine.upsampled_block_input`."""
        batch, channels, rows, columns = x.shape
        split = x.view(batch, 2, 2, channels // 4, rows, columns).permute(0, 3, 4, 1, 5, 2)
        return self.block_input(split.reshape(batch, channels // 4, 2 * rows, 2 * columns), margin, needed)

    def activation(self, name: str, a: Tensor) -> Tensor:
        """See `Engine.activation`."""
        return self._layer(name, a).round_().clamp_(0, 255)

    def added(self, name: str, x: Tensor, a: Tensor) -> Tensor:
        """See `Engine.added`."""
        return x + self._layer(name, a)

    def wide(self, name: str, x: Tensor) -> Tensor:
        """See `Engine.wide`."""
        x = x * self.coarse[name]
        integer = x.round().clamp_(-WIDE, WIDE - 1)
        fine_integer = integer[:, self.fine[name]]
        fine = ((x[:, self.fine[name]] - fine_integer) * FINE).round_().clamp_(-BYTE, BYTE - 1)
        return self._layer(name, torch.cat((integer, fine, (fine_integer / FINE).round_()), 1))

    def _layer(self, name: str, a: Tensor) -> Tensor:
        weight, (batch, _, rows, columns) = self.weight[name], a.shape
        if weight.dim() == 3:
            total = self._depthwise(weight, a)
        else:
            total = torch.matmul(weight, a.flatten(2)).view(batch, -1, rows, columns)
        return (total + self.bias[name]) * self.factor[name]

    @staticmethod
    def _depthwise(weight: Tensor, a: Tensor) -> Tensor:
        rows, columns = a.shape[2:]
        padded = F.pad(a, (1, 1, 1, 1))
        total = torch.zeros_like(a)
        for i in range(3):
            for j in range(3):
                total += padded[:, :, i : i + rows, j : j + columns] * weight[:, i, j, None, None]
        return total


def extreme_synthesis() -> tuple[HyperConfig, Arrays, Tensor]:
    """A small synthesis, as config and tensors of a model file, and latents (1, 64, 6, 6) float32 for it, all as large
    as they may be: on these an engine proves that it is exact on this machine."""
    config = HyperConfig(latent_channels=64, synthesis16=(True,), synthesis8=(True,))
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for name, (shape, dtype) in synthesis_tensors(config):
        if name.endswith(".weight"):
            arrays[name] = rng.choice(np.array([-127, 127, 127, 127], np.int8), shape)
        elif name.endswith(".bias"):
            arrays[name] = rng.integers(-9999, 9999, shape, np.int32)
        elif name.endswith(".fine"):
            arrays[name] = np.arange(*shape, dtype=np.int16)
        elif name.endswith(".coarse"):
            arrays[name] = (np.arange(*shape) % 4).astype(np.uint8)
        else:
            arrays[name] = np.full(shape, 1000 if name == "g_s.scale" else 12, dtype)
    return config, arrays, torch.from_numpy(rng.normal(size=(1, 64, 6, 6)).astype(np.float32))


def synthesised(config: HyperConfig, arrays: Arrays, latents: Tensor, engine: Engine | None = None) -> Tensor:
    """Unshuffled pixels (B, 192, 2h, 2w) float32 of latents (B, C, h, w) without a margin, by `engine` or else by the
    oracle on the latents' device."""
    with torch.inference_mode():
        synthesis = IntegerSynthesis(config, engine or FloatEngine(config, arrays, latents.device))
        return synthesis.window(latents, Margin())
