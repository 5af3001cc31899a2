"""The rate–distortion loss of the `hyper` model."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from histocodec.models.hyper import HyperModel
from histocodec.train.data.patches import Batch

LOSS_BALANCE = 0.005  # the λ at which the loss has weight 1; see `rate_distortion`
BLOCK = 16  # side of a block in pixels: where its neighbour begins, a coarse latent draws an edge
SMOOTH = 36.0  # variance within a block, in grey values²: below it an edge shows


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, a scalar; and of each item the mean squared error in grey values² and the bits per pixel,
    (B,) each."""

    total: Tensor
    mse: Tensor
    bpp: Tensor


def rate_distortion(model: HyperModel, batch: Batch, quality: Tensor, *, edges: float = 0.0) -> Loss:
    """(λ·MSE + bpp)·(LOSS_BALANCE/λ)^½, averaged over the batch, with the λ of each item's quality (B,). The last
    factor makes the gradients of all qualities about equally large. `edges` is the weight of `edge_error` beside the
    MSE."""
    output = model(batch.pixels, quality)
    std = batch.std[:, :, None, None]
    difference = (output.pixels - batch.pixels) * std
    mse = difference.square().flatten(1).mean(1)
    bpp = (output.y_bits + output.z_bits) / (batch.pixels.shape[2] * batch.pixels.shape[3])
    weight = model.config.rate_weight(quality)
    distortion = mse
    if edges:
        distortion = mse + edges * edge_error(difference, block_variance(batch.pixels * std) < SMOOTH)
    return Loss(((weight * distortion + bpp) * (LOSS_BALANCE / weight).sqrt()).mean(), mse, bpp)


def block_variance(grey: Tensor) -> Tensor:
    """Grey values (B, C, H, W) → (B, 1, H/16, W/16): the variance within each 16 × 16 block, the mean of all
    channels."""
    return (F.avg_pool2d(grey.square(), BLOCK) - F.avg_pool2d(grey, BLOCK).square()).mean(1, keepdim=True)


def edge_error(error: Tensor, smooth: Tensor) -> Tensor:
    """For each item (B,): the mean over all edges of blocks of the squared difference of the error (B, C, H, W) across
    them, where edges count as 0 unless the blocks on both sides are `smooth`, (B, 1, H/16, W/16) bool. A square that
    shows at low rates is such a difference; a wrong colour is none."""
    total = torch.zeros(len(error), device=error.device)
    for e, s in ((error, smooth), (error.transpose(2, 3), smooth.transpose(2, 3))):
        if e.shape[3] > BLOCK:
            step = e[..., BLOCK::BLOCK] - e[..., BLOCK - 1 : -1 : BLOCK]
            shows = (s[..., 1:] & s[..., :-1]).repeat_interleave(BLOCK, 2)
            total = total + (step.square() * shows).flatten(1).mean(1) / 2
    return total
