"""The pixel side of `hyper`: analysis `g_a`, synthesis `g_s` and the gains between them. Floating point.

    pixels (3, H, W)  →unshuffle 8→ (192, H/8, W/8) →1×1, blocks→ →2×2 stride 2→ (C, H/16, W/16) blocks → y
    y                 → blocks →2×2 stride-2 transpose→ (192, H/8, W/8) blocks, 1×1 →shuffle 8→ pixels

`forward` trains on pixels; `window` codes, and begins or ends with the unshuffled pixels (192, H/8, W/8).

Both start as a Karhunen–Loève transform (`histocodec.train.start.klt`), i.e. at JPEG's level, and learn the rest.
Convolutions pad with zeros at their own edges. A window that reaches `synthesis_halo` latents further than the
wanted block, or ends where the slide ends, therefore gives exactly the block of the whole decode.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from histocodec.geometry import Margin
from histocodec.kernels.jit import jit
from histocodec.models.config import QUALITIES, HyperConfig

Hidden = list[list[Tensor]]  # the activations of each residual block


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
    """x + W₂·relu(D·relu(W₁·x)), with D a depthwise 3×3 convolution in spatial blocks and nothing in others; `hidden`
    activations, by default as many as channels."""

    def __init__(self, channels: int, spatial: bool, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or channels
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if spatial else None
        self.project = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.project(self.activations(x, _relu_plainly)[-1]))

    def activations(self, x: Tensor, relu_of: Callable[[nn.Conv2d, Tensor], Tensor]) -> list[Tensor]:
        """Those of the first convolution, and of the second where there is one."""
        first = relu_of(self.expand, x)
        return [first] if self.depthwise is None else [first, relu_of(self.depthwise, first)]


def _relu_plainly(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.relu(layer(x), inplace=True)


@lru_cache
def _fused(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes a convolution with what follows it in one go, as torch.compile has it do. It is tried:
    that depends on the build, the processor and the type of number."""
    with torch.inference_mode():
        x, block = torch.zeros((1, 16, 4, 4), dtype=dtype), Residual(16, spatial=True).to(dtype)
        try:
            _added_to(block.project, x, block.activations(x, _relu_of)[-1])
        except (AttributeError, RuntimeError):
            return False
    return True


