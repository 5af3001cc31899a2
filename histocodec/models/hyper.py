"""The `hyper` model as it trains: pixels in, pixels and bits out.

    x → g_a → · gain → round → y → prior → bits
                               y → · inverse gain → g_s → x̂

After Minnen, Ballé & Toderici 2018, "Joint autoregressive and hierarchical priors for learned image compression", with
the gains of `histocodec.models.gains` and the prior of `histocodec.models.prior.graph`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from histocodec.errors import UsageError
from histocodec.models.config import GROUPS, HyperConfig
from histocodec.models.gains import Gains
from histocodec.models.prior.graph import MEAN_BITS
from histocodec.models.prior.training import TrainablePrior, scale_of, step_mask, straight_round
from histocodec.models.transforms.network import Analysis, Synthesis
from histocodec.models.transforms.training import TrainableIntegerSynthesis


@dataclass(frozen=True)
class HyperOutput:
    """The result of one forward pass: decoded pixels (B, 3, H, W) float32, normalised, and the bits of each item's y
    and z, (B,) each."""

    pixels: Tensor
    y_bits: Tensor
    z_bits: Tensor


class HyperModel(nn.Module):
    """`g_a`, `g_s`, gains and prior.

    The rate is that of the integers, as an ideal coder would spend it. In training the prior learns from it; `g_a`
    cannot, since rounding has no gradient, and learns from the rate of y with uniform noise instead (Ballé, Laparra &
    Simoncelli 2017, "End-to-end optimized image compression").
    """

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        self.config = config
        self.g_a = Analysis(config)
        self.g_s: Synthesis | TrainableIntegerSynthesis = Synthesis(config)
        self.gains = Gains(config)
        self.prior = TrainablePrior(config)

    @property
    def float_synthesis(self) -> Synthesis:
        """`g_s` while it is in floating point. Raises UsageError once it is an integer synthesis."""
        if isinstance(self.g_s, TrainableIntegerSynthesis):
            raise UsageError("the model has an integer synthesis already; one in floating point is needed")
        return self.g_s

    def forward(self, pixels: Tensor, quality: Tensor) -> HyperOutput:
        """Pixels (B, 3, H, W) float, normalised, H and W multiples of 64, and one quality for each item, (B,) float in
        0 … 100."""
        log_gain, log_inverse = self.gains(quality)
        y = self.g_a(pixels).float() * log_gain.exp()[:, :, None, None]
        y_hat = straight_round(y)
        integers, noisy = y_hat.detach(), y + torch.rand_like(y) - 0.5 if self.training else None

        graph, ops = self.prior.graph, self.prior.ops(quality, log_gain)
        z = graph.h_a(ops, y_hat)
        mean, index = self.prior.hyper_parameters(quality)
        z_bits = gaussian_bits(z, mean[:, :, None, None], index[:, :, None, None])
        h = graph.h_s(ops, z)
        y_bits = torch.zeros_like(z_bits)
        for k in range(GROUPS):
            mask = step_mask(k, y.shape[1], y.shape[2], y.shape[3], y.device)
            mean, index = graph.step(ops, k, y_hat * mask, h)
            y_bits = y_bits + gaussian_bits(ops.cells(integers, k), mean, index)
            if noisy is not None:  # adds its gradient, and 0 to the value
                for_g_a = gaussian_bits(ops.cells(noisy, k), mean.detach(), index.detach())
                y_bits = y_bits + for_g_a - for_g_a.detach()

        x_hat = self.g_s(y_hat * log_inverse.exp()[:, :, None, None])
        return HyperOutput(x_hat.float(), y_bits, z_bits)


def gaussian_bits(values: Tensor, mean: Tensor, index: Tensor) -> Tensor:
    """The bits of `values` under Gaussians with these means (in eighths) and scale indices, all of one shape (B, …) or
    broadcast: -log₂ of the mass of [value - 1/2, value + 1/2], summed over everything but the batch, (B,).

    A thin exponential tail stands for the coder's escape symbol, and has a gradient where the Gaussian has none.
    """
    scale = scale_of(index.float())
    distance = (values.float() - mean.float() * 2.0**-MEAN_BITS).abs()
    mass = _normal_cdf((0.5 - distance) / scale) - _normal_cdf((-0.5 - distance) / scale)
    tail = 2.0**-12 * torch.exp(-0.25 * distance / scale)
    return -torch.log2((mass + tail).clamp(min=2.0**-40)).flatten(1).sum(1)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))
