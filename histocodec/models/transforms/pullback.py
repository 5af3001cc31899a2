"""The derivative of a synthesis, taken back from pixels to latents: what the encoder's latent search runs."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from histocodec.geometry import Margin
from histocodec.kernels.jit import jit
from histocodec.models.transforms.network import Hidden, Synthesis, untrim

Sizes = dict[str, NDArray[np.float32]]


class Pullback:
    """The transposed derivative of a `Synthesis` at known activations, which may be those of the integer synthesis.

    It computes what autograd would, in two thirds of the time: the activations of `Synthesis.window` say which ReLUs
    passed, and nothing is recorded.
    """

    def __init__(self, synthesis: Synthesis) -> None:
        self.config = synthesis.config
        self.weight = {
            name: _transposed(layer) for name, layer in synthesis.named_modules() if isinstance(layer, nn.Conv2d)
        }
        self.weight["up"] = synthesis.up.weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, slope: Tensor, margin: Margin, hidden: Hidden, sizes: Sizes | None = None) -> Tensor:
        """A derivative by the output of `Synthesis.window` (B, 192, 2h, 2w), of the synthesis's dtype → the derivative
        by each latent of the window (B, C, h', w'). `margin` is the window's, `hidden` the activations of each residual
        block in order.

        `sizes` is given the root mean square, (channels,) float32, of the derivatives that enter `tail` and `up`, of
        those in the stream where each block adds to it ("blocks8.0.seen"), and of those in the outputs of its
        `expand` and 3×3 layer that are active ("blocks8.0.expand", "blocks8.0.depthwise").
        """
        config = self.config
        spatial8 = sum(config.synthesis8)
        margins16 = _margins(config.synthesis16, margin, -(-spatial8 // 2))
        margins8 = _margins(config.synthesis8, margins16[-1].scaled(2), 0)
        hidden16, hidden8 = hidden[: len(config.synthesis16)], hidden[len(config.synthesis16) :]
        _note(sizes, "tail", slope)
        g = self._blocks("blocks8", _pointwise(slope, self.weight["tail"]), margins8, hidden8, sizes)
        _note(sizes, "up", g)
        return self._blocks("blocks16", F.conv2d(g, self.weight["up"], stride=2), margins16, hidden16, sizes)

    def _blocks(self, part: str, g: Tensor, margins: list[Margin], hidden: Hidden, sizes: Sizes | None) -> Tensor:
        for i in reversed(range(len(hidden))):
            name = f"{part}.{i}"
            g, activations = untrim(g, margins[i], margins[i + 1]), hidden[i]
            _note(sizes, f"{name}.seen", g)
            h = _pointwise(g, self.weight[f"{name}.project"])
            if len(activations) == 2:
                h = self._where_active(activations[1], h)
                _note(sizes, f"{name}.depthwise", h)
                h = F.conv2d(h, self.weight[f"{name}.depthwise"], padding=1, groups=h.shape[1])
            h = self._where_active(activations[0], h)
            _note(sizes, f"{name}.expand", h)
            g = _pointwise(h, self.weight[f"{name}.expand"]).add_(g)
        return g

    @staticmethod
    def _where_active(activation: Tensor, g: Tensor) -> Tensor:
        """g where the activation is not 0, else 0. On a CPU it is written over g."""
        if g.device.type != "cpu":
            return cast(Tensor, torch.ops.aten.threshold_backward(g, activation.to(g.dtype), 0))
        g = g.contiguous(memory_format=torch.channels_last)
        _zero_inactive(_as_integers(g), _as_integers(activation.contiguous(memory_format=torch.channels_last)))
        return g


def _note(sizes: Sizes | None, name: str, x: Tensor) -> None:
    if sizes is not None:
        sizes[name] = x.float().square().mean(dim=(0, 2, 3)).sqrt().cpu().numpy()


def _transposed(layer: nn.Conv2d) -> Tensor:
    """The weights that take a layer's derivative back: a depthwise layer's kernels turned by 180°, or those of a dense
    one as (inputs, outputs)."""
    return layer.weight.flip(2, 3) if layer.groups > 1 else layer.weight[:, :, 0, 0].t().contiguous()


def _pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """A 1×1 layer on x (B, C, h, w), channels last, as one large product: `F.conv2d` makes many small ones."""
    batch, _, rows, columns = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(batch * rows * columns, -1)
    return F.linear(flat, weight).view(batch, rows, columns, -1).permute(0, 3, 1, 2)


def _as_integers(x: Tensor) -> NDArray[Any]:
    """The memory of x (B, C, h, w), channels last, as a flat array of integers of the same width."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()]
    return x.permute(0, 2, 3, 1).flatten().view(integers).numpy()


@jit
def _zero_inactive(numbers: NDArray[Any], activations: NDArray[Any]) -> None:
    for n in range(numbers.size):
        if activations[n] == 0:
            numbers[n] = 0


def _margins(blocks: tuple[bool, ...], margin: Margin, beyond: int) -> list[Margin]:
    """The margin before the first of these blocks and after each; later layers need `beyond`."""
    margins = [margin]
    for i in range(len(blocks)):
        margins.append(margins[-1].within(sum(blocks[i + 1 :]) + beyond))
    return margins
