"""The integer synthesis `g_s` on a GPU: int8 products, and each layer in one kernel with what follows it."""

from functools import lru_cache

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from histocodec.codec.gpu import network_kernels as kernels
from histocodec.codec.gpu.layers import Layer, launch, offset_bias
from histocodec.geometry import Margin
from histocodec.models.config import HyperConfig
from histocodec.models.transforms.exact import extreme_synthesis, synthesised
from histocodec.models.transforms.integer import PARTS, WIDE_LAYERS, Arrays, factors, synthesis_layers
from histocodec.normalise import ChannelStats

POSITIONS, CHANNELS = 32, 64  # of one program
FULL_POSITIONS = 4  # of one program that has all channels of its positions


class TritonEngine:
    """An `Engine` by Triton kernels. Tensors are channels last in memory; the bytes of the stream are int8, and
    activations int8 that are held 128 too low."""

    zero = -128

    def __init__(self, config: HyperConfig, arrays: Arrays, device: torch.device) -> None:
        def put(values: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(np.array(values)).to(device)

        self.scale = put(arrays["g_s.scale"])
        self.fine = {name: put(arrays[f"g_s.{name}.fine"].astype(np.int32)) for name in WIDE_LAYERS}
        self.coarse = {name: put(factors(arrays[f"g_s.{name}.coarse"])) for name in WIDE_LAYERS}
        self.layers: dict[str, Layer] = {}
        for layer in synthesis_layers(config):
            weight, bias, shift = (arrays[f"g_s.{layer.name}.{part}"] for part in PARTS)
            if not layer.sees_stream:
                bias = offset_bias(weight, bias)
            self.layers[layer.name] = Layer(weight, bias, factors(shift), device, then=kernels.EVEN)

    def stream(self, latents: Tensor) -> Tensor:
        """See `Engine.stream`."""
        x = _channels_last(latents)
        out = torch.empty_like(x)
        count, channels = x.numel() // x.shape[3], x.shape[3]
        grid = triton.cdiv(count, POSITIONS), triton.cdiv(channels, CHANNELS)
        launch(kernels.stream, grid, x, self.scale, out, count, channels, POSITIONS=POSITIONS, CHANNELS=CHANNELS)
        return _channels_first(out)

    def block_input(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        """See `Engine.block_input`."""
        return self._block_input(_channels_last(x), margin.beyond(needed), split=False)

    def upsampled_block_input(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        """See `Engine.upsampled_block_input`."""
        return self._block_input(_channels_last(x), margin.beyond(needed), split=True)

    def activation(self, name: str, a: Tensor) -> Tensor:
        """See `Engine.activation`."""
        return _channels_first(self.layers[name].activation(_channels_last(a)))

    def added(self, name: str, x: Tensor, a: Tensor) -> Tensor:
        """See `Engine.added`."""
        return _channels_first(self.layers[name].added(_channels_last(x), _channels_last(a)))

    def wide(self, name: str, x: Tensor) -> Tensor:
        """See `Engine.wide`."""
        stream, coarse, fine = _channels_last(x), self.coarse[name], self.fine[name]
        batch, rows, columns, channels = stream.shape
        count, fines = batch * rows * columns, len(fine)
        parts = torch.empty((batch, rows, columns, 2 * (channels + fines)), dtype=torch.int8, device=x.device)
        launch(
            kernels.wide_input, (triton.cdiv(count, FULL_POSITIONS),), stream, coarse, fine, parts, count, channels,
            fines, POSITIONS=FULL_POSITIONS, CHANNELS=triton.next_power_of_2(channels),
            FINES=triton.next_power_of_2(fines),
        )  # fmt: skip
        return _channels_first(self.layers[name].value(parts, channels))

    def _block_input(self, x: Tensor, cut: tuple[int, int, int, int], *, split: bool) -> tuple[Tensor, Tensor]:
        """The bytes that a block sees, and the stream trimmed by `cut` (top, left, bottom, right). With `split`, x is
        the output of `up`, (B, h / 2, w / 2, 4·C)."""
        batch, rows, columns, channels = x.shape
        if split:
            rows, columns, channels = 2 * rows, 2 * columns, channels // 4
        top, left, bottom, right = cut
        keep = split or any(cut)
        low = torch.empty((batch, rows, columns, channels), dtype=torch.int8, device=x.device)
        trimmed = x
        if keep:
            trimmed = x.new_empty((batch, rows - top - bottom, columns - left - right, channels))
        count = batch * rows * columns
        grid = triton.cdiv(count, POSITIONS), triton.cdiv(channels, CHANNELS)
        launch(
            kernels.block_input, grid, x, low, trimmed, count, rows, columns, channels, top, left, trimmed.shape[1],
            trimmed.shape[2], SPLIT=split, KEEP=keep, POSITIONS=POSITIONS, CHANNELS=CHANNELS,
        )  # fmt: skip
        return _channels_first(low), _channels_first(trimmed)


def denormalise(planes: Tensor, stats: ChannelStats) -> Tensor:
    """Unshuffled pixels (B, 192, h, w) float32, normalised → pixels (B, 8h, 8w, 3) uint8."""
    x = _channels_last(planes)
    batch, rows, columns, _ = x.shape
    mean, std = (torch.from_numpy(np.array(v, np.float32)).to(x.device) for v in (stats.mean, stats.std))
    out = torch.empty((batch, 8 * rows, 8 * columns, 3), dtype=torch.uint8, device=x.device)
    count = batch * rows * columns
    grid = (triton.cdiv(count, FULL_POSITIONS),)
    launch(kernels.pixels, grid, x, mean, std, out, count, columns, POSITIONS=FULL_POSITIONS)
    return out


@lru_cache(maxsize=4)
def kernels_exact(device: torch.device) -> bool:
    """Whether these kernels compile for a device and are exact there. They are tried on the largest values that there
    can be, and compared with the oracle."""
    config, arrays, latents = extreme_synthesis()
    try:
        planes = synthesised(config, arrays, latents.to(device), TritonEngine(config, arrays, device))
    except Exception:  # Triton and its compilers raise many kinds
        return False
    return torch.equal(planes.cpu(), synthesised(config, arrays, latents))


def _channels_last(x: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h, w, C), contiguous"""
    return x.permute(0, 2, 3, 1).contiguous()


def _channels_first(x: Tensor) -> Tensor:
    """(B, h, w, C) → (B, C, h, w), a view"""
    return x.permute(0, 3, 1, 2)
