"""Prunes a synthesis in floating point: leaves out those activations of its residual blocks at 1/16 that the pixels
miss least.

They go one by one, the least important first. What an activation matters is what the part of it that the others do not
predict does to the pixels, to first order (Hassibi & Stork 1993, "Second order derivatives for network pruning", with
the derivatives of random projections of the pixels for the Hessian). What the others do predict of it, they take over.
What is left to learn is for `histocodec.train.finish.synthesis_training`.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from histocodec.errors import UsageError
from histocodec.models.config import HyperConfig
from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.network import Residual
from histocodec.train.data.patches import PRUNE_STEP, PatchSampler
from histocodec.train.data.rounded_latents import random_qualities, rounded_latents

BATCHES = 24
DAMPING = 1e-3  # of the mean variance


def prune(model: HyperModel, sampler: PatchSampler, hidden: int) -> None:
    """Leaves `hidden` activations in each residual block of `synthesis16`, in place.

    Raises UsageError where the blocks have fewer, or the model has an integer synthesis.
    """
    g_s = model.float_synthesis
    check_hidden16(hidden, model.config)
    blocks = [cast(Residual, block) for block in g_s.blocks16]
    present = min((block.expand.out_channels for block in blocks), default=0)
    steps = range(PRUNE_STEP, PRUNE_STEP + BATCHES)
    with torch.no_grad():
        streams = [rounded_latents(model, sampler(step).pixels, random_qualities(sampler, step)) for step in steps]
    importance = [torch.zeros(present, dtype=torch.float64) for _ in blocks]
    for step, latents in zip(steps, streams, strict=True):
        for total, part in zip(importance, _importance(model, latents, sampler(step).std), strict=True):
            total += part
    with torch.no_grad():
        for i, (block, block_importance) in enumerate(zip(blocks, importance, strict=True)):
            mean, covariance = _moments([block.activations(x, _relu)[-1] for x in streams])
            removed = _least_important(covariance, block_importance, present - hidden)
            g_s.blocks16[i] = _without(block, removed, mean, covariance)
            streams = [g_s.blocks16[i](x) for x in streams]
    model.config = g_s.config = replace(model.config, hidden16=hidden)


def check_hidden16(hidden: int, config: HyperConfig) -> None:
    """Raises UsageError where a synthesis of this config cannot be pruned to so many activations."""
    present = (config.hidden16 or config.latent_channels) if config.synthesis16 else 0
    if not 4 <= hidden <= present or hidden % 4:
        raise UsageError(f"hidden16 is {hidden}; a multiple of 4 up to {present}, which the model has, is allowed")


def _relu(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return cast(Tensor, layer(x)).relu()


def _importance(model: HyperModel, latents: Tensor, std: Tensor) -> list[Tensor]:
    """For each block (N,): the mean square of the derivative, by each activation that its last layer sees, of a random
    projection of the pixels in grey values."""
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
    """Mean (N,) and damped covariance (N, N) of activations (B, N, h, w) each, float64."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in activations:
        rows = batch.transpose(0, 1).flatten(1)
        count += rows.shape[1]
        total, squares = total + rows.sum(1).double().cpu(), squares + (rows @ rows.T).double().cpu()
    mean = total / count
    covariance = squares / count - mean[:, None] * mean
    return mean, covariance + DAMPING * covariance.diagonal().mean() * torch.eye(len(mean), dtype=torch.float64)


def _least_important(covariance: Tensor, importance: Tensor, count: int) -> list[int]:
    """The `count` activations that are missed least, in the order in which they go."""
    removed: list[int] = []
    inverse = torch.linalg.inv(covariance)
    for _ in range(count):
        missed = importance / inverse.diagonal()  # times the variance that the remaining others do not predict
        missed[removed] = torch.inf
        least = int(missed.argmin())
        removed.append(least)
        inverse -= inverse[:, least, None] * inverse[least] / inverse[least, least].clone()
        inverse[least, least] = 1
    return removed


def _without(block: Residual, removed: list[int], mean: Tensor, covariance: Tensor) -> Residual:
    """The block without some of its activations, whose part the others take over as well as they can."""
    stay = [n for n in range(len(mean)) if n not in removed]
    shares = torch.linalg.solve(covariance[stay][:, stay], covariance[stay][:, removed])  # (stay, removed)
    result = Residual(block.expand.in_channels, block.depthwise is not None, len(stay)).to(block.expand.weight.device)
    state = {name: values[stay] for name, values in block.state_dict().items() if not name.startswith("project")}
    weight, bias = block.project.weight[:, :, 0, 0].double().cpu(), cast(Tensor, block.project.bias).double().cpu()
    state["project.weight"] = (weight[:, stay] + weight[:, removed] @ shares.T)[:, :, None, None].float()
    state["project.bias"] = (bias + weight[:, removed] @ (mean[removed] - shares.T @ mean[stay])).float()
    result.load_state_dict(state)
    return result
