"""Weights of the synthesis to bytes, such that the errors of rounding make up for each other.

A weight is rounded after the other, and those that are still real are moved by what least changes the layer's outputs
on training patches (Frantar et al. 2023, "GPTQ"). Means are left to the biases.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from histocodec.models.transforms.integer import BYTE, SynthesisLayer
from histocodec.models.transforms.training import TrainableIntegerSynthesis

DAMPING = 1e-3  # of the mean variance of what a layer sees: else few patches would move weights without bounds


@torch.no_grad()
def round_weights(synthesis: TrainableIntegerSynthesis, latents: Sequence[Tensor]) -> None:
    """Moves weights and biases of `synthesis` to where rounding changes them no more, or hardly; `latents` (B, C, h, w)
    each, gains undone, are what is looked at."""
    wanted: dict[str, Tensor] = {}

    def note(name: str, a: Tensor, outputs: Tensor) -> None:
        wanted[name] = outputs.mean((0, 2, 3)) / len(latents) + wanted.get(name, 0)

    synthesis.observer, synthesis.rounding = note, False
    for some in latents:
        synthesis(some)
    synthesis.rounding = True
    for name, layer in synthesis.layers.items():  # each sees what those before it give by now
        mean, covariance = _moments(synthesis, layer, latents)
        key, step = name.replace(".", "_"), torch.exp2(-synthesis.shift(layer)).double()[:, None]
        weight = synthesis.weights[key].double().flatten(1)
        weight = rounded(weight / step, covariance) * step
        synthesis.weights[key].copy_(weight.view(layer.weight_shape))
        synthesis.biases[key].copy_(wanted[name] - torch.einsum("ok,ok->o", weight, mean.expand_as(weight)))


def _moments(
    synthesis: TrainableIntegerSynthesis, layer: SynthesisLayer, latents: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean (G, K) and covariance (G, K, K) of what each output of a layer sees, float64; G is 1 where that is all the
    same."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())

    def note(name: str, a: Tensor, outputs: Tensor) -> None:
        nonlocal count, total, squares
        if name != layer.name:
            return
        rows, columns = a.shape[2:]
        if layer.kind == "depthwise":
            padded = F.pad(a, (1, 1, 1, 1))
            taps = [padded[:, :, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
            seen = torch.stack(taps).permute(2, 0, 1, 3, 4).flatten(2)  # (C, 9, n)
        else:
            seen = a.transpose(0, 1).flatten(1)[None]  # (1, C, n)
        count += seen.shape[2]
        total = total + seen.sum(2).double()
        squares = squares + torch.matmul(seen, seen.transpose(1, 2)).double()

    synthesis.observer = note
    for some in latents:
        synthesis(some)
    synthesis.observer = None
    mean = total / count
    return mean, squares / count - mean[:, :, None] * mean[:, None, :]


def rounded(weight: Tensor, covariance: Tensor) -> Tensor:
    """Weights (O, K), covariance (O or 1, K, K) of what they see, float64 → whole numbers within ±127"""
    variance = covariance.diagonal(dim1=1, dim2=2)
    order = variance.mean(0).argsort(descending=True)
    damped = covariance + DAMPING * variance.mean(1)[:, None, None].clamp(min=1e-9) * torch.eye(len(order)).to(weight)
    # Rows of `share`: how what is not yet rounded has to move for what is (the Cholesky factor of the inverse).
    inverse = torch.linalg.inv(damped[:, order][:, :, order])
    share = torch.linalg.cholesky(inverse, upper=True)
    left, whole = weight[:, order].clone(), torch.empty_like(weight)
    for k, column in enumerate(order):
        whole[:, column] = left[:, k].round().clamp(1 - BYTE, BYTE - 1)
        error = (left[:, k] - whole[:, column]) / share[:, k, k]
        left[:, k:] -= error[:, None] * share[:, k, k:]
    return whole
