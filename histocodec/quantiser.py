"""From y to integers: plain rounding, or with some effort a better choice for the same decoder.

Rate–distortion optimised quantisation: every latent may go to the integer on the other side of where it was, or one
step towards zero, if that lowers error and bits at the rate at which the chunk exchanges them. What a move costs in
pixels comes from the gradient of the synthesis and its curvature, what it saves in bits from the coder's own tables.
Moves are judged one by one and made all together, so that not all promises are kept. Each position of latents is
therefore judged again, by the pixels and bits that are its own: where they have become dearer its moves are taken
back, and curvature counts for more there in the next pass (Levenberg–Marquardt damping, a position at a time).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from histocodec.codec import HyperCoder, LatentCoder
from histocodec.compiled import jit
from histocodec.entropy.cost import bits_of
from histocodec.fidelity import squared_error
from histocodec.geometry import Region
from histocodec.hyperlatents import around_each, cheapest_hyper_latents
from histocodec.models.config import GROUPS, QUALITIES, ModelConfig
from histocodec.models.fused import Row
from histocodec.models.prior import POSITIONS
from histocodec.models.transforms import Margin
from histocodec.normalise import ChannelStats
from histocodec.slide import Pixels, Slide
from histocodec.transform import Transform, around, margin_of, quantise, whole_latents

PASSES = 4  # a level of effort
LEAST_GAIN = 1.0  # bits that a move must promise
DAMPED, RELIEVED, LEAST_DAMPING = 1.4, 0.9, 0.3  # factors of the curvature where a pass failed, where not, and at least
NEIGHBOUR = 5  # qualities up and down, between which a chunk's own exchange of squared error for bits is taken
SLOPES = (0.25, 4.0)  # times the λ of training, between which it must lie
PROBES = 2  # random fields for the curvature

Latents = NDArray[np.signedinteger]


@dataclass(frozen=True)
class Window:
    """A chunk to quantise: y before gains (C, h, w) float32 with the synthesis's halo as far as the level goes, how
    far that reaches beyond the chunk, and the chunk's own pixels (H, W, 3) uint8."""

    y: NDArray[np.float32]
    margin: Margin
    pixels: Pixels

    @property
    def own(self) -> tuple[slice, slice, slice]:
        """Where the chunk's latents are in y."""
        m, (_, rows, columns) = self.margin, self.y.shape
        return slice(None), slice(m.top, rows - m.bottom), slice(m.left, columns - m.right)


@dataclass(frozen=True)
class Surroundings:
    """A chunk with the pixels around it that the halos of both transforms reach: what was read (H, W, 3) uint8, and
    where in the level the chunk lies, what its synthesis sees, and what was read."""

    pixels: Pixels
    chunk: Region
    kept: Region
    read: Region

    @classmethod
    def of(cls, slide: Slide, level: int, chunk: Region, config: ModelConfig) -> "Surroundings":
        whole = slide.levels[level].region
        kept = around(chunk, config.synthesis_halo * config.stride).intersect(whole)
        read = around(kept, config.analysis_halo * config.stride).intersect(whole)
        return cls(slide.read(read, level), chunk, kept, read)

    def analysed(self, transform: Transform, stats: ChannelStats) -> Window:
        stride = transform.weights.config.stride
        y = transform.analyse(whole_latents(self.pixels, stride), margin_of(self.kept, self.read, stride), stats)
        return Window(y, margin_of(self.chunk, self.kept, stride), self.pixels[self.chunk.within(self.read)])


def analysed(slide: Slide, level: int, chunk: Region, transform: Transform, stats: ChannelStats) -> Window:
    """The window of a chunk of a slide's level, read and analysed with the halos of both transforms."""
    return Surroundings.of(slide, level, chunk, transform.weights.config).analysed(transform, stats)


@dataclass(frozen=True)
class _Judge:
    """What moves are judged by: y with its gain (C, h, w), the error's gradient in each latent (C, h, w), its curvature
    in each channel (C,) and how much more that counts at each position (h, w); in bits."""

    exact: NDArray[np.float32]
    gradient: NDArray[np.float32]
    curvature: NDArray[np.float32]
    damping: NDArray[np.float32]


