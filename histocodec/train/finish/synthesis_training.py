"""Training of the integer synthesis alone, on the latents that the finished analysis gives.

No latent changes, only what is decoded from it. All is float32: bfloat16 would round away more than there is to learn.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from histocodec.errors import UsageError
from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.training import TrainableIntegerSynthesis
from histocodec.train.data.patches import SYNTHESIS_STEP, PatchSampler
from histocodec.train.data.rounded_latents import random_qualities, rounded_latents
from histocodec.train.data.stored_latents import SynthesisExample
from histocodec.train.loss import block_variance
from histocodec.train.progress import Progress

RATE = 0.02  # learning rate, in steps of a weight as it is stored
WARMUP, DECAY = 100, 0.7  # steps at the start; share of all steps, at the end, over which the rate falls to 0
MOVING_AVERAGE = 0.999
UNSEEN_ERROR = 4.0  # squared error in grey values that nobody sees: below it, as on background, less is worth little
FLAT = 4.0  # variance within a 16 × 16 block, in grey values²: below it, nothing in the block hides a pattern
UNSEEN_PATTERN, PATTERN_WEIGHT = 0.5, 0.3  # variance of a pattern that nobody sees; its weight beside the error's


def train_synthesis(
    model: HyperModel,
    sampler: PatchSampler,
    *,
    steps: int,
    report: Callable[[Progress], None],
    rate: float = RATE,
    stored: Callable[[int], Sequence[SynthesisExample]] = lambda step: (),
) -> None:
    """Trains the integer synthesis `model.g_s` in place.

    The loss is the mean over patches of log(MSE), so that PSNR rises alike on all kinds of tissue, and of the pattern
    that flat areas decode to. Where `stored` gives examples for a step, these count as much as the sampler's patches.
    Raises UsageError where the synthesis is in floating point.
    """
    synthesis = model.g_s
    if not isinstance(synthesis, TrainableIntegerSynthesis):
        raise UsageError("the model's synthesis is in floating point; an integer synthesis is needed")
    start = {name: parameter.detach().clone() for name, parameter in synthesis.named_parameters()}
    unit = synthesis.step_sizes()
    moved = {name: torch.zeros_like(values, requires_grad=True) for name, values in start.items()}  # in units
    average = {name: torch.zeros_like(values) for name, values in start.items()}
    optimizer = torch.optim.Adam(list(moved.values()), betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        began = time.perf_counter()
        parameters = {name: start[name] + unit[name] * moved[name] for name in start}
        patches, windows = _rounded_example(model, sampler, SYNTHESIS_STEP + step), stored(step)
        loss, mse = _loss(synthesis, parameters, patches)
        if windows:
            losses = [_loss(synthesis, parameters, window)[0] for window in windows]
            loss = (loss + torch.stack(losses).mean()) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP, (1 - step / steps) / DECAY)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        optimizer.step()
        with torch.no_grad():
            weight = 1 - min(MOVING_AVERAGE, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.values()), list(moved.values()), weight)
        seconds = time.perf_counter() - began
        report(Progress(step + 1, float(loss.detach()), float(mse.detach()), 0.0, seconds))
    with torch.no_grad():
        for name, parameter in synthesis.named_parameters():
            parameter.copy_(start[name] + unit[name] * average[name])


def _rounded_example(model: HyperModel, sampler: PatchSampler, step: int) -> SynthesisExample:
    """The patches of a step, with rounded latents at random qualities."""
    batch = sampler(step)
    with torch.no_grad():
        latents = rounded_latents(model, batch.pixels, random_qualities(sampler, step), dtype=torch.bfloat16)
    return SynthesisExample(latents, batch.pixels, batch.std, (slice(None), slice(None)))


def _loss(
    synthesis: TrainableIntegerSynthesis, parameters: dict[str, Tensor], example: SynthesisExample
) -> tuple[Tensor, Tensor]:
    """The loss and the mean squared error, in grey values²."""
    rows, columns = example.inner
    decoded: Tensor = functional_call(synthesis, parameters, (example.latents,))
    std = example.std[:, :, None, None]
    error = ((decoded - example.pixels) * std)[:, :, rows, columns]
    mse, flat = error.square().flatten(1).mean(1), block_variance((example.pixels * std)[:, :, rows, columns]) < FLAT
    return ((mse + UNSEEN_ERROR).log() + PATTERN_WEIGHT * pattern(error, flat)).mean(), mse.mean()


def pattern(error: Tensor, flat: Tensor) -> Tensor:
    """For each patch (B,): the logarithm of the variance of the error (B, C, H, W) within its `flat` blocks
    (B, 1, H/16, W/16) bool; 0 where it has none. A constant error, a wrong colour, does not count: the encoder sees to
    that."""
    count = flat.flatten(1).sum(1)
    mean = (block_variance(error) * flat).flatten(1).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, (mean + UNSEEN_PATTERN).log(), 0.0)
