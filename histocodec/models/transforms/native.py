"""The integer synthesis `g_s` by native kernels, without torch: latents to pixels, bit for bit those of the oracle
(`histocodec.models.transforms.exact`).

A window goes through all layers row by row: as soon as a row of latents has entered, each layer computes the row that
it can, so that what one layer leaves is still in the cache when the next takes it. Nothing is computed twice. Streams
are float32, which holds them exactly; of each, and of the activations before a 3×3 layer, a few rows are kept.

    row r of the latents ──▶ blocks16 ──▶ up ──▶ rows 2r, 2r + 1 ──▶ blocks8 ──▶ tail ──▶ 16 rows of pixels
                             a 3×3 layer is one row behind, since it needs the row below
"""

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from histocodec.geometry import Margin
from histocodec.kernels.instructions import ready
from histocodec.kernels.layers import EXTRA_ROWS, SUMS_BYTES
from histocodec.kernels.pack import Packer, aligned, padded
from histocodec.models.config import HyperConfig
from histocodec.models.transforms.integer import PARTS, Arrays, factors, synthesis_layers
from histocodec.models.transforms.native_kernels import (
    BLOCK_FIELDS,
    RANGE_FIELDS,
    WIDE_FIELDS,
    synthesise,
)

Span = tuple[int, int, int, int]  # rows from … to, columns from … to


