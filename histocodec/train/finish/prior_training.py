"""Training of the prior alone, on the integers that the finished analysis gives. No pixel changes, only the rate."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from histocodec.models.config import GROUPS, QUALITIES
from histocodec.models.hyper import HyperModel, gaussian_bits
from histocodec.models.prior.training import step_mask
from histocodec.train.data.patches import PRIOR_STEP, PatchSampler
from histocodec.train.loss import LOSS_BALANCE
from histocodec.train.progress import Progress

WARMUP = 100  # steps: the optimiser knows nothing of the gradients yet
CLIP_NORM = 2.0


def train_prior(
    model: HyperModel, sampler: PatchSampler, *, steps: int, rate: float, report: Callable[[Progress], None]
) -> None:
    """Trains `model.prior` in place. The learning rate rises to `rate` and then falls linearly to 0."""
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.prior.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    masks = [step_mask(k, model.config.latent_channels, *_latent_shape(sampler)).to(device) for k in range(GROUPS)]
    for step in range(steps):
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(sampler.seed * 1_000_003 + PRIOR_STEP + step)
        pixels = sampler(PRIOR_STEP + step).pixels
        count = len(pixels)
        quality = (torch.rand(count, generator=generator) * (QUALITIES - 1)).round().to(device)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            with torch.no_grad():
                log_gain, _ = model.gains(quality)
                y = torch.floor(model.g_a(pixels).float() * log_gain.exp()[:, :, None, None] + 0.5)
            bpp = _bits(model, y, quality, log_gain, masks) / (pixels.shape[2] * pixels.shape[3])
        lambdas = torch.tensor([model.config.rate_weight(float(q)) for q in quality], device=device)
        loss = (bpp * (LOSS_BALANCE / lambdas).sqrt()).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        torch.nn.utils.clip_grad_norm_(model.prior.parameters(), CLIP_NORM)
        optimizer.step()
        report(Progress(step + 1, float(loss.detach()), 0.0, float(bpp.detach().mean()), time.perf_counter() - began))


def _bits(model: HyperModel, y: Tensor, quality: Tensor, log_gain: Tensor, masks: list[Tensor]) -> Tensor:
    """An ideal coder's bits of each item, (B,)."""
    graph, ops = model.prior.graph, model.prior.ops(quality, log_gain)
    z = graph.h_a(ops, y)
    mean, index = model.prior.hyper_parameters(quality)
    total = gaussian_bits(z, mean[:, :, None, None], index[:, :, None, None])
    h = graph.h_s(ops, z)
    for k, mask in enumerate(masks):
        mean, index = graph.step(ops, k, y * mask, h)
        total = total + gaussian_bits(ops.cells(y, k), mean, index)
    return total


def _latent_shape(sampler: PatchSampler) -> tuple[int, int]:
    return sampler.size // 16, sampler.size // 16
