"""A lighter synthesis: of the activations of its blocks at 1/16 those are left out that the pixels miss least.

One after the other, what matters least goes: what its own part that the others do not foretell does to the pixels, to
first order (Hassibi & Stork 1993, "Second order derivatives for network pruning", with the derivatives of random
projections of the pixels for the Hessian). What the others do foretell of it, they take over. What is left to learn is
for `histocodec.train.finish.decoder`.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from histocodec.errors import UsageError
from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.network import Residual
from histocodec.train.data.patches import PatchSampler
from histocodec.train.finish.synthesis import random_qualities
from histocodec.train.start.finetune import coded

BATCHES = 24
FIRST_STEP = 5 << 28  # steps of the sampler that nothing else reaches
DAMPING = 1e-3  # of the mean variance


def narrow(model: HyperModel, sampler: PatchSampler, hidden: int) -> None:
    """Leaves `hidden` activations in each block of `synthesis16`, in place. Raises UsageError where there are not so
    many, or the synthesis is in whole numbers."""
    g_s = model.float_synthesis
    blocks = [cast(Residual, block) for block in g_s.blocks16]
    there = min((block.expand.out_channels for block in blocks), default=0)
    if not 4 <= hidden <= there or hidden % 4:
        raise UsageError(f"hidden16 {hidden}: a multiple of 4 up to {there}, which the model has, is needed")
    steps = range(FIRST_STEP, FIRST_STEP + BATCHES)
    with torch.no_grad():
        streams = [coded(model, sampler(step).pixels, random_qualities(sampler, step)) for step in steps]
    importance = [torch.zeros(there, dtype=torch.float64) for _ in blocks]
    for step, latents in zip(steps, streams, strict=True):
        for total, found in zip(importance, _importance(model, latents, sampler(step).std), strict=True):
            total += found
    with torch.no_grad():
        for i, (block, matters) in enumerate(zip(blocks, importance, strict=True)):
            mean, covariance = _moments([block.activations(x, _relu)[-1] for x in streams])
            g_s.blocks16[i] = _without(block, _least(covariance, matters, there - hidden), mean, covariance)
            streams = [g_s.blocks16[i](x) for x in streams]
    model.config = g_s.config = replace(model.config, hidden16=hidden)


def _relu(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return cast(Tensor, layer(x)).relu()


def _importance(model: HyperModel, latents: Tensor, std: Tensor) -> list[Tensor]:
    """By block, the mean square of the derivatives of a random projection of the pixels, in grey values, in each
    activation that its last layer sees."""
    g_s, seen = model.float_synthesis, []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].retain_grad()
        seen.append(inputs[0])

    hooks = [cast(Residual, block).project.register_forward_pre_hook(keep) for block in g_s.blocks16]
    with torch.enable_grad():
        pixels = g_s(latents.clone().requires_grad_()) * std[:, :, None, None]
        signs = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
        (pixels * signs.to(pixels.device)).sum().backward()
    for hook in hooks:
        hook.remove()
    return [cast(Tensor, h.grad).square().mean((0, 2, 3)).double().cpu() for h in seen]


def _moments(activations: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (N,) and covariance (N, N) of activations (B, N, h, w) each, float64."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for some in activations:
        rows = some.transpose(0, 1).flatten(1)
        count += rows.shape[1]
        total, squares = total + rows.sum(1).double().cpu(), squares + (rows @ rows.T).double().cpu()
    mean = total / count
    covariance = squares / count - mean[:, None] * mean
    return mean, covariance + DAMPING * covariance.diagonal().mean() * torch.eye(len(mean), dtype=torch.float64)


def _least(covariance: Tensor, matters: Tensor, count: int) -> list[int]:
    """The `count` activations that are missed least."""
    gone: list[int] = []
    inverse = torch.linalg.inv(covariance)
    for _ in range(count):
        missed = matters / inverse.diagonal()  # of each, the variance that those still there do not foretell
        missed[gone] = torch.inf
        least = int(missed.argmin())
        gone.append(least)
        inverse -= inverse[:, least, None] * inverse[least] / inverse[least, least].clone()
        inverse[least, least] = 1
    return gone


def _without(block: Residual, gone: list[int], mean: Tensor, covariance: Tensor) -> Residual:
    """The block without some of its activations, whose part the others take over as well as they can."""
    stay = [n for n in range(len(mean)) if n not in gone]
    shares = torch.linalg.solve(covariance[stay][:, stay], covariance[stay][:, gone])  # (stay, gone)
    result = Residual(block.expand.in_channels, block.depthwise is not None, len(stay)).to(block.expand.weight.device)
    state = {name: values[stay] for name, values in block.state_dict().items() if not name.startswith("project")}
    weight, bias = block.project.weight[:, :, 0, 0].double().cpu(), cast(Tensor, block.project.bias).double().cpu()
    state["project.weight"] = (weight[:, stay] + weight[:, gone] @ shares.T)[:, :, None, None].float()
    state["project.bias"] = (bias + weight[:, gone] @ (mean[gone] - shares.T @ mean[stay])).float()
    result.load_state_dict(state)
    return result
