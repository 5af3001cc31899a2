"""Cheaper latents for the same decoder: rate–distortion optimised quantisation by gradient.

Every latent may go to the integer on the other side of where it was, or one step towards zero, if that lowers error and
bits at the rate at which the slide's tissue exchanges them. What a move costs in pixels comes from the gradient of the
synthesis and its curvature, what it saves in bits from the codec's own tables. Moves are judged one by one and made all
together, so that not all promises are kept: each position of latents keeps its moves only where the pixels and bits
that are its own have become cheaper, or hardly dearer, since what moves around it changes them, too. How much the error
bent along a step, over what each move alone would have done, is how much more curvature counts from then on, around
each position and in each channel (a secant method; the damping is that of Levenberg and Marquardt).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from histocodec.codec.chunk import HyperChunkCodec, Segment, pad_latents
from histocodec.codec.gains import dequantise, quantise
from histocodec.codec.hyper_latent_search import around_each
from histocodec.codec.transform import Transform
from histocodec.codec.window import Window, pad_pixels
from histocodec.entropy.cost import bits_of, symbol_bits
from histocodec.kernels.jit import jit
from histocodec.models.config import GROUPS
from histocodec.models.prior.fast import Row
from histocodec.models.prior.graph import POSITIONS
from histocodec.normalise import ChannelStats
from histocodec.slide import Colour, Pixels

LEAST_GAIN = 1.5  # bits that a move must promise
SLACK = 1.0  # bits by which a position may become dearer and keep its moves; moves around it do as much
DAMPED, RELIEVED, DAMPINGS = 1.2, 0.8, (0.3, 10.0)  # factors of the curvature where a step failed, where not; limits
BENDS = (0.2, 5.0)  # between which one step may change a channel's curvature
TRUSTED = 20.0  # moves of a channel that count as much as what was known of its curvature
BELOW = 12  # qualities, over which the slide's own exchange of squared error for bits is taken
LOWER = 3  # and so far below the quality itself it is wanted
SLOPES = (0.5, 4.0)  # times the λ of training, between which it must lie
DEVIATION = 30.0  # grey values, that colours typically have: λ weights the error of standard scores
FLAT = 12  # grey values by which what shows nothing varies at most
PROBES = 2  # random fields for the curvature

Latents = NDArray[np.signedinteger]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Terms:
    """What holds for all chunks of a slide at one `quality`: the `curvature`, the second derivative of the squared
    error in one latent of each channel, (C,), and the `weight`, bits that a unit of squared error is worth."""

    quality: int
    curvature: NDArray[np.float32]
    weight: float


@dataclass(frozen=True)
class _Judge:
    """What moves are judged by: y with its gain (C, h, w), the error's gradient in each latent (C, h, w), its curvature
    in each channel (C,) and how much more that counts at each position (h, w); in bits."""

    exact: NDArray[np.float32]
    gradient: NDArray[np.float32]
    curvature: NDArray[np.float32]
    damping: NDArray[np.float32]


class LatentSearch:
    """Searches cheaper latents for chunks of a slide, whose statistics decode `background` exactly, where it has any.
    Thread-safe."""

    def __init__(
        self, transform: Transform, codec: HyperChunkCodec, stats: ChannelStats, background: Colour | None = None
    ) -> None:
        self.transform, self.codec, self.stats, self.background = transform, codec, stats, background
        self.weights = transform.weights

    def terms(self, example: Window, quality: int) -> Terms:
        """From a piece of the slide's tissue."""
        return Terms(quality, self._curvature(example, quality), self._weight(example, quality))

    def cheaper(self, rounded: Latents, window: Window, terms: Terms, steps: int) -> Latents:
        """The cheapest latents of the chunk itself that so many steps found, (C, h, w); `rounded` is the whole
        window."""
        whole, own, limits = rounded.copy(), window.inner, np.iinfo(rounded.dtype)
        quality, curvature, weight = terms.quality, terms.curvature, terms.weight
        exact = window.y[own] * self.weights.gain(quality)[:, None, None]
        z = self.codec.hyper_latents(pad_latents(rounded[own]), quality)  # a new one would hide what moves do
        now = rounded[own]
        flat = _flat(window.pixels, self.weights.config.stride)
        error, slope = self._difference(whole, window, quality, self.stats)
        damping = np.ones(exact.shape[1:], np.float32)
        cost = first = self._bits(now, quality, z) + weight * error
        for left in reversed(range(steps)):
            judge = _Judge(exact, np.float32(weight) * slope, np.float32(weight) * curvature, damping)
            moves = np.where(flat, 0, self._moves(now, quality, z, judge)).astype(np.int32)  # which cannot overflow
            tried = (now + moves).clip(limits.min, limits.max).astype(now.dtype)
            moved = tried - now
            if not moved.any():
                break
            whole[own] = tried
            error_tried, slope_tried = self._difference(whole, window, quality, self.stats, slope=left > 0)
            cost_tried = self._bits(tried, quality, z) + weight * error_tried
            kept = (cost_tried < cost + SLACK) | ~moved.any(axis=0)
            if left:
                bent = 2 * (error_tried - error - (slope * moved).sum(axis=0))
                damping = _damped(damping, bent, (curvature[:, None, None] * np.abs(moved)).sum(axis=0), kept)
                curvature = _bent(curvature, slope_tried - slope, moved)
            now, slope = np.where(kept, tried, now), np.where(kept, slope_tried, slope)
            cost, error = np.where(kept, cost_tried, cost), np.where(kept, error_tried, error)
        return now if cost.sum() < first.sum() else rounded[own]

    def _curvature(self, example: Window, quality: int) -> NDArray[np.float32]:
        """Twice the diagonal of JᵀJ where the example lies, averaged over its positions, from random fields (Hutchinson
        1990)."""
        rounded = quantise(example.y, self.weights.gain(quality), np.dtype(np.int16)).astype(np.float32)
        rng = np.random.default_rng(0)
        total = np.zeros(len(rounded), np.float32)
        for _ in range(PROBES):
            field = rng.choice(np.array([-1, 1], np.float32), rounded.shape)
            bent = self.transform.gauss_newton(self._scaled(rounded, quality), self._scaled(field, quality), self.stats)
            total += (bent * field).mean(axis=(1, 2)) * self.weights.inverse_gain(quality)
        return np.maximum(2 * total / PROBES, 0)

    def _weight(self, example: Window, quality: int) -> float:
        """Bits that a unit of squared error is worth: what the example pays to come from a lower quality to this one,
        relative to the λ of training between them, which is off by up to threefold, times that of a little below this
        quality. A move at a better rate pays."""
        below, scale = max(0, quality - BELOW), DEVIATION**2 / float(np.square(self.stats.std).mean()) / 3
        right = self.stats if self.background is None else self.transform.aligned(self.stats, self.background, below)
        few, much = self._rounded(example, below, right)
        many, little = self._rounded(example, quality, self.stats)
        shown = ~_flat(example.pixels, self.weights.config.stride)
        more, less = (many - few)[shown].sum(), (much - little)[shown].sum()
        between, wanted = (scale * self.weights.hyper.rate_weight(q) for q in ((below + quality) / 2, quality - LOWER))
        if more <= 0 or less <= 0:
            return wanted
        return wanted * min(max(float(more / less) / between, SLOPES[0]), SLOPES[1])

    def _rounded(self, window: Window, quality: int, stats: ChannelStats) -> tuple[Floats, Floats]:
        """Bits and squared error of a chunk by its latents' position, (h, w) each, if it is rounded at this quality and
        under statistics that move all of y as they move background."""
        y = window.y
        if self.background is not None:
            before, after = (self.transform.analyse_colour(self.background, s) for s in (self.stats, stats))
            y = y + (after - before)[:, None, None]
        latents = quantise(y, self.weights.gain(quality), np.dtype(np.int16))
        z = self.codec.hyper_latents(pad_latents(latents[window.inner]), quality)
        bits = self._bits(latents[window.inner], quality, z)
        return bits, self._difference(latents, window, quality, stats, slope=False)[0]

    def _difference(
        self, latents: Latents, window: Window, quality: int, stats: ChannelStats, *, slope: bool = True
    ) -> tuple[Floats, NDArray[np.float32]]:
        """The squared error of the chunk's pixels by their latents' position, (h, w), and the derivative of all of it
        in each of its latents (C, h, w), or 0; `latents` is the whole window."""
        error, found = self.transform.error_and_gradient(
            self._scaled(latents, quality), window.margin, stats, window.pixels, gradient=slope
        )
        if found is None:
            return error, np.zeros((), np.float32)
        return error, found[window.inner] * self.weights.inverse_gain(quality)[:, None, None]

    def _scaled(self, latents: NDArray[np.generic], quality: int) -> torch.Tensor:
        """Latents (C, h, w) with their gain undone, (1, C, h, w)."""
        scaled = dequantise(latents, self.weights.inverse_gain(quality))
        return torch.from_numpy(scaled)[None].to(self.transform.device)

    def _bits(self, latents: Latents, quality: int, z: NDArray[np.int64]) -> NDArray[np.float64]:
        """The bits of these latents at each position (h, w)."""
        bits = np.zeros(pad_latents(latents).shape[1:])
        for _, segment in self._steps(latents, quality, z):
            each = symbol_bits(segment.values - segment.whole, segment.tables, self.weights.tables)
            _, rows, columns = segment.extent
            by_position = each.reshape(GROUPS, -1, rows, columns).sum(axis=1)
            for (i, j), sums in zip(POSITIONS, by_position, strict=True):
                bits[i : 2 * rows : 2, j : 2 * columns : 2] += sums
        return bits[: latents.shape[1], : latents.shape[2]]

    def _moves(self, latents: Latents, quality: int, z: NDArray[np.int64], judge: _Judge) -> Latents:
        """The move of -1, 0 or 1 that promises most for each of these latents (C, h, w)."""
        moves, tables = np.zeros_like(latents), self.weights.tables
        for step, segment in self._steps(latents, quality, z):
            _judge_step(
                segment.values, segment.tables, segment.whole, step, segment.extent[1], segment.extent[2],
                judge.exact, judge.gradient, judge.curvature, judge.damping,
                tables.low, tables.size, tables.offset, tables.cost, moves,
            )  # fmt: skip
        return moves

    def _steps(self, latents: Latents, quality: int, z: NDArray[np.int64]) -> Iterator[tuple[int, Segment]]:
        """Each step with its number; none of z, which stays."""
        yield from enumerate(islice(self.codec.segments(pad_latents(latents), quality, z=z), 1, None))


