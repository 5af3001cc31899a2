"""What each channel of the residual blocks is seen to reach on training patches: the measure of their bytes."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from histocodec.models.hyper import HyperModel
from histocodec.models.transforms.analysis import range_tensor
from histocodec.models.transforms.network import Residual
from histocodec.train.data.patches import PatchSampler

BATCHES = 16
FIRST_STEP = 3 << 29  # steps of the sampler that no training reaches lie before it


class Reaches:
    """The largest magnitude of each channel so far, by `range_tensor`."""

    def __init__(self) -> None:
        self.largest: dict[str, Tensor] = {}

    def blocks(self, name: str, blocks: nn.Sequential, x: Tensor) -> Tensor:
        """Runs blocks, and looks on."""
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
        name, reach = range_tensor(block, part), x.abs().amax((0, 2, 3))
        self.largest[name] = torch.maximum(self.largest[name], reach) if name in self.largest else reach


@torch.no_grad()
def analysis_reaches(model: HyperModel, sampler: PatchSampler) -> dict[str, NDArray[Any]]:
    """The tensors of a model file, float32, with which `g_a` can be run in bytes."""
    reaches, g_a = Reaches(), model.g_a
    for batch in range(BATCHES):
        x = g_a.head(F.pixel_unshuffle(sampler(FIRST_STEP - 1 - batch).pixels, 8))
        reaches.blocks("blocks16", g_a.blocks16, g_a.down(reaches.blocks("blocks8", g_a.blocks8, x)))
    return {name: reach.cpu().numpy().astype(np.float32) for name, reach in reaches.largest.items()}
