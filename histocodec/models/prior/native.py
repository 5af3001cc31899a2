"""The prior as a CPU runs it without torch: the integers of `IntegerPrior` by native kernels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.kernels.instructions import fastest
from histocodec.kernels.layers import EXTRA_ROWS
from histocodec.kernels.pack import Packer, aligned, padded
from histocodec.models.config import GROUPS, HyperConfig
from histocodec.models.prior.fast import NOTHING, FastChunk, FastPrior, Integers, Product
from histocodec.models.prior.graph import ACTIVATION_BITS, MEAN_BITS, SCALE_BITS, layers
from histocodec.models.prior.native_kernels import hyper, step

FIELDS = 6  # of a layer: weight, bias, factor, quads of inputs, groups of outputs, bytes of one quality's bias


class NativePrior(FastPrior):
    """One model's prior, from the model file's tensors `arrays`. Thread-safe. `product` computes what only an encoder
    needs; `instructions` is a number in `kernels.instructions.NAMES`, by default that of the fastest here."""

    def __init__(
        self,
        config: HyperConfig,
        arrays: Mapping[str, NDArray[Any]],
        product: Product,
        *,
        instructions: int | None = None,
    ) -> None:
        super().__init__(config, arrays, product)
        self.instructions = fastest() if instructions is None else instructions
        self.width, self.context = padded(config.hyper_width), padded(config.context_width)
        self.inputs = padded(config.hyper_channels, 4)
        packer, named = Packer(), {layer.name: layer for layer in layers(config)}

        def packed(name: str, part: slice = slice(None), columns: Any = None, inputs: int = 0) -> list[int]:
            layer, weight = named[name], arrays[f"prior.{name}.weight"][part]
            bias = arrays[f"prior.{name}.bias"][:, part].astype(np.int64)
            factor = np.full(len(weight), 2.0 ** -(layer.bits + layer.input_bits - ACTIVATION_BITS))
            if name == "h_s.0":
                bias = bias - 128 * weight.astype(np.int64).sum(axis=1)
            size = 4 * padded(len(weight))
            if layer.kind == "depthwise":
                where = packer.depthwise(weight)
            elif name.endswith(".context"):
                where = 0
            else:
                full = np.zeros((len(weight), inputs), np.int8)
                full[:, columns] = weight
                where = packer.dense(full)
            first, *_ = [packer.row(row, np.int32) for row in bias]
            return [where, first, packer.row(factor, np.float32), inputs // 4, size // 256, size]

        h, n = np.arange(config.hyper_width), np.arange(config.context_width)
        unfolded = [[packed(name, slice(p, None, 4), h, self.width) for p in range(4)] for name in ("h_s.2", "h_s.4")]
        z = np.arange(config.hyper_channels)
        first = packed("h_s.0", columns=z, inputs=self.inputs)
        self.hyper_layers = np.array([first, packed("h_s.1"), *unfolded[0], packed("h_s.3"), *unfolded[1]], np.int64)
        self.steps: list[NDArray[np.int64]] = []
        self.contexts: list[NDArray[np.int16]] = []  # (channels, context): what a latent of 1 adds
        self.head_biases: list[Integers] = []  # (1 or Q, 2C), in the order of the heads
        for k in range(GROUPS):
            none = [0] * FIELDS
            seen = [packed(f"step{k}.context"), packed(f"step{k}.neighbours")] if k else [none, none]
            columns = np.concatenate([n, self.context + h]) if k else h
            mix = packed(f"step{k}.mix", columns=columns, inputs=self.width + (self.context if k else 0))
            heads = [self._heads(packer, f"step{k}.heads", group) for group in range(GROUPS)]
            self.steps.append(np.array([*seen, mix, *heads], np.int64))
            weight = np.zeros((config.latent_channels if k else 0, self.context), np.int16)
            if k:
                weight[:, : config.context_width] = self.sparse[f"step{k}.context"]
            self.contexts.append(weight)
            bias = arrays[f"prior.step{k}.heads.bias"].astype(np.int32)
            sorted_bias = bias.reshape(len(bias), GROUPS, 2, -1).transpose(0, 1, 3, 2).reshape(len(bias), -1)
            self.head_biases.append(np.ascontiguousarray(sorted_bias))
        self.parameters = packer.finish()

    def _heads(self, packer: Packer, name: str, group: int) -> list[int]:
        """The outputs of one group: mean and deviation of each channel side by side, as `FastPrior` sorts them."""
        full = np.zeros((2 * self.config.latent_channels // GROUPS, self.context), np.int8)
        full[:, : self.config.context_width] = self.dense[name].weight.reshape(GROUPS, len(full), -1)[group]
        return [packer.dense(full), 0, 0, self.context // 4, padded(len(full)) // 64, 0]

    def chunk(self, quality: int, shape: tuple[int, int, int], extent: tuple[int, int, int]) -> "NativeChunk":
        """See `FastPrior.chunk`."""
        return NativeChunk(self, quality, shape, extent)


class NativeChunk(FastChunk):
    """`FastChunk` by the kernels of `NativePrior`."""

    prior: NativePrior

    def __init__(
        self, prior: NativePrior, quality: int, shape: tuple[int, int, int], extent: tuple[int, int, int]
    ) -> None:
        super().__init__(prior, quality, shape, extent)
        _, rows, columns = shape
        positions = rows * columns + EXTRA_ROWS
        small, half = (rows // 4, columns // 4), (rows // 2, columns // 2)
        sizes = [
            4 * 64 * 6 * 3,  # sums of a tile
            positions * (prior.context + prior.width),  # what `mix` sees
            (rows + 2) * (columns + 2) * prior.context,  # the context, with a border
            positions * prior.context,  # what `mix` gives
            positions * prior.context * 4,  # sums of the context
            (small[0] + 2) * (small[1] + 2) * prior.width,
            (small[0] * small[1] + EXTRA_ROWS) * prior.width,
            (half[0] + 2) * (half[1] + 2) * prior.width,
            (half[0] * half[1] + EXTRA_ROWS) * prior.width,
        ]
        self._layout = np.concatenate([[0], np.cumsum([padded(size) for size in sizes])]).astype(np.int64)
        self._memory = aligned(int(self._layout[-1]))
        self._accumulators = np.empty((GROUPS, 2 * extent[0], rows * columns // 4), np.int32)

    def begin(self, z: NDArray[np.int64]) -> None:
        """See `FastChunk.begin`."""
        prior, (_, rows, columns) = self.prior, self.shape
        seen = np.full((rows * columns // 16 + EXTRA_ROWS, prior.inputs), 128, np.uint8)
        seen[:-EXTRA_ROWS, : len(z)] = z.reshape(len(z), -1).T + 128
        hyper(
            prior.instructions, seen, prior.parameters, prior.hyper_layers, self.quality, rows, columns, prior.width,
            self._memory, self._layout, prior.context + prior.width, prior.context,
        )  # fmt: skip

    def parameters(self, k: int) -> tuple[NDArray[np.uint16], Integers]:
        """See `FastChunk.parameters`."""
        prior, (_, rows, columns) = self.prior, self.shape
        quads, cell_rows, cell_columns = self.extent
        size = GROUPS * quads * cell_rows * cell_columns
        heads = prior.dense[f"step{k}.heads"]
        shift, biases = heads.shift + ACTIVATION_BITS, prior.head_biases[k]
        tables, offset = np.empty(size, np.uint16), np.empty(size, np.int32)
        linear = prior.depthwise[f"step{k}.predict"] if k else NOTHING
        step(
            prior.instructions, k, self._nonzero[: self._count[0]], prior.contexts[k], prior.parameters, prior.steps[k],
            self.quality, rows, columns, prior.context, prior.context + prior.width, self._memory, self._layout,
            self._accumulators, biases[0 if len(biases) == 1 else self.quality], shift - MEAN_BITS, shift - SCALE_BITS,
            prior.base_index[self.quality], self.y, self._live, linear.weight, linear.bias, cell_rows, cell_columns,
            tables, offset,
        )  # fmt: skip
        return tables, offset
