"""Gains: what each latent channel is multiplied by before rounding, and after decoding, at every quality."""

import torch
from torch import Tensor, nn

from histocodec.models.config import QUALITIES, HyperConfig


class Gains(nn.Module):
    """Per-channel gain vectors, learnt at `anchors` qualities and interpolated geometrically between them
    (Cui et al. 2021, "Asymmetric gained deep image compression with continuous rate adaptation")."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        shape = (config.anchors, config.latent_channels)
        self.log_gain = nn.Parameter(torch.zeros(shape))
        self.log_inverse = nn.Parameter(torch.zeros(shape))

    def forward(self, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Qualities (B,) float in 0 … 100 → natural logarithms of the gain and of the inverse gain, each (B, C)."""
        return interpolate(self.log_gain, quality), interpolate(self.log_inverse, quality)


def interpolate(anchors: Tensor, quality: Tensor) -> Tensor:
    """Values (A, …) at A evenly spaced qualities, qualities (B,) in 0 … 100 → values (B, …), linear in between."""
    last = anchors.shape[0] - 1
    position = quality.clamp(0, QUALITIES - 1) * (last / (QUALITIES - 1))
    below = position.floor().clamp(max=last - 1).long()
    weight = (position - below).view(-1, *[1] * (anchors.dim() - 1))
    return torch.lerp(anchors[below], anchors[below + 1], weight.to(anchors.dtype))
