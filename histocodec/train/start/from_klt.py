"""The linear start: `g_a` and `g_s` as the Karhunen–Loève transform of 16×16 blocks, the prior from its energies.

The KLT is taken in units of pixels (normalised values times the typical standard deviation of each colour channel), so
that an error costs the same in every channel; the scaling is folded into the first and the last convolution.
"""

import math
from typing import cast

import torch
from torch import Tensor

from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.network import Residual
from histocodec.train.data.patches import KLT_END, PatchSampler

BLOCKS = 400_000  # 16×16 blocks that the KLT is taken of: its covariance has 768² entries
RESIDUAL_START = 0.02  # share of the signal that the residual blocks add before the first step


@torch.no_grad()
def start_from_klt(model: HyperModel, sampler: PatchSampler, *, blocks: int = BLOCKS) -> None:
    """Overwrites the model's transforms, gains and scales by the KLT of at least that many 16×16 blocks. With the
    default it takes about ten seconds on two cores."""
    cpu = torch.device("cpu")
    stds, covariance8, covariance16, count = [], torch.zeros(192, 192), torch.zeros(768, 768), 0
    step = 0
    weights = _channel_weights(sampler)
    while count < blocks:
        batch = sampler(KLT_END - 1 - step)
        stds.append(batch.std)
        pixels = batch.pixels.to(cpu) * weights[:, None, None]
        covariance8 += second_moment(torch.nn.functional.pixel_unshuffle(pixels, 8))
        covariance16 += second_moment(_blocks16(pixels))
        count += pixels.shape[0] * (pixels.shape[2] // 16) ** 2
        step += 1
    _, basis8 = eigen(covariance8 / (4 * count))
    energy, basis16 = eigen(covariance16 / count)

    config = model.config
    channels = config.latent_channels
    truncated = basis16[:, :channels]  # (768, C), orthonormal
    scaling = weights.repeat_interleave(64)  # pixel_unshuffle orders (colour, row, column)
    model.g_a.head.weight.copy_((basis8.T * scaling)[:, :, None, None])
    _no_bias(model.g_a.head)
    # (768, C) with rows (sub-row, sub-column, 192 pixels of an 8×8 block) → coefficients of the 8×8 KLT
    in_klt8 = torch.einsum("abpc,pk->abkc", truncated.view(2, 2, 192, channels), basis8)
    model.g_a.down.weight.copy_(in_klt8.permute(3, 2, 0, 1))
    _no_bias(model.g_a.down)
    g_s = model.float_synthesis
    g_s.up.weight.copy_(in_klt8.permute(3, 2, 0, 1))
    _no_bias(g_s.up)
    g_s.tail.weight.copy_((basis8.T / scaling).T[:, :, None, None])
    _no_bias(g_s.tail)

    std16 = energy[:channels].clamp(min=1e-6).sqrt()
    std8 = ((basis8.T @ (covariance8 / (4 * count)) @ basis8).diagonal()).clamp(min=1e-6).sqrt()
    for residuals, std in (
        (model.g_a.blocks8, std8),
        (model.g_a.blocks16, std16),
        (g_s.blocks16, std16),
        (g_s.blocks8, std8),
    ):
        for block in residuals.children():
            start_residual(cast(Residual, block), std)

    # High-rate optimum: Δ² = 26 / (λ·σ²) for a loss λ·MSE + bpp with three samples a pixel.
    grey = torch.cat(stds).to(cpu).log().mean().exp() ** 2
    rates = [config.rate_weight(100 * i / (config.anchors - 1)) for i in range(config.anchors)]
    log_gain = torch.tensor([-0.5 * math.log(26 / (rate * float(grey))) for rate in rates])
    model.gains.log_gain.copy_(log_gain[:, None].expand_as(model.gains.log_gain))
    model.gains.log_inverse.copy_(-model.gains.log_gain)
    model.prior.scale_base.copy_(std16.log2() - 0.5)  # the context removes about half an octave


def _channel_weights(sampler: PatchSampler) -> Tensor:
    """The typical standard deviation of each colour channel, (3,), with a geometric mean of 1."""
    logs = torch.stack([image.std for image in sampler.images]).log().cpu()
    typical = logs.mean(dim=0)
    return (typical - typical.mean()).exp()


def _blocks16(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, 768, H/16, W/16), ordered (sub-row, sub-column, colour, row, column)."""
    blocks8 = torch.nn.functional.pixel_unshuffle(pixels, 8)
    return torch.cat([blocks8[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=1)


def second_moment(blocks: Tensor) -> Tensor:
    """x (B, C, H, W) → (C, C): the sum over all positions of x · xᵀ."""
    rows = blocks.transpose(0, 1).flatten(1)
    return rows @ rows.T


def eigen(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (C,), largest first, and eigenvectors (C, C) as columns."""
    values, vectors = torch.linalg.eigh(covariance.double())
    return values.flip(0).float(), vectors.flip(1).float()


def start_residual(block: Residual, std: Tensor) -> None:
    """Starts a residual block that sees channels of these standard deviations (C,): random features of the
    standardised input, and a small output in proportion to each channel's deviation."""
    channels, std = len(std), std.to(block.expand.weight.device)
    block.expand.weight.copy_(torch.randn_like(block.expand.weight) / math.sqrt(channels) / std.view(1, -1, 1, 1))
    _no_bias(block.expand)
    if block.depthwise is not None:
        block.depthwise.weight.normal_(0, 0.1)
        block.depthwise.weight[:, :, 1, 1] += 0.8
        _no_bias(block.depthwise)
    noise = torch.randn_like(block.project.weight) * (RESIDUAL_START / math.sqrt(channels))
    block.project.weight.copy_(noise * std.view(-1, 1, 1, 1))
    _no_bias(block.project)


def _no_bias(layer: torch.nn.Conv2d | torch.nn.ConvTranspose2d) -> None:
    """Sets a layer's bias to zero."""
    assert layer.bias is not None
    layer.bias.zero_()
