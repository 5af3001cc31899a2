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

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from histocodec.codec.chunk import HyperChunkCodec
from histocodec.codec.gains import dequantise, quantise
from histocodec.codec.latent_prices import Pricer, Prices
from histocodec.codec.latent_search_kernels import choose, damp, observe, ranges, take_back
from histocodec.codec.transform import Transform
from histocodec.codec.window import Window, pad_pixels
from histocodec.models.transforms.native_gradient import NativeGradient, unshuffled_target
from histocodec.normalise import ChannelStats
from histocodec.slide import Colour, Pixels

LEAST_PROMISE = 1.5  # bits that a move must promise to save
SLACK = 1.0  # bits by which a position may become dearer and keep its moves; moves around it cost that much
DAMPING_RANGE = (0.3, 10.0)
DAMPED, RELIEVED = 1.1, 0.8  # factors of the damping where the moves of a step were undone, and where they were kept
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
Floats32 = NDArray[np.float32]
ErrorOf = Callable[..., tuple[Floats, NDArray[np.float32] | None]]  # `_error`, of a window's latents


@dataclass(frozen=True)
class SearchTerms:
    """What the search needs to know about a slide at one quality; measured once, on a piece of its tissue."""

    quality: int
    curvature: NDArray[np.float32]  # (C,) second derivative of the squared error in a latent of each channel
    weight: float  # bits that one unit of squared error is worth
    gradient: NativeGradient | None  # what computes errors and derivatives on a CPU that has the instructions


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
        latents = quantise(example.y, self.weights.gain(quality), np.dtype(np.int16))
        gradient = self.transform.native_gradient(
            self._scaled(latents, quality), example.margin, self.stats, example.pixels, quality
        )
        return SearchTerms(quality, self._curvature(example, quality), self._weight(example, quality), gradient)

    def search(self, rounded: Latents, window: Window, terms: SearchTerms, steps: int) -> Latents:
        """The cheapest latents (C, h, w) of a chunk that `steps` steps find. `rounded` (C, h', w') are the latents of
        the whole window, of which those of the chunk are not all 0; those around the chunk stay as they are."""
        latents = np.array(rounded.transpose(1, 2, 0), np.int16, order="C")  # (h', w', C), as all arrays from here on
        inner, limits = (window.inner[1], window.inner[2]), np.iinfo(rounded.dtype)
        gain, tables = self.weights.gain(terms.quality), self.weights.tables
        scaled_y = np.ascontiguousarray(window.y[window.inner].transpose(1, 2, 0)) * gain
        flat = _flat(window.pixels, self.weights.config.stride)
        curvature, weight = terms.curvature, np.float32(terms.weight)
        damping, moved = np.ones(flat.shape, np.float32), np.empty(flat.shape, np.bool_)
        worth = np.zeros(-(-len(gain) // 8) * 8, np.uint8)
        current = latents[inner].copy()
        pricer, error_of = Pricer(self.codec, current, terms.quality), self._errors(window, terms)
        prices, trial_prices = Prices.room(current.shape), Prices.room(current.shape)
        pricer(current, prices)
        error, slope = error_of(latents)
        assert slope is not None
        cost = first_cost = prices.by_position + terms.weight * error
        for remaining in reversed(range(steps)):
            trial = np.empty_like(current)
            if not choose(
                current, prices.bits, prices.codes, scaled_y, slope, weight, curvature, damping, flat,
                np.float32(LEAST_PROMISE), limits.min, limits.max, tables.low, tables.size, tables.offset, tables.cost,
                pricer.channels, worth, trial, moved,
            ):  # fmt: skip
                break
            latents[inner] = trial
            trial_error, trial_slope = error_of(latents, gradient=remaining > 0)
            pricer(trial, trial_prices)
            trial_cost = trial_prices.by_position + terms.weight * trial_error
            accepted = (trial_cost < cost + SLACK) | ~moved
            if trial_slope is not None:
                foretold, expected = np.zeros(flat.shape), np.zeros(flat.shape)
                counts, changes = np.zeros(len(gain)), np.zeros(len(gain))
                observe(
                    current, trial, moved, slope, trial_slope, curvature, pricer.channels, expected, foretold, counts,
                    changes,
                )  # fmt: skip
                damping = _updated_damping(damping, 2 * (trial_error - error - foretold), expected, accepted)
                curvature = _updated_curvature(curvature, changes, counts)
                take_back(accepted, slope, trial_slope)
                take_back(accepted, prices.codes, trial_prices.codes)
                take_back(accepted, prices.bits, trial_prices.bits)
                slope, prices, trial_prices = trial_slope, trial_prices, prices
            take_back(accepted, current, trial)
            current = trial
            cost, error = np.where(accepted, trial_cost, cost), np.where(accepted, trial_error, error)
        pricer.done()
        if cost.sum() >= first_cost.sum():
            return rounded[window.inner]
        return np.ascontiguousarray(current.transpose(2, 0, 1), rounded.dtype)

    def _errors(self, window: Window, terms: SearchTerms) -> "ErrorOf":
        """What computes the squared error of the chunk's pixels at each position (h, w), and the derivative of its sum
        in each of the chunk's latents (h, w, C), of latents of the whole window (h', w', C)."""
        error_of: ErrorOf
        if terms.gradient is None:
            error_of = partial(self._error, window=window, quality=terms.quality, stats=self.stats)
        else:
            target = unshuffled_target(window.pixels, self.weights.config.stride)
            error_of = partial(
                terms.gradient, margin=window.margin, target=target, mean=self.stats.mean, std=self.stats.std
            )

        def channels_last(latents: Latents, *, gradient: bool = True) -> tuple[Floats, Floats32 | None]:
            error, slope = error_of(latents.transpose(2, 0, 1), gradient=gradient)
            return error, None if slope is None else np.ascontiguousarray(slope.transpose(1, 2, 0))

        return channels_last

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
        bits = self._bits(latents[window.inner], quality)
        return bits, self._error(latents, window=window, quality=quality, stats=stats, gradient=False)[0]

    def _bits(self, latents: Latents, quality: int) -> Floats:
        """The bits of the latents (C, h, w) of a chunk at each position (h, w), without those of z."""
        last = np.array(latents.transpose(1, 2, 0), np.int16, order="C")
        prices = Prices.room(last.shape)
        if last.any():
            pricer = Pricer(self.codec, last, quality)
            pricer(last, prices)
            pricer.done()
        return prices.by_position

    def _error(
        self, latents: Latents, *, window: Window, quality: int, stats: ChannelStats, gradient: bool = True
    ) -> tuple[Floats, NDArray[np.float32] | None]:
        """The squared error of the chunk's pixels at each position (h, w), and the derivative of its sum in each of the
        chunk's latents (C, h, w), or None without `gradient`. `latents` are those of the whole window."""
        error, slope = self.transform.error_and_gradient(
            self._scaled(latents, quality), window.margin, stats, window.pixels, gradient=gradient
        )
        if slope is None:
            return error, None
        return error, np.ascontiguousarray(slope[window.inner] * self.weights.inverse_gain(quality)[:, None, None])

    def _scaled(self, latents: NDArray[np.generic], quality: int) -> torch.Tensor:
        """Latents (C, h, w) with their gains undone, (1, C, h, w) float32 on the device."""
        scaled = dequantise(latents, self.weights.inverse_gain(quality))
        return torch.from_numpy(scaled)[None].to(self.transform.device)


def _flat(pixels: Pixels, stride: int) -> NDArray[np.bool_]:
    """The positions (h, w) of pixels (H, W, 3) that are featureless, as background is: no colour varies there by more
    than `FLAT_RANGE`. Rounding already gives them the right colour (`Transform.aligned`)."""
    padded = np.ascontiguousarray(pad_pixels(pixels, stride))
    low, high = np.empty((2, 3 * padded.shape[1]), np.uint8)
    found = np.empty((padded.shape[0] // stride, padded.shape[1] // stride), np.uint8)
    ranges(padded, stride, low, high, found)
    return found <= FLAT_RANGE


def _updated_damping(
    damping: NDArray[np.float32], bend: Floats, expected_bend: Floats, accepted: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """The damping (h, w) after a step: the geometric mean of the old one and of what the step showed around each
    position, namely how its moves bent the error relative to what the curvature of each move alone would have. Then
    less where the moves were accepted, to go on boldly; more where they were not."""
    updated = np.empty_like(damping)
    damp(damping, bend, expected_bend, accepted, *DAMPING_RANGE, DAMPED, RELIEVED, updated)
    return updated


def _updated_curvature(curvature: NDArray[np.float32], changes: Floats, counts: Floats) -> NDArray[np.float32]:
    """The curvature (C,) after a step: as its moves, `counts` in each channel, showed it by the `changes` of their
    slopes, relative to the other channels. What all channels have in common belongs to the damping."""
    observed = (changes + PRIOR_MOVES * curvature) / (counts + PRIOR_MOVES)
    factor = np.log((observed / np.maximum(curvature, np.finfo(np.float32).tiny)).clip(*CURVATURE_CHANGE))
    return np.asarray(curvature * np.exp(factor - np.average(factor, weights=counts)), np.float32)
