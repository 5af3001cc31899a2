"""`g_s` in whole numbers on a GPU: products of bytes, each layer with what follows it in one kernel."""

from functools import lru_cache

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from histocodec.codec.gpu import kernels
from histocodec.codec.gpu.layers import Layer, added_bytes, launch
from histocodec.geometry import Margin
from histocodec.models.config import HyperConfig
from histocodec.models.transforms.exact import extreme_synthesis, synthesised
from histocodec.models.transforms.integer import PARTS, WIDE_LAYERS, Arrays, factors, synthesis_layers
from histocodec.normalise import ChannelStats

PLACES, CHANNELS = 32, 64  # of a program
FEW = 4  # places of one that has all of their channels


class TritonEngine:
    """An `Engine` whose tensors are channels last; what is seen of a stream is int8, activations 128 too low."""

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
                bias = added_bytes(weight, bias)
            self.layers[layer.name] = Layer(weight, bias, factors(shift), device, then=kernels.EVEN)

    def stream(self, latents: Tensor) -> Tensor:
        x = _last(latents)
        out = torch.empty_like(x)
        count, channels = x.numel() // x.shape[3], x.shape[3]
        grid = triton.cdiv(count, PLACES), triton.cdiv(channels, CHANNELS)
        launch(kernels.entered, grid, x, self.scale, out, count, channels, PLACES=PLACES, CHANNELS=CHANNELS)
        return _first(out)

    def block_input(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        return self._seen(_last(x), margin.beyond(needed), split=False)

    def upsampled_block_input(self, x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Tensor]:
        return self._seen(_last(x), margin.beyond(needed), split=True)

    def activation(self, name: str, a: Tensor) -> Tensor:
        return _first(self.layers[name].activation(_last(a)))

    def added(self, name: str, x: Tensor, a: Tensor) -> Tensor:
        return _first(self.layers[name].added(_last(x), _last(a)))

    def wide(self, name: str, x: Tensor) -> Tensor:
        seen, coarse, fine = _last(x), self.coarse[name], self.fine[name]
        batch, rows, columns, channels = seen.shape
        count, fines = batch * rows * columns, len(fine)
        parts = torch.empty((batch, rows, columns, 2 * (channels + fines)), dtype=torch.int8, device=x.device)
        launch(
            kernels.parted, (triton.cdiv(count, FEW),), seen, coarse, fine, parts, count, channels, fines,
            PLACES=FEW, CHANNELS=triton.next_power_of_2(channels), FINES=triton.next_power_of_2(fines),
        )  # fmt: skip
        return _first(self.layers[name].value(parts, channels))

    def _seen(self, x: Tensor, cut: tuple[int, int, int, int], *, split: bool) -> tuple[Tensor, Tensor]:
        batch, rows, columns, channels = x.shape
        if split:
            rows, columns, channels = 2 * rows, 2 * columns, channels // 4
        top, left, bottom, right = cut
        keep = split or any(cut)
        low = torch.empty((batch, rows, columns, channels), dtype=torch.int8, device=x.device)
        kept = x
        if keep:
            kept = x.new_empty((batch, rows - top - bottom, columns - left - right, channels))
        count = batch * rows * columns
        grid = triton.cdiv(count, PLACES), triton.cdiv(channels, CHANNELS)
        launch(
            kernels.seen, grid, x, low, kept, count, rows, columns, channels, top, left, kept.shape[1], kept.shape[2],
            SPLIT=split, KEEP=keep, PLACES=PLACES, CHANNELS=CHANNELS,
        )  # fmt: skip
        return _first(low), _first(kept)


def pixels(blocks: Tensor, stats: ChannelStats) -> Tensor:
    """Unshuffled pixels (B, 192, h, w) float32, normalised → (B, 8h, 8w, 3) uint8"""
    x = _last(blocks)
    batch, rows, columns, _ = x.shape
    mean, std = (torch.from_numpy(np.array(v, np.float32)).to(x.device) for v in (stats.mean, stats.std))
    out = torch.empty((batch, 8 * rows, 8 * columns, 3), dtype=torch.uint8, device=x.device)
    count = batch * rows * columns
    launch(kernels.pixels, (triton.cdiv(count, FEW),), x, mean, std, out, count, columns, PLACES=FEW)
    return out


@lru_cache(maxsize=4)
def kernels_exact(device: torch.device) -> bool:
    """Whether these kernels compile for a device and are exact there: tried on the largest values there are."""
    config, arrays, latents = extreme_synthesis()
    try:
        found = synthesised(config, arrays, latents.to(device), TritonEngine(config, arrays, device))
    except Exception:  # Triton and its compilers raise many kinds
        return False
    return torch.equal(found.cpu(), synthesised(config, arrays, latents))


def _last(x: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h, w, C), contiguous"""
    return x.permute(0, 2, 3, 1).contiguous()


def _first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)
