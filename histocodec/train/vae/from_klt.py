"""The linear start of an autoencoder with a shortcut, and the weight of the divergence that spends the ratio's bits.

As for the flagship (`histocodec.train.start.from_klt`) it is a Karhunen–Loève transform of 16×16 blocks, here followed
by a cosine transform across the blocks of a patch; the D coefficients with the largest variances become the latents.

For Gaussian coefficients of variances e_k, the autoencoder with the least error + w · divergence is known (reverse
water-filling; Cover and Thomas, Elements of Information Theory, 10.3.3): every coefficient whose variance is larger has
an error of θ = w/2, that is a posterior of variance θ/e_k, for ½ log(e_k/θ) nats. θ is chosen so that the bits of the
ratio are spent. The stages begin with almost nothing and learn what is not linear.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from histocodec.errors import UsageError
from histocodec.models.config import BLOCK
from histocodec.models.vae.export import MOST_VARIANCE, nominal_bits
from histocodec.models.vae.network import Normed, VaeModel
from histocodec.train.start.from_klt import eigen, second_moment

MOST_PATCHES = 16_384  # patches that the transform is fitted to
CODED_SHARE = 0.9  # of the ratio's bits that are spent: rounding costs a little more than the divergence says
LEAST_VARIANCE = 1e-6  # of a coefficient
STAGES_START = 0.02  # share of each bottleneck channel's deviation that the stages add before the first step


@torch.no_grad()
def start_from_klt(model: VaeModel, batches: Iterable[Tensor]) -> float:
    """Overwrites the linear path of a model that has a shortcut, and returns the weight of the mean divergence.
    `batches` are normalised training patches (B, 3, S, S). Raises UsageError where there are none."""
    config, patches, count = model.config, list[Tensor](), 0
    for batch in batches:
        patches.append(batch.cpu())
        count += len(batch)
        if count >= MOST_PATCHES:
            break
    if not patches:
        raise UsageError("there is no patch to start from; at least one is needed")
    blocks = torch.nn.functional.pixel_unshuffle(torch.cat(patches), BLOCK)  # (N, 768, c, c)
    _, vectors = eigen(second_moment(blocks))
    basis = vectors[:, : config.bottleneck].T  # (B, 768)
    features = torch.einsum("bi,nirc->nbrc", basis, blocks)
    cosine = cosine_transform(config.stride // BLOCK)
    across = torch.kron(torch.eye(config.bottleneck), torch.kron(cosine, cosine))  # features as they are flattened
    coefficients = features.flatten(1) @ across.T
    variance, mean = coefficients.var(dim=0), coefficients.mean(dim=0)
    chosen = variance.argsort(descending=True)[: config.latent_channels]
    energy, centre, rows = variance[chosen].clamp(min=LEAST_VARIANCE), mean[chosen], across[chosen]
    level = water_level(energy, nominal_bits(config) * CODED_SHARE)
    posterior = (level / energy).clamp(max=MOST_VARIANCE)

    encoder, decoder = model.g_a, model.g_s
    assert encoder.shortcut is not None and decoder.shortcut is not None
    assert isinstance(encoder.reduce, Normed)
    encoder.shortcut.weight.copy_(basis[:, :, None, None])
    encoder.mean.weight.copy_(rows * ((1 - posterior) / energy).sqrt()[:, None])
    encoder.mean.bias.copy_(-encoder.mean.weight @ (rows.T @ centre))
    encoder.reduce.norm.weight.copy_(STAGES_START * features.transpose(0, 1).flatten(1).std(dim=1))
    model.log_variance.weight.zero_()
    model.log_variance.bias.copy_(posterior.log())
    decoder.dense.weight.copy_((rows * (energy * (1 - posterior)).sqrt()[:, None]).T)
    decoder.dense.bias.copy_(rows.T @ centre)
    decoder.shortcut.weight.copy_(basis.T[:, :, None, None])
    decoder.tail.weight.zero_()
    assert decoder.tail.bias is not None
    decoder.tail.bias.zero_()
    return 2 * level * config.latent_channels / (3 * config.stride**2)


def cosine_transform(n: int) -> Tensor:
    """The orthonormal cosine transform of n values, (n, n), one coefficient a row."""
    k, i = torch.arange(n)[:, None], torch.arange(n)[None]
    rows = torch.cos(math.pi * (i + 0.5) * k / n) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows


def water_level(energy: Tensor, bits: float) -> float:
    """The θ for which Σ max(0, ½ log₂(energy / θ)) = bits, to a thousandth; energy (D,) are variances."""
    low, high = 1e-9, float(energy.max())
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        spent = 0.5 * float((energy / middle).clamp(min=1).log2().sum())
        low, high = (middle, high) if spent > bits else (low, middle)
    return high
