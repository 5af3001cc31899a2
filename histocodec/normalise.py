"""Standard-score normalisation: the statistics of a slide's tissue in each channel, and the two directions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import UsageError
from histocodec.geometry import Grid
from histocodec.kernels.jit import jit
from histocodec.slide import Colour, Pixels, Slide
from histocodec.tissue import Mask, coarse_view, estimate_background, is_background, mask_part, stained

Vector = NDArray[np.float32]  # (3,)
Square = tuple[int, int]  # row, column
MapFunction = Callable[[Callable[[Square], NDArray[np.int64]], Iterable[Square]], Iterable[NDArray[np.int64]]]

SAMPLE_SIDE = 256  # pixels: statistics are taken from squares of this side
MOST_SAMPLES = 64  # 4 megapixels: the mean's error is then far below a grey value, at a second's reading
LEAST_TISSUE = 0.02  # of a square, for it to be sampled: at a section's edge there is no more
LEAST_PIXELS = 4096  # of tissue in all; below, statistics would describe one speck
LEAST_STD = 1.0  # grey values; normalised values stay finite on a slide of one colour

# Typical H&E, and how much fainter than that is what shows on a slide that has no tissue to measure.
DEFAULT_MEAN = (186.0, 145.0, 181.0)
DEFAULT_STD = (40.0, 48.0, 36.0)
FAINT = 0.25


@dataclass(frozen=True, eq=False)
class ChannelStats:
    """Mean and standard deviation of red, green and blue, in grey values.

    The arrays are copied and read-only. Raises UsageError unless both are three finite numbers and the deviations are
    above 0.
    """

    mean: Vector
    std: Vector

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = np.array(getattr(self, name), np.float32)  # a copy, so that nobody else can change it
            if values.shape != (3,) or not np.isfinite(values).all():
                raise UsageError(f"the {name} must be three finite numbers, found {values}")
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if not (self.std > 0).all():
            raise UsageError(f"the standard deviations must be above 0, found {self.std}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChannelStats):
            return NotImplemented
        return np.array_equal(self.mean, other.mean) and np.array_equal(self.std, other.std)

    def __hash__(self) -> int:
        return hash((self.mean.tobytes(), self.std.tobytes()))

    def fainter(self, background: Colour, factor: float) -> "ChannelStats":
        """The statistics of a slide whose every pixel differs from `background` by `factor` times as much."""
        colour = np.array(background, np.float32)
        return ChannelStats(colour + factor * (self.mean - colour), factor * self.std)

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels (…, 3) uint8 → standard scores (…, 3) float32, of mean 0 and deviation 1 over the tissue."""
        return np.asarray((pixels.astype(np.float32) - self.mean) / self.std)

    def denormalise(self, scores: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Standard scores (…, 3) → pixels (…, 3) uint8, rounded to nearest and clipped."""
        return np.asarray(np.clip(np.rint(scores * self.std + self.mean), 0, 255), np.uint8)


DEFAULT_STATS = ChannelStats(np.array(DEFAULT_MEAN, np.float32), np.array(DEFAULT_STD, np.float32))
IDENTITY_STATS = ChannelStats(np.zeros(3, np.float32), np.ones(3, np.float32))


def tissue_stats(
    slide: Slide,
    mask: Mask | None = None,
    *,
    background: Colour | None = None,
    view: Pixels | None = None,
    map_with: MapFunction = map,
) -> ChannelStats:
    """The statistics of the tissue at level 0, from at most 64 squares spread evenly over it.

    Sums are of integers, so the result is the same in every run. A slide without tissue has the statistics of a faint
    one. `mask` says where the tissue is, `background` is its colour and `view` the slide's `coarse_view`; each is
    found from the slide where it is not given. `map_with` does what `map` does, for instance on several threads.
    Raises SourceError.
    """
    view = coarse_view(slide) if view is None else view
    colour = background or estimate_background(slide, view)
    mask = stained(view, colour) if mask is None else mask
    level = slide.levels[0]
    grid = Grid(level.height, level.width, SAMPLE_SIDE)
    squares = [
        square
        for square in grid.squares_in(level.region)
        if mask_part(mask, level, grid.region(*square)).mean() >= LEAST_TISSUE
    ]
    if len(squares) > MOST_SAMPLES:
        squares = [squares[index * len(squares) // MOST_SAMPLES] for index in range(MOST_SAMPLES)]
    histogram = np.zeros((3, 256), np.int64)
    for counts in map_with(lambda square: _tissue_histogram(slide.read(grid.region(*square), 0), colour), squares):
        histogram += counts
    count, grey = int(histogram[0].sum()), np.arange(256)
    if count < max(1, min(LEAST_PIXELS, level.region.area // 16)):
        return DEFAULT_STATS.fainter(colour, FAINT)
    return stats_from_sums(count, histogram @ grey, histogram @ grey**2)


def stats_from_sums(count: int, sums: NDArray[np.int64], squares: NDArray[np.int64]) -> ChannelStats:
    """The statistics of `count` pixels from the sums (3,) of their values and of their squares. Deviations below 1 grey
    value become 1."""
    mean = sums / count
    variance = np.maximum(squares / count - mean**2, 0.0)
    return ChannelStats(mean.astype(np.float32), np.maximum(np.sqrt(variance), LEAST_STD).astype(np.float32))


def pixel_stats(pixels: Pixels) -> ChannelStats:
    """The statistics of all pixels (H, W, 3) of an image, tissue or not."""
    values = pixels.reshape(-1, 3).astype(np.int64)
    if not len(values):
        return DEFAULT_STATS
    return stats_from_sums(len(values), values.sum(axis=0), (values**2).sum(axis=0))


def _tissue_histogram(pixels: Pixels, background: Colour) -> NDArray[np.int64]:
    """How often each channel of the tissue in a square has each value, (3, 256)."""
    if is_background(pixels, background):
        return np.zeros((3, 256), np.int64)
    return _masked_histogram(np.ascontiguousarray(pixels), stained(pixels, background))


@jit
def _masked_histogram(pixels: Pixels, mask: Mask) -> NDArray[np.int64]:
    """How often each channel has each value where the mask is set, (3, 256)."""
    counts = np.zeros((3, 256), np.int64)
    for i in range(pixels.shape[0]):
        for j in range(pixels.shape[1]):
            if mask[i, j]:
                for channel in range(3):
                    counts[channel, pixels[i, j, channel]] += 1
    return counts
