"""The synthesis `g_s` in whole numbers (`histocodec.models.synthesis_layers`), computed: the same pixels on every
machine, by products of bytes where the processor has them."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from histocodec.compiled import jit
from histocodec.models.byte_layers import ByteLayer, channels_first, channels_last, raised_bytes, stream_bytes
from histocodec.models.config import HyperConfig
from histocodec.models.synthesis_layers import (
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
from histocodec.models.transforms import Hidden, Margin

WIDER = ("up", "tail")  # layers that see more than a byte

Arrays = Mapping[str, NDArray[Any]]


class Engine(Protocol):
    """How the layers are computed, on tensors (B, C, h, w). A stream `x` is float32; `a` holds bytes."""

    def entered(self, latents: Tensor) -> Tensor:
        """The stream that latents begin, float32 with their gain undone."""

    def seen(self, x: Tensor) -> Tensor:
        """What a block sees of the stream."""

    def activation(self, name: str, a: Tensor) -> Tensor:
        """clip(round(layer(a)), 0, 255)"""

    def added(self, name: str, x: Tensor, a: Tensor) -> Tensor:
        """x + layer(a); x itself may be overwritten."""

    def wide(self, name: str, x: Tensor) -> Tensor:
        """`up` or `tail`, float32"""

    def enlarged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `up` gives, (B, 4·C, h, w) with row and column first → the stream (B, C, 2h, 2w), and what a block sees
        of it."""


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
        engine, spatial8 = self.engine, sum(self.config.synthesis8)
        x = engine.entered(latents)
        x, margin = self._blocks(
            "blocks16", self.config.synthesis16, x, engine.seen(x), margin, -(-spatial8 // 2), hidden
        )
        x, a = engine.enlarged(engine.wide("up", x))
        x, margin = self._blocks("blocks8", self.config.synthesis8, x, a, margin.scaled(2), 0, hidden)
        return engine.wide("tail", x)

    def _blocks(
        self,
        name: str,
        blocks: tuple[bool, ...],
        x: Tensor,
        a: Tensor,
        margin: Margin,
        beyond: int,
        hidden: Hidden | None,
    ) -> tuple[Tensor, Margin]:
        """The stream after these blocks, of which the first sees `a`."""
        engine = self.engine
        for i, spatial in enumerate(blocks):
            active = [engine.activation(f"{name}.{i}.expand", a if i == 0 else engine.seen(x))]
            if spatial:
                active.append(engine.activation(f"{name}.{i}.depthwise", active[0]))
            if hidden is not None:
                hidden.append(active)
            needed = sum(blocks[i + 1 :]) + beyond
            (x, left), (last, _) = margin.trim(x, needed), margin.trim(active[-1], needed)
            x, margin = engine.added(f"{name}.{i}.project", x, last), left
        return x, margin


class FloatEngine:
    """In float32, on any device. Calls no convolution: those may choose algorithms that round."""

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

    def seen(self, x: Tensor) -> Tensor:
        return x.round().clamp_(-BYTE, BYTE - 1)

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

    def enlarged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels, rows, columns = x.shape
        split = x.view(batch, 2, 2, channels // 4, rows, columns).permute(0, 3, 4, 1, 5, 2)
        x = split.reshape(batch, channels // 4, 2 * rows, 2 * columns)
        return x, self.seen(x)

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

    def __init__(self, config: HyperConfig, arrays: Arrays) -> None:
        self.layers = {layer.name: self._packed(layer, arrays) for layer in synthesis_layers(config)}
        self.scale = np.array(arrays["g_s.scale"])
        self.fine = {name: arrays[f"g_s.{name}.fine"].astype(np.int64) for name in WIDER}
        self.coarse = {name: factors(arrays[f"g_s.{name}.coarse"]) for name in WIDER}
        self.ones = np.ones(max(config.latent_channels, config.width8), np.float32)

    @staticmethod
    def _packed(layer: SynthesisLayer, arrays: Arrays) -> ByteLayer:
        weight, bias, shift = (arrays[f"g_s.{layer.name}.{part}"] for part in PARTS)
        factor = factors(shift)
        return ByteLayer(weight, factor, bias * factor, raised=layer.sees_stream)

    def entered(self, latents: Tensor) -> Tensor:
        return channels_first(_entered(channels_last(_packed(latents)), self.scale))

    def seen(self, x: Tensor) -> Tensor:
        return stream_bytes(x, self.ones)

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

    def enlarged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stream, seen = _enlarged(channels_last(x))
        return channels_first(stream), channels_first(seen)


def _packed(x: Tensor) -> Tensor:
    """x as these layers want it: channels last, nothing left out in between."""
    return x.contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=1)
def bytes_exact() -> bool:
    """Whether oneDNN's products of bytes are there and exact on this machine. Without instructions for them, a
    processor adds pairs of products in 16 bits and saturates; so they are tried, on the largest values there are."""
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
    latents = torch.from_numpy(rng.normal(size=(1, 64, 6, 6)).astype(np.float32))
    floats, cpu = FloatEngine(config, arrays, torch.device("cpu")), torch.device("cpu")
    with torch.inference_mode():
        wanted = IntegerSynthesis(config, arrays, cpu, engine=floats).window(latents, Margin())
        try:
            found = IntegerSynthesis(config, arrays, cpu, engine=ByteEngine(config, arrays)).window(latents, Margin())
        except (AttributeError, RuntimeError, NotImplementedError):  # a build without them
            return False
    return torch.equal(found, wanted)


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
def _enlarged(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """As `Engine.enlarged`, channels last."""
    batch, rows, columns, channels = x.shape
    width = channels // 4
    out = np.empty((batch, 2 * rows, 2 * columns, width), np.float32)
    seen = np.empty(out.shape, np.uint8)
    low, high = np.float32(-BYTE), np.float32(BYTE - 1)
    for b in range(batch):
        for i in range(rows):
            for row in range(2):
                for j in range(columns):
                    for column in range(2):
                        start = (2 * row + column) * width
                        values = x[b, i, j, start : start + width]
                        stream, raised = out[b, 2 * i + row, 2 * j + column], seen[b, 2 * i + row, 2 * j + column]
                        for c in range(width):
                            stream[c] = values[c]
                            raised[c] = np.uint8(min(max(np.rint(values[c]), low), high) - low)
    return out, seen


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
