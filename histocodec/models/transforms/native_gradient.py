"""The error of the integer synthesis and its derivative by native kernels: what the encoder's latent search runs on a
CPU.

Forwards it is `histocodec.models.transforms.native`, bit for bit, but that all activations are kept. Back, derivatives
are bytes wherever a layer takes them, as activations are forwards, with a unit for each channel. So they are rounded;
the search only asks of them which of its moves pay. A decoder knows nothing of it.

    pixels ──▶ tailᵀ ──▶ blocks8 backwards ──▶ upᵀ ──▶ blocks16 backwards ──▶ the chunk's latents
                         each: projectᵀ, where the second activation is not 0; 3×3ᵀ, where the first is not 0; expandᵀ
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from histocodec.geometry import Margin
from histocodec.kernels.jit import jit
from histocodec.kernels.layers import EXTRA_ROWS, SUMS_BYTES
from histocodec.kernels.pack import Packer, aligned, padded
from histocodec.models.config import HyperConfig
from histocodec.models.transforms.integer import Arrays, float_parameters
from histocodec.models.transforms.native import NativeSynthesis, Span, spans
from histocodec.models.transforms.native_gradient_kernels import (
    BACK_BLOCK_FIELDS,
    BACK_FIELDS,
    BORDER,
    KEPT_FIELDS,
    pull_back,
    record,
)
from histocodec.slide import Pixels

REACH = 14.0  # root mean squares of a channel's derivatives that a byte holds: more are limited, which is rare
NO_PIXEL = -1  # in a target: beyond the level's edge

Floats = NDArray[np.float32]


class NativeGradient:
    """Errors and derivatives of one model's integer `g_s`. Thread-safe.

    `sizes` are root mean squares of derivatives, (channels,) each, by the names that `Pullback` gives them; they decide
    about the units of the bytes. `inverse_gain` is that of the quality, (C,).
    """

    def __init__(
        self,
        synthesis: NativeSynthesis,
        config: HyperConfig,
        arrays: Arrays,
        inverse_gain: Floats,
        sizes: Mapping[str, Floats],
    ) -> None:
        self.config, self.synthesis, self.sizes = config, synthesis, sizes
        room = padded(config.latent_channels) - config.latent_channels
        self._inverse_gain = np.pad(np.asarray(inverse_gain, np.float32), (0, room))
        weights, packer = float_parameters(config, arrays), Packer(synthesis.instructions)
        units = {name: _unit(size) for name, size in sizes.items()}

        def dense(weight: Floats, seen: Floats, given: Floats | None) -> list[int]:
            """Weight, bias and factor of a layer with `weight` (outputs, inputs) float32, whose inputs have the units
            `seen`, and whose outputs those of `given`, in bytes, or 1."""
            integers, step = _rounded(weight / seen)
            integers = np.pad(integers, ((0, 0), (0, padded(weight.shape[1]) - weight.shape[1])))
            return _scaled(packer, packer.dense(integers), integers.astype(np.int64).sum(axis=1), step, given)

        def depthwise(weight: Floats, seen: Floats, given: Floats) -> list[int]:
            integers, step = _rounded(weight / seen[:, None, None])
            sums = integers.astype(np.int64).sum(axis=(1, 2))
            return _scaled(packer, packer.depthwise(integers), sums, step, given, interleaved=True)

        def block(name: str, *, spatial: bool) -> list[int]:
            project, expand = (weights[f"{name}.{part}.weight"][:, :, 0, 0].T for part in ("project", "expand"))
            seen, first = units[f"{name}.seen"], units[f"{name}.expand"]
            second = units[f"{name}.depthwise"] if spatial else first
            parameters = [packer.row(seen, np.float32), *dense(project, seen, second)]
            turned = weights[f"{name}.depthwise.weight"][:, 0, ::-1, ::-1] if spatial else None
            parameters += [0, 0, 0] if turned is None else depthwise(turned, second, first)
            return [*parameters, *dense(expand, first, None)]

        names = [f"blocks16.{i}" for i in range(len(config.synthesis16))]
        names += [f"blocks8.{i}" for i in range(len(config.synthesis8))]
        spatial = [*config.synthesis16, *config.synthesis8]
        self._back = np.array(
            [block(name, spatial=is_spatial) for name, is_spatial in zip(names, spatial, strict=True)], np.int64
        ).reshape(-1, BACK_BLOCK_FIELDS)
        ends = dense(weights["tail.weight"][:, :, 0, 0].T, units["tail"], None)
        ends += [packer.row(units["up"], np.float32)]
        for row, column in np.ndindex(2, 2):
            ends += dense(weights["up.weight"][:, :, row, column], units["up"], None)
        self._ends = np.array(ends, np.int64)
        self._slope_unit = units["tail"]
        self._parameters = packer.finish()
        self._plans = lru_cache(maxsize=64)(self._plan)
        self._own = threading.local()

    def __call__(
        self,
        latents: NDArray[np.signedinteger],
        margin: Margin,
        target: NDArray[np.int16],
        mean: Floats,
        std: Floats,
        *,
        gradient: bool = True,
    ) -> tuple[NDArray[np.float64], Floats | None]:
        """The squared error of a window's latents (C, h', w') at each position (h, w) of its chunk, in grey values
        squared, and the derivative of their sum in each of the chunk's latents (C, h, w), or None without `gradient`.
        Fastest where the latents are int16 with channels last in memory; so are the derivatives.

        `target` is what `unshuffled_target` makes of the chunk's pixels. What is decoded is neither rounded nor
        clipped. `margin` is the window's, in latents.
        """
        forward, config = self.synthesis, self.config
        channels, rows, columns = latents.shape
        plan = self._plans(rows, columns, margin)
        assert target.shape == (2 * plan.chunk[0], 2 * plan.chunk[1], 192), "pixels that are not the window's"
        memory = self._scratch(plan.bytes)
        error = np.zeros(plan.chunk, np.float64)
        slopes = np.empty((2 * plan.chunk[0], 2 * plan.chunk[1], 192) if gradient else (0, 0, 192), np.uint8)
        record(
            forward.instructions, _channels_last(latents), self._inverse_gain, forward.scale, forward.parameters,
            forward.zeros, forward.blocks, len(config.synthesis16), forward.wide, plan.kept, plan.layout, memory, mean,
            std, target, self._slope_unit, slopes, error,
        )  # fmt: skip
        if not gradient:
            return error, None
        out = np.empty((*plan.chunk, padded(channels)), np.float32)
        pull_back(
            forward.instructions, slopes, self._inverse_gain, self._parameters, forward.blocks, len(config.synthesis16),
            self._back, self._ends, plan.kept, plan.spans, plan.back_layout, memory, columns, out,
        )  # fmt: skip
        return error, out[:, :, :channels].transpose(2, 0, 1)

    def _scratch(self, size: int) -> NDArray[np.uint8]:
        memory: NDArray[np.uint8] | None = getattr(self._own, "memory", None)
        if memory is None or memory.size < size:
            memory = self._own.memory = aligned(size)
        return memory

    def _plan(self, rows: int, columns: int, margin: Margin) -> "GradientPlan":
        """Which rows and columns each block takes and gives, both ways, and where everything is in memory."""
        config, blocks, wide = self.config, self.synthesis.blocks, self.synthesis.wide
        spans16, after16, last16 = spans(
            (0, rows, 0, columns), margin, config.synthesis16, -(-sum(config.synthesis8) // 2)
        )
        doubled = (2 * last16[0], 2 * last16[1], 2 * last16[2], 2 * last16[3])
        spans8, _, last8 = spans(doubled, after16.scaled(2), config.synthesis8, 0)
        channels, width = padded(config.latent_channels), padded(config.width8)
        deepest = max(int(blocks[:, 2].max(initial=0)), channels, width)
        most = 2 * columns + 2 * BORDER + EXTRA_ROWS
        used = 0

        def take(size: int) -> int:
            nonlocal used
            first, used = used, used + padded(size, 64)
            return first

        kept16, kept8 = sum(config.synthesis16) + 1, sum(config.synthesis8) + 2
        seen = most * int(max(wide[:, 8].max(), deepest))
        zeros = take(most * deepest)
        streams = [
            take(kept16 * (columns + EXTRA_ROWS) * channels * 4),
            take(kept8 * (2 * columns + EXTRA_ROWS) * width * 4),
        ]
        shared = [take(seen), take(seen), take(seen), take(4 * most * 192), take(SUMS_BYTES)]
        kept = np.zeros((len(blocks) + 1, KEPT_FIELDS), np.int64)
        for n, ((before, after), hidden) in enumerate(zip([*spans16, *spans8], blocks[:, 2].tolist(), strict=True)):
            first_row = (before[3] - before[2] + 2 + EXTRA_ROWS) * hidden
            second_row = (after[3] - after[2] + EXTRA_ROWS) * hidden
            first = take((before[1] - before[0]) * first_row)
            second = take((after[1] - after[0]) * second_row)
            kept[n] = *before, *after, first, first_row, second, second_row
        kept[-1] = *last16, *last8, 0, 0, 0, 0
        layout = np.array([zeros, *streams, *shared, kept16, kept8], np.int64)
        chunk = (margin.top, rows - margin.bottom, margin.left, columns - margin.right)
        found = np.zeros((len(blocks) + 1, BACK_FIELDS), np.int64)
        spatial, give, count16 = [*config.synthesis16, *config.synthesis8], last8, len(config.synthesis16)
        up = last16
        for n in reversed(range(len(blocks))):
            at8 = n >= count16
            if n == count16 - 1:
                give = up = _halved(give)
            whole = (0, 2 * rows, 0, 2 * columns) if at8 else (0, rows, 0, columns)
            needed = whole if at8 else _grown(chunk, sum(spatial[:n]), whole)
            takes, give = give, _grown(give, int(spatial[n]), needed)
            takes = _within(takes, _grown(give, int(spatial[n]), whole))
            ring = take(4 * (takes[3] - takes[2] + 2 * BORDER + EXTRA_ROWS) * int(blocks[n, 2]))
            found[n] = *takes, *give, ring
        if not count16:
            up = _halved(give)
        found[-1] = *up, *chunk, 0
        middle = take(most * deepest)
        back_layout = np.array(
            [
                middle, take(kept16 * (columns + EXTRA_ROWS) * channels * 4),
                take(kept8 * (2 * columns + EXTRA_ROWS) * width * 4), *shared[:1], shared[1], shared[4],
                kept16, kept8, channels, width,
            ],
            np.int64,
        )  # fmt: skip
        return GradientPlan((chunk[1] - chunk[0], chunk[3] - chunk[2]), kept, found, layout, back_layout, used)


@dataclass(frozen=True, eq=False)
class GradientPlan:
    """How a window of one shape and margin is computed: the chunk's rows and columns in latents, the spans of each
    block on the way forwards and back, and the working memory."""

    chunk: tuple[int, int]
    kept: NDArray[np.int64]
    spans: NDArray[np.int64]
    layout: NDArray[np.int64]
    back_layout: NDArray[np.int64]
    bytes: int


def unshuffled_target(pixels: Pixels, stride: int) -> NDArray[np.int16]:
    """Pixels (H, W, 3) uint8 as a target: unshuffled, (h, w, 192) int16, and NO_PIXEL where whole squares of `stride`
    pixels reach beyond them."""
    rows, columns = (-(-side // stride) * stride // 8 for side in pixels.shape[:2])
    out = np.empty((rows, columns, 192), np.int16)
    _fill_target(pixels, out)
    return out


@jit
def _fill_target(pixels: Pixels, out: NDArray[np.int16]) -> None:
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            for i in range(8):
                for j in range(8):
                    y, x = 8 * row + i, 8 * column + j
                    inside = y < pixels.shape[0] and x < pixels.shape[1]
                    for colour in range(3):
                        out[row, column, 64 * colour + 8 * i + j] = pixels[y, x, colour] if inside else NO_PIXEL


def _channels_last(latents: NDArray[np.signedinteger]) -> NDArray[np.int16]:
    """Latents (h, w, C), with zeros up to whole groups of channels."""
    channels, rows, columns = latents.shape
    if channels == padded(channels):
        return np.ascontiguousarray(latents.transpose(1, 2, 0), np.int16)
    full = np.zeros((rows, columns, padded(channels)), np.int16)
    full[:, :, :channels] = latents.transpose(1, 2, 0)
    return full


def _unit(size: Floats) -> Floats:
    """The units of bytes (channels,) for derivatives of these root mean squares."""
    least = max(float(size.max(initial=0)) * 1e-4, 1e-30)  # of channels that are dead on the example
    return np.asarray(127 / (REACH * np.maximum(size, least)), np.float32)


def _rounded(weight: Floats) -> tuple[NDArray[np.int8], NDArray[np.floating]]:
    """Weights (outputs, …) as integers, and the step of each output."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    step = np.where(largest > 0, largest, 1) / 127
    return np.rint(weight / step.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8), step


def _scaled(
    packer: Packer, weight: int, sums: NDArray[np.int64], step: NDArray[np.floating], given: Floats | None,
    *, interleaved: bool = False,
) -> list[int]:  # fmt: skip
    """Weight, bias and factor of a layer whose inputs are 128 too high. Where its outputs are bytes, they are, too."""
    factor = step if given is None else step * given
    raised = np.zeros(len(sums)) if given is None else np.minimum(np.rint(128 / factor), 2**30)
    rows = (raised - 128 * sums, np.int32), (factor, np.float32)
    return [weight, *(packer.row(*row, interleaved=interleaved) for row in rows)]


def _grown(span: Span, by: int, limits: Span) -> Span:
    """A span that is larger by so much on each side, within `limits`."""
    return _within((span[0] - by, span[1] + by, span[2] - by, span[3] + by), limits)


def _within(span: Span, limits: Span) -> Span:
    return (
        max(span[0], limits[0]), min(span[1], limits[1]), max(span[2], limits[2]), min(span[3], limits[3])
    )  # fmt: skip


def _halved(span: Span) -> Span:
    """The rows and columns at 1/16 of which some part is in a span at 1/8."""
    return span[0] // 2, -(-span[1] // 2), span[2] // 2, -(-span[3] // 2)
