"""The analysis `g_a` by native kernels: pixels to y, without torch.

The residual blocks are those of `histocodec.models.transforms.analysis`: bytes with a unit for each channel, beside a
stream of float32. The first layer takes pixels as the bytes they are, with weights of two bytes, and the layer between
the resolutions takes the stream in two bytes. Unlike the synthesis it need not be exact: only an encoder runs it.

    8 rows of pixels ──▶ head ──▶ blocks8 ──▶ down, of two rows ──▶ blocks16 ──▶ a row of y
"""

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError
from histocodec.geometry import Margin
from histocodec.kernels.instructions import ready
from histocodec.kernels.layers import EXTRA_ROWS, SUMS_BYTES
from histocodec.kernels.pack import Packer, aligned, padded
from histocodec.models.config import HyperConfig
from histocodec.models.transforms.integer import Arrays
from histocodec.models.transforms.native import Span, spans
from histocodec.models.transforms.native_analysis_kernels import BLOCK_FIELDS, RANGE_FIELDS, analyse
from histocodec.models.transforms.reaches import HEADROOM, LEAST, range_tensor

FINE = 256.0  # what rounding leaves of a weight or of the stream is held in steps this much smaller

DOWN_HEADROOM = 3.0  # how far the stream before `down` reaches beyond that before the last block; two bytes have room

MOST_BIAS = 2.0**28  # steps of a weight; sums of products are far from what is left of 32 bits

Floats = NDArray[np.float32]


