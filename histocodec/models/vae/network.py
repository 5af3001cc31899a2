"""The paper's system (Nasr et al. 2023): a variational autoencoder on independent patches, made of ResNet-18.

    patch (3, S, S) → 7×7 stride 2, four stages of two residual blocks → (w₄, S/16, S/16) → 1×1, dense → mean, log
                      variance (D,)
    vector (D,)     → dense, 1×1 → (w₄, S/16, S/16) → four mirrored stages, nearest-neighbour upsampling → patch

The stem has no max-pooling, which would leave 2×2 positions of a 64-pixel patch; otherwise the residual blocks are
those of He et al. 2016, "Deep residual learning for image recognition", and their mirror images. In training every
convolution is followed by a batch normalisation; a model file has them folded into the convolutions (`folded`).

With `shortcut`, which neither He et al. nor Nasr et al. have, every 16×16 block of pixels also reaches the bottleneck
by a matrix, and is reached from there by another. The pair can then begin as a linear transform
(`histocodec.train.vae.from_klt`).
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from histocodec.geometry import Margin
from histocodec.models.config import BLOCK, VaeConfig

LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE = -12.0, 6.0  # beyond these nothing is learnt, and much can overflow


class Normed(nn.Module):
    """A convolution and its batch normalisation, as they train."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, inputs, h, w) → (N, outputs, h/stride, w/stride)."""
        return cast(Tensor, self.norm(self.conv(x)))

    def fused(self) -> nn.Conv2d:
        """The one convolution that computes the same with the statistics that training gathered."""
        return fuse_conv_bn_eval(self.conv, self.norm)


def _convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1, folded: bool) -> nn.Module:
    if folded:
        return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    return Normed(inputs, outputs, kernel, stride)


class BasicBlock(nn.Module):
    """A residual block of two 3×3 convolutions. With `stride` 2 it halves the sides, with `upsample` it doubles them
    first."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, upsample: bool = False, folded: bool) -> None:
        super().__init__()
        self.upsample = upsample
        self.first = _convolution(inputs, outputs, 3, stride=stride, folded=folded)
        self.second = _convolution(outputs, outputs, 3, folded=folded)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else _convolution(inputs, outputs, 1, stride=stride, folded=folded)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, inputs, h, w) → (N, outputs, h', w')."""
        straight = x if self.shortcut is None else self.shortcut(x)
        if self.upsample:
            x, straight = (F.interpolate(t, scale_factor=2.0, mode="nearest") for t in (x, straight))
        hidden = self.second(F.relu(self.first(x), inplace=True))
        return F.relu(hidden + straight, inplace=True)


