"""The integer synthesis `g_s` by a CPU's int8 products: the pixels of the oracle (`histocodec.models.transforms.exact`)
in a fraction of its time."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histocodec.geometry import Margin
from histocodec.kernels.jit import jit
from histocodec.kernels.onednn import Int8Layer
from histocodec.kernels.stream import channels_first, channels_last, wide_stream_bytes
from histocodec.models.config import HyperConfig
from histocodec.models.transforms.exact import Engine, FloatEngine, extreme_synthesis, synthesised
from histocodec.models.transforms.integer import (
    BYTE,
    ENTRY_BITS,
    PARTS,
    WIDE,
    WIDE_LAYERS,
    Arrays,
    SynthesisLayer,
    factors,
    synthesis_layers,
)

Sides = tuple[int, int, int, int]  # top, left, bottom, right


def fastest_engine(config: HyperConfig, arrays: Arrays, device: torch.device) -> Engine:
    """The fastest engine that is exact on a device, of those that need no GPU kernels; `arrays` are the model file's
    tensors."""
    if device.type == "cpu" and int8_products_exact():
        return Int8Engine(config, arrays)
    return FloatEngine(config, arrays, device)


@lru_cache(maxsize=1)
def int8_products_exact() -> bool:
    """Whether oneDNN's int8 products exist and are exact on this machine.

    A processor without instructions for them adds pairs of products in 16 bits, which saturates; so they are tried, on
    the largest values that there can be.
    """
    config, arrays, latents = extreme_synthesis()
    try:
        pixels = synthesised(config, arrays, latents, Int8Engine(config, arrays))
    except (AttributeError, RuntimeError, NotImplementedError):  # a build without them
        return False
    return torch.equal(pixels, synthesised(config, arrays, latents))


class Int8Engine:
    """An `Engine` by oneDNN's int8 products. Tensors are channels last in memory, activations uint8; the bytes of the
    stream are held 128 too high, so that they are uint8, too."""

    zero = 0

    def __init__(self, config: HyperConfig, arrays: Arrays) -> None:
        self.layers = {layer.name: self._packed(layer, arrays) for layer in synthesis_layers(config)}
        self.scale = np.array(arrays["g_s.scale"])
        self.fine = {name: arrays[f"g_s.{name}.fine"].astype(np.int64) for name in WIDE_LAYERS}
        self.coarse = {name: factors(arrays[f"g_s.{name}.coarse"]) for name in WIDE_LAYERS}

    @staticmethod
    def _packed(layer: SynthesisLayer, arrays: Arrays) -> Int8Layer:
        weight, bias, shift = (arrays[f"g_s.{layer.name}.{part}"] for part in PARTS)
        factor = factors(shift)
        return Int8Layer(weight, factor, bias * factor, signed_input=layer.sees_stream)

    def stream(self, latents: Tensor) -> Tensor:
        """See `Engine.stream`."""
        return channels_first(_stream(channels_last(_contiguous(latents)), self.scale))

    def block_input(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        """See `Engine.block_input`."""
        seen, trimmed = _block_input(channels_last(x), margin.beyond(needed))
        return channels_first(seen), channels_first(trimmed)

    def upsampled_block_input(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        """See `Engine.upsampled_block_input`."""
        seen, trimmed = _upsampled_block_input(channels_last(x), margin.beyond(needed))
        return channels_first(seen), channels_first(trimmed)

    def activation(self, name: str, a: Tensor) -> Tensor:
        """See `Engine.activation`."""
        return self.layers[name].activation(a)

    def added(self, name: str, x: Tensor, a: Tensor) -> Tensor:
        """See `Engine.added`."""
        return self.layers[name].added(_contiguous(x), _contiguous(a))

    def wide(self, name: str, x: Tensor) -> Tensor:
        """See `Engine.wide`."""
        layer = self.layers[name]
        coarse, fine = self.coarse[name], self.fine[name]
        seen, beyond_a_byte = wide_stream_bytes(channels_last(x), coarse, fine)
        total = layer.output(channels_first(seen))
        if beyond_a_byte:  # seldom in tissue
            low, high = _remainder(channels_last(x), coarse, 2 * len(fine))
            total = layer.added_without_bias(total, channels_first(low), 1.0, signed_input=False)
            total = layer.added_without_bias(total, channels_first(high), 8.0, signed_input=True)
        return total


def _contiguous(x: Tensor) -> Tensor:
    """x as oneDNN needs it: channels last, without gaps."""
    return x.contiguous(memory_format=torch.channels_last)


@jit
def _stream(latents: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """`Engine.stream`, channels last."""
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
def _block_input(x: NDArray[np.float32], cut: Sides) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """`Engine.block_input`, channels last, of a stream that is trimmed by `cut`. The trimmed stream is written over x,
    whose memory is in the cache."""
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
                    trimmed = all_of_x[count : count + channels]
                    for c in range(channels):
                        trimmed[c] = values[c]
                    count += channels
    return seen, all_of_x[:count].reshape((batch, rows - top - bottom, columns - left - right, channels))


@jit
def _upsampled_block_input(x: NDArray[np.float32], cut: Sides) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """`Engine.upsampled_block_input`, channels last, of a stream that is trimmed by `cut`."""
    batch, rows, columns, channels = x.shape
    top, left, bottom, right = cut
    width = channels // 4
    seen = np.empty((batch, 2 * rows, 2 * columns, width), np.uint8)
    trimmed = np.empty((batch, 2 * rows - top - bottom, 2 * columns - left - right, width), np.float32)
    low, high = np.float32(-BYTE), np.float32(BYTE - 1)
    for b in range(batch):
        for row in range(2 * rows):
            for column in range(2 * columns):
                start = (row % 2 * 2 + column % 2) * width
                values, raised = x[b, row // 2, column // 2, start : start + width], seen[b, row, column]
                for c in range(width):
                    raised[c] = np.uint8(min(max(np.rint(values[c]), low), high) - low)
                if top <= row < 2 * rows - bottom and left <= column < 2 * columns - right:
                    stream = trimmed[b, row - top, column - left]
                    for c in range(width):
                        stream[c] = values[c]
    return seen, trimmed


@jit
def _remainder(
    x: NDArray[np.float32], coarse: NDArray[np.float32], more: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What the bytes of a stream, limited to ±1024, leave out: low + 8 · (high - 128). Nothing is left out of the
    `more` channels that follow it."""
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