class NativeAnalysis:
    """`g_a` of one model on this processor, for models whose files have the ranges of activations. Thread-safe.

    `parameters` are the floating-point tensors of `g_a`, `arrays` those of the model file. `instructions` is a number
    in `kernels.instructions.NAMES`, by default that of the fastest here. Raises FormatError where a range is missing
    or not finite.
    """

    def __init__(
        self, config: HyperConfig, parameters: Arrays, arrays: Arrays, *, instructions: int | None = None
    ) -> None:
        self.config = config
        self.instructions = ready(instructions)
        self._head = parameters["head.weight"][:, :, 0, 0].astype(np.float64), parameters["head.bias"]
        packer, width, channels = Packer(self.instructions), config.width8, config.latent_channels

        def dense(weight: NDArray[np.floating], bias: Floats, unit: Floats, *, raised: bool) -> list[int]:
            """A layer whose output is `unit` times that of weight and bias; its inputs are 128 too high if `raised`."""
            integers, step = _integers(weight, bias)
            factor = step * unit
            sums = integers.astype(np.int64).sum(axis=1)
            full = np.pad(integers, ((0, 0), (0, padded(weight.shape[1]) - weight.shape[1])))
            offset = np.rint(bias / step) - (128 * sums if raised else 0)
            return [packer.dense(full), packer.row(offset, np.int32), packer.row(factor, np.float32)]

        def block(name: str, *, spatial: bool, size: int) -> list[int]:
            seen, hidden = _unit(127, arrays, name, "seen", size), _unit(255, arrays, name, "expand", size)
            weight, bias = (parameters[f"{name}.expand.{part}"] for part in ("weight", "bias"))
            fields = [int(spatial), padded(size), padded(size), packer.row(seen, np.float32)]
            fields += dense(weight[:, :, 0, 0] / seen, bias, hidden, raised=True)
            if spatial:
                after = _unit(255, arrays, name, "depthwise", size)
                taps, bias = (parameters[f"{name}.depthwise.{part}"] for part in ("weight", "bias"))
                integers, step = _integers(taps[:, 0] / hidden[:, None, None], bias)
                fields += [
                    packer.depthwise(integers),
                    packer.row(np.rint(bias / step), np.int32, interleaved=True),
                    packer.row(step * after, np.float32, interleaved=True),
                ]
                hidden = after
            else:
                fields += [0, 0, 0]
            weight, bias = (parameters[f"{name}.project.{part}"] for part in ("weight", "bias"))
            return fields + dense(weight[:, :, 0, 0] / hidden, bias, np.ones(size, np.float32), raised=False)

        self._blocks = np.array(
            [block(f"blocks8.{i}", spatial=s, size=width) for i, s in enumerate(config.analysis8)]
            + [block(f"blocks16.{i}", spatial=s, size=channels) for i, s in enumerate(config.analysis16)],
            np.int64,
        ).reshape(-1, BLOCK_FIELDS)
        self._down_unit = np.zeros(padded(width), np.float32)
        last = f"blocks8.{len(config.analysis8) - 1}"
        self._down_unit[:width] = _unit(127 / DOWN_HEADROOM, arrays, last, "seen", width)
        weight, bias = (parameters[f"down.{part}"] for part in ("weight", "bias"))
        ones, none, down = np.ones(channels, np.float32), np.zeros(channels, np.float32), []
        for row, column in np.ndindex(2, 2):
            coarse = weight[:, :, row, column] / self._down_unit[:width]
            once = none if row or column else bias
            integers, step = _integers(coarse, once)
            down += dense(coarse, once, ones, raised=True)
            down += dense(coarse / FINE, none, ones, raised=True)
            down += dense(coarse - integers * step[:, None], none, ones, raised=True)
        self._down = np.array(down, np.int64)
        self._parameters = packer.finish()
        self._heads = lru_cache(maxsize=16)(self._packed_head)
        self._plans = lru_cache(maxsize=64)(self._plan)
        self._own = threading.local()

    def y(self, pixels: NDArray[np.uint8], margin: Margin, mean: Floats, std: Floats) -> Floats:
        """Pixels (H, W, 3) uint8, H and W multiples of 16 → y (C, h, w) float32 before gains, without the margin, which
        is in latents. `mean` and `std` (3,) normalise them."""
        plan = self._plans(pixels.shape[0] // 8, pixels.shape[1] // 8, margin)
        head, head_parameters = self._heads(mean.tobytes(), std.tobytes())
        out = np.empty((self.config.latent_channels, plan.rows, plan.columns), np.float32)
        memory: NDArray[np.uint8] | None = getattr(self._own, "memory", None)
        if memory is None or memory.size < plan.bytes:
            memory = self._own.memory = aligned(plan.bytes)
        analyse(
            self.instructions, np.ascontiguousarray(pixels), head, head_parameters, self._blocks,
            len(self.config.analysis8), self._down, self._down_unit, np.float32(FINE), self._parameters, plan.ranges,
            plan.memory, memory, out,
        )  # fmt: skip
        return out

    def _packed_head(self, mean: bytes, std: bytes) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """The first layer on bytes of pixels, with weights of two bytes, for these statistics."""
        (weight, bias), packer = self._head, Packer(self.instructions)
        middle, spread = (np.frombuffer(each, np.float32).astype(np.float64).repeat(64) for each in (mean, std))
        scaled = weight / spread
        offset = bias - scaled @ middle
        integers, step = _integers(scaled, offset)
        fine, fine_step = _integers(scaled - integers * step[:, None], np.zeros(len(bias)))
        fields = [
            packer.dense(integers), packer.row(np.rint(offset / step), np.int32), packer.row(step, np.float32),
            packer.dense(fine), packer.row(np.zeros(len(fine)), np.int32), packer.row(fine_step, np.float32),
        ]  # fmt: skip
        return np.array(fields, np.int64), packer.finish()

    def _plan(self, rows: int, columns: int, margin: Margin) -> "AnalysisPlan":
        config = self.config
        beyond = 2 * sum(config.analysis16)
        spans8, margin8, last8 = spans((0, rows, 0, columns), margin.scaled(2), config.analysis8, beyond)
        halved: Span = (last8[0] // 2, last8[1] // 2, last8[2] // 2, last8[3] // 2)
        spans16, _, last16 = spans(halved, margin8.scaled(0.5), config.analysis16, 0)
        deepest = max(padded(config.width8), padded(config.latent_channels))
        most, used = columns + 2 + EXTRA_ROWS, 0

        def take(size: int) -> int:
            nonlocal used
            first, used = used, used + padded(size, 64)
            return first

        kept8, kept16 = sum(config.analysis8) + 2, sum(config.analysis16) + 1
        memory = [
            take(most * deepest),
            take(kept8 * (columns + EXTRA_ROWS) * padded(config.width8) * 4),
            take(kept16 * (columns // 2 + EXTRA_ROWS) * padded(config.latent_channels) * 4),
            take(most * deepest), take(most * deepest), take(most * deepest), take(SUMS_BYTES),
        ]  # fmt: skip
        ranges = np.zeros((len(self._blocks) + 2, RANGE_FIELDS), np.int64)
        for n, ((before, after), hidden) in enumerate(
            zip([*spans8, *spans16], self._blocks[:, 2].tolist(), strict=True)
        ):
            ranges[n] = *before, *after, take(4 * (before[3] - before[2] + 2 + EXTRA_ROWS) * hidden)
        ranges[-2] = *halved, *last16, 0
        ranges[-1] = *last8, *halved, 0
        header = np.array([*memory, kept8, kept16, padded(config.width8), padded(config.latent_channels)], np.int64)
        return AnalysisPlan(last16[1] - last16[0], last16[3] - last16[2], ranges, header, used)


@dataclass(frozen=True, eq=False)
class AnalysisPlan:
    """How a window of one shape and margin is computed: rows and columns of y, the spans of each block, and the working
    memory."""

    rows: int
    columns: int
    ranges: NDArray[np.int64]
    memory: NDArray[np.int64]
    bytes: int


def _unit(most: float, arrays: Arrays, block: str, part: str, channels: int) -> Floats:
    """The units of bytes (channels,) in which the largest magnitude of training, and some more, is `most`."""
    reach = arrays.get(range_tensor(block, part))
    if reach is None or reach.shape != (channels,) or not np.isfinite(reach).all():
        found = "missing" if reach is None else f"{reach.dtype} {reach.shape}"
        raise FormatError(f"tensor {range_tensor(block, part)} is {found}; finite ({channels},) is needed")
    return np.asarray(most / np.maximum(HEADROOM * reach, LEAST), np.float32)


def _integers(
    weight: NDArray[np.floating], bias: NDArray[np.floating]
) -> tuple[NDArray[np.int8], NDArray[np.floating]]:
    """Weights (outputs, …) as integers, and the step of each output: so large that its bias is an integer, too."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    step = np.maximum(np.where(largest > 0, largest, 1) / 127, np.abs(bias) / MOST_BIAS)
    return np.rint(weight / step.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8), step
