"""Rescales a synthesis in floating point to the units in which it learns best.

Out of a model file its units are those of the integers: in every channel activations reach 255 and the stream at 1/8
reaches 127. Weights then differ by orders of magnitude, and one learning rate for all ruins the small ones. A factor
can be moved past a ReLU and past the stream, so no pixel changes but for rounding (Nagel et al. 2019, "Data-free
quantization through weight equalization and bias correction").
"""

from typing import cast

import torch
from torch import Tensor

from histocodec.models.transforms.network import Residual, Synthesis

LEAST = 0.1  # of the median activation: channels that are hardly ever active are not blown up


@torch.no_grad()
def equalise(g_s: Synthesis, latents: Tensor) -> None:
    """Changes the units of `g_s` in place, so that on these latents (B, C, h, w), gains undone, each activation has a
    mean square of about 1, and a unit of each channel of the stream at 1/8 moves the pixels equally far."""
    x = latents
    for name in ("blocks16", "blocks8"):
        x = x if name == "blocks16" else g_s.up(x)
        for module in getattr(g_s, name):
            block = cast(Residual, module)
            active = block.activations(x, lambda layer, seen: layer(seen).relu())
            x = x + block.project(active[-1])
            layers = [block.expand, *filter(None, [block.depthwise]), block.project]
            for layer, following, values in zip(layers, layers[1:], active, strict=False):
                size = values.square().mean((0, 2, 3)).sqrt()
                size = size.clamp(min=LEAST * float(size.median()))
                layer.weight /= size[:, None, None, None]
                cast(Tensor, layer.bias).div_(size)
                mixes = following is block.project
                following.weight *= size[None, :, None, None] if mixes else size[:, None, None, None]
    unit = g_s.tail.weight[:, :, 0, 0].norm(dim=0)
    unit = torch.where(unit > 0, unit, 1)
    g_s.tail.weight /= unit[None, :, None, None]
    g_s.up.weight *= unit[None, :, None, None]
    cast(Tensor, g_s.up.bias).mul_(unit)
    for module in g_s.blocks8:
        block = cast(Residual, module)
        block.expand.weight /= unit[None, :, None, None]
        block.project.weight *= unit[:, None, None, None]
        cast(Tensor, block.project.bias).mul_(unit)
