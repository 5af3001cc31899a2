"""The prior of `hyper`, defined: which integer operations turn z and the y coded so far into probabilities.

    z = h_a(y)           (Cz, n/4, n/4)      coded with fixed tables per quality and channel
    h = h_s(z)           (hyper_width, n, n)
    for k in 0 … 3:      step k of the quadtree: a quarter of the channels at each of the four positions of a 2×2 cell
        mean, scale = step(k, y so far, h)
        code those elements of y

All of it is exact integer arithmetic, written once against `Ops` and evaluated in three ways: `IntegerOps` of
`histocodec.models.prior.exact` (numpy or torch) is the oracle, `histocodec.models.prior.fast` is what a CPU runs, and
`TrainingOps` of `histocodec.models.prior.training` adds straight-through gradients. Weights are int8, activations uint8
after a clipped ReLU, and every accumulator stays below 2^23 (`check_accumulators`, at loading), so float32 holds it
exactly whatever the order of summation.

Fixed point: activations have ACTIVATION_BITS fractional bits, a layer's weights have `Layer.bits`, its bias and
accumulator the sum of both. The quadtree partition is that of Li, Li & Lu 2023 ("Neural video compression with diverse
contexts"), with the channel groups interleaved because the KLT's channels are sorted by energy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError
from histocodec.models.config import GROUPS, HyperConfig

ACTIVATION_BITS = 5  # activations are k/32, k in 0 … 255
INPUT_BITS = 4  # the latents enter as round(16·asinh(y))
HYPER_BITS = 2  # z enters as z/4
LINEAR_BITS = 7  # weights of the linear predictor of the mean
MEAN_BITS = 3  # means are multiples of 1/8 …
PHASE_MASK = (1 << MEAN_BITS) - 1  # … whose fractional part, the phase, picks the frequency table
SCALE_BITS = 2  # scales are 2^(index/4) times the smallest
SCALES = 48  # scale indices …
SMALLEST_SCALE = 0.08  # … from here, where a symbol is certain; the largest scale is 275
COMPRESS_PEAK = 122  # round(16·asinh(1023)): the largest latent that h_a and the contexts see
LINEAR_CLIP = 1023  # |y| that the linear predictor sees: 9 · 127 · 1023 < 2^23
HYPER_CLIP = 127  # |z|
LATENT_LIMIT = 1 << 15  # latents are int16: from -LATENT_LIMIT to below LATENT_LIMIT
ACCUMULATOR_LIMIT = 2**23  # half of what float32 holds exactly

# Position p of a 2×2 cell as (row, column); diagonal opposites are neighbours in this order, so that step 1
# completes the diagonal that step 0 began. At step k position p codes channel group p ^ k.
POSITIONS = ((0, 0), (1, 1), (0, 1), (1, 0))

A = TypeVar("A")


@dataclass(frozen=True)
class Layer:
    """One linear layer: `kind` "dense" (1×1) or "depthwise" (3×3), its channels, the fractional bits of its weights
    and of its inputs, and the largest |input|."""

    name: str
    kind: str
    inputs: int
    outputs: int
    bits: int
    input_bits: int
    input_peak: int
    by_quality: bool = False  # whether each quality has its own biases


class Ops(Protocol[A]):
    """The operations of the graph on arrays (B, channels, rows, columns) that hold integers."""

    def linear(self, name: str, x: A) -> A:
        """The accumulator of layer `name`: weights · x + bias, of each item's quality where the layer has several."""

    def activate(self, accumulator: A, shift: int) -> A:
        """clip(floor(accumulator / 2^shift + 1/2), 0, 255)"""

    def rescale(self, accumulator: A, shift: int) -> A:
        """floor(accumulator / 2^shift + 1/2)"""

    def clip(self, x: A, limit: int) -> A:
        """x limited to -limit … limit."""

    def compress(self, y: A) -> A:
        """round(16·asinh(y)) by table, |y| limited to LINEAR_CLIP."""

    def join(self, a: A, b: A) -> A:
        """a and b concatenated along channels."""

    def fold(self, x: A) -> A:
        """(B, c, h, w) → (B, 4c, h/2, w/2), space to depth: channel i at (row, column) of a 2×2 cell becomes channel
        4·i + 2·row + column."""

    def unfold(self, x: A) -> A:
        """(B, 4c, h, w) → (B, c, 2h, 2w), depth to space: the opposite of `fold`."""

    def heads(self, name: str, x: A, step: int) -> tuple[A, A]:
        """Layer `name`, each position's own channel group only: means and scales, each (B, 4, C/4, h/2, w/2)."""

    def cells(self, x: A, step: int) -> A:
        """(B, C, h, w) → (B, 4, C/4, h/2, w/2): the elements that step `step` codes, by position."""

    def add(self, a: A, b: A) -> A:
        """a + b"""

    def scale_index(self, deviation: A, step: int) -> A:
        """The base index of each quality and channel + deviation, limited to 0 … SCALES - 1."""