def _flat(pixels: Pixels, stride: int) -> NDArray[np.bool_]:
    """Which positions (h, w) of these pixels (H, W, 3) show nothing, as background does. The encoder
    has made sure that rounding gives them the right one (`Transform.aligned`)."""
    return _ranges(pad_pixels(pixels, stride), stride) <= FLAT


@jit
def _ranges(pixels: Pixels, stride: int) -> NDArray[np.uint8]:
    """How far the values of one colour lie apart at most in each block of pixels (H, W, 3), (H / stride, W / stride)"""
    rows, columns = pixels.shape[0] // stride, pixels.shape[1] // stride
    ranges = np.empty((rows, columns), np.uint8)
    for row in range(rows):
        for column in range(columns):
            block = pixels[stride * row : stride * (row + 1), stride * column : stride * (column + 1)]
            low, high = np.full(3, 255), np.zeros(3, np.int64)
            for i in range(stride):
                for j in range(stride):
                    for colour in range(3):
                        value = np.int64(block[i, j, colour])
                        low[colour], high[colour] = min(low[colour], value), max(high[colour], value)
            ranges[row, column] = (high - low).max()
    return ranges


def _damped(damping: NDArray[np.float32], bent: Floats, alone: Floats, kept: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Halfway (of logarithms) to what a step showed around each position: how its moves bent the error, over what the
    curvature of each of them alone would have. Less where they were kept, to go on boldly; more where not."""
    bent, alone = around_each(bent), around_each(alone)
    shown = (bent.clip(min=0) / np.where(alone > 0, alone, 1)).clip(*DAMPINGS)
    damping = np.where(alone > 0, np.sqrt(damping * shown), damping)
    return np.asarray((damping * np.where(kept, RELIEVED, DAMPED)).clip(*DAMPINGS), np.float32)


def _bent(curvature: NDArray[np.float32], change: NDArray[np.float32], moved: Latents) -> NDArray[np.float32]:
    """Each channel's curvature as a step that `moved` latents showed it by the `change` of their slopes, relative to
    that of the others: what all have in common is the damping's."""
    count = np.abs(moved).sum(axis=(1, 2))
    shown = ((change * moved).sum(axis=(1, 2)) + TRUSTED * curvature) / (count + TRUSTED)
    factor = np.log((shown / np.maximum(curvature, np.finfo(np.float32).tiny)).clip(*BENDS))
    return np.asarray(curvature * np.exp(factor - np.average(factor, weights=count)), np.float32)


@jit
def _judge_step(
    values: Row, tables: Row, whole: Row, step: int, cell_rows: int, cell_columns: int, exact: Row, gradient: Row,
    curvature: Row, damping: Row, low: Row, size: Row, offset: Row, cost: Row, moves: Row,
) -> None:  # fmt: skip
    """One step's elements, in coding order: into `moves`, where each should go."""
    area = cell_rows * cell_columns
    per_position = values.size // GROUPS
    for n in range(values.size):
        p = n // per_position
        within = n - p * per_position
        channel = GROUPS * (within // area) + (p ^ step)
        row = 2 * (within % area // cell_columns) + POSITIONS[p][0]
        column = 2 * (within % cell_columns) + POSITIONS[p][1]
        if row >= moves.shape[1] or column >= moves.shape[2]:  # filled up to whole cells
            continue
        value, table = np.int64(values[n]), np.int64(tables[n])
        now = bits_of(value - whole[n], table, low, size, offset, cost)
        least = -LEAST_GAIN
        for d in (-1, 1):
            other = value + d
            if abs(other) < abs(value) or abs(other - exact[channel, row, column]) < 1:
                change = gradient[channel, row, column] * d + curvature[channel] * damping[row, column] / 2 - now
                if change < least:  # else no symbol is short enough
                    change += bits_of(other - whole[n], table, low, size, offset, cost)
                    if change < least:
                        least = change
                        moves[channel, row, column] = d
