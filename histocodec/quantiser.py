"""From y to integers: plain rounding, or with some effort a better choice for the same decoder.

Rate–distortion optimised quantisation (RDOQ): a latent may go one step towards zero, or to the other side of where
it was, if that lowers λ·MSE + bits. What it costs in pixels comes from the gradient of the synthesis and its
curvature, what it saves in bits from the coder's own tables. Each pass moves the latents that promise most, a random
part of them at a time since they were judged one by one, and is kept only if the whole chunk has become cheaper.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from histocodec.codec import LatentCoder
from histocodec.compiled import jit
from histocodec.entropy.tables import COST_UNIT, ESCAPE_BITS
from histocodec.fidelity import squared_error
from histocodec.geometry import Region
from histocodec.models.config import GROUPS, QUALITIES, ModelConfig
from histocodec.models.fused import Row
from histocodec.models.prior import POSITIONS
from histocodec.models.transforms import Margin
from histocodec.normalise import ChannelStats
from histocodec.slide import Pixels, Slide
from histocodec.transform import Transform, around, margin_of, quantise, whole_latents

LEAST_GAIN = 2.0  # bits that a move must promise: promises are made one by one, and too good by about as much
SHARE = 0.7  # of the promising moves are made in one pass
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


class Quantiser:
    """Quantises chunks of a slide. Thread-safe. `effort` is the number of passes, 0 … 9; 0 rounds.

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

    def chunk(self, window: Window, quality: int, side: int, dtype: np.dtype[np.signedinteger]) -> Latents:
        """(C, side, side) of `dtype`, zero beyond the level's edge"""
        whole = self.window(window, quality, dtype)[window.own]
        chunk = np.zeros((len(whole), side, side), dtype)
        chunk[:, : whole.shape[1], : whole.shape[2]] = whole
        return chunk

    def window(self, window: Window, quality: int, dtype: np.dtype[np.signedinteger]) -> Latents:
        """(C, h, w) of `dtype`; around the chunk itself rounded, however great the effort"""
        gain = self.weights.gain(quality)
        rounded = quantise(window.y, gain, dtype)
        if not self.effort or not rounded[window.own].any():
            return rounded
        exact = window.y[window.own] * gain[:, None, None]
        weight = self._weight(window, quality)
        best = tried = rounded[window.own].copy()
        least, share, limits = np.inf, SHARE, np.iinfo(dtype)
        for number in range(self.effort + 1):
            rounded[window.own] = tried
            error, slope = self._distortion(rounded, window, quality)
            cost = weight * error
            bits, promising = self._moves(tried, exact, weight * slope, weight * self._curvature(quality), quality)
            if cost + bits < least:
                least, best, moves = cost + bits, tried, promising
            else:  # too many at once
                share /= 3
            chosen = np.random.default_rng(number).random(best.shape, np.float32) < share
            tried = np.where(chosen, best + moves, best).clip(limits.min, limits.max).astype(dtype)
        rounded[window.own] = best
        return rounded

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

    def _distortion(self, latents: Latents, window: Window, quality: int) -> tuple[float, NDArray[np.float32]]:
        """The chunk's squared error, and its gradient in each of its latents."""
        device, (height, width, _) = self.transform.device, window.pixels.shape
        with torch.enable_grad():
            y = torch.from_numpy(latents.astype(np.float32)).to(device).requires_grad_(True)
            decoded = self._decoded(y[None], quality, window.margin)[0, :, :height, :width]
            wanted = torch.tensor(window.pixels, device=device).permute(2, 0, 1).float()
            error = (decoded - wanted).square().sum()
            error.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        assert y.grad is not None
        gradient: NDArray[np.float32] = y.grad.cpu().numpy()[window.own]
        return float(error.detach()), gradient

    def _decoded(self, y: torch.Tensor, quality: int, margin: Margin) -> torch.Tensor:
        """Latents (1, C, h, w) float → pixels (1, 3, H, W) float, neither rounded nor clipped."""
        inverse = torch.from_numpy(self.weights.inverse_gain(quality).copy()).to(y.device)[None, :, None, None]
        return self.transform.decoded(y * inverse, margin, self.stats)

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
            with torch.no_grad():
                change = self._decoded(y + v / 2, quality, Margin()) - self._decoded(y - v / 2, quality, Margin())
            with torch.enable_grad():
                self._decoded(y, quality, Margin()).backward(change)  # type: ignore[no-untyped-call]  # as above
            assert y.grad is not None
            total += (y.grad * v).mean(dim=(0, 2, 3)).cpu().numpy()
        return np.maximum(2 * total / PROBES, 0)

    def _moves(
        self,
        latents: Latents,
        exact: NDArray[np.float32],
        gradient: NDArray[np.float32],
        curvature: NDArray[np.float32],
        quality: int,
    ) -> tuple[float, Latents]:
        """The bits of these latents, and the step of -1, 0 or 1 that promises most for each of them; gradient and
        curvature in bits."""
        tables, moves, bits = self.coder.weights.tables, np.zeros_like(latents), 0.0
        for step, segment in enumerate(self.coder.segments(_whole_cells(latents), quality), -1):
            if step < 0:  # z, which follows from y
                continue
            bits += _promising(
                segment.values, segment.tables, segment.whole, step, segment.extent[1], segment.extent[2],
                exact, gradient, curvature, tables.low, tables.size, tables.offset, tables.cost, moves,
            )  # fmt: skip
        return bits, moves


def _whole_cells(latents: Latents) -> Latents:
    """(C, h, w) with zeros up to multiples of 4, as a chunk has"""
    return np.pad(latents, ((0, 0), (0, -latents.shape[1] % 4), (0, -latents.shape[2] % 4)))


@jit
def _cost(value: Any, table: Any, low: Row, size: Row, offset: Row, cost: Row) -> float:
    """Bits of a symbol"""
    entry = value - low[table]
    if entry < 0 or entry >= size[table]:
        return float(cost[offset[table] + size[table]]) / COST_UNIT + ESCAPE_BITS
    return float(cost[offset[table] + entry]) / COST_UNIT


@jit
def _promising(
    values: Row, tables: Row, whole: Row, step: int, cell_rows: int, cell_columns: int, exact: Row, gradient: Row,
    curvature: Row, low: Row, size: Row, offset: Row, cost: Row, moves: Row,
) -> float:  # fmt: skip
    """One step's elements, in coding order: their bits, and in `moves` where each should go."""
    bits = 0.0
    area = cell_rows * cell_columns
    per_position = values.size // GROUPS
    for n in range(values.size):
        value, table = np.int64(values[n]), np.int64(tables[n])
        now = _cost(value - whole[n], table, low, size, offset, cost)
        bits += now
        if value == 0:
            continue
        p = n // per_position
        within = n - p * per_position
        channel = GROUPS * (within // area) + (p ^ step)
        row = 2 * (within % area // cell_columns) + POSITIONS[p][0]
        column = 2 * (within % cell_columns) + POSITIONS[p][1]
        least = -LEAST_GAIN
        for d in (-1, 1):
            other = value + d
            if abs(other) < abs(value) or abs(other - exact[channel, row, column]) < 1:
                change = _cost(other - whole[n], table, low, size, offset, cost) - now
                change += gradient[channel, row, column] * d + curvature[channel] / 2
                if change < least:
                    least = change
                    moves[channel, row, column] = d
    return bits
