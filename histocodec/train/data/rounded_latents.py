"""Latents of training patches as the model itself gives them: rounded, at random qualities."""

from typing import cast

import torch
from torch import Tensor

from histocodec.models.config import QUALITIES
from histocodec.models.hyper import HyperModel
from histocodec.train.data.patches import PatchSampler


def rounded_latents(
    model: HyperModel, pixels: Tensor, quality: Tensor, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Pixels (B, 3, H, W) float, normalised, and qualities (B,) → latents (B, C, H/16, W/16) float32, rounded, with
    their gains undone. `dtype` is that of the analysis."""
    log_gain, log_inverse = model.gains(quality.to(pixels.device))
    with torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype != torch.float32):
        y = model.g_a(pixels).float()
    y = torch.floor(y * log_gain.exp()[:, :, None, None] + 0.5)
    return cast(Tensor, y * log_inverse.exp()[:, :, None, None])


def random_qualities(sampler: PatchSampler, step: int) -> Tensor:
    """A quality for each patch of a step, (B,) float that holds integers in 0 … 100."""
    generator = torch.Generator().manual_seed(sampler.seed * 1_000_003 + step)
    return (torch.rand(sampler.batch, generator=generator) * (QUALITIES - 1)).round()
