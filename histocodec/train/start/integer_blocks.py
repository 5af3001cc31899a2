"""New residual blocks for an integer synthesis: random features of what they see, and an output of zero.

Their shifts are chosen here and stay, so that the run trains in whole numbers from its first step. A new block's output
has as many fractional bits as the stream it is added to, so it can do as much as the blocks before it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from histocodec.models.transforms.integer import BYTE, ENTRY_BITS, EXACT, MOST_SHIFT, SynthesisLayer
from histocodec.models.transforms.training import TrainableIntegerSynthesis, parameter_key

ACTIVATION_DEVIATION = 50.0  # of what ReLU sees: a fifth of the largest byte, so that hardly any activation is cut off
LEAST_DEVIATION = 1.0  # of a channel of the stream, in its steps: one that hardly moves says nothing


@torch.no_grad()
def start_integer_blocks(synthesis: TrainableIntegerSynthesis, names: Sequence[str], latents: Tensor) -> None:
    """Fills the residual blocks of these names, such as "blocks8.2", in place. All other layers have their weights, and
    the new ones none yet; `latents` (B, C, h, w), gains undone, show what they will see."""
    seen: dict[str, Tensor] = {}
    bits = {"blocks16": torch.full((synthesis.config.latent_channels,), float(ENTRY_BITS))}

    def note(name: str, inputs: Tensor, outputs: Tensor) -> None:
        seen[name] = inputs.std((0, 2, 3)).clamp(min=LEAST_DEVIATION).cpu()

    synthesis.observer = note
    synthesis(latents)
    synthesis.observer = None
    for name, layer in synthesis.layers.items():
        stage, shift = name.split(".")[0], synthesis.shift(layer).cpu()
        if name == "up":
            bits["blocks8"] = shift.view(4, -1).amax(0)
        elif name.endswith("project") and name.rpartition(".")[0] not in names:
            bits[stage] = torch.maximum(bits[stage], shift)
    for block in names:
        expand = synthesis.layers[f"{block}.expand"]
        weight = torch.randn(expand.weight_shape) / math.sqrt(expand.inputs)
        weight *= ACTIVATION_DEVIATION / seen[expand.name]
        _fill(synthesis, expand, weight, _finest_shift(weight))
        if f"{block}.depthwise" in synthesis.layers:
            depthwise = synthesis.layers[f"{block}.depthwise"]
            weight = 0.1 * torch.randn(depthwise.weight_shape)
            weight[:, 1, 1] += 0.8
            _fill(synthesis, depthwise, weight, _finest_shift(weight))
        project = synthesis.layers[f"{block}.project"]
        _fill(synthesis, project, torch.zeros(project.weight_shape), bits[block.split(".")[0]])


def _finest_shift(weight: Tensor) -> Tensor:
    """The finest shift of each output with which its weights (O, …) are int8 and half of what is exact is left."""
    rows = weight.abs().flatten(1)
    most = torch.minimum((BYTE - 1) / rows.amax(1), EXACT / 2 / (255 * rows.sum(1)))
    return most.log2().floor().clamp(0, MOST_SHIFT)


def _fill(synthesis: TrainableIntegerSynthesis, layer: SynthesisLayer, weight: Tensor, shift: Tensor) -> None:
    key = parameter_key(layer)
    synthesis.weights[key].copy_(weight)
    synthesis.biases[key].zero_()
    synthesis.shift(layer).copy_(shift)


def new_block_names(synthesis: TrainableIntegerSynthesis, present: Sequence[str]) -> list[str]:
    """The residual blocks of which the tensors of a model file (`present`) have no layer, in order."""
    names = [name.rpartition(".")[0] for name in synthesis.layers if name.endswith(".project")]
    return [name for name in names if f"g_s.{name}.project.weight" not in present]
