"""The rate–distortion loss of the `hyper` model."""

from dataclasses import dataclass

from torch import Tensor

from histocodec.models.hyper import HyperModel
from histocodec.train.data.patches import Batch

LOSS_BALANCE = 0.005  # the λ at which the loss has weight 1; see `rate_distortion`


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, a scalar; and of each item the mean squared error in grey values² and the bits per pixel,
    (B,) each."""

    total: Tensor
    mse: Tensor
    bpp: Tensor


def rate_distortion(model: HyperModel, batch: Batch, quality: Tensor) -> Loss:
    """(λ·MSE + bpp)·(LOSS_BALANCE/λ)^½, averaged over the batch, with the λ of each item's quality (B,). The last
    factor makes the gradients of all qualities about equally large."""
    output = model(batch.pixels, quality)
    difference = (output.pixels - batch.pixels) * batch.std[:, :, None, None]
    mse = difference.square().flatten(1).mean(1)
    bpp = (output.y_bits + output.z_bits) / (batch.pixels.shape[2] * batch.pixels.shape[3])
    weight = model.config.rate_weight(quality)
    return Loss(((weight * mse + bpp) * (LOSS_BALANCE / weight).sqrt()).mean(), mse, bpp)