class Quantiser:
    """Quantises chunks of a slide. Thread-safe. `effort` is 0 … 9; 0 rounds.

    `example` gives a piece of the slide's tissue, on which the curvature is measured once a quality."""

    def __init__(
        self,
        transform: Transform,
        coder: LatentCoder,
        stats: ChannelStats,
        example: Callable[[], Window],
        *,
        effort: int,
    ) -> None:
        self.transform, self.coder, self.stats, self.effort = transform, coder, stats, effort
        self.weights = transform.weights
        self._example = cache(example)
        self._curvature = cache(self._probed_curvature)

    def rounding(self) -> "Quantiser":
        """The same without effort."""
        return Quantiser(self.transform, self.coder, self.stats, self._example, effort=0)

    def coded(self, window: Window, quality: int, side: int, dtype: np.dtype[np.signedinteger]) -> bytes:
        """The chunk's bytes; its latents are (C, side, side) of `dtype`, zero beyond the level's edge."""
        whole = self.window(window, quality, dtype)[window.own]
        chunk = np.zeros((len(whole), side, side), dtype)
        chunk[:, : whole.shape[1], : whole.shape[2]] = whole
        if not self.effort or not chunk.any():
            return self.coder.encode(chunk, quality)
        return self.coder.encode(chunk, quality, z=cheapest_hyper_latents(self._hyper_coder, chunk, quality))

    def window(self, window: Window, quality: int, dtype: np.dtype[np.signedinteger]) -> Latents:
        """(C, h, w) of `dtype`; around the chunk itself rounded, however great the effort"""
        rounded = quantise(window.y, self.weights.gain(quality), dtype)
        if self.effort and rounded[window.own].any():
            rounded[window.own] = self._searched(rounded, window, quality)
        return rounded

    @property
    def _hyper_coder(self) -> HyperCoder:
        assert isinstance(self.coder, HyperCoder), "effort is for hyper models"
        return self.coder

    def _searched(self, rounded: Latents, window: Window, quality: int) -> Latents:
        """The cheapest latents of the chunk itself that were found, (C, h, w); `rounded` is the whole window."""
        whole, own, limits = rounded.copy(), window.own, np.iinfo(rounded.dtype)
        exact = window.y[own] * self.weights.gain(quality)[:, None, None]
        z = self._hyper_coder.hyper_latents(_whole_cells(rounded[own]), quality)  # a new one would hide what moves do
        weight = self._weight(window, quality)
        curvature, damping = weight * self._curvature(quality), np.ones(exact.shape[1:], np.float32)
        best, least = rounded[own], np.full(damping.shape, np.inf)
        for left in reversed(range(PASSES * self.effort + 1)):
            now = whole[own].copy()
            error, slope = self._error(whole, window, quality), self._gradient(whole, window, quality)
            judge = _Judge(exact, weight * slope, curvature, damping)
            bits, moves = self._judged(now, quality, z, judge)
            cost = weight * error + bits  # (h, w)
            if cost.sum() < least.sum():
                best, least = now, cost
            elif left:  # what is better for a position can be worse for its neighbours
                failed = around_each(cost - least) > 0
                whole[own] = np.where(failed, best, now)
                damping = _damped(damping, failed)
                continue
            if not left:
                break
            tried = (now + moves).clip(limits.min, limits.max).astype(now.dtype)
            whole[own] = tried
            better = weight * self._error(whole, window, quality) + self._judged(tried, quality, z, judge)[0] < cost
            whole[own] = np.where(better, tried, now)
            damping = _damped(damping, (tried != now).any(axis=0) & ~better)
        return best

    def _weight(self, window: Window, quality: int) -> float:
        """Bits that a unit of squared error is worth on this chunk: the exchange rate between its neighbouring
        qualities. A move at a better rate pays; λ itself is off by up to twice either way."""
        below, above = max(0, quality - NEIGHBOUR), min(QUALITIES - 1, quality + NEIGHBOUR)
        bits, error = self.rounded_cost(window, below)
        more_bits, less_error = self.rounded_cost(window, above)
        trained = self.weights.hyper.rate_weight(quality) / 3  # of one squared error in one channel
        if more_bits <= bits or less_error >= error:
            return trained
        return min(max((more_bits - bits) / (error - less_error), SLOPES[0] * trained), SLOPES[1] * trained)

    def rounded_cost(self, window: Window, quality: int) -> tuple[float, float]:
        """Bits and squared error of a chunk whose latents are rounded."""
        latents = quantise(window.y, self.weights.gain(quality), np.dtype(np.int16))
        scaled = (latents * self.weights.inverse_gain(quality)[:, None, None]).astype(np.float32)
        height, width, _ = window.pixels.shape
        decoded = self.transform.synthesise([scaled], window.margin, self.stats)[0][:height, :width]
        bits = 8.0 * len(self.coder.encode(_whole_cells(latents[window.own]), quality))
        return bits, squared_error(decoded, window.pixels)

    def _gradient(self, latents: Latents, window: Window, quality: int) -> NDArray[np.float32]:
        """The gradient of the squared error of the chunk's pixels in each of its latents (C, h, w); `latents` is the
        whole window."""
        with torch.enable_grad():
            y = torch.from_numpy(latents.astype(np.float32)).to(self.transform.device).requires_grad_(True)
            pixels = self.transform.smooth(self._scaled(y[None], quality), window.margin, self.stats)
            self._error_of(pixels, window).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        assert y.grad is not None
        gradient: NDArray[np.float32] = y.grad.cpu().numpy()[window.own]
        return gradient

    def _error(self, latents: Latents, window: Window, quality: int) -> NDArray[np.float32]:
        """The squared error of the chunk's pixels by their latents' position, (h, w); `latents` is the whole window."""
        with torch.inference_mode():
            y = torch.from_numpy(latents.astype(np.float32)).to(self.transform.device)
            pixels = self.transform.decoded(self._scaled(y[None], quality), window.margin, self.stats)
            error: NDArray[np.float32] = self._error_of(pixels, window).cpu().numpy()
        return error

    def _error_of(self, pixels: Tensor, window: Window) -> Tensor:
        """Decoded pixels (1, 3, H, W) → squared error by position (h, w)"""
        height, width, _ = window.pixels.shape
        wanted = torch.tensor(window.pixels, device=pixels.device).permute(2, 0, 1).float()
        error = (pixels[0, :, :height, :width] - wanted).square().sum(dim=0)
        stride = self.weights.config.stride
        error = F.pad(error, (0, -width % stride, 0, -height % stride))
        return F.avg_pool2d(error[None], stride, divisor_override=1)[0]

    def _scaled(self, y: Tensor, quality: int) -> Tensor:
        """Latents (1, C, h, w) with their gain undone."""
        return y * torch.from_numpy(self.weights.inverse_gain(quality).copy()).to(y.device)[None, :, None, None]

    def _probed_curvature(self, quality: int) -> NDArray[np.float32]:
        """Second derivative of the squared error in one latent of each channel, (C,): twice the diagonal of JᵀJ where
        the example lies, averaged over its positions, from random fields (Hutchinson 1990)."""
        example = self._example()
        rounded = quantise(example.y, self.weights.gain(quality), np.dtype(np.int16)).astype(np.float32)
        rng = np.random.default_rng(0)
        total = np.zeros(len(rounded), np.float32)
        for _ in range(PROBES):
            field = rng.choice(np.array([-1, 1], np.float32), (1, *rounded.shape))
            v = torch.from_numpy(field).to(self.transform.device)
            y = torch.from_numpy(rounded)[None].to(self.transform.device).requires_grad_(True)

            def pixels(y: Tensor) -> Tensor:
                return self.transform.smooth(self._scaled(y, quality), Margin(), self.stats)

            with torch.no_grad():
                change = pixels(y + v / 2) - pixels(y - v / 2)
            with torch.enable_grad():
                pixels(y).backward(change)  # type: ignore[no-untyped-call]  # as above
            assert y.grad is not None
            total += (y.grad * v).mean(dim=(0, 2, 3)).cpu().numpy()
        return np.maximum(2 * total / PROBES, 0)

    def _judged(
        self, latents: Latents, quality: int, z: NDArray[np.int64], judge: "_Judge"
    ) -> tuple[NDArray[np.float64], Latents]:
        """The bits of these latents at each position (h, w), and the move of -1, 0 or 1 that promises most for each of
        them."""
        bits, moves = np.zeros(latents.shape[1:]), np.zeros_like(latents)
        tables = self.coder.weights.tables
        for step, segment in enumerate(self.coder.segments(_whole_cells(latents), quality, z=z), -1):
            if step < 0:  # z, which stays
                continue
            _judge_step(
                segment.values, segment.tables, segment.whole, step, segment.extent[1], segment.extent[2],
                judge.exact, judge.gradient, judge.curvature, judge.damping,
                tables.low, tables.size, tables.offset, tables.cost, bits, moves,
            )  # fmt: skip
        return bits, moves