class NativeSynthesis:
    """The integer `g_s` of one model on this processor. Thread-safe. `instructions` is a number in
    `kernels.instructions.NAMES`, by default that of the fastest here."""

    def __init__(self, config: HyperConfig, arrays: Arrays, *, instructions: int | None = None) -> None:
        self.config = config
        self.instructions = ready(instructions)
        packer = Packer(self.instructions)
        self.scale = packer.row(arrays["g_s.scale"], np.float32)
        layers = {layer.name: layer for layer in synthesis_layers(config)}

        def parameters(name: str, columns: NDArray[np.intp] | None = None, inputs: int = 0) -> list[int]:
            """Addresses of a layer's weight, bias and factor; a dense layer's inputs are put into `columns`."""
            weight, bias, shift = (arrays[f"g_s.{name}.{part}"] for part in PARTS)
            if layers[name].kind == "depthwise":
                rows = (bias, np.int32), (factors(shift), np.float32)
                return [packer.depthwise(weight), *(packer.row(*row, interleaved=True) for row in rows)]
            sums = weight.astype(np.int64).sum(axis=1)
            raised = bias - 128 * sums if layers[name].sees_stream else bias
            full = np.zeros((len(weight), inputs or padded(weight.shape[1])), np.int8)
            full[:, np.arange(weight.shape[1]) if columns is None else columns] = weight
            return [packer.dense(full), packer.row(raised, np.int32), packer.row(factors(shift), np.float32)]

        def block(name: str, spatial: bool, channels: int, hidden: int) -> list[int]:
            between = parameters(f"{name}.depthwise") if spatial else [0, 0, 0]
            ends = parameters(f"{name}.expand"), parameters(f"{name}.project")
            return [int(spatial), padded(channels), padded(hidden), *ends[0], *between, *ends[1]]

        def wide(name: str, channels: int) -> list[int]:
            fine = arrays[f"g_s.{name}.fine"].astype(np.int64)
            first, room = padded(channels), padded(len(fine), 16)
            inputs = padded(first + 2 * room)
            columns = np.concatenate(
                [np.arange(channels), first + np.arange(len(fine)), first + room + np.arange(len(fine))]
            )
            coarse = factors(arrays[f"g_s.{name}.coarse"])
            weight = arrays[f"g_s.{name}.weight"]
            return [
                *parameters(name, columns, inputs),
                packer.row(coarse, np.float32),
                packer.row(fine, np.int32),
                packer.row(coarse[fine], np.float32),
                len(fine), room, inputs, first,
                packer.row(1024 * weight.astype(np.int64).sum(axis=1), np.int32),
            ]  # fmt: skip

        channels, hidden, width = config.latent_channels, config.hidden16 or config.latent_channels, config.width8
        self.blocks = np.array(
            [block(f"blocks16.{i}", s, channels, hidden) for i, s in enumerate(config.synthesis16)]
            + [block(f"blocks8.{i}", s, width, width) for i, s in enumerate(config.synthesis8)],
            np.int64,
        ).reshape(-1, BLOCK_FIELDS)
        self.wide = np.array([wide("up", channels), wide("tail", width)], np.int64)
        assert self.wide.shape[1] == WIDE_FIELDS
        self.zeros = packer.row(np.zeros(64), np.int32)
        self.parameters = packer.finish()
        self._plans = lru_cache(maxsize=64)(self._plan)
        self._own = threading.local()  # each thread's working memory

    def pixels(
        self, latents: NDArray[np.float32], margin: Margin, mean: NDArray[np.float32], std: NDArray[np.float32]
    ) -> NDArray[np.uint8]:
        """A window of latents (C, h', w') float32, gains undone → the pixels (16h, 16w, 3) uint8 without the margin,
        which is in latents. `mean` and `std` (3,) denormalise them. Fastest where channels come last in memory."""
        return self.images(latents, margin, mean, std, 8 * self._plans(*latents.shape[1:], margin).columns)[0]

    def images(
        self, latents: NDArray[np.float32], margin: Margin, mean: NDArray[np.float32], std: NDArray[np.float32],
        width: int,
    ) -> list[NDArray[np.uint8]]:  # fmt: skip
        """`pixels`, as images side by side, `width` wide, a multiple of 8, but for the last, which has the rest."""
        rows, columns = latents.shape[1:]
        plan = self._plans(rows, columns, margin)
        across, shape = width // 8, (8 * plan.rows, 8 * plan.columns)
        widths = [min(width, shape[1] - first) for first in range(0, shape[1], width)]
        images = [np.empty((shape[0], each, 3), np.uint8) for each in widths]
        outs = np.array([image.ctypes.data for image in images], np.int64)
        synthesise(
            self.instructions, self._channels_last(latents), self.scale,
            self.parameters, self.zeros, self.blocks, len(self.config.synthesis16), self.wide, plan.ranges,
            plan.memory, self._scratch(plan.bytes), np.ascontiguousarray(mean, np.float32),
            np.ascontiguousarray(std, np.float32), outs, across,
        )  # fmt: skip
        return images

    def _channels_last(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents (h', w', C), with zeros up to whole groups of channels."""
        channels, rows, columns = latents.shape
        if channels == padded(channels):
            return np.ascontiguousarray(latents.transpose(1, 2, 0), np.float32)
        full = np.zeros((rows, columns, padded(channels)), np.float32)
        full[:, :, :channels] = latents.transpose(1, 2, 0)
        return full

    def _scratch(self, size: int) -> NDArray[np.uint8]:
        """At least `size` bytes that this thread may write to."""
        memory: NDArray[np.uint8] | None = getattr(self._own, "memory", None)
        if memory is None or memory.size < size:
            memory = self._own.memory = aligned(size)
        return memory

    def _plan(self, rows: int, columns: int, margin: Margin) -> "Plan":
        """Which rows and columns each block computes of a window, and where in the working memory it finds them."""
        config = self.config
        spans16, margin, last16 = spans(
            (0, rows, 0, columns), margin, config.synthesis16, -(-sum(config.synthesis8) // 2)
        )
        doubled = (2 * last16[0], 2 * last16[1], 2 * last16[2], 2 * last16[3])
        spans8, _, last8 = spans(doubled, margin.scaled(2), config.synthesis8, 0)
        channels, width = padded(config.latent_channels), padded(config.width8)
        deepest = max(padded(config.hidden16 or config.latent_channels), width)
        most = max(columns, 2 * columns) + 2 + EXTRA_ROWS
        memory, used = [], 0

        def take(size: int) -> None:
            nonlocal used
            memory.append(used)
            used += padded(size, 64)

        kept16, kept8 = sum(config.synthesis16) + 1, sum(config.synthesis8) + 2
        take(most * deepest)  # zeros: the row beyond an edge
        take(kept16 * (columns + EXTRA_ROWS) * channels * 4)  # the stream at 1/16
        take(kept8 * (2 * columns + EXTRA_ROWS) * width * 4)  # the stream at 1/8
        for _ in range(3):  # bytes of a row, as a layer sees them, and what wide layers see beyond them
            take(most * int(max(self.wide[:, 8].max(), deepest, width)))
        take(most * deepest)  # activations of a row
        take(SUMS_BYTES)  # sums of products, and before them what configures tiles
        ranges = np.zeros((len(self.blocks) + 1, RANGE_FIELDS), np.int64)
        for n, ((before, after), hidden) in enumerate(zip([*spans16, *spans8], self.blocks[:, 2], strict=True)):
            ranges[n] = *before, *after, used
            used += padded(4 * (before[3] - before[2] + 2 + EXTRA_ROWS) * int(hidden), 64)
        ranges[-1] = *last16, *last8, 0
        header = np.array([*memory, kept16, kept8, used], np.int64)
        return Plan(last8[1] - last8[0], last8[3] - last8[2], ranges, header, used)


@dataclass(frozen=True, eq=False)
class Plan:
    """How a window of one shape and margin is computed: the unshuffled pixels' rows and columns, the spans of each
    block, and the working memory."""

    rows: int
    columns: int
    ranges: NDArray[np.int64]
    memory: NDArray[np.int64]
    bytes: int


def spans(
    span: Span, margin: Margin, blocks: tuple[bool, ...], beyond: int
) -> tuple[list[tuple[Span, Span]], Margin, Span]:
    """What each block takes and gives, as `IntegerSynthesis` trims it, and what is left after the last."""
    spans = []
    for i in range(len(blocks)):
        needed = sum(blocks[i + 1 :]) + beyond
        top, left, bottom, right = margin.beyond(needed)
        after = (span[0] + top, span[1] - bottom, span[2] + left, span[3] - right)
        spans.append((span, after))
        span, margin = after, margin.within(needed)
    return spans, margin, span