def layers(config: HyperConfig) -> tuple[Layer, ...]:
    """Every layer of the prior, in the order of evaluation."""
    c, w, n = config.latent_channels, config.hyper_width, config.context_width

    def dense(name: str, inputs: int, outputs: int, *, kind: str = "activation", by_quality: bool = False) -> Layer:
        input_bits, peak = {
            "activation": (ACTIVATION_BITS, 255),
            "latent": (INPUT_BITS, COMPRESS_PEAK),
            "hyper": (HYPER_BITS, HYPER_CLIP),
        }[kind]
        return Layer(name, "dense", inputs, outputs, 8 if inputs >= 64 else 7, input_bits, peak, by_quality)

    def depthwise(name: str, channels: int) -> Layer:
        return Layer(name, "depthwise", channels, channels, 6, ACTIVATION_BITS, 255)

    result = [
        dense("h_a.0", c, w, kind="latent", by_quality=True),
        dense("h_a.1", 4 * w, w),
        depthwise("h_a.2", w),
        dense("h_a.3", 4 * w, w),
        dense("h_a.4", w, config.hyper_channels),
        dense("h_s.0", config.hyper_channels, w, kind="hyper", by_quality=True),
        depthwise("h_s.1", w),
        dense("h_s.2", w, 4 * w),
        depthwise("h_s.3", w),
        dense("h_s.4", w, 4 * w),
    ]
    for k in range(GROUPS):
        if k:
            result += [
                dense(f"step{k}.context", c, n, kind="latent"),
                depthwise(f"step{k}.neighbours", n),
                Layer(f"step{k}.predict", "depthwise", c, c, LINEAR_BITS, 0, LINEAR_CLIP),
            ]
        result += [
            dense(f"step{k}.mix", w + (n if k else 0), n, by_quality=True),
            dense(f"step{k}.heads", n, 2 * c),
        ]
    return tuple(result)


class Prior:
    """The graph for one config, over any `Ops`. It holds no parameters, only which layers there are."""

    def __init__(self, config: HyperConfig) -> None:
        self.config = config
        self.layers = {layer.name: layer for layer in layers(config)}

    def _shift(self, name: str, bits: int) -> int:
        layer = self.layers[name]
        return layer.bits + layer.input_bits - bits

    def _active(self, ops: Ops[A], name: str, x: A) -> A:
        return ops.activate(ops.linear(name, x), self._shift(name, ACTIVATION_BITS))

    def h_a(self, ops: Ops[A], y: A) -> A:
        """y (B, C, n, n) → z (B, Cz, n/4, n/4), |z| ≤ 127"""
        return ops.clip(ops.rescale(self.h_a_accumulator(ops, y), self.hyper_shift), HYPER_CLIP)

    @property
    def hyper_shift(self) -> int:
        """The shift from the accumulator of `h_a` to z."""
        return self._shift("h_a.4", HYPER_BITS)

    def h_a_accumulator(self, ops: Ops[A], y: A) -> A:
        """y (B, C, n, n) → z before the last shift and clip, (B, Cz, n/4, n/4)"""
        a = self._active(ops, "h_a.0", ops.compress(y))
        a = self._active(ops, "h_a.1", ops.fold(a))
        a = self._active(ops, "h_a.2", a)
        a = self._active(ops, "h_a.3", ops.fold(a))
        return ops.linear("h_a.4", a)

    def h_s(self, ops: Ops[A], z: A) -> A:
        """z (B, Cz, n/4, n/4) → h (B, hyper_width, n, n) uint8"""
        a = self._active(ops, "h_s.0", z)
        a = self._active(ops, "h_s.1", a)
        a = ops.unfold(self._active(ops, "h_s.2", a))
        a = self._active(ops, "h_s.3", a)
        return ops.unfold(self._active(ops, "h_s.4", a))

    def step(self, ops: Ops[A], k: int, y_so_far: A, h: A) -> tuple[A, A]:
        """The parameters of the elements that step k codes: mean in eighths and scale index, each
        (B, 4, C/4, n/2, n/2), by position. `y_so_far` (B, C, n, n) must be zero wherever a step ≥ k codes; h is that of
        `h_s`."""
        if k:
            context = self._active(ops, f"step{k}.context", ops.compress(y_so_far))
            context = self._active(ops, f"step{k}.neighbours", context)
            mixed = self._active(ops, f"step{k}.mix", ops.join(context, h))
        else:
            mixed = self._active(ops, f"step{k}.mix", h)
        heads = f"step{k}.heads"
        mean, deviation = ops.heads(heads, mixed, k)
        mean = ops.rescale(mean, self._shift(heads, MEAN_BITS))
        deviation = ops.rescale(deviation, self._shift(heads, SCALE_BITS))
        if k:
            predicted = ops.linear(f"step{k}.predict", ops.clip(y_so_far, LINEAR_CLIP))
            mean = ops.add(mean, ops.rescale(ops.cells(predicted, k), LINEAR_BITS - MEAN_BITS))
        return mean, ops.scale_index(deviation, k)


def check_accumulators(config: HyperConfig, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raises FormatError where a layer's accumulator could reach 2^23, so that float32 might no longer be exact;
    `arrays` are the model file's tensors."""
    for layer in layers(config):
        peak = accumulator_peak(layer, arrays[f"prior.{layer.name}.weight"], arrays[f"prior.{layer.name}.bias"])
        if peak >= ACCUMULATOR_LIMIT:
            raise FormatError(f"prior layer {layer.name}: its accumulator can reach {peak}; below 2^23 is allowed")


def accumulator_peak(layer: Layer, weight: NDArray[Any], bias: NDArray[Any]) -> int:
    """The largest |accumulator| that any input within the layer's range can give: weight (O, I) or (O, 3, 3), bias
    (1 or Q, O)."""
    sums = np.abs(weight.astype(np.int64)).reshape(layer.outputs, -1).sum(axis=1)
    return int((sums * layer.input_peak + np.abs(bias.astype(np.int64)).max(axis=0)).max())
