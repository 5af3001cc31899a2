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
from histocodec.errors import FormatError
from histocodec.kernels.distributions import CODES, LAST_SCALE, TABLE_BITS
from histocodec.kernels.instructions import AMX, ready
from histocodec.kernels.layers import EXTRA_ROWS, SUMS_BYTES
from histocodec.kernels.pack import GROUP, Packer, aligned, padded
from histocodec.models.config import GROUPS, HyperConfig
from histocodec.models.prior.exact import out_of_range
from histocodec.models.prior.fast import FastChunk, FastPrior, Integers, Product
from histocodec.models.prior.graph import (
    ACTIVATION_BITS,
    HYPER_CLIP,
    LINEAR_BITS,
    MEAN_BITS,
    POSITIONS,
    SCALE_BITS,
    SCALES,
    layers,
)
from histocodec.models.prior.native_kernels import (
    CELLS,
    END,
    GAP,
    HYPER,
    POSITION_BYTES,
    SEEN_QUADS,
    STEP,
    forget,
    hyper,
    place,
    step,
)
from histocodec.models.prior.native_pricing import price_step
from histocodec.models.prior.native_reading import BAD_HYPER, BAD_LATENT, look_ups, read_chunk

FIELDS = 6  # of a layer: weight, bias, shift, quads of inputs, groups of outputs, bytes of one quality's bias
BLOCK = 32  # channels of a group whose heads are computed together
SEEN_BLOCK = 16  # quads of latents, a multiple of which the contexts multiply
LATENT_BYTES = 2  # of a latent, at most
MOST_KEPT = 64  # working memories of chunks that are done; each has some megabytes

assert LAST_SCALE == SCALES - 1