def _relu_of(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """relu(layer(x)) in one pass"""
    return cast(Tensor, torch.ops.mkldnn._convolution_pointwise(
        x, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups, "relu", [], None
    ))  # fmt: skip


def _added_to(layer: nn.Conv2d, x: Tensor, hidden: Tensor) -> Tensor:
    """x + layer(hidden) in one pass, written over x"""
    return cast(Tensor, torch.ops.mkldnn._convolution_pointwise_.binary(
        x, hidden, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups, "add", 1.0,
        None, [], None,
    ))  # fmt: skip


def _blocks(
    blocks: nn.Sequential, x: Tensor, margin: Margin, beyond: int, hidden: Hidden | None = None
) -> tuple[Tensor, Margin]:
    """Runs residual blocks, trimming after each; `beyond` is what the layers after the last block need. The activations
    of each are added to `hidden`."""
    residuals = cast("list[Residual]", list(blocks))
    ahead = [block.depthwise is not None for block in residuals]
    fused = x.device.type == "cpu" and torch.is_inference_mode_enabled() and _fused(x.dtype)
    x = x.clone(memory_format=torch.channels_last) if fused else x
    for i, block in enumerate(residuals):
        x = x.contiguous(memory_format=torch.channels_last) if fused else x
        active = block.activations(x, _relu_of if fused else _relu_plainly)
        x = _added_to(block.project, x, active[-1]) if fused else x + block.project(active[-1])
        if hidden is not None:
            hidden.append(active)
        x, margin = trim(x, margin, sum(ahead[i + 1 :]) + beyond)
    return x, margin


class Analysis(nn.Module):
    """`g_a`: (B, 3, H, W) normalised float, H and W multiples of 16 → (B, C, H/16, W/16) float, before gains."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Conv2d(192, config.width8, 1)
        self.blocks8 = nn.Sequential(*(Residual(config.width8, spatial) for spatial in config.analysis8))
        self.down = nn.Conv2d(config.width8, config.latent_channels, 2, stride=2)
        self.blocks16 = nn.Sequential(*(Residual(config.latent_channels, s) for s in config.analysis16))

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.pixel_unshuffle(pixels, 8).contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.blocks16(self.down(self.blocks8(self.head(x)))))

    def window(self, x: Tensor, margin: Margin) -> Tensor:
        """Unshuffled pixels (B, 192, H/8, W/8) → y as `forward`'s, without the margin (given in latents, at most
        `analysis_halo`)."""
        spatial16 = sum(self.config.analysis16)
        x, margin = _blocks(self.blocks8, self.head(x), margin.scaled(2), 2 * spatial16)
        x, _ = _blocks(self.blocks16, self.down(x), margin.scaled(0.5), 0)
        return x


class Synthesis(nn.Module):
    """`g_s`: (B, C, h, w) float, gains undone → (B, 3, 16h, 16w) normalised float."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        self.config = config
        channels, hidden = config.latent_channels, config.hidden16
        self.blocks16 = nn.Sequential(*(Residual(channels, spatial, hidden) for spatial in config.synthesis16))
        self.up = nn.ConvTranspose2d(config.latent_channels, config.width8, 2, stride=2)
        self.blocks8 = nn.Sequential(*(Residual(config.width8, spatial) for spatial in config.synthesis8))
        self.tail = nn.Conv2d(config.width8, 192, 1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.tail(self.blocks8(self.up(self.blocks16(latents))))
        return F.pixel_shuffle(x, 8)

    def window(self, latents: Tensor, margin: Margin, hidden: Hidden | None = None) -> Tensor:
        """Latents, gains undone → unshuffled pixels (B, 192, 2h, 2w), without the margin (given in latents, at most
        `synthesis_halo`). The activations of each block are added to `hidden`."""
        spatial8 = sum(self.config.synthesis8)
        x, margin = _blocks(self.blocks16, latents, margin, -(-spatial8 // 2), hidden)
        x, margin = _blocks(self.blocks8, self.up(x), margin.scaled(2), 0, hidden)
        return cast(Tensor, self.tail(x))


class Pullback:
    """The derivative of a `Synthesis` where its activations are known, which may be those of whole numbers: what
    autograd would compute, in two thirds of the time."""

    def __init__(self, synthesis: Synthesis) -> None:
        self.config = synthesis.config
        self.weight = {
            name: _adjoint(layer) for name, layer in synthesis.named_modules() if isinstance(layer, nn.Conv2d)
        }
        self.weight["up"] = synthesis.up.weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, slope: Tensor, margin: Margin, hidden: Hidden) -> Tensor:
        """A derivative in what `Synthesis.window` gave (B, 192, 2h, 2w), of the synthesis's dtype → that in each latent
        of the window (B, C, h', w'). `hidden` has the activations of each block, in order."""
        config = self.config
        reach8 = sum(config.synthesis8)
        margins16 = _margins(config.synthesis16, margin, -(-reach8 // 2))
        margins8 = _margins(config.synthesis8, margins16[-1].scaled(2), 0)
        hidden16, hidden8 = hidden[: len(config.synthesis16)], hidden[len(config.synthesis16) :]
        g = _mixed(slope, self.weight["tail"])
        g = F.conv2d(self._blocks("blocks8", g, margins8, hidden8), self.weight["up"], stride=2)
        return self._blocks("blocks16", g, margins16, hidden16)

    def _blocks(self, name: str, g: Tensor, margins: list[Margin], hidden: Hidden) -> Tensor:
        for i in reversed(range(len(hidden))):
            g, activations = untrim(g, margins[i], margins[i + 1]), hidden[i]
            h = _mixed(g, self.weight[f"{name}.{i}.project"])
            if len(activations) == 2:
                h = self._where(activations[1], h)
                h = F.conv2d(h, self.weight[f"{name}.{i}.depthwise"], padding=1, groups=h.shape[1])
            g = _mixed(self._where(activations[0], h), self.weight[f"{name}.{i}.expand"]).add_(g)
        return g

    @staticmethod
    def _where(activation: Tensor, g: Tensor) -> Tensor:
        """g where the activation is not cut off at 0; on a CPU in its own memory"""
        if g.device.type != "cpu":
            return cast(Tensor, torch.ops.aten.threshold_backward(g, activation.to(g.dtype), 0))
        g = g.contiguous(memory_format=torch.channels_last)
        _cut(_bits(g), _bits(activation.contiguous(memory_format=torch.channels_last)))
        return g


def _adjoint(layer: nn.Conv2d) -> Tensor:
    """The weights that take a layer's derivative back: a depthwise layer's, or (inputs, outputs)."""
    return layer.weight.flip(2, 3) if layer.groups > 1 else layer.weight[:, :, 0, 0].t().contiguous()


def _mixed(x: Tensor, weight: Tensor) -> Tensor:
    """(B, C, h, w), channels last, through a 1×1 layer"""
    batch, _, rows, columns = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(batch * rows * columns, -1)  # else it is many small products
    return F.linear(flat, weight).view(batch, rows, columns, -1).permute(0, 3, 1, 2)


def _bits(x: Tensor) -> NDArray[Any]:
    """The numbers of x (B, C, h, w), channels last, in its own memory, as integers of as many bits."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()]
    return x.permute(0, 2, 3, 1).flatten().view(integers).numpy()


@jit
def _cut(numbers: NDArray[Any], activations: NDArray[Any]) -> None:
    """Sets to 0 what belongs to an activation of 0."""
    for n in range(numbers.size):
        if activations[n] == 0:
            numbers[n] = 0


def _margins(blocks: tuple[bool, ...], margin: Margin, beyond: int) -> list[Margin]:
    """Before the first of these blocks, and after each."""
    margins = [margin]
    for i in range(len(blocks)):
        margins.append(margins[-1].within(sum(blocks[i + 1 :]) + beyond))
    return margins


class Gains(nn.Module):
    """Per-channel gain vectors, learnt at `anchors` qualities and interpolated geometrically between them
    (Cui et al. 2021, "Asymmetric gained deep image compression with continuous rate adaptation")."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        shape = (config.anchors, config.latent_channels)
        self.log_gain = nn.Parameter(torch.zeros(shape))
        self.log_inverse = nn.Parameter(torch.zeros(shape))

    def forward(self, quality: Tensor) -> tuple[Tensor, Tensor]:
        """quality (B,) float in 0 … 100 → log gain and log inverse gain, each (B, C)."""
        return interpolate(self.log_gain, quality), interpolate(self.log_inverse, quality)


def interpolate(anchors: Tensor, quality: Tensor) -> Tensor:
    """(A, …) values at A evenly spaced qualities, (B,) qualities in 0 … 100 → (B, …), linear in between."""
    last = anchors.shape[0] - 1
    position = quality.clamp(0, QUALITIES - 1) * (last / (QUALITIES - 1))
    below = position.floor().clamp(max=last - 1).long()
    weight = (position - below).view(-1, *[1] * (anchors.dim() - 1))
    return torch.lerp(anchors[below], anchors[below + 1], weight.to(anchors.dtype))
