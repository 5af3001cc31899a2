"""The prior as a CPU runs it: the integers of `IntegerPrior`, several times as fast.

It is the same graph (`histocodec.models.prior.graph`), written out for one chunk at a time, with positions as rows and
channels as columns:

- layers on the latents themselves (`h_a.0`, the contexts) walk over those that are not zero, one in ten;
- layers on activations are int8 matrix products where PyTorch has exact ones (`torch._int_mm`, which uses the
  processor's own), and products of exact floats elsewhere;
- activations are held as int8, 128 too low, and the biases make up for it;
- channels and positions beyond the chunk's extent are never computed.

`tests/core/test_prior.py` checks every path against `IntegerPrior` in float64.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.models.config import GROUPS, HyperConfig
from histocodec.models.prior.exact import RELUCTANCE, hyper_latents, out_of_range
from histocodec.models.prior.fast_kernels import (
    accumulate,
    activated,
    activated_cells,
    depthwise,
    distributions,
    list_nonzero,
    place,
)
from histocodec.models.prior.graph import (
    ACTIVATION_BITS,
    HYPER_BITS,
    HYPER_CLIP,
    MEAN_BITS,
    SCALE_BITS,
    Layer,
    layers,
)

Bytes = NDArray[np.int8]
Integers = NDArray[np.int32]
Product = Callable[[Bytes, Bytes], Integers]  # (N, K), (M, K) → (N, M), exactly


@dataclass(frozen=True)
class Dense:
    """A 1×1 layer: weight (outputs, inputs) int8, and bias (1 or Q, outputs) int32, which makes up for activations that
    are held 128 too low."""

    weight: Bytes
    bias: Integers
    shift: int  # from the accumulator to an activation


@dataclass(frozen=True)
class Depthwise:
    """A 3×3 layer on activations: weight (9, channels) int32, bias (channels,) int32."""

    weight: Integers
    bias: Integers
    shift: int


class FastPrior:
    """One model's prior, from the model file's tensors `arrays`. `product` is `float_product` or the result of
    `int8_product`. Thread-safe."""

    def __init__(self, config: HyperConfig, arrays: Mapping[str, NDArray[Any]], product: Product) -> None:
        self.config, self.product = config, product
        self.dense: dict[str, Dense] = {}
        self.depthwise: dict[str, Depthwise] = {}
        self.sparse: dict[str, Integers] = {}  # (channels, outputs): what a latent of 1 adds to each output
        for layer in layers(config):
            weight, bias = arrays[f"prior.{layer.name}.weight"], arrays[f"prior.{layer.name}.bias"]
            self._add(layer, weight, bias.astype(np.int32))
        self.base_index: Integers = arrays["prior.base_index"].astype(np.int32)  # (Q, C)
        self.hyper_mean: NDArray[np.int16] = arrays["prior.hyper_mean"]  # (Q, Cz)
        self.compress: Integers = arrays["prior.compress"].astype(np.int32)  # (LINEAR_CLIP + 1,)

    def _add(self, layer: Layer, weight: NDArray[np.int8], bias: Integers) -> None:
        shift = layer.bits + layer.input_bits - ACTIVATION_BITS
        if layer.kind == "depthwise":
            taps = np.ascontiguousarray(weight.reshape(layer.outputs, 9).T, np.int32)
            self.depthwise[layer.name] = Depthwise(taps, bias[0].copy(), shift)
            return
        if layer.input_peak == 255:
            bias = bias + 128 * weight.astype(np.int32).sum(axis=1, dtype=np.int32)
        elif layer.input_peak != HYPER_CLIP:  # latents
            self.sparse[layer.name] = np.ascontiguousarray(weight.T, np.int32)
        if layer.name.endswith(
            ".heads"
        ):  # mean and scale of a channel side by side, so that the first channels are a slice
            order = np.arange(layer.outputs).reshape(GROUPS, 2, -1).transpose(0, 2, 1).ravel()
            weight, bias = weight[order], bias[:, order]
        self.dense[layer.name] = Dense(np.array(weight, order="C"), np.array(bias, order="C"), shift)

    def chunk(self, quality: int, shape: tuple[int, int, int], extent: tuple[int, int, int]) -> "FastChunk":
        """The prior of one chunk of latents (C, h, w), of which only the corner `extent` is coded: quads of channels,
        rows and columns of 2×2 cells."""
        return FastChunk(self, quality, shape, extent)


class FastChunk:
    """One chunk on its way through the prior: `hyper_latents` in an encoder, then `begin`, then `parameters` and
    `place` for each step k. It holds the latents placed so far."""

    def __init__(
        self, prior: FastPrior, quality: int, shape: tuple[int, int, int], extent: tuple[int, int, int]
    ) -> None:
        channels, rows, columns = shape
        self.prior, self.quality, self.shape, self.extent = prior, quality, shape, extent
        self.y = np.zeros((channels, rows + 2, columns + 2), np.int16)  # with a border of zeros
        self._live = np.zeros(channels, np.uint8)  # whether a channel has any latent that is not 0 so far
        size = GROUPS * extent[0] * extent[1] * extent[2]  # of one step
        self._nonzero = np.empty((GROUPS * size, 3), np.int32)  # position, channel, compressed value
        self._count = np.zeros(1, np.int64)
        width = prior.config.context_width
        self._mixed = np.empty((rows * columns, width + prior.config.hyper_width), np.int8)  # context | h

    @property
    def latents(self) -> NDArray[np.int16]:
        """The latents placed so far, (C, h, w)."""
        return np.ascontiguousarray(self.y[:, 1:-1, 1:-1])

    def hyper_latents(self, y: NDArray[np.integer[Any]], *, reluctance: int = RELUCTANCE) -> NDArray[np.int64]:
        """The hyper-latents (Cz, h/4, w/4) for y (C, h, w); see `histocodec.models.prior.exact.hyper_latents`."""
        prior, (_, rows, columns) = self.prior, self.shape
        nonzero = np.empty((np.count_nonzero(y), 3), np.int32)
        list_nonzero(np.ascontiguousarray(y, np.int16), prior.compress, nonzero)
        a = self._sparse("h_a.0", nonzero)
        a = self._active("h_a.1", _folded(a, rows, columns))
        a = self._spatial("h_a.2", a, rows // 2, columns // 2)
        a = self._active("h_a.3", _folded(a, rows // 2, columns // 2))
        accumulator = prior.product(a, prior.dense["h_a.4"].weight) + self._bias("h_a.4")
        shift = prior.dense["h_a.4"].shift + ACTIVATION_BITS - HYPER_BITS
        z = hyper_latents(accumulator, prior.hyper_mean[self.quality], shift, reluctance)
        return np.ascontiguousarray(z.T).reshape(-1, rows // 4, columns // 4)

    def begin(self, z: NDArray[np.int64]) -> None:
        """Takes the hyper-latents z (Cz, h/4, w/4), zero beyond the extent."""
        _, rows, columns = self.shape
        a = self._active("h_s.0", np.ascontiguousarray(z.reshape(len(z), -1).T, np.int8))
        a = self._spatial("h_s.1", a, rows // 4, columns // 4)
        a = _unfolded(self._active("h_s.2", a), rows // 4, columns // 4)
        a = self._spatial("h_s.3", a, rows // 2, columns // 2)
        h = _unfolded(self._active("h_s.4", a), rows // 2, columns // 2)
        self._mixed[:, self.prior.config.context_width :] = h

    def parameters(self, k: int) -> tuple[NDArray[np.uint16], Integers]:
        """For the N elements that step k codes, in coding order: the index of each one's frequency table (N,), and the
        integer part of its mean (N,), which is subtracted from the latent to give the symbol."""
        prior, (channels, rows, columns) = self.prior, self.shape
        quads, cell_rows, cell_columns = self.extent
        size = quads * cell_rows * cell_columns
        if k:
            context = self._sparse(f"step{k}.context", self._nonzero[: self._count[0]])
            depthwise(context, rows, columns, *self._weights(f"step{k}.neighbours"), self._mixed)
            seen = self._mixed
        else:
            seen = np.ascontiguousarray(self._mixed[:, prior.config.context_width :])
        mix = prior.dense[f"step{k}.mix"]
        mixed = prior.product(seen, mix.weight)
        cells = activated_cells(mixed, self._bias(f"step{k}.mix"), mix.shift, columns // 2)
        heads, bias = prior.dense[f"step{k}.heads"], self._bias(f"step{k}.heads")
        shift = heads.shift + ACTIVATION_BITS
        linear = prior.depthwise[f"step{k}.predict"] if k else NOTHING
        tables, offset = np.empty(GROUPS * size, np.uint16), np.empty(GROUPS * size, np.int32)
        firsts = [(p ^ k) * channels // 2 for p in range(GROUPS)]
        at0, at1, at2, at3 = (
            prior.product(heads.weight[first : first + 2 * quads], cell)
            for first, cell in zip(firsts, cells, strict=True)
        )
        distributions(
            (at0, at1, at2, at3), bias, shift - MEAN_BITS, shift - SCALE_BITS, prior.base_index[self.quality], self.y,
            self._live, linear.weight, linear.bias, k, columns // 2, cell_rows, cell_columns, tables, offset,
        )  # fmt: skip
        return tables, offset

    def place(self, k: int, values: Integers) -> None:
        """Takes the elements that step k codes, in coding order. Raises FormatError where one is not int16."""
        in_range = place(
            values,
            k,
            self.extent[1],
            self.extent[2],
            self.prior.compress,
            self.y,
            self._live,
            self._nonzero,
            self._count,
        )
        if not in_range:
            raise out_of_range(values)

    def _bias(self, name: str) -> Integers:
        bias = self.prior.dense[name].bias
        row: Integers = bias[0 if len(bias) == 1 else self.quality]
        return row

    def _weights(self, name: str) -> tuple[Integers, Integers, int]:
        layer = self.prior.depthwise[name]
        return layer.weight, layer.bias, layer.shift

    def _active(self, name: str, x: Bytes) -> Bytes:
        layer = self.prior.dense[name]
        return activated(self.prior.product(x, layer.weight), self._bias(name), layer.shift)

    def _sparse(self, name: str, nonzero: Integers) -> Bytes:
        """A layer on the latents, of which `nonzero` lists those that are not 0."""
        weight = self.prior.sparse[name]
        accumulator = np.zeros((self.shape[1] * self.shape[2], weight.shape[1]), np.int32)
        accumulate(nonzero, weight, accumulator)
        return activated(accumulator, self._bias(name), self.prior.dense[name].shift)

    def _spatial(self, name: str, x: Bytes, rows: int, columns: int) -> Bytes:
        out = np.empty_like(x)
        depthwise(x, rows, columns, *self._weights(name), out)
        return out


NOTHING = Depthwise(np.zeros((0, 0), np.int32), np.zeros(0, np.int32), 0)


def float_product(a: Bytes, b: Bytes) -> Integers:
    """a · bᵀ in float32, exact below 2^24, with numpy alone."""
    return np.asarray(a.astype(np.float32) @ b.astype(np.float32).T, np.int32)


@lru_cache(maxsize=1)
def int8_product() -> Product:
    """a · bᵀ by PyTorch's int8 product where it is exact on this machine, else `float_product`.

    A processor without instructions for it adds pairs of products in 16 bits, which saturates; so it is tried, on the
    largest values that there can be.
    """
    import torch

    def product(a: Bytes, b: Bytes) -> Integers:
        integers: Integers = torch._int_mm(torch.from_numpy(a), torch.from_numpy(b).t()).numpy()
        return integers

    rng = np.random.default_rng(0)
    a, b = (rng.choice(np.array([-128, -127, 127], np.int8), (32, 256)) for _ in range(2))
    a[0], b[0] = -128, -127
    try:
        exact = all(np.array_equal(product(x, y), float_product(x, y)) for x, y in ((a, b), (b, a)))
    except RuntimeError:  # a build without int8 products
        exact = False
    return product if exact else float_product


def _folded(x: Bytes, rows: int, columns: int) -> Bytes:
    """`Ops.fold` with positions as rows: (h·w, c) → (h/2·w/2, 4c)"""
    split = x.reshape(rows // 2, 2, columns // 2, 2, -1)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 1, 3)).reshape(rows * columns // 4, -1)


def _unfolded(x: Bytes, rows: int, columns: int) -> Bytes:
    """`Ops.unfold` with positions as rows: (h·w, 4c) → (2h·2w, c)"""
    split = x.reshape(rows, columns, -1, 2, 2)
    return np.ascontiguousarray(split.transpose(0, 3, 1, 4, 2)).reshape(4 * rows * columns, -1)
