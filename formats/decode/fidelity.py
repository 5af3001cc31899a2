"""The fidelity of a coded level: its chunks decoded as a reader decodes them, and compared with the source."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import tee

import numpy as np
import torch
from numpy.typing import NDArray

from histocodec.fidelity import mean_squared_error, psnr, psnr_map, squared_error
from histocodec.formats.container.abstract_container import DecodableContainer
from histocodec.formats.container.states import BACKGROUND, chunks_where
from histocodec.formats.decode.cache import Cache
from histocodec.formats.decode.pixels import PixelDecoder
from histocodec.geometry import ChunkKey
from histocodec.kernels.jit import jit
from histocodec.models.weights import ModelWeights
from histocodec.slide import Colour, Pixels, Slide
from histocodec.threads import Workers

CACHE_BYTES = 256 << 20
BLOCK = 16  # pixels of a side of the blocks whose errors are told apart: the size of a nucleus

# What a floor keeps in reserve, so that it also holds for readers that round in another way. On the same chunks, the
# mean squared error of bfloat16 was 0.3 grey values² above that of float32 at every quality, and two devices with the
# same arithmetic differed by less than 0.01 dB.
SPARE_DECIBELS = 0.02
SPARE_FLOAT32 = 0.5  # grey values²: for readers in bfloat16 of a container that was measured in float32


@dataclass(frozen=True)
class Floor:
    """The least PSNR in dB that each chunk must have, and the arithmetic of the synthesis that measures it."""

    decibels: float
    arithmetic: torch.dtype

    @property
    def mean_squared_error(self) -> float:
        """The largest mean squared error that a measured chunk may have, in grey values²."""
        mean = mean_squared_error(self.decibels + SPARE_DECIBELS)
        return max(0.0, mean - SPARE_FLOAT32) if self.arithmetic == torch.float32 else mean

    def skips(self, pixels: Pixels, colour: Colour) -> bool:
        """Whether a chunk of these pixels (h, w, 3) uint8 may be left out and shown in one `colour`."""
        flat = np.broadcast_to(np.array(colour, np.uint8), pixels.shape)
        return psnr(squared_error(pixels, flat), pixels.size) >= self.decibels


@dataclass(frozen=True)
class Comparison:
    """How two images of one size differ: the sum of squared differences over all `samples` of red, green and blue, and
    the largest root mean squared difference of any block of 16×16 pixels, in grey values."""

    squared_error: int
    samples: int
    block_error: float


@dataclass(frozen=True, eq=False)
class LevelFidelity:
    """What was measured of the chunks of one level: (rows, columns) float64 each, NaN where nothing was measured, as
    for background. The meaning is that of `Comparison`."""

    level: int
    squared_error: NDArray[np.float64]  # sums, all below 2^53
    samples: NDArray[np.float64]
    block_error: NDArray[np.float64]

    @property
    def psnr(self) -> NDArray[np.float32]:
        """The PSNR of each chunk in dB, (rows, columns) float32; infinite where nothing was lost."""
        return psnr_map(self.squared_error, self.samples)

    def below(self, floor: Floor) -> list[ChunkKey]:
        """The chunks that do not reach `floor`, row by row."""
        failing = self.squared_error > floor.mean_squared_error * self.samples  # never true of NaN
        return list(chunks_where(self.level, failing))

    @property
    def total(self) -> float:
        """The PSNR in dB of all measured chunks together."""
        return psnr(float(np.nansum(self.squared_error)), float(np.nansum(self.samples)))


def compare(a: Pixels, b: Pixels) -> Comparison:
    """Compares two images (H, W, 3) uint8. Blocks start at the upper left corner; those at the edge are smaller."""
    height, width, _ = a.shape
    sums = _block_errors(a, b)
    down, across = (np.minimum(BLOCK, n - np.arange(0, n, BLOCK)) for n in (height, width))
    worst = float((sums / (3 * np.outer(down, across))).max())
    return Comparison(int(sums.sum(dtype=np.int64)), a.size, math.sqrt(worst))


@jit
def _block_errors(a: Pixels, b: Pixels) -> NDArray[np.int64]:
    """The squared error of each block, (⌈H / BLOCK⌉, ⌈W / BLOCK⌉)."""
    height, width = a.shape[:2]
    sums = np.zeros((-(-height // BLOCK), -(-width // BLOCK)), np.int64)
    for row in range(height):
        for block in range(sums.shape[1]):
            x, y = a[row, block * BLOCK : (block + 1) * BLOCK], b[row, block * BLOCK : (block + 1) * BLOCK]
            total = np.int32(0)
            for n in range(x.shape[0]):
                for colour in range(3):
                    difference = np.int32(x[n, colour]) - np.int32(y[n, colour])
                    total += difference * difference
            sums[row // BLOCK, block] += total
    return sums


def measure_level(
    container: DecodableContainer,
    weights: ModelWeights,
    device: torch.device,
    workers: Workers,
    source: Slide,
    source_level: int,
    level: int,
    done: Callable[[int], None],
    *,
    keys: Iterable[ChunkKey] | None = None,
    previous: LevelFidelity | None = None,
    dtype: torch.dtype | None = None,
) -> LevelFidelity:
    """Decodes chunks of one level of a container and compares them with `source_level` of the source.

    Measures the chunks `keys`, by default all but background; all others keep the values of `previous`, or are NaN.
    Calls `done` with the number of pixels after each chunk. `dtype` is the arithmetic of a synthesis in floating point,
    by default the device's fastest. Raises FormatError where a chunk is damaged, and SourceError where the source
    cannot be read.
    """
    decoder = PixelDecoder(container, weights, device, workers, cache=Cache(CACHE_BYTES), dtype=dtype)
    tiles = container.tiles(level)
    keys = chunks_where(level, tiles != BACKGROUND) if keys is None else keys
    to_decode, to_read = tee(keys)
    if previous is None:
        error, samples, block_error = (np.full(tiles.shape, np.nan) for _ in range(3))
    else:
        error, samples = previous.squared_error.copy(), previous.samples.copy()
        block_error = previous.block_error.copy()
    originals = workers.map(lambda key: source.read(container.attributes.chunk_region(key), source_level), to_read)
    for (key, decoded), original in zip(decoder.chunks(to_decode), originals, strict=True):
        comparison, place = compare(decoded, original), (key.row, key.column)
        error[place], samples[place] = comparison.squared_error, comparison.samples
        block_error[place] = comparison.block_error
        done(original.shape[0] * original.shape[1])
    return LevelFidelity(level, error, samples, block_error)
