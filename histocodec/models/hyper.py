"""The flagship model as it trains: pixels in, pixels and bits out.

x → g_a → ·gain → round → y → prior → bits
                          y → ·inverse gain → g_s → x̂
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from histocodec.errors import UsageError
from histocodec.models.config import GROUPS, HyperConfig
from histocodec.models.prior.graph import MEAN_BITS
from histocodec.models.prior.training import QuantisedPrior, scale_of, step_mask, straight_round
from histocodec.models.transforms.network import Analysis, Gains, Synthesis
from histocodec.models.transforms.training import QuantisedSynthesis


@dataclass(frozen=True)
class HyperOutput:
    """What one forward pass gives: the decoded batch, and the bits of each item."""

    pixels: Tensor  # (B, 3, H, W) float, normalised
    y_bits: Tensor  # (B,)
    z_bits: Tensor  # (B,)


class HyperModel(nn.Module):
    """`g_a`, `g_s`, gains and prior. Normalised pixels (B, 3, H, W), H and W multiples of 64, and one quality an
    item in; `HyperOutput` out. The rate is that of the integers, an ideal coder's. In training the prior learns from
    it; `g_a`, which cannot, learns from the rate of uniform noise instead (Ballé et al. 2017)."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        self.config = config
        self.g_a = Analysis(config)
        self.g_s: Synthesis | QuantisedSynthesis = Synthesis(config)
        self.gains = Gains(config)
        self.prior = QuantisedPrior(config)

    @property
    def real_synthesis(self) -> Synthesis:
        """`g_s` as long as it is in floating point. Raises UsageError once it is in whole numbers."""
        if isinstance(self.g_s, QuantisedSynthesis):
            raise UsageError("the synthesis of this model is in whole numbers already")
        return self.g_s

    def forward(self, pixels: Tensor, quality: Tensor) -> HyperOutput:
        log_gain, log_inverse = self.gains(quality)
        y = self.g_a(pixels).float() * log_gain.exp()[:, :, None, None]
        y_hat = straight_round(y)
        integers, noisy = y_hat.detach(), y + torch.rand_like(y) - 0.5 if self.training else None

        graph, ops = self.prior.graph, self.prior.ops(quality, log_gain)
        z = graph.h_a(ops, y_hat)
        mean, index = self.prior.hyper_parameters(quality)
        z_bits = bits(z, mean[:, :, None, None], index[:, :, None, None])
        h = graph.h_s(ops, z)
        y_bits = torch.zeros_like(z_bits)
        for k in range(GROUPS):
            mask = step_mask(k, *y.shape[1:]).to(y.device)
            mean, index = graph.step(ops, k, y_hat * mask, h)
            y_bits = y_bits + bits(ops.cells(integers, k), mean, index)
            if noisy is not None:  # its gradient, and no value
                for_g_a = bits(ops.cells(noisy, k), mean.detach(), index.detach())
                y_bits = y_bits + for_g_a - for_g_a.detach()

        x_hat = self.g_s(y_hat * log_inverse.exp()[:, :, None, None])
        return HyperOutput(x_hat.float(), y_bits, z_bits)


def bits(values: Tensor, mean: Tensor, index: Tensor) -> Tensor:
    """-log2 of the Gaussian mass of [value - 1/2, value + 1/2], summed over everything but the batch: (B,)

    A thin exponential tail stands for the coder's escape, and keeps a gradient where the Gaussian has none."""
    scale = scale_of(index.float())
    distance = (values.float() - mean.float() * 2.0**-MEAN_BITS).abs()
    mass = normal((0.5 - distance) / scale) - normal((-0.5 - distance) / scale)
    tail = 2.0**-12 * torch.exp(-0.25 * distance / scale)
    return -torch.log2((mass + tail).clamp(min=2.0**-40)).flatten(1).sum(1)


def normal(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))