@dataclass(frozen=True, eq=False)
class Steps:
    """The layers of all steps, as `native_kernels.step` takes those of each: (4, 2, FIELDS), (4, 4, blocks, 7),
    (4, 2)."""

    layers: NDArray[np.int64]
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
        self.sizes = np.array([config.hyper_channels, self.inputs, self.width, self.context], np.int64)
        self._arrays, self._layers = arrays, {layer.name: layer for layer in layers(config)}
        self._packer = packer = Packer(self.instructions)
        h, n = np.arange(config.hyper_width), np.arange(config.context_width)
        unfolded = [[self._packed(name, slice(p, None, 4), h) for p in range(4)] for name in ("h_s.2", "h_s.4")]
        first = self._packed("h_s.0", columns=np.arange(config.hyper_channels), raised=True)
        between = [self._packed(name) for name in ("h_s.1", "h_s.3")]
        self.hyper_layers = np.array([first, between[0], *unfolded[0], between[1], *unfolded[1]], np.int64)
        fields: list[list[Any]] = [[], [], []]
        base = self._base_indices()
        for k in range(GROUPS):
            neighbours = self._packed(f"step{k}.neighbours") if k else [0] * FIELDS
            mix = self._packed(f"step{k}.mix", columns=np.concatenate([n, self.context + h]) if k else h)
            fields[0].append([neighbours, mix])
            fields[1].append(
                [[self._head(k, group, at, base) for at in range(0, self.slot, BLOCK)] for group in range(GROUPS)]
            )
            shift = self._shift(f"step{k}.heads", 0)
            fields[2].append([shift - MEAN_BITS, shift - SCALE_BITS])
        self.steps = Steps(*(np.array(each, np.int64) for each in fields))
        self.parameters = packer.finish()
        self.layout, self.places = lru_cache(maxsize=64)(self._layout), lru_cache(maxsize=64)(self._places)
        self.contexts = lru_cache(maxsize=16)(self._contexts)
        positive = 128 + self.compress[1:].astype(np.int64)
        self.lifted = np.concatenate([256 - positive[::-1], [128], positive]).astype(np.uint8)  # of -1023 … 1023
        self.memories: deque[NDArray[np.uint8]] = deque(maxlen=MOST_KEPT)

    def _inputs(self, columns: Any) -> int:
        """How many inputs a dense layer multiplies, of which those in `columns` have weights."""
        return padded(int(columns[-1]) + 1, GROUP if self.instructions == AMX else 4)

    def _shift(self, name: str, bits: int) -> int:
        layer = self._layers[name]
        return layer.bits + layer.input_bits - bits

    def _packed(self, name: str, part: slice = slice(None), columns: Any = None, *, raised: bool = False) -> list[int]:
        """A layer, or `part` of its outputs; a dense layer's inputs are put into `columns`, and are 128 too high where
        they are `raised`."""
        weight = self._arrays[f"prior.{name}.weight"][part]
        bias = self._arrays[f"prior.{name}.bias"][:, part].astype(np.int64)
        shift, size = self._shift(name, ACTIVATION_BITS), 4 * padded(len(weight))
        bias = bias + (1 << shift >> 1)
        depthwise, inputs = weight.ndim == 3, 0 if columns is None else self._inputs(columns)
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

    def _contexts(self, quads: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The context's layers where the latents of a step have so many bytes in each cell: parameters, and the layer
        of each step and position, (4, 4, FIELDS)."""
        packer = Packer(self.instructions)
        fields = [[self._context(packer, k, p, quads) if k else [0] * FIELDS for p in range(4)] for k in range(GROUPS)]
        return packer.finish(), np.array(fields, np.int64)

    def _context(self, packer: Packer, k: int, p: int, quads: int) -> list[int]:
        """The context's layer at position p, which has the groups that steps before k have coded there, in order."""
        weight = self._arrays[f"prior.step{k}.context.weight"]
        count = min(quads, self.config.latent_channels // GROUPS)
        full = np.zeros((len(weight), self._inputs([k * quads - 1])), np.int8)
        for earlier in range(k):
            full[:, earlier * quads : earlier * quads + count] = weight[:, p ^ earlier :: GROUPS][:, :count]
        shift, size = self._shift(f"step{k}.context", ACTIVATION_BITS), 4 * padded(len(weight))
        bias = self._arrays[f"prior.step{k}.context.bias"][0].astype(np.int64) + (1 << shift >> 1)
        bias = bias - 128 * full.astype(np.int64).sum(axis=1)
        where = packer.dense(full), packer.row(bias, np.int32)
        return [*where, shift, full.shape[1] // 4, size // 256, size]

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
        """Where the parts of a chunk's working memory begin, where the last one ends, and what else
        `native_kernels` says."""
        _, rows, columns = shape
        positions, room = rows * columns, padded(columns // 2, CELLS)
        seen_quads, quads = padded(extent[0], SEEN_BLOCK), padded(extent[0], BLOCK)
        cell_bytes = padded((GROUPS - 1) * seen_quads) + GAP
        cell_bytes += GAP * (cell_bytes % (4 * GAP) == 0)
        position_bytes = 2 * GROUPS * quads + GAP // 2
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
            (positions + EXTRA_ROWS) * cell_bytes,
            (rows + 2) * (columns + 2) * position_bytes,
            ((GROUPS - 1) * extent[0] + quads) * extent[1] * room * 4,
            4 * extent[1] * extent[2] + 4,
        ]
        assert len(sizes) == END
        layout = [0, *np.cumsum([padded(size) for size in sizes]), seen_quads, cell_bytes, quads, position_bytes]
        assert len(layout) == POSITION_BYTES + 1
        return _unchanging(np.array(layout, np.int64))

    def _places(self, shape: tuple[int, int, int], extent: tuple[int, int, int], bytes_out: int) -> NDArray[np.int32]:
        """The `places` of `native_reading.read_chunk`, where a position of the result has so many bytes."""
        _, cell_bytes, _, position_bytes = self.layout(shape, extent)[SEEN_QUADS:].tolist()
        row, column = (axis.ravel() for axis in np.mgrid[: extent[1], : extent[2]])
        places = [
            2 * (row * (shape[2] + 2) + column) * position_bytes,
            (row * (shape[2] // 2) + column) * cell_bytes,
            2 * (row * shape[2] + column) * bytes_out,
        ]
        return _unchanging(np.array(places, np.int32))

    def read(
        self, decoder: RansDecoder, z_codes: NDArray[np.int32], quality: int, extent: tuple[int, int, int],
        latents: NDArray[np.signedinteger],
    ) -> bool:  # fmt: skip
        """Reads the segments of a chunk whose z have these codes: the `latents` (h, w, c) int8 or int16, which are
        zeros so far. False where that type does not hold them. Raises FormatError where the stream is broken."""
        rows, columns, channels = latents.shape
        shape, size = (self.config.latent_channels, rows, columns), latents.itemsize
        layout, (data, cursors, states), t = self.layout(shape, extent), decoder.state, decoder.tables
        memory = self.memory(layout)
        status = read_chunk(
            self.instructions, quality, *extent, rows, columns, self.sizes, z_codes, data, cursors, states,
            look_ups(t), (t.mode, t.low, t.size, t.freq, t.cdf, t.coarse), self.lifted,
            self.places(shape, extent, size * channels), self.parameters, self.hyper_layers, self.steps.layers,
            *self.contexts(int(layout[SEEN_QUADS])), self.steps.heads, self.steps.shifts, memory, layout,
            latents.view(np.uint8), size,
        )  # fmt: skip
        self.memories.append(memory)
        if status == BAD_HYPER:
            raise FormatError(f"a latent chunk holds a z of {cursors[2]}; -{HYPER_CLIP} to {HYPER_CLIP} is allowed")
        if status == BAD_LATENT:
            if size < LATENT_BYTES:
                return False
            raise FormatError(f"a latent chunk holds a value beyond {latents.dtype}")
        decoder.check(status)
        return True

    def memory(self, layout: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Working memory for a chunk, of one that is done where there is one."""
        try:
            memory = self.memories.pop()
        except IndexError:
            return aligned(int(layout[END]))
        return memory if memory.size >= layout[END] else aligned(int(layout[END]))

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
        self._memory = prior.memory(self._layout)
        self._placed: list[tuple[int, Integers]] = []

    @property
    def latents(self) -> NDArray[np.int16]:
        """The latents placed so far, (C, h, w)."""
        y, (quads, rows, columns) = np.zeros(self.shape, np.int16), self.extent
        for k, values in self._placed:
            for p, part in enumerate(values.reshape(GROUPS, quads, rows, columns)):
                i, j = POSITIONS[p]
                y[p ^ k : GROUPS * quads : GROUPS, i : 2 * rows : 2, j : 2 * columns : 2] = part
        return y

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
        prior, (_, rows, columns), (quads, cell_rows, cell_columns) = self.prior, self.shape, self.extent
        steps, (of_contexts, contexts) = prior.steps, prior.contexts(int(self._layout[SEEN_QUADS]))
        step(
            prior.instructions, k, prior.parameters, steps.layers[k], of_contexts, contexts[k], steps.heads[k],
            steps.shifts[k], self.quality, rows, columns, prior.context, prior.context + prior.width, self._memory,
            self._layout, quads, cell_rows, cell_columns,
        )  # fmt: skip

    def place(self, k: int, values: Integers) -> None:
        """See `FastChunk.place`."""
        prior = self.prior
        if not place(values, k, *self.extent, *self.shape[1:], prior.lifted, self._memory, self._layout):
            raise out_of_range(values)
        self._placed.append((k, values))

    def price(
        self, latents: NDArray[np.int16], tables: TableSet, near: NDArray[np.float32], codes: Integers,
        bits: NDArray[np.float32], by_position: NDArray[np.float64],
    ) -> None:  # fmt: skip
        """What the latents (h, w, C) of a chunk cost after `begin`, which lie within its shape and extent: writes the
        code and the bits of each within the extent, (h, w, C), and the bits at each position, (h, w). It may be called
        again and again. `near` are the `near_bits` of the tables."""
        prior, (_, rows, columns) = self.prior, self.shape
        by_position[:] = 0
        forget(self._memory, self._layout)
        for k in range(GROUPS):
            self._prepare(k)
            price_step(
                latents, k, *self.extent, rows, columns, prior.lifted, self._memory, self._layout, near, tables.low,
                tables.size, tables.offset, tables.cost, codes, bits, by_position,
            )  # fmt: skip

    def done(self) -> None:
        """Gives the working memory to the next chunk. Nothing else may be called after it."""
        self.prior.memories.append(self._memory)


def _unchanging(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