def _whole_cells(latents: Latents) -> Latents:
    """(C, h, w) with zeros up to multiples of 4, as a chunk has"""
    return np.pad(latents, ((0, 0), (0, -latents.shape[1] % 4), (0, -latents.shape[2] % 4)))


def _damped(damping: NDArray[np.float32], failed: NDArray[np.bool_]) -> NDArray[np.float32]:
    factor = np.where(failed, DAMPED, RELIEVED).astype(np.float32)
    return np.asarray(np.maximum(damping * factor, LEAST_DAMPING))


@jit
def _judge_step(
    values: Row, tables: Row, whole: Row, step: int, cell_rows: int, cell_columns: int, exact: Row, gradient: Row,
    curvature: Row, damping: Row, low: Row, size: Row, offset: Row, cost: Row, bits: Row, moves: Row,
) -> None:  # fmt: skip
    """One step's elements, in coding order: their bits added up by position, and in `moves` where each should go."""
    area = cell_rows * cell_columns
    per_position = values.size // GROUPS
    for n in range(values.size):
        p = n // per_position
        within = n - p * per_position
        channel = GROUPS * (within // area) + (p ^ step)
        row = 2 * (within % area // cell_columns) + POSITIONS[p][0]
        column = 2 * (within % cell_columns) + POSITIONS[p][1]
        if row >= bits.shape[0] or column >= bits.shape[1]:  # filled up to whole cells
            continue
        value, table = np.int64(values[n]), np.int64(tables[n])
        now = bits_of(value - whole[n], table, low, size, offset, cost)
        bits[row, column] += now
        least = -LEAST_GAIN
        for d in (-1, 1):
            other = value + d
            if abs(other) < abs(value) or abs(other - exact[channel, row, column]) < 1:
                change = bits_of(other - whole[n], table, low, size, offset, cost) - now
                change += gradient[channel, row, column] * d + curvature[channel] * damping[row, column] / 2
                if change < least:
                    least = change
                    moves[channel, row, column] = d
