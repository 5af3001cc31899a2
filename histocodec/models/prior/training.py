"""The prior as it trains: float parameters, integer arithmetic in the forward pass, straight-through gradients.

`TrainingOps` computes what `IntegerOps` computes, from parameters that are rounded on the way. A gradient passes
rounding unchanged, and clipping where nothing was clipped (Bengio et al. 2013, "Estimating or propagating gradients
through stochastic neurons"). Exporting is therefore only rounding (`histocodec.models.export`), and
`tests/core/test_prior.py` checks that both give the same integers.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histocodec.models.config import GROUPS, HyperConfig
from histocodec.models.gains import interpolate
from histocodec.models.prior.graph import (
    INPUT_BITS,
    LINEAR_CLIP,
    MEAN_BITS,
    POSITIONS,
    SCALE_BITS,
    SCALES,
    SMALLEST_SCALE,
    Layer,
    Prior,
)


def straight_round(x: Tensor) -> Tensor:
    """floor(x + 1/2), with the gradient of x."""
    return x + (torch.floor(x + 0.5) - x).detach()


class TrainablePrior(nn.Module):
    """The prior's parameters as floats in the units of activations, and its operations for a batch of qualities."""

    def __init__(self, config: HyperConfig) -> None:
        super().__init__()
        self.config = config
        self.graph = Prior(config)
        self.weights = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        for layer in self.graph.layers.values():
            key = layer.name.replace(".", "_")
            shape = (layer.outputs, 3, 3) if layer.kind == "depthwise" else (layer.outputs, layer.inputs)
            weight = torch.zeros(shape)
            if layer.kind == "depthwise" and "predict" not in layer.name:
                weight.uniform_(-0.1, 0.1)
                weight[:, 1, 1] += 0.8
            elif layer.kind == "dense" and "heads" not in layer.name:
                nn.init.kaiming_uniform_(weight, a=1.0)
            self.weights[key] = nn.Parameter(weight)
            biases = (config.anchors, layer.outputs) if layer.by_quality else (layer.outputs,)
            self.biases[key] = nn.Parameter(torch.zeros(biases))
        self.scale_base = nn.Parameter(torch.zeros(config.latent_channels))  # log2 σ at gain 1
        self.hyper_mean = nn.Parameter(torch.zeros(config.anchors, config.hyper_channels))
        self.hyper_scale = nn.Parameter(torch.zeros(config.anchors, config.hyper_channels))  # log2 σ

    def integer_weight(self, layer: Layer) -> Tensor:
        """The layer's weights as the integers of a model file, within ±127: (outputs, inputs) or (outputs, 3, 3)."""
        weight = self.weights[layer.name.replace(".", "_")]
        return straight_round((weight * 2.0**layer.bits).clamp(-127, 127))

    def integer_bias(self, layer: Layer, quality: Tensor) -> Tensor:
        """The layer's biases as the integers of a model file, for qualities (B,): (B or 1, outputs)."""
        bias = self.biases[layer.name.replace(".", "_")]
        bias = interpolate(bias, quality) if layer.by_quality else bias[None]
        return straight_round(bias * 2.0 ** (layer.bits + layer.input_bits))

    def base_index(self, log_gain: Tensor) -> Tensor:
        """Log gain (B, C) → scale index before the network's deviation, (B, C)."""
        octaves = self.scale_base + log_gain / math.log(2) - math.log2(SMALLEST_SCALE)
        return straight_round(octaves * 2.0**SCALE_BITS)

    def hyper_parameters(self, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Qualities (B,) → mean of z in eighths and scale index, each (B, Cz)."""
        mean = straight_round(interpolate(self.hyper_mean, quality) * 2.0**MEAN_BITS)
        octaves = interpolate(self.hyper_scale, quality) - math.log2(SMALLEST_SCALE)
        return mean, limited(straight_round(octaves * 2.0**SCALE_BITS))

    def ops(self, quality: Tensor, log_gain: Tensor) -> "TrainingOps":
        """Operations for a batch with these qualities (B,) and their log gains (B, C)."""
        return TrainingOps(self, quality, log_gain)


def limited(index: Tensor) -> Tensor:
    """A scale index limited to 0 … SCALES - 1. The gradient passes, so that an index can come back."""
    return index + (index.clamp(0, SCALES - 1) - index).detach()


def scale_of(index: Tensor) -> Tensor:
    """The standard deviation of a scale index."""
    return SMALLEST_SCALE * torch.exp2(index * 2.0**-SCALE_BITS)


class TrainingOps:
    """`Ops` on tensors of one batch; `histocodec.models.prior.graph.Ops` says what each operation is."""

    def __init__(self, prior: TrainablePrior, quality: Tensor, log_gain: Tensor) -> None:
        self.prior = prior
        self.quality = quality
        self.base = prior.base_index(log_gain)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """See `Ops.linear`."""
        layer = self.prior.graph.layers[name]
        weight = self.prior.integer_weight(layer)
        bias = self.prior.integer_bias(layer, self.quality)[:, :, None, None]
        if layer.kind == "depthwise":
            return F.conv2d(x, weight[:, None], padding=1, groups=layer.outputs) + bias
        return F.conv2d(x, weight[:, :, None, None]) + bias

    def activate(self, accumulator: Tensor, shift: int) -> Tensor:
        """See `Ops.activate`."""
        return straight_round((accumulator * 2.0**-shift).clamp(0, 255))

    def rescale(self, accumulator: Tensor, shift: int) -> Tensor:
        """See `Ops.rescale`."""
        return straight_round(accumulator * 2.0**-shift)

    def clip(self, x: Tensor, limit: int) -> Tensor:
        """See `Ops.clip`."""
        return x.clamp(-limit, limit)

    def compress(self, y: Tensor) -> Tensor:
        """See `Ops.compress`."""
        return straight_round(2.0**INPUT_BITS * torch.asinh(y.clamp(-LINEAR_CLIP, LINEAR_CLIP)))

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Ops.join`."""
        return torch.cat((a, b), dim=1)

    def fold(self, x: Tensor) -> Tensor:
        """See `Ops.fold`."""
        return F.pixel_unshuffle(x, 2)

    def unfold(self, x: Tensor) -> Tensor:
        """See `Ops.unfold`."""
        return F.pixel_shuffle(x, 2)

    def heads(self, name: str, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See `Ops.heads`."""
        layer = self.prior.graph.layers[name]
        batch, width, rows, columns = x.shape
        weights = self.prior.integer_weight(layer).view(GROUPS, -1, width)
        biases = self.prior.integer_bias(layer, self.quality).view(-1, GROUPS, layer.outputs // GROUPS)
        order = [p ^ step for p in range(GROUPS)]  # stacked, since a list as an index does not compile on a GPU
        weight, bias = torch.stack([weights[p] for p in order]), torch.stack([biases[:, p] for p in order], dim=1)
        inputs = torch.stack([x[:, :, i::2, j::2].flatten(2) for i, j in POSITIONS], dim=1)  # (B, 4, n, hw/4)
        outputs = torch.matmul(weight, inputs) + bias[..., None]
        outputs = outputs.view(batch, GROUPS, 2, -1, rows // 2, columns // 2)
        return outputs[:, :, 0], outputs[:, :, 1]

    def cells(self, x: Tensor, step: int) -> Tensor:
        """See `Ops.cells`."""
        return torch.stack([x[:, p ^ step :: GROUPS, i::2, j::2] for p, (i, j) in enumerate(POSITIONS)], dim=1)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Ops.add`."""
        return a + b

    def scale_index(self, deviation: Tensor, step: int) -> Tensor:
        """See `Ops.scale_index`."""
        base = torch.stack([self.base[:, p ^ step :: GROUPS] for p in range(GROUPS)], dim=1)
        return limited(base[..., None, None] + deviation)


def step_mask(step: int, channels: int, rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """(channels, rows, columns) float on `device`, by default the CPU: 1 where an element is coded before `step`, else
    0."""
    mask = torch.zeros(channels, rows, columns, device=device)
    for earlier in range(step):
        for p, (i, j) in enumerate(POSITIONS):
            mask[p ^ earlier :: GROUPS, i::2, j::2] = 1
    return mask
