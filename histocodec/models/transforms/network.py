"""The pixel side of `hyper` in floating point: analysis `g_a` and synthesis `g_s`.

    pixels (3, H, W) → unshuffle 8 → (192, H/8, W/8) → 1×1, blocks8 → 2×2 stride 2 → (C, H/16, W/16) → blocks16 → y
    y → blocks16 → 2×2 stride-2 transpose → (192, H/8, W/8) → blocks8, 1×1 → shuffle 8 → pixels

`blocks8` and `blocks16` are residual blocks at 1/8 and 1/16 of the pixels' resolution. `forward` is for training and
takes or gives pixels; `window` is for coding and takes or gives the unshuffled pixels (192, H/8, W/8).

Both networks start as a Karhunen–Loève transform (`histocodec.train.start.from_klt`), that is at JPEG's level, and
learn the rest. Convolutions pad with zeros at the edges of what they are given. A window whose margin is the network's
halo, or that ends where the slide ends, therefore gives exactly the crop of the whole level.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histocodec.geometry import Margin
from histocodec.models.config import HyperConfig

Hidden = list[list[Tensor]]  # the activations of each residual block of a synthesis, in order: one or two a block


def trim(x: Tensor, margin: Margin, needed: int) -> tuple[Tensor, Margin]:
    """Cuts x (B, C, h, w), which has this margin, down to a margin of at most `needed` on each side: later layers look
    no further. Returns the view and its margin."""
    top, left, bottom, right = margin.beyond(needed)
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right], margin.within(needed)


def untrim(x: Tensor, before: Margin, after: Margin) -> Tensor:
    """The derivative of `trim`: x (B, C, h, w) with zeros where `trim` cut the margin `before` down to `after`."""
    cut = (before.left - after.left, before.right - after.right, before.top - after.top, before.bottom - after.bottom)
    return F.pad(x, cut) if any(cut) else x


class Residual(nn.Module):
    """A residual block: x + W₂·relu(D·relu(W₁·x)), with D a depthwise 3×3 convolution where the block is `spatial` and
    nothing elsewhere. It has `hidden` activations, by default as many as channels."""

    def __init__(self, channels: int, spatial: bool, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or channels
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if spatial else None
        self.project = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, h, w) → the same shape."""
        return x + cast(Tensor, self.project(self.activations(x, _relu)[-1]))

    def activations(self, x: Tensor, relu_of: Callable[[nn.Conv2d, Tensor], Tensor]) -> list[Tensor]:
        """The activations of x after `expand`, and after `depthwise` where there is one, each (B, hidden, h, w).
        `relu_of` computes relu(layer(x))."""
        first = relu_of(self.expand, x)
        return [first] if self.depthwise is None else [first, relu_of(self.depthwise, first)]


def _relu(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.relu(layer(x), inplace=True)


@lru_cache
def _can_fuse(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes a convolution and what follows it in one pass, as torch.compile has it do. That depends
    on the build, the processor and the dtype, so it is tried."""
    with torch.inference_mode():
        x, block = torch.zeros((1, 16, 4, 4), dtype=dtype), Residual(16, spatial=True).to(dtype)
        try:
            _fused_add(block.project, x, block.activations(x, _fused_relu)[-1])
        except (AttributeError, RuntimeError):
            return False
    return True


def _fused_relu(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """relu(layer(x)) in one pass"""
    return cast(Tensor, torch.ops.mkldnn._convolution_pointwise(
        x, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups, "relu", [], None
    ))  # fmt: skip


def _fused_add(layer: nn.Conv2d, x: Tensor, hidden: Tensor) -> Tensor:
    """x + layer(hidden) in one pass, written over x"""
    return cast(Tensor, torch.ops.mkldnn._convolution_pointwise_.binary(
        x, hidden, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups, "add", 1.0,
        None, [], None,
    ))  # fmt: skip


def _run_blocks(
    blocks: nn.Sequential, x: Tensor, margin: Margin, beyond: int, hidden: Hidden | None = None
) -> tuple[Tensor, Margin]:
    """Runs residual blocks and trims after each, down to the `beyond` elements that later layers need. Appends the
    activations of each block to `hidden`."""
    residuals = cast("list[Residual]", list(blocks))
    spatial = [block.depthwise is not None for block in residuals]
    fused = x.device.type == "cpu" and torch.is_inference_mode_enabled() and _can_fuse(x.dtype)
    x = x.clone(memory_format=torch.channels_last) if fused else x
    for i, block in enumerate(residuals):
        x = x.contiguous(memory_format=torch.channels_last) if fused else x
        active = block.activations(x, _fused_relu if fused else _relu)
        x = _fused_add(block.project, x, active[-1]) if fused else x + block.project(active[-1])
        if hidden is not None:
            hidden.append(active)
        x, margin = trim(x, margin, sum(spatial[i + 1 :]) + beyond)
    return x, margin


class Analysis(nn.Module):
    """`g_a`: pixels (B, 3, H, W) float, normalised, H and W multiples of 16 → y (B, C, H/16, W/16) float, before
    gains."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Conv2d(192, config.width8, 1)
        self.blocks8 = nn.Sequential(*(Residual(config.width8, spatial) for spatial in config.analysis8))
        self.down = nn.Conv2d(config.width8, config.latent_channels, 2, stride=2)
        self.blocks16 = nn.Sequential(*(Residual(config.latent_channels, spatial) for spatial in config.analysis16))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) → y (B, C, H/16, W/16)."""
        x = F.pixel_unshuffle(pixels, 8).contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.blocks16(self.down(self.blocks8(self.head(x)))))

    def window(self, x: Tensor, margin: Margin) -> Tensor:
        """Unshuffled pixels (B, 192, H/8, W/8) → y as `forward` gives it, without the margin. `margin` is in latents,
        at most `HyperConfig.analysis_halo` on each side."""
        spatial16 = sum(self.config.analysis16)
        x, margin = _run_blocks(self.blocks8, self.head(x), margin.scaled(2), 2 * spatial16)
        x, _ = _run_blocks(self.blocks16, self.down(x), margin.scaled(0.5), 0)
        return x


class Synthesis(nn.Module):
    """`g_s`: latents (B, C, h, w) float, gains undone → pixels (B, 3, 16h, 16w) float, normalised."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        self.config = config
        channels, hidden = config.latent_channels, config.hidden16
        self.blocks16 = nn.Sequential(*(Residual(channels, spatial, hidden) for spatial in config.synthesis16))
        self.up = nn.ConvTranspose2d(config.latent_channels, config.width8, 2, stride=2)
        self.blocks8 = nn.Sequential(*(Residual(config.width8, spatial) for spatial in config.synthesis8))
        self.tail = nn.Conv2d(config.width8, 192, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) → pixels (B, 3, 16h, 16w)."""
        x = self.tail(self.blocks8(self.up(self.blocks16(latents))))
        return F.pixel_shuffle(x, 8)

    def window(self, latents: Tensor, margin: Margin, hidden: Hidden | None = None) -> Tensor:
        """Latents (B, C, h', w') → unshuffled pixels (B, 192, 2h, 2w), without the margin. `margin` is in latents, at
        most `HyperConfig.synthesis_halo` on each side. Appends the activations of each residual block to `hidden`."""
        spatial8 = sum(self.config.synthesis8)
        x, margin = _run_blocks(self.blocks16, latents, margin, -(-spatial8 // 2), hidden)
        x, margin = _run_blocks(self.blocks8, self.up(x), margin.scaled(2), 0, hidden)
        return cast(Tensor, self.tail(x))
