"""A stretch of training for the synthesis in whole numbers alone, on the latents that the finished analysis gives.

No latent changes, only what is decoded from it. All is float32: bfloat16 would round more than what is to be learnt.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.training import TrainableIntegerSynthesis
from histocodec.train.data.latents import Seen
from histocodec.train.data.patches import PatchSampler
from histocodec.train.finish.synthesis import random_qualities
from histocodec.train.loop import Progress
from histocodec.train.start.finetune import coded

RATE = 0.02  # learning rate, in steps of a weight as it is stored
OF_BIASES = 64.0  # accumulators' units that one step of a weight moves: of a bias, one is nothing
WARMUP, DECAY = 100, 0.7  # steps at the start; share of all steps at the end, over which the rate falls to 0
EMA = 0.999
UNSEEN = 4.0  # squared error in grey values that nobody sees: below it, as on glass, less is worth little
FLAT = 4.0  # variance in grey values within 16 × 16 pixels, up to which nothing lies there that would hide a pattern …
PATTERN_UNSEEN, PATTERN_WEIGHT = 0.5, 0.3  # … so that less of one is worth something; and how much, beside the error
FIRST_STEP = 7 << 28  # steps of the sampler that nothing else reaches


def refine_synthesis(
    model: HyperModel,
    sampler: PatchSampler,
    *,
    steps: int,
    report: Callable[[Progress], None],
    rate: float = RATE,
    stored: Callable[[int], Sequence[Seen]] = lambda step: (),
) -> None:
    """Trains `model.g_s`, which is in whole numbers, in place for `steps` steps. What falls is the mean over patches of
    log(MSE), so that PSNR rises alike on all kinds of tissue, and of the pattern in which what is flat comes out. In a
    step for which there is something `stored`, that counts as much as the sampler's patches."""
    synthesis = model.g_s
    assert isinstance(synthesis, TrainableIntegerSynthesis)
    start = {name: parameter.detach().clone() for name, parameter in synthesis.named_parameters()}
    unit = _units(synthesis)
    moved = {name: torch.zeros_like(values, requires_grad=True) for name, values in start.items()}  # in units
    average = {name: torch.zeros_like(values) for name, values in start.items()}
    optimizer = torch.optim.Adam(list(moved.values()), betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        began = time.perf_counter()
        parameters = {name: start[name] + unit[name] * moved[name] for name in start}
        patches, others = _rounded(model, sampler, FIRST_STEP + step), stored(step)
        loss, mse = _loss(synthesis, parameters, patches)
        if others:
            found = [_loss(synthesis, parameters, other)[0] for other in others]
            loss = (loss + torch.stack(found).mean()) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP, (1 - step / steps) / DECAY)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        optimizer.step()
        with torch.no_grad():
            weight = 1 - min(EMA, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.values()), list(moved.values()), weight)
        seconds = time.perf_counter() - began
        report(Progress(step + 1, float(loss.detach()), float(mse.detach()), 0.0, seconds))
    with torch.no_grad():
        for name, parameter in synthesis.named_parameters():
            parameter.copy_(start[name] + unit[name] * average[name])


def _rounded(model: HyperModel, sampler: PatchSampler, step: int) -> Seen:
    """The patches of a step with latents that are rounded, of random qualities."""
    batch = sampler(step)
    with torch.no_grad():
        latents = coded(model, batch.pixels, random_qualities(sampler, step), dtype=torch.bfloat16)
    return Seen(latents, batch.pixels, batch.std, (slice(None), slice(None)))


def _loss(synthesis: TrainableIntegerSynthesis, parameters: dict[str, Tensor], seen: Seen) -> tuple[Tensor, Tensor]:
    """What falls, and the mean squared error."""
    rows, columns = seen.inner
    decoded: Tensor = functional_call(synthesis, parameters, (seen.latents,))
    std = seen.std[:, :, None, None]
    error = ((decoded - seen.pixels) * std)[:, :, rows, columns]
    mse, flat = error.square().flatten(1).mean(1), variances((seen.pixels * std)[:, :, rows, columns]) < FLAT
    return ((mse + UNSEEN).log() + PATTERN_WEIGHT * pattern(error, flat)).mean(), mse.mean()


def variances(grey: Tensor) -> Tensor:
    """(B, C, H, W) → (B, 1, H/16, W/16), within 16 × 16 pixels, the mean of all channels."""
    return (F.avg_pool2d(grey.square(), 16) - F.avg_pool2d(grey, 16).square()).mean(1, keepdim=True)


def pattern(error: Tensor, flat: Tensor) -> Tensor:
    """By patch, the logarithm of the variance of the error within what is flat; 0 where nothing is. A wrong colour
    is none of it: the encoder sees to that."""
    count = flat.flatten(1).sum(1)
    mean = (variances(error) * flat).flatten(1).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, (mean + PATTERN_UNSEEN).log(), 0.0)


def _units(synthesis: TrainableIntegerSynthesis) -> dict[str, Tensor]:
    """By parameter, one step of its weights as they are stored."""
    found: dict[str, Tensor] = {}
    for layer in synthesis.layers.values():
        key, step = layer.name.replace(".", "_"), torch.exp2(-synthesis.shift(layer))
        found[f"weights.{key}"] = step.view(-1, *[1] * (len(layer.weight_shape) - 1))
        found[f"biases.{key}"] = OF_BIASES * step
    return found
