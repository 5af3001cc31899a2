"""The synthesis `g_s` in whole numbers (`histocodec.models.transforms.integer`), computed: the same pixels on every
machine, by products of bytes where the processor has them."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from histocodec.geometry import Margin
from histocodec.kernels.jit import jit
from histocodec.kernels.onednn import ByteLayer, channels_first, channels_last, raised_bytes
from histocodec.models.config import HyperConfig
from histocodec.models.transforms.integer import (
    BYTE,
    ENTRY_BITS,
    FINE,
    PARTS,
    WIDE,
    SynthesisLayer,
    factors,
    synthesis_layers,
    synthesis_tensors,
)
from histocodec.models.transforms.network import Hidden, trim

WIDER = ("up", "tail")  # layers that see more than a byte
ALL = 1 << 16  # of a margin

Arrays = Mapping[str, NDArray[Any]]
Sides = tuple[int, int, int, int]  # top, left, bottom, right
Look = Callable[[Tensor, Margin, int], tuple[Tensor, Tensor]]


class Engine(Protocol):
    """How the layers are computed, on tensors (B, C, h, w). A stream `x` is float32; `a` holds bytes."""

    zero: int  # how an activation of 0 is held

    def entered(self, latents: Tensor) -> Tensor:
        """The stream that latents begin, float32 with their gain undone."""

    def seen(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        """What a block sees of a stream with this margin, and of the stream what lies within `needed`: the block adds
        to no more. x itself may be overwritten."""

    def activation(self, name: str, a: Tensor) -> Tensor:
        """clip(round(layer(a)), 0, 255)"""

    def added(self, name: str, x: Tensor, a: Tensor) -> Tensor:
        """x + layer(a); x itself may be overwritten."""

    def wide(self, name: str, x: Tensor) -> Tensor:
        """`up` or `tail`, float32"""

    def enlarged(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        """`seen` of the stream (B, C, 2h, 2w), whose margin this is, from what `up` gives: (B, 4·C, h, w) with row and
        column first."""


class IntegerSynthesis:
    """`g_s` in whole numbers on one device; `engine` is by default the fastest that is exact."""

    def __init__(
        self, config: HyperConfig, arrays: Arrays, device: torch.device, *, engine: Engine | None = None
    ) -> None:
        self.config = config
        if engine is None:
            by_bytes = device.type == "cpu" and bytes_exact()
            engine = ByteEngine(config, arrays) if by_bytes else FloatEngine(config, arrays, device)
        self.engine: Engine = engine

    def window(self, latents: Tensor, margin: Margin, hidden: Hidden | None = None) -> Tensor:
        """As `Synthesis.window`: latents float32, gains undone. The activations of each block are added to `hidden`."""
        engine, config, spatial8 = self.engine, self.config, sum(self.config.synthesis8)
        x, halo16 = engine.entered(latents), -(-spatial8 // 2)
        x, margin = self._blocks("blocks16", config.synthesis16, engine.seen, x, margin, halo16, hidden)
        x, margin = engine.wide("up", x), margin.scaled(2)
        x, margin = self._blocks("blocks8", config.synthesis8, engine.enlarged, x, margin, 0, hidden)
        return engine.wide("tail", x)

    def _blocks(
        self, name: str, blocks: tuple[bool, ...], enter: Look, x: Tensor, margin: Margin, beyond: int,
        hidden: Hidden | None,
    ) -> tuple[Tensor, Margin]:  # fmt: skip
        """The stream after these blocks, of which the first looks at x by `enter`, and the margin it has left: at least
        `beyond`."""
        engine = self.engine
        if not blocks:
            return enter(x, margin, ALL)[1], margin
        for i, spatial in enumerate(blocks):
            needed = sum(blocks[i + 1 :]) + beyond
            a, x = (enter if i == 0 else engine.seen)(x, margin, needed)
            active = [engine.activation(f"{name}.{i}.expand", a)]
            if spatial:
                active.append(engine.activation(f"{name}.{i}.depthwise", active[0]))
            if hidden is not None:
                hidden.append([a.to(torch.int16) - engine.zero if engine.zero else a for a in active])
            last, margin = trim(active[-1], margin, needed)
            x = engine.added(f"{name}.{i}.project", x, last)
        return x, margin


class FloatEngine:
    """In float32, on any device. Calls no convolution: those may choose algorithms that round."""

    zero = 0

    def __init__(self, config: HyperConfig, arrays: Arrays, device: torch.device) -> None:
        self.scale = torch.from_numpy(np.array(arrays["g_s.scale"])).to(device)[:, None, None]
        self.weight: dict[str, Tensor] = {}
        self.bias: dict[str, Tensor] = {}
        self.factor: dict[str, Tensor] = {}
        self.fine = {name: torch.from_numpy(arrays[f"g_s.{name}.fine"].astype(np.int64)).to(device) for name in WIDER}
        self.coarse = {
            name: torch.from_numpy(factors(arrays[f"g_s.{name}.coarse"])).to(device)[:, None, None] for name in WIDER
        }
        for layer in synthesis_layers(config):
            weight, bias, shift = (arrays[f"g_s.{layer.name}.{part}"] for part in PARTS)
            self.weight[layer.name] = torch.from_numpy(weight.astype(np.float32)).to(device)
            self.bias[layer.name] = torch.from_numpy(bias.astype(np.float32)).to(device)[:, None, None]
            self.factor[layer.name] = torch.from_numpy(factors(shift)).to(device)[:, None, None]

    def entered(self, latents: Tensor) -> Tensor:
        return (latents * self.scale).mul_(2.0**ENTRY_BITS).round_().mul_(2.0**-ENTRY_BITS).clamp_(-WIDE, WIDE)

    def seen(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        return x.round().clamp_(-BYTE, BYTE - 1), trim(x, margin, needed)[0]

    def activation(self, name: str, a: Tensor) -> Tensor:
        return self._layer(name, a).round_().clamp_(0, 255)

    def added(self, name: str, x: Tensor, a: Tensor) -> Tensor:
        return x + self._layer(name, a)

    def wide(self, name: str, x: Tensor) -> Tensor:
        x = x * self.coarse[name]
        whole = x.round().clamp_(-WIDE, WIDE - 1)
        some = whole[:, self.fine[name]]
        fine = ((x[:, self.fine[name]] - some) * FINE).round_().clamp_(-BYTE, BYTE - 1)
        return self._layer(name, torch.cat((whole, fine, (some / FINE).round_()), 1))

    def enlarged(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        batch, channels, rows, columns = x.shape
        split = x.view(batch, 2, 2, channels // 4, rows, columns).permute(0, 3, 4, 1, 5, 2)
        return self.seen(split.reshape(batch, channels // 4, 2 * rows, 2 * columns), margin, needed)

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


class ByteEngine:
    """By oneDNN's products of bytes on a CPU; memory is channels last. A byte of the stream is held 128 too high, so
    that all are positive."""

    zero = 0

    def __init__(self, config: HyperConfig, arrays: Arrays) -> None:
        self.layers = {layer.name: self._packed(layer, arrays) for layer in synthesis_layers(config)}
        self.scale = np.array(arrays["g_s.scale"])
        self.fine = {name: arrays[f"g_s.{name}.fine"].astype(np.int64) for name in WIDER}
        self.coarse = {name: factors(arrays[f"g_s.{name}.coarse"]) for name in WIDER}

    @staticmethod
    def _packed(layer: SynthesisLayer, arrays: Arrays) -> ByteLayer:
        weight, bias, shift = (arrays[f"g_s.{layer.name}.{part}"] for part in PARTS)
        factor = factors(shift)
        return ByteLayer(weight, factor, bias * factor, raised=layer.sees_stream)

    def entered(self, latents: Tensor) -> Tensor:
        return channels_first(_entered(channels_last(_packed(latents)), self.scale))

    def seen(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        seen, kept = _seen(channels_last(x), margin.beyond(needed))
        return channels_first(seen), channels_first(kept)

    def activation(self, name: str, a: Tensor) -> Tensor:
        return self.layers[name].activation(a)

    def added(self, name: str, x: Tensor, a: Tensor) -> Tensor:
        return self.layers[name].added(_packed(x), _packed(a))

    def wide(self, name: str, x: Tensor) -> Tensor:
        layer = self.layers[name]
        coarse, fine = self.coarse[name], self.fine[name]
        raised, beyond = raised_bytes(channels_last(x), coarse, fine)
        total = layer.output(channels_first(raised))
        if beyond:  # of what tissue is made; seldom
            low, high = _rest(channels_last(x), coarse, 2 * len(fine))
            total = layer.rest(total, channels_first(low), 1.0, raised=False)
            total = layer.rest(total, channels_first(high), 8.0, raised=True)
        return total

    def enlarged(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        seen, kept = _enlarged(channels_last(x), margin.beyond(needed))
        return channels_first(seen), channels_first(kept)


def _packed(x: Tensor) -> Tensor:
    """x as these layers want it: channels last, nothing left out in between."""
    return x.contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=1)
def bytes_exact() -> bool:
    """Whether oneDNN's products of bytes are there and exact on this machine. Without instructions for them, a
    processor adds pairs of products in 16 bits and saturates; so they are tried, on the largest values there are."""
    config, arrays, latents = extremes()
    try:
        found = synthesised(config, arrays, latents, ByteEngine(config, arrays))
    except (AttributeError, RuntimeError, NotImplementedError):  # a build without them
        return False
    return torch.equal(found, synthesised(config, arrays, latents))


def extremes() -> tuple[HyperConfig, Arrays, Tensor]:
    """A small synthesis and latents, of the largest values there are: what an engine is tried on first."""
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
    """What `engine` makes of latents without a margin; by default floats on the CPU, which are exact."""
    device = latents.device
    with torch.inference_mode():
        synthesis = IntegerSynthesis(config, arrays, device, engine=engine or FloatEngine(config, arrays, device))
        return synthesis.window(latents, Margin())


@jit
def _entered(latents: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """As `Engine.entered`, channels last."""
    batch, rows, columns, channels = latents.shape
    out = np.empty(latents.shape, np.float32)
    unit, wide = np.float32(1 << ENTRY_BITS), np.float32(WIDE)
    for b in range(batch):
        for i in range(rows):
            for j in range(columns):
                for c in range(channels):
                    value = np.rint(latents[b, i, j, c] * scale[c] * unit) / unit
                    out[b, i, j, c] = min(max(value, -wide), wide)
    return out


@jit
def _seen(x: NDArray[np.float32], cut: Sides) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """As `Engine.seen`, channels last, of a stream that is `cut` by so much; over x itself, since memory that was just
    looked at is the cheapest."""
    batch, rows, columns, channels = x.shape
    top, left, bottom, right = cut
    seen, all_of_x, count = np.empty(x.shape, np.uint8), x.reshape(-1), 0
    low, high = np.float32(-BYTE), np.float32(BYTE - 1)
    for b in range(batch):
        for i in range(rows):
            for j in range(columns):
                values, raised = x[b, i, j], seen[b, i, j]
                for c in range(channels):
                    raised[c] = np.uint8(min(max(np.rint(values[c]), low), high) - low)
                if top <= i < rows - bottom and left <= j < columns - right:
                    kept = all_of_x[count : count + channels]
                    for c in range(channels):
                        kept[c] = values[c]
                    count += channels
    return seen, all_of_x[:count].reshape((batch, rows - top - bottom, columns - left - right, channels))


@jit
def _enlarged(x: NDArray[np.float32], cut: Sides) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """As `Engine.enlarged`, channels last, likewise."""
    batch, rows, columns, channels = x.shape
    top, left, bottom, right = cut
    width = channels // 4
    seen = np.empty((batch, 2 * rows, 2 * columns, width), np.uint8)
    kept = np.empty((batch, 2 * rows - top - bottom, 2 * columns - left - right, width), np.float32)
    low, high = np.float32(-BYTE), np.float32(BYTE - 1)
    for b in range(batch):
        for row in range(2 * rows):
            for column in range(2 * columns):
                start = (row % 2 * 2 + column % 2) * width
                values, raised = x[b, row // 2, column // 2, start : start + width], seen[b, row, column]
                for c in range(width):
                    raised[c] = np.uint8(min(max(np.rint(values[c]), low), high) - low)
                if top <= row < 2 * rows - bottom and left <= column < 2 * columns - right:
                    stream = kept[b, row - top, column - left]
                    for c in range(width):
                        stream[c] = values[c]
    return seen, kept


@jit
def _rest(
    x: NDArray[np.float32], coarse: NDArray[np.float32], more: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What a stream's bytes leave of it up to ±1024: low + 8 · (high - 128). Nothing is left of `more` channels."""
    batch, rows, columns, channels = x.shape
    low = np.zeros((batch, rows, columns, channels + more), np.uint8)
    high = np.full((batch, rows, columns, channels + more), 128, np.uint8)
    for b in range(batch):
        for i in range(rows):
            for j in range(columns):
                for c in range(channels):
                    rounded = np.rint(x[b, i, j, c] * coarse[c])
                    byte = min(max(rounded, np.float32(-128)), np.float32(127))
                    rest = np.int32(min(max(rounded, np.float32(-1024)), np.float32(1023)) - byte)
                    low[b, i, j, c] = rest & 7
                    high[b, i, j, c] = (rest >> 3) + 128
    return low, high
