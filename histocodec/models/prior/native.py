"""The prior as a CPU runs it without torch: the integers of `IntegerPrior` by native kernels.

A chunk is decoded step by step without leaving them: what the entropy decoder gives is written where the next step's
layers look for it. Latents have their channels last in memory.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.entropy import RansDecoder
from histocodec.entropy.tables import TableSet
from histocodec.kernels.distributions import CODES, LAST_SCALE, TABLE_BITS
from histocodec.kernels.instructions import ready
from histocodec.kernels.layers import EXTRA_ROWS, SUMS_BYTES
from histocodec.kernels.pack import Packer, aligned, padded
from histocodec.models.config import GROUPS, HyperConfig
from histocodec.models.prior.exact import beyond, out_of_range
from histocodec.models.prior.fast import FastChunk, FastPrior, Integers, Product
from histocodec.models.prior.graph import (
    ACTIVATION_BITS,
    LINEAR_BITS,
    MEAN_BITS,
    SCALE_BITS,
    SCALES,
    layers,
)
from histocodec.models.prior.native_kernels import (
    CELLS,
    END,
    HYPER,
    LATENTS_GAP,
    SEEN_GAP,
    STEP,
    collect,
    hyper,
    place,
    step,
)
from histocodec.models.prior.native_pricing import price_step, start_again
from histocodec.models.prior.native_reading import BAD_LATENT, look_ups, read_step

FIELDS = 6  # of a layer: weight, bias, shift, quads of inputs, groups of outputs, bytes of one quality's bias
BLOCK = 32  # channels of a group whose heads are computed together
MOST_KEPT = 64  # working memories of chunks that are done; each has some megabytes

assert LAST_SCALE == SCALES - 1


@dataclass(frozen=True, eq=False)
class Step:
    """The layers of one step, as `native_kernels.step` takes them: (2, FIELDS), (4, FIELDS), (4, blocks, 7), (2,)."""

    layers: NDArray[np.int64]
    contexts: NDArray[np.int64]
    heads: NDArray[np.int64]
    shifts: NDArray[np.int64]


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
        self.instructions = ready(instructions)
        self.width, self.context = padded(config.hyper_width), padded(config.context_width)
        self.inputs, self.slot = padded(config.hyper_channels), padded(config.latent_channels // GROUPS)
        self._arrays, self._layers = arrays, {layer.name: layer for layer in layers(config)}
        self._packer = packer = Packer(self.instructions)
        h, n = np.arange(config.hyper_width), np.arange(config.context_width)
        unfolded = [
            [self._packed(name, slice(p, None, 4), h, self.width) for p in range(4)] for name in ("h_s.2", "h_s.4")
        ]
        first = self._packed("h_s.0", columns=np.arange(config.hyper_channels), inputs=self.inputs, raised=True)
        between = [self._packed(name) for name in ("h_s.1", "h_s.3")]
        self.hyper_layers = np.array([first, between[0], *unfolded[0], between[1], *unfolded[1]], np.int64)
        self.steps: list[Step] = []
        base = self._base_indices()
        for k in range(GROUPS):
            neighbours = self._packed(f"step{k}.neighbours") if k else [0] * FIELDS
            columns = np.concatenate([n, self.context + h]) if k else h
            mix = self._packed(f"step{k}.mix", columns=columns, inputs=self.width + (self.context if k else 0))
            contexts = [self._context(k, p) if k else [0] * FIELDS for p in range(GROUPS)]
            shift = self._shift(f"step{k}.heads", 0)
            shifts = [shift - MEAN_BITS, shift - SCALE_BITS]
            heads = [[self._head(k, group, at, base) for at in range(0, self.slot, BLOCK)] for group in range(GROUPS)]
            self.steps.append(Step(*(np.array(n, np.int64) for n in ([neighbours, mix], contexts, heads, shifts))))
        self.parameters = packer.finish()
        self.layout, self.places = lru_cache(maxsize=64)(self._layout), lru_cache(maxsize=64)(self._places)
        positive = 128 + self.compress[1:].astype(np.int64)
        self.lifted = np.concatenate([256 - positive[::-1], [128], positive]).astype(np.uint8)  # of -1023 … 1023
        self.memories: deque[NDArray[np.uint8]] = deque(maxlen=MOST_KEPT)

    def _shift(self, name: str, bits: int) -> int:
        layer = self._layers[name]
        return layer.bits + layer.input_bits - bits

    def _packed(
        self, name: str, part: slice = slice(None), columns: Any = None, inputs: int = 0, *, raised: bool = False
    ) -> list[int]:
        """A layer, or `part` of its outputs; a dense layer's inputs are put into `columns`, and are 128 too high where
        they are `raised`."""
        weight = self._arrays[f"prior.{name}.weight"][part]
        bias = self._arrays[f"prior.{name}.bias"][:, part].astype(np.int64)
        shift, size = self._shift(name, ACTIVATION_BITS), 4 * padded(len(weight))
        bias = bias + (1 << shift >> 1)
        depthwise = weight.ndim == 3
        if raised:
            bias = bias - 128 * weight.astype(np.int64).sum(axis=1)
        if depthwise:
            where = self._packer.depthwise(weight)
        else:
            full = np.zeros((len(weight), inputs), np.int8)
            full[:, columns] = weight
            where = self._packer.dense(full)
        first, *_ = [self._packer.row(row, np.int32, interleaved=depthwise) for row in bias]
        return [where, first, shift, inputs // 4, size // 256, size]

    def _context(self, k: int, p: int) -> list[int]:
        """The context's layer at position p, which has the groups that steps before k have coded there, in order."""
        groups = [p ^ earlier for earlier in range(k)]
        weight = self._arrays[f"prior.step{k}.context.weight"]
        columns = np.concatenate([np.arange(group, self.config.latent_channels, GROUPS) for group in groups])
        places = np.concatenate([n * self.slot + np.arange(len(columns) // k) for n in range(k)])
        full = np.zeros((len(weight), k * self.slot), np.int8)
        full[:, places] = weight[:, columns]
        shift, size = self._shift(f"step{k}.context", ACTIVATION_BITS), 4 * padded(len(weight))
        bias = self._arrays[f"prior.step{k}.context.bias"][0].astype(np.int64) + (1 << shift >> 1)
        bias = bias - 128 * full.astype(np.int64).sum(axis=1)
        where = self._packer.dense(full), self._packer.row(bias, np.int32)
        return [*where, shift, k * self.slot // 4, size // 256, size]

    def _head(self, k: int, group: int, first: int, base: tuple[int, int]) -> list[int]:
        """The heads of BLOCK channels of a group, means before deviations, and their linear predictor."""
        name, channels = f"step{k}.heads", self.config.latent_channels
        quads = slice(first, min(first + BLOCK, channels // GROUPS))
        count = max(0, quads.stop - quads.start)
        weight = self._arrays[f"prior.{name}.weight"].reshape(GROUPS, 2, channels // GROUPS, -1)[group, :, quads]
        bias = self._arrays[f"prior.{name}.bias"].astype(np.int64).reshape(GROUPS, 2, -1)[group, :, quads]
        full, biases = np.zeros((2, BLOCK, self.context), np.int8), np.zeros((2, BLOCK), np.int64)
        full[:, :count, : self.config.context_width], biases[:, :count] = weight, bias
        for n, bits in enumerate((MEAN_BITS, SCALE_BITS)):
            biases[n, :count] += 1 << self._shift(name, bits) >> 1
        taps, offset = np.zeros((9, BLOCK), np.int16), np.zeros(BLOCK, np.int32)
        if k:
            of_group = slice(GROUPS * first + group, GROUPS * quads.stop, GROUPS)
            taps[:, :count] = self._arrays[f"prior.step{k}.predict.weight"][of_group].reshape(count, 9).T
            offset[:count] = self._arrays[f"prior.step{k}.predict.bias"][0, of_group]
            offset[:count] += 1 << (LINEAR_BITS - MEAN_BITS) >> 1
        return [
            self._packer.dense(full.reshape(2 * BLOCK, -1)),
            self._packer.row(biases.reshape(-1), np.int32),
            self.context // 4,
            self._packer.row(taps.reshape(-1), np.int16),
            self._packer.row(offset, np.int32),
            base[0] + 4 * (group * self.slot + first),
            base[1],
        ]

    def _base_indices(self) -> tuple[int, int]:
        """Where the base indices (Q, 4 groups, quads) begin, and how many bytes a quality has."""
        by_group = np.zeros((len(self.base_index), GROUPS, self.slot), np.int32)
        sorted_indices = self.base_index.reshape(len(self.base_index), -1, GROUPS).swapaxes(1, 2)
        by_group[:, :, : sorted_indices.shape[2]] = sorted_indices
        return self._packer.row(by_group.reshape(-1), np.int32), by_group[0].nbytes

    def _layout(self, shape: tuple[int, int, int], extent: tuple[int, int, int]) -> NDArray[np.int64]:
        """Where the parts of a chunk's working memory begin, and where the last one ends."""
        _, rows, columns = shape
        positions, side, room = rows * columns, GROUPS * self.slot, padded(columns // 2, CELLS)
        quads = padded(extent[0], BLOCK)
        sizes = [
            SUMS_BYTES,
            CELLS * CODES,
            CELLS * CODES,
            (positions + EXTRA_ROWS) * (self.context + self.width),
            (rows + 2) * (columns + 2) * self.context,
            (positions + 2 * EXTRA_ROWS) * self.context,
            (positions // 16 + EXTRA_ROWS) * self.inputs,
            (rows // 4 + 2) * (columns // 4 + 2) * self.width,
            (positions // 16 + EXTRA_ROWS) * self.width,
            (rows // 2 + 2) * (columns // 2 + 2) * self.width,
            (positions // 4 + EXTRA_ROWS) * self.width,
            (positions + EXTRA_ROWS) * (side + SEEN_GAP),
            (rows + 2) * (columns + 2) * (2 * side + LATENTS_GAP),
            ((GROUPS - 1) * extent[0] + quads) * extent[1] * room * 4,
            4 * extent[1] * extent[2] + 4,
        ]
        assert len(sizes) == END
        layout = np.concatenate([[0], np.cumsum([padded(size) for size in sizes])]).astype(np.int64)
        layout.setflags(write=False)
        return layout

    def _places(self, shape: tuple[int, int, int], extent: tuple[int, int, int]) -> NDArray[np.int32]:
        """Where the latents of each cell lie among LATENTS and SEEN, in bytes from those of the first: (2, cells)."""
        row, column = (axis.ravel() for axis in np.mgrid[: extent[1], : extent[2]])
        latents = 2 * (row * (shape[2] + 2) + column) * (2 * GROUPS * self.slot + LATENTS_GAP)
        places = np.stack([latents, (row * (shape[2] // 2) + column) * (GROUPS * self.slot + SEEN_GAP)])
        places = places.astype(np.int32)
        places.setflags(write=False)
        return places

    def chunk(self, quality: int, shape: tuple[int, int, int], extent: tuple[int, int, int]) -> "NativeChunk":
        """See `FastPrior.chunk`."""
        return NativeChunk(self, quality, shape, extent)


class NativeChunk(FastChunk):
    """`FastChunk` by the kernels of `NativePrior`."""

    prior: NativePrior

    def __init__(
        self, prior: NativePrior, quality: int, shape: tuple[int, int, int], extent: tuple[int, int, int]
    ) -> None:
        self.prior, self.quality, self.shape, self.extent = prior, quality, shape, extent
        self._layout = prior.layout(shape, extent)
        try:  # of a chunk that is done
            self._memory = prior.memories.pop()
        except IndexError:
            self._memory = np.empty(0, np.uint8)
        if self._memory.size < self._layout[-1]:
            self._memory = aligned(int(self._layout[-1]))

    @property
    def latents(self) -> NDArray[np.int16]:
        """The latents placed so far, (C, h, w), channels last in memory."""
        return self._collected(np.dtype(np.int16))[0]

    def _collected(self, dtype: "np.dtype[np.signedinteger]") -> tuple[NDArray[Any], bool]:
        """`latents` in another type, and whether that holds them."""
        channels, rows, columns = self.shape
        y = np.zeros((rows, columns, channels), dtype)
        fit = collect(self._memory, self._layout, self.prior.slot, self.extent[0], y)
        return y.transpose(2, 0, 1), bool(fit)

    def begin(self, z: NDArray[np.int64]) -> None:
        """See `FastChunk.begin`."""
        prior, (_, rows, columns) = self.prior, self.shape
        seen = self._memory[self._layout[HYPER] : self._layout[HYPER + 1]].reshape(-1, prior.inputs)
        seen[: rows * columns // 16, : len(z)] = z.reshape(len(z), -1).T + 128
        hyper(
            prior.instructions, prior.parameters, prior.hyper_layers, self.quality, rows, columns, prior.width,
            prior.inputs, self._memory, self._layout, prior.context + prior.width, prior.context,
        )  # fmt: skip

    def parameters(self, k: int) -> tuple[NDArray[np.uint16], Integers]:
        """See `FastChunk.parameters`."""
        self._prepare(k)
        first, count = int(self._layout[STEP]), 4 * GROUPS * self.extent[0] * self.extent[1] * self.extent[2]
        codes = self._memory[first : first + count].view(np.int32)
        return (codes & (1 << TABLE_BITS) - 1).astype(np.uint16), codes >> TABLE_BITS

    def _prepare(self, k: int) -> None:
        """The codes of what step k codes, in the working memory."""
        prior, (_, rows, columns) = self.prior, self.shape
        of_step, (quads, cell_rows, cell_columns) = prior.steps[k], self.extent
        step(
            prior.instructions, k, prior.parameters, of_step.layers, of_step.contexts, of_step.heads, of_step.shifts,
            self.quality, rows, columns, prior.context, prior.context + prior.width, prior.slot, self._memory,
            self._layout, quads, cell_rows, cell_columns,
        )  # fmt: skip

    def place(self, k: int, values: Integers) -> None:
        """See `FastChunk.place`."""
        prior, size = self.prior, self.shape[1:]
        if not place(values, k, *self.extent, *size, prior.slot, prior.compress, self._memory, self._layout):
            raise out_of_range(values)

    def price(
        self, latents: NDArray[np.int16], tables: TableSet, near: NDArray[np.float32], codes: Integers,
        bits: NDArray[np.float32], by_position: NDArray[np.float64],
    ) -> None:  # fmt: skip
        """What the latents (h, w, C) of a chunk cost after `begin`, which lie within its shape and extent: writes the
        code and the bits of each within the extent, (h, w, C), and the bits at each position, (h, w). It may be called
        again and again. `near` are the `near_bits` of the tables."""
        prior, (_, rows, columns) = self.prior, self.shape
        by_position[:] = 0
        start_again(self._memory, self._layout)
        for k in range(GROUPS):
            self._prepare(k)
            price_step(
                latents, k, *self.extent, rows, columns, prior.slot, prior.compress, self._memory, self._layout,
                near, tables.low, tables.size, tables.offset, tables.cost, codes, bits, by_position,
            )  # fmt: skip

    def done(self) -> None:
        """Gives the working memory to the next chunk. Nothing else may be called after it."""
        self.prior.memories.append(self._memory)

    def read(self, decoder: RansDecoder, dtype: "np.dtype[np.signedinteger]") -> NDArray[np.signedinteger]:
        """Decodes all steps after `begin`: the latents (C, h, w). Raises FormatError where the stream is broken, or
        `dtype` does not hold a latent."""
        prior, (_, rows, columns) = self.prior, self.shape
        tables, (data, cursors, states) = decoder.tables, decoder.state
        looked_up, places = look_ups(tables), prior.places(self.shape, self.extent)
        for k in range(GROUPS):
            self._prepare(k)
            status = read_step(
                k, *self.extent, rows, columns, prior.slot, data, cursors, states, looked_up, tables.mode,
                tables.low, tables.size, tables.freq, tables.cdf, tables.coarse, prior.lifted, places, self._memory,
                self._layout,
            )  # fmt: skip
            if status == BAD_LATENT:
                raise out_of_range(cursors[2:].astype(np.int32))
            decoder.check(status)
        latents, fit = self._collected(dtype)
        if not fit:
            raise beyond(self.latents, dtype)
        self.done()
        return latents
