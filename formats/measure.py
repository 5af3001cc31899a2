"""How true a coded level is: every chunk decoded as a reader will decode it, and compared with the source."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from histocodec.formats.container import Container
from histocodec.formats.decoder import BlockDecoder, BlockKey
from histocodec.formats.layout import BACKGROUND
from histocodec.geometry import Grid
from histocodec.models.config import STRIDE
from histocodec.models.weights import ModelWeights
from histocodec.slide import Pixels, Slide
from histocodec.workers import Workers

CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class LevelFidelity:
    """PSNR in dB over red, green and blue: of each chunk (NaN for background), and of all coded pixels together."""

    psnr: NDArray[np.float32]  # (rows, columns)
    total: float


def psnr(squared_error: float, samples: float) -> float:
    """dB against 255; infinite where nothing differs."""
    return 10 * math.log10(255**2 * samples / squared_error) if squared_error else math.inf


def squared_error(a: Pixels, b: Pixels) -> int:
    """The sum over all samples, exactly."""
    difference = np.subtract(a, b, dtype=np.int32)
    return int(np.square(difference, out=difference).sum(dtype=np.int64))


def measure_level(
    container: Container,
    weights: ModelWeights,
    device: torch.device,
    workers: Workers,
    source: Slide,
    source_level: int,
    level: int,
    done: Callable[[int], None],
    *,
    dtype: torch.dtype | None = None,
) -> LevelFidelity:
    """Decodes `level` of `container` and compares it with `source_level` of `source`. `done` is told pixels; `dtype`
    is the synthesis's arithmetic, the device's fastest where none is given."""
    decoder = BlockDecoder(container, weights, device, workers, cache_bytes=CACHE_BYTES, dtype=dtype)
    size, tiles = container.attributes.levels[level], container.tiles(level)
    grid = Grid(size.height, size.width, container.attributes.chunk * STRIDE)
    keys = [BlockKey(level, int(row), int(column)) for row, column in np.argwhere(tiles != BACKGROUND)]
    result = np.full(tiles.shape, np.nan, np.float32)
    originals = workers.map(lambda key: source.read(grid.region(key.row, key.column), source_level), keys)
    total = samples = 0
    for (key, decoded), original in zip(decoder.blocks(keys), originals, strict=True):
        error = squared_error(decoded, original)
        total, samples = total + error, samples + original.size
        result[key.row, key.column] = psnr(error, original.size)
        done(original.shape[0] * original.shape[1])
    done(size.width * size.height - samples // 3)
    return LevelFidelity(result, psnr(total, samples))
