"""Rounds the weights of the integer synthesis so that their errors make up for each other.

Weights are rounded one after the other, and those that are not rounded yet are moved so that the layer's outputs on
training patches change least (Frantar et al. 2023, "GPTQ: accurate post-training quantization for generative
pre-trained transformers"). The biases take up what changes in the mean.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from histocodec.models.transforms.integer import BYTE, SynthesisLayer
from histocodec.models.transforms.training import TrainableIntegerSynthesis, parameter_key

DAMPING = 1e-3  # of the mean variance of what a layer sees: else a few patches would move weights without bounds


@torch.no_grad()
def round_weights(synthesis: TrainableIntegerSynthesis, latents: Sequence[Tensor]) -> None:
    """Moves weights and biases of `synthesis`, in place, to where rounding hardly changes them. `latents`, batches
    (B, C, h, w) with their gains undone, are the calibration data."""
    mean_outputs: dict[str, Tensor] = {}

    def note(name: str, a: Tensor, outputs: Tensor) -> None:
        mean_outputs[name] = outputs.mean((0, 2, 3)) / len(latents) + mean_outputs.get(name, 0)

    synthesis.observer, synthesis.rounding = note, False
    for batch in latents:
        synthesis(batch)
    synthesis.rounding = True
    for name, layer in synthesis.layers.items():  # each sees what the rounded layers before it give
        mean, covariance = _moments(synthesis, layer, latents)
        key, step = parameter_key(layer), torch.exp2(-synthesis.shift(layer)).double()[:, None]
        weight = synthesis.weights[key].double().flatten(1)
        weight = rounded(weight / step, covariance) * step
        synthesis.weights[key].copy_(weight.view(layer.weight_shape))
        synthesis.biases[key].copy_(mean_outputs[name] - torch.einsum("ok,ok->o", weight, mean.expand_as(weight)))


def _moments(
    synthesis: TrainableIntegerSynthesis, layer: SynthesisLayer, latents: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean (G, K) and covariance (G, K, K) of the K inputs that each output of a layer sees, float64. G is 1 where all
    outputs see the same, else the number of outputs."""
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
    for batch in latents:
        synthesis(batch)
    synthesis.observer = None
    mean = total / count
    return mean, squares / count - mean[:, :, None] * mean[:, None, :]


def rounded(weight: Tensor, covariance: Tensor) -> Tensor:
    """Weights (O, K) and the covariance (O or 1, K, K) of their inputs, float64 → integers within ±127, (O, K)
    float64."""
    variance = covariance.diagonal(dim1=1, dim2=2)
    order = variance.mean(0).argsort(descending=True)
    damped = covariance + DAMPING * variance.mean(1)[:, None, None].clamp(min=1e-9) * torch.eye(len(order)).to(weight)
    # Rows of `share` say how the weights that are not rounded yet move for one that is: Cholesky of the inverse.
    inverse = torch.linalg.inv(damped[:, order][:, :, order])
    share = torch.linalg.cholesky(inverse, upper=True)
    remaining, integers = weight[:, order].clone(), torch.empty_like(weight)
    for k, column in enumerate(order):
        integers[:, column] = remaining[:, k].round().clamp(1 - BYTE, BYTE - 1)
        error = (remaining[:, k] - integers[:, column]) / share[:, k, k]
        remaining[:, k:] -= error[:, None] * share[:, k, k:]
    return integers
