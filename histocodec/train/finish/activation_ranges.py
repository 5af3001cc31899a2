"""Activation ranges: the largest magnitude of each channel of the residual blocks on training patches. They decide
what the largest byte stands for, in the integer synthesis and in the analysis by int8 products."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.network import Residual
from histocodec.models.transforms.reaches import range_tensor
from histocodec.train.data.patches import CALIBRATION_END, PatchSampler

RANGE_BATCHES = 16


class ActivationRanges:
    """The largest magnitude of each channel so far, (channels,), by the name of its tensor in a model file."""

    def __init__(self) -> None:
        self.largest: dict[str, Tensor] = {}

    def run_blocks(self, name: str, blocks: nn.Sequential, x: Tensor) -> Tensor:
        """Runs residual blocks on x (B, C, h, w) and notes the ranges of what they see and of their activations."""
        for i, module in enumerate(blocks):
            block, prefix = cast(Residual, module), f"{name}.{i}"
            self.note(prefix, "seen", x)
            h = F.relu(block.expand(x))
            self.note(prefix, "expand", h)
            if block.depthwise is not None:
                h = F.relu(block.depthwise(h))
                self.note(prefix, "depthwise", h)
            x = x + block.project(h)
        return x

    def note(self, block: str, part: str, x: Tensor) -> None:
        """Takes x (B, C, h, w) into the range that `range_tensor(block, part)` names."""
        name, largest = range_tensor(block, part), x.abs().amax((0, 2, 3))
        self.largest[name] = torch.maximum(self.largest[name], largest) if name in self.largest else largest


@torch.no_grad()
def analysis_ranges(model: HyperModel, sampler: PatchSampler) -> dict[str, NDArray[Any]]:
    """The ranges of the analysis as tensors of a model file, float32; with them an encoder can run `g_a` by int8
    products."""
    ranges, g_a = ActivationRanges(), model.g_a
    for batch in range(RANGE_BATCHES):
        x = g_a.head(F.pixel_unshuffle(sampler(CALIBRATION_END - 1 - batch).pixels, 8))
        ranges.run_blocks("blocks16", g_a.blocks16, g_a.down(ranges.run_blocks("blocks8", g_a.blocks8, x)))
    return {name: largest.cpu().numpy().astype(np.float32) for name, largest in ranges.largest.items()}
