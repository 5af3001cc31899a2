"""Latent search: cheaper latents for the same decoder, found by gradient (rate–distortion optimised quantisation).

Each latent may move to the integer on the other side of y, or one step towards zero, if that lowers error and bits
together. Bits and squared error are weighed at the rate at which the tissue of this slide exchanges them. What a move
costs in pixels follows from the gradient of the synthesis and its curvature; what it saves in bits, from the frequency
tables that the chunk codec uses.

A step judges the moves one by one and makes them all together, so that not every promise comes true. Therefore a
position of latents keeps its moves only if the pixels and bits at that position have become cheaper, or hardly dearer,
since moves around it change them, too. After each step the curvature is corrected: by how much more the error bent than
each move alone would have bent it, around each position (the damping of Levenberg and Marquardt) and in each channel (a
secant method).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from histocodec.codec.chunk import HyperChunkCodec, Segment, pad_latents
from histocodec.codec.gains import dequantise, quantise
from histocodec.codec.hyper_latent_search import sum_neighbours
from histocodec.codec.transform import Transform
from histocodec.codec.window import Window, pad_pixels
from histocodec.entropy.cost import bits_of, symbol_bits
from histocodec.kernels.jit import jit
from histocodec.models.config import GROUPS
from histocodec.models.prior.fast_kernels import Row
from histocodec.models.prior.graph import POSITIONS
from histocodec.normalise import ChannelStats
from histocodec.slide import Colour, Pixels

LEAST_PROMISE = 1.5  # bits that a move must promise to save
SLACK = 1.0  # bits by which a position may become dearer and keep its moves; moves around it cost that much
DAMPING_RANGE = (0.3, 10.0)
DAMPED, RELIEVED = 1.2, 0.8  # factors of the damping where the moves of a step were undone, and where they were kept
CURVATURE_CHANGE = (0.2, 5.0)  # by which factor one step may change a channel's curvature
PRIOR_MOVES = 20.0  # the measured curvature of a channel counts as much as this many moves
QUALITIES_BELOW = 12  # the exchange of squared error for bits is measured over these many qualities below …
WEIGHT_BELOW = 3  # … and applied for a quality this far below
WEIGHT_RANGE = (0.5, 4.0)  # in which the measured exchange must lie, relative to the λ of training
TYPICAL_STD = 30.0  # grey values: standard deviation of a colour, since λ weights the error of standard scores
FLAT_RANGE = 12  # grey values by which the colours of a featureless position vary at most
PROBES = 2  # random fields from which the curvature is estimated

Latents = NDArray[np.signedinteger]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SearchTerms:
    """What the search needs to know about a slide at one quality; measured once, on a piece of its tissue."""

    quality: int
    curvature: NDArray[np.float32]  # (C,) second derivative of the squared error in a latent of each channel
    weight: float  # bits that one unit of squared error is worth


@dataclass(frozen=True)
class _Prices:
    """What the moves of one step are judged by. The derivatives are in bits."""

    scaled_y: NDArray[np.float32]  # (C, h, w): y times its gain
    gradient: NDArray[np.float32]  # (C, h, w): of the error in each latent
    curvature: NDArray[np.float32]  # (C,)
    damping: NDArray[np.float32]  # (h, w): factor of the curvature at each position


class LatentSearch:
    """The latent search for chunks of one slide. Thread-safe.

    `background` is the colour that `stats` decode exactly, if there is one (`Transform.aligned`).
    """

    def __init__(
        self, transform: Transform, codec: HyperChunkCodec, stats: ChannelStats, background: Colour | None = None
    ) -> None:
        self.transform, self.codec, self.stats, self.background = transform, codec, stats, background
        self.weights = transform.weights

    def measure(self, example: Window, quality: int) -> SearchTerms:
        """The terms of the search at a quality, measured on `example`, a piece of the slide's tissue."""
        return SearchTerms(quality, self._curvature(example, quality), self._weight(example, quality))

    def search(self, rounded: Latents, window: Window, terms: SearchTerms, steps: int) -> Latents:
        """The cheapest latents (C, h, w) of a chunk that `steps` steps find. `rounded` (C, h', w') are the latents of
        the whole window; those around the chunk stay as they are."""
        latents, inner, limits = rounded.copy(), window.inner, np.iinfo(rounded.dtype)
        quality, curvature, weight = terms.quality, terms.curvature, terms.weight
        scaled_y = window.y[inner] * self.weights.gain(quality)[:, None, None]
        z = self.codec.hyper_latents(pad_latents(rounded[inner]), quality)  # a new one would hide what moves do
        current = rounded[inner]
        flat = _flat(window.pixels, self.weights.config.stride)
        error, slope = self._error(latents, window, quality, self.stats)
        damping = np.ones(scaled_y.shape[1:], np.float32)
        cost = first_cost = self._bits(current, quality, z) + weight * error
        for remaining in reversed(range(steps)):
            prices = _Prices(scaled_y, np.float32(weight) * slope, np.float32(weight) * curvature, damping)
            promised = np.where(flat, 0, self._moves(current, quality, z, prices)).astype(np.int32)  # cannot overflow
            trial = (current + promised).clip(limits.min, limits.max).astype(current.dtype)
            moves = trial - current
            if not moves.any():
                break
            latents[inner] = trial
            trial_error, trial_slope = self._error(latents, window, quality, self.stats, gradient=remaining > 0)
            trial_cost = self._bits(trial, quality, z) + weight * trial_error
            accepted = (trial_cost < cost + SLACK) | ~moves.any(axis=0)
            if remaining:
                bend = 2 * (trial_error - error - (slope * moves).sum(axis=0))
                expected_bend = (curvature[:, None, None] * np.abs(moves)).sum(axis=0)
                damping = _updated_damping(damping, bend, expected_bend, accepted)
                curvature = _updated_curvature(curvature, trial_slope - slope, moves)
            current, slope = np.where(accepted, trial, current), np.where(accepted, trial_slope, slope)
            cost, error = np.where(accepted, trial_cost, cost), np.where(accepted, trial_error, error)
        return current if cost.sum() < first_cost.sum() else rounded[inner]

    def _curvature(self, example: Window, quality: int) -> NDArray[np.float32]:
        """Twice the diagonal of JᵀJ, with J the derivative of the pixels in the latents, averaged over the example's
        positions (C,). Estimated from random fields of ±1 (Hutchinson 1990)."""
        rounded = quantise(example.y, self.weights.gain(quality), np.dtype(np.int16)).astype(np.float32)
        rng = np.random.default_rng(0)
        total = np.zeros(len(rounded), np.float32)
        for _ in range(PROBES):
            field = rng.choice(np.array([-1, 1], np.float32), rounded.shape)
            product = self.transform.gauss_newton(
                self._scaled(rounded, quality), self._scaled(field, quality), self.stats
            )
            total += (product * field).mean(axis=(1, 2)) * self.weights.inverse_gain(quality)
        return np.maximum(2 * total / PROBES, 0)

    def _weight(self, example: Window, quality: int) -> float:
        """Bits that a unit of squared error is worth on this slide: a move at a better rate pays.

        The λ of training a little below this quality, times a correction: what the example pays, in bits for error, to
        rise from a lower quality to this one, relative to the λ of training between them. That λ is off by up to
        threefold on a slide."""
        below = max(0, quality - QUALITIES_BELOW)
        scale = TYPICAL_STD**2 / float(np.square(self.stats.std).mean()) / 3
        background, stats = self.background, self.stats
        lower_stats = stats if background is None else self.transform.aligned(stats, background, below)
        lower_bits, lower_error = self._rounded_cost(example, below, lower_stats)
        bits, error = self._rounded_cost(example, quality, stats)
        shown = ~_flat(example.pixels, self.weights.config.stride)
        paid, gained = (bits - lower_bits)[shown].sum(), (lower_error - error)[shown].sum()
        between, trained = (
            scale * self.weights.hyper.rate_weight(q) for q in ((below + quality) / 2, quality - WEIGHT_BELOW)
        )
        if paid <= 0 or gained <= 0:
            return trained
        return trained * min(max(float(paid / gained) / between, WEIGHT_RANGE[0]), WEIGHT_RANGE[1])

    def _rounded_cost(self, window: Window, quality: int, stats: ChannelStats) -> tuple[Floats, Floats]:
        """Bits and squared error at each position (h, w) of a chunk that is rounded at this quality under `stats`.
        These shift all of y by as much as they shift the y of the background."""
        y = window.y
        if self.background is not None:
            before, after = (self.transform.analyse_colour(self.background, s) for s in (self.stats, stats))
            y = y + (after - before)[:, None, None]
        latents = quantise(y, self.weights.gain(quality), np.dtype(np.int16))
        z = self.codec.hyper_latents(pad_latents(latents[window.inner]), quality)
        bits = self._bits(latents[window.inner], quality, z)
        return bits, self._error(latents, window, quality, stats, gradient=False)[0]

    def _error(
        self, latents: Latents, window: Window, quality: int, stats: ChannelStats, *, gradient: bool = True
    ) -> tuple[Floats, NDArray[np.float32]]:
        """The squared error of the chunk's pixels at each position (h, w), and the derivative of its sum in each of the
        chunk's latents (C, h, w), or 0 without `gradient`. `latents` are those of the whole window."""
        error, slope = self.transform.error_and_gradient(
            self._scaled(latents, quality), window.margin, stats, window.pixels, gradient=gradient
        )
        if slope is None:
            return error, np.zeros((), np.float32)
        return error, slope[window.inner] * self.weights.inverse_gain(quality)[:, None, None]

    def _scaled(self, latents: NDArray[np.generic], quality: int) -> torch.Tensor:
        """Latents (C, h, w) with their gains undone, (1, C, h, w) float32 on the device."""
        scaled = dequantise(latents, self.weights.inverse_gain(quality))
        return torch.from_numpy(scaled)[None].to(self.transform.device)

    def _bits(self, latents: Latents, quality: int, z: NDArray[np.int64]) -> NDArray[np.float64]:
        """The bits of these latents at each position (h, w), without those of z."""
        bits = np.zeros(pad_latents(latents).shape[1:])
        for _, segment in self._steps(latents, quality, z):
            symbol = symbol_bits(segment.values - segment.whole_mean, segment.tables, self.weights.tables)
            _, rows, columns = segment.extent
            by_position = symbol.reshape(GROUPS, -1, rows, columns).sum(axis=1)
            for (i, j), sums in zip(POSITIONS, by_position, strict=True):
                bits[i : 2 * rows : 2, j : 2 * columns : 2] += sums
        return bits[: latents.shape[1], : latents.shape[2]]

    def _moves(self, latents: Latents, quality: int, z: NDArray[np.int64], prices: _Prices) -> Latents:
        """For each of these latents (C, h, w), the move of -1, 0 or 1 that promises to save most."""
        moves, tables = np.zeros_like(latents), self.weights.tables
        for step, segment in self._steps(latents, quality, z):
            _choose_moves(
                segment.values, segment.tables, segment.whole_mean, step, segment.extent[1], segment.extent[2],
                prices.scaled_y, prices.gradient, prices.curvature, prices.damping,
                tables.low, tables.size, tables.offset, tables.cost, moves,
            )  # fmt: skip
        return moves

    def _steps(self, latents: Latents, quality: int, z: NDArray[np.int64]) -> Iterator[tuple[int, Segment]]:
        """The four steps of the context with their numbers. The segment of z is left out, since z stays."""
        yield from enumerate(islice(self.codec.segments(pad_latents(latents), quality, z=z), 1, None))