class VaeEncoder(nn.Module):
    """`g_a`: patches (N, 3, S, S) float, normalised → the mean (N, D) of the approximate posterior."""

    def __init__(self, config: VaeConfig, *, folded: bool = False) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.stem = _convolution(3, widths[0], 7, stride=2, folded=folded)
        blocks = []
        for i, width in enumerate(widths):
            before = widths[max(0, i - 1)]
            blocks += [
                BasicBlock(before, width, stride=2 if i else 1, folded=folded),
                BasicBlock(width, width, folded=folded),
            ]
        self.stages = nn.Sequential(*blocks)
        self.reduce = _convolution(widths[-1], config.bottleneck, 1, folded=folded)
        self.shortcut = nn.Conv2d(3 * BLOCK**2, config.bottleneck, 1, bias=False) if config.shortcut else None
        self.mean = nn.Linear(config.features, config.latent_channels)

    def features(self, patches: Tensor) -> Tensor:
        """Patches (N, 3, S, S) → (N, bottleneck · (S/16)²), from which the mean and, in training, the variance
        follow."""
        x = self.stages(F.relu(self.stem(patches), inplace=True))
        if self.shortcut is None:
            return F.relu(self.reduce(x), inplace=True).flatten(1)
        return cast(Tensor, self.reduce(x) + self.shortcut(F.pixel_unshuffle(patches, BLOCK))).flatten(1)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (N, 3, S, S) → means (N, D)."""
        return cast(Tensor, self.mean(self.features(patches)))

    def window(self, x: Tensor, margin: Margin) -> Tensor:
        """Unshuffled pixels (1, 192, H/8, W/8), H and W multiples of S → y (1, D, H/S, W/S). The margin is zero:
        patches are independent."""
        pixels, side = F.pixel_shuffle(x, 8), self.config.stride
        rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
        patches = pixels.reshape(3, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
        y = self(patches.contiguous(memory_format=torch.channels_last))
        return cast(Tensor, y).view(1, rows, columns, -1).permute(0, 3, 1, 2)


class VaeDecoder(nn.Module):
    """`g_s`: vectors (N, D) float → patches (N, 3, S, S) float, normalised."""

    def __init__(self, config: VaeConfig, *, folded: bool = False) -> None:
        super().__init__()
        self.config = config
        widths = config.widths[::-1]
        self.dense = nn.Linear(config.latent_channels, config.features)
        self.expand = _convolution(config.bottleneck, widths[0], 1, folded=folded)
        blocks = []
        for i, width in enumerate(widths):
            after = widths[min(3, i + 1)]
            blocks += [
                BasicBlock(width, width, folded=folded),
                BasicBlock(width, after, upsample=i < 3, folded=folded),
            ]
        self.stages = nn.Sequential(*blocks)
        self.tail = nn.Conv2d(widths[-1], 12, 3, padding=1)
        self.shortcut = nn.Conv2d(config.bottleneck, 3 * BLOCK**2, 1, bias=False) if config.shortcut else None

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (N, D) → patches (N, 3, S, S)."""
        side = self.config.stride // BLOCK
        features = self.dense(vectors).view(-1, self.config.bottleneck, side, side)
        features = features.contiguous(memory_format=torch.channels_last)
        x = F.relu(self.expand(features), inplace=True)
        patches = F.pixel_shuffle(self.tail(self.stages(x)), 2)
        return patches if self.shortcut is None else patches + F.pixel_shuffle(self.shortcut(features), BLOCK)

    def window(self, latents: Tensor, margin: Margin) -> Tensor:
        """Latents (B, D, h, w), gains undone → unshuffled pixels (B, 192, S·h/8, S·w/8). The margin is
        zero: patches are independent."""
        batch, channels, rows, columns = latents.shape
        patches = self(latents.permute(0, 2, 3, 1).reshape(-1, channels))
        side = self.config.stride
        whole = patches.view(batch, rows, columns, 3, side, side).permute(0, 3, 1, 4, 2, 5)
        return F.pixel_unshuffle(whole.reshape(batch, 3, rows * side, columns * side), 8)


class VaeModel(nn.Module):
    """Encoder and decoder as they train, with the variance of the posterior, which only training needs."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.g_a = VaeEncoder(config)
        self.g_s = VaeDecoder(config)
        self.log_variance = nn.Linear(self.g_a.mean.in_features, config.latent_channels)

    def posterior(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (N, 3, S, S) → mean and natural logarithm of the variance, each (N, D) float32."""
        features = self.g_a.features(patches)
        spread = self.log_variance(features).float()
        return self.g_a.mean(features).float(), spread.clamp(LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (N, 3, S, S) → the patches decoded from a sample of the posterior (from its mean in evaluation mode),
        and the Kullback–Leibler divergence of each dimension from the standard normal prior, in nats, (N, D)."""
        mean, log_variance = self.posterior(patches)
        noise = torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else 0.0
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return self.g_s(mean + noise).float(), divergence


@torch.no_grad()
def folded_state(network: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of a trained encoder or decoder, for the same network made with `folded`."""
    state = dict(network.state_dict().items())
    for name, module in network.named_modules():
        if isinstance(module, Normed):
            for key in [key for key in state if key.startswith(f"{name}.")]:
                del state[key]
            fused = module.eval().fused()
            assert fused.bias is not None
            state |= {f"{name}.weight": fused.weight, f"{name}.bias": fused.bias}
    return state