def _flat(pixels: Pixels, stride: int) -> NDArray[np.bool_]:
    """The positions (h, w) of pixels (H, W, 3) that are featureless, as background is: no colour varies there by more
    than `FLAT_RANGE`. Rounding already gives them the right colour (`Transform.aligned`)."""
    return _colour_ranges(pad_pixels(pixels, stride), stride) <= FLAT_RANGE


@jit
def _colour_ranges(pixels: Pixels, stride: int) -> NDArray[np.uint8]:
    """The largest range of any colour in each square of `stride` pixels: (H, W, 3) → (H / stride, W / stride)."""
    rows, columns = pixels.shape[0] // stride, pixels.shape[1] // stride
    ranges = np.empty((rows, columns), np.uint8)
    for row in range(rows):
        for column in range(columns):
            square = pixels[stride * row : stride * (row + 1), stride * column : stride * (column + 1)]
            low, high = np.full(3, 255), np.zeros(3, np.int64)
            for i in range(stride):
                for j in range(stride):
                    for colour in range(3):
                        value = np.int64(square[i, j, colour])
                        low[colour], high[colour] = min(low[colour], value), max(high[colour], value)
            ranges[row, column] = (high - low).max()
    return ranges


def _updated_damping(
    damping: NDArray[np.float32], bend: Floats, expected_bend: Floats, accepted: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """The damping (h, w) after a step: the geometric mean of the old one and of what the step showed around each
    position, namely how its moves bent the error relative to what the curvature of each move alone would have. Then
    less where the moves were accepted, to go on boldly; more where they were not."""
    bend, expected_bend = sum_neighbours(bend), sum_neighbours(expected_bend)
    observed = (bend.clip(min=0) / np.where(expected_bend > 0, expected_bend, 1)).clip(*DAMPING_RANGE)
    damping = np.where(expected_bend > 0, np.sqrt(damping * observed), damping)
    return np.asarray((damping * np.where(accepted, RELIEVED, DAMPED)).clip(*DAMPING_RANGE), np.float32)


def _updated_curvature(
    curvature: NDArray[np.float32], slope_change: NDArray[np.float32], moves: Latents
) -> NDArray[np.float32]:
    """The curvature (C,) after a step: as the `moves` (C, h, w) showed it by how they changed the slopes, relative to
    the other channels. What all channels have in common belongs to the damping."""
    count = np.abs(moves).sum(axis=(1, 2))
    observed = ((slope_change * moves).sum(axis=(1, 2)) + PRIOR_MOVES * curvature) / (count + PRIOR_MOVES)
    factor = np.log((observed / np.maximum(curvature, np.finfo(np.float32).tiny)).clip(*CURVATURE_CHANGE))
    return np.asarray(curvature * np.exp(factor - np.average(factor, weights=count)), np.float32)


@jit
def _choose_moves(
    values: Row, tables: Row, whole_mean: Row, step: int, cell_rows: int, cell_columns: int, scaled_y: Row,
    gradient: Row, curvature: Row, damping: Row, low: Row, size: Row, offset: Row, cost: Row, moves: Row,
) -> None:  # fmt: skip
    """Write the best move of each element of one step, which come in coding order, into `moves` (C, h, w)."""
    area = cell_rows * cell_columns
    per_position = values.size // GROUPS
    for n in range(values.size):
        p = n // per_position
        within = n - p * per_position
        channel = GROUPS * (within // area) + (p ^ step)
        row = 2 * (within % area // cell_columns) + POSITIONS[p][0]
        column = 2 * (within % cell_columns) + POSITIONS[p][1]
        if row >= moves.shape[1] or column >= moves.shape[2]:  # padding up to whole cells
            continue
        value, table = np.int64(values[n]), np.int64(tables[n])
        current_bits = bits_of(value - whole_mean[n], table, low, size, offset, cost)
        least = -LEAST_PROMISE
        for move in (-1, 1):
            target = value + move
            if abs(target) < abs(value) or abs(target - scaled_y[channel, row, column]) < 1:
                change = (
                    gradient[channel, row, column] * move + curvature[channel] * damping[row, column] / 2 - current_bits
                )
                if change < least:  # else no symbol is short enough
                    change += bits_of(target - whole_mean[n], table, low, size, offset, cost)
                    if change < least:
                        least = change
                        moves[channel, row, column] = move
