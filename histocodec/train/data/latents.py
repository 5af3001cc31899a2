"""What a decoder meets in use: latents as the encoder leaves them, most of them sought, not rounded.

A synthesis that has learnt from rounded latents alone, and frequency tables that were fitted to them, know nothing of
what the search makes of them (`histocodec.codec.latent_search`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from histocodec.codec.chunk import ChunkCodec, fast_chunk_codec, pad_latents
from histocodec.codec.quantise import Quantiser
from histocodec.codec.transform import Transform
from histocodec.codec.window import PixelWindow
from histocodec.entropy import TableSet, fit_tables
from histocodec.geometry import Grid, Region
from histocodec.models.config import CHUNK_PIXELS
from histocodec.models.weights import ModelWeights
from histocodec.normalise import ChannelStats
from histocodec.slide import Pixels
from histocodec.threads import Workers
from histocodec.tissue import ALIGNED_SHARE, background_of, background_share, busiest_region, coarse_view
from histocodec.train.data.patches import TrainingImage, WholeImage, random_scale

SIDE = 1024  # pixels of a crop, at most
QUALITIES = (4, 97)  # from, and up to
SEARCHED = 0.75  # of the crops; the others are rounded, as without effort
SEEN, SEEN_SIDE = 3, 26  # windows a step, of at most so many latents a side
STRENGTH = 8192.0  # symbols that the tables known so far count for


@dataclass(frozen=True)
class Stored:
    """A crop as it is stored: latents (C, h, w) int16 of a quality, and the statistics under which they were made of
    pixels (3, 16·h, 16·w) uint8; in grey values, (3,) each."""

    latents: Tensor
    quality: int
    pixels: Tensor
    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Seen:
    """A window of such latents, gains undone: (1, C, h, w) float; pixels as they should be, (1, 3, H, W) normalised
    float, with the deviation (1, 3) that undoes it; and which of them do not miss what was cut away around them."""

    latents: Tensor
    pixels: Tensor
    std: Tensor
    inner: tuple[slice, slice]


class Encoder:
    """Encodes crops with one model as `histocodec encode` does, but for the search for statistics."""

    def __init__(self, weights: ModelWeights, workers: Workers) -> None:
        self.weights, self.workers = weights, workers
        self.codec: ChunkCodec = workers.run(lambda: fast_chunk_codec(weights))
        self.transform = workers.run(lambda: Transform(weights, torch.device("cpu")))

    def stored(self, pixels: Pixels, stats: ChannelStats, quality: int, effort: int) -> Stored:
        """pixels (H, W, 3), both multiples of 16."""
        slide, config, transform = WholeImage(pixels), self.weights.hyper, self.transform
        glass = background_of(view := coarse_view(slide))
        shown = background_share(view, slide.levels[0], glass, side=CHUNK_PIXELS) >= ALIGNED_SHARE
        if shown:
            stats = self.workers.run(lambda: transform.aligned(stats, glass, quality))
        busiest = PixelWindow.read(slide, 0, busiest_region(slide, CHUNK_PIXELS), config)
        quantiser = Quantiser(
            transform, self.codec, stats, lambda: busiest.analyse(transform, stats),
            effort=effort, background=glass if shown else None,
        )  # fmt: skip
        grid = Grid(pixels.shape[0], pixels.shape[1], CHUNK_PIXELS)

        def quantised(place: tuple[int, int]) -> NDArray[np.signedinteger]:
            window = PixelWindow.read(slide, 0, grid.region(*place), config).analyse(transform, stats)
            return quantiser.latents(window, quality, np.dtype(np.int16))[window.inner]

        rows = [[(row, column) for column in range(grid.columns)] for row in range(grid.rows)]
        latents = np.concatenate(
            [np.concatenate(list(self.workers.map(quantised, row)), axis=2) for row in rows], axis=1
        )
        planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        mean, std = (torch.from_numpy(np.array(values)) for values in (stats.mean, stats.std))
        return Stored(torch.from_numpy(latents), quality, planes, mean, std)


def stored_crops(
    weights: ModelWeights,
    images: Sequence[TrainingImage],
    *,
    crops: int,
    seed: int,
    threads: int | None,
    report: Callable[[str], None],
) -> list[Stored]:
    """So many crops of each image, at random scales and qualities, most of them with the default effort."""
    workers = Workers(threads)
    try:
        encoder, found = Encoder(weights, workers), []
        for number in range(crops):
            for i, image in enumerate(images):
                rng = np.random.default_rng((seed, number, i))
                quality, effort = int(rng.integers(*QUALITIES)), int(rng.random() < SEARCHED)
                stats = ChannelStats(image.mean.cpu().numpy(), image.std.cpu().numpy())
                found.append(encoder.stored(_crop(image, rng), stats, quality, effort))
            report(f"encoded {len(found)} of {crops * len(images)} crops")
        return found
    finally:
        workers.close()


def _crop(image: TrainingImage, rng: np.random.Generator) -> Pixels:
    scale, (height, width) = random_scale(rng), image.pixels.shape[1:]
    side = int(SIDE / scale)
    y, x = (int(rng.integers(max(0, size - side) + 1)) for size in (height, width))
    crop = image.pixels[None, :, y : y + side, x : x + side].float().cpu()
    size = [max(16, int(length * scale) // 16 * 16) for length in crop.shape[2:]]
    scaled = F.interpolate(crop, size, mode="bicubic", antialias=True, align_corners=False)[0]
    turned = torch.rot90(scaled, int(rng.integers(4)), (1, 2))
    return np.ascontiguousarray(turned.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


def seen(stored: Stored, weights: ModelWeights, rng: np.random.Generator, side: int) -> Seen:
    """A random window of at most `side` latents."""
    (rows, columns), halo = stored.latents.shape[1:], weights.config.synthesis_halo
    row, column = (int(rng.integers(max(0, size - side) + 1)) for size in (rows, columns))
    area = Region(column, row, min(side, columns), min(side, rows))
    gain = torch.tensor(weights.inverse_gain(stored.quality))[:, None, None]
    latents = stored.latents[:, row : area.y_end, column : area.x_end].float() * gain
    pixels = stored.pixels[:, 16 * row : 16 * area.y_end, 16 * column : 16 * area.x_end].float()
    normal = (pixels - stored.mean[:, None, None]) / stored.std[:, None, None]
    inner = tuple(
        slice(16 * halo * (first > 0), 16 * (count - halo * (last < size)))
        for first, last, count, size in (
            (row, area.y_end, area.height, rows), (column, area.x_end, area.width, columns)
        )
    )  # fmt: skip
    return Seen(latents[None], normal[None], stored.std[None], (inner[0], inner[1]))


def seen_in_step(crops: Sequence[Stored], weights: ModelWeights, step: int, *, seed: int) -> list[Seen]:
    """What a step of training looks at: a function of the seed and the step alone."""
    rng = np.random.default_rng((seed, step))
    return [seen(crops[int(rng.integers(len(crops)))], weights, rng, SEEN_SIDE) for _ in range(SEEN)]


def tables_of_stored(weights: ModelWeights, crops: Sequence[Stored]) -> TableSet:
    """The model's tables, refitted to the symbols of these."""
    codec, tables = fast_chunk_codec(weights), weights.tables
    counts = np.zeros(len(tables.freq), np.int64)
    for crop in crops:
        for segment in codec.segments(pad_latents(crop.latents.numpy()), crop.quality):
            symbols = segment.values.astype(np.int64) - segment.whole_mean - tables.low[segment.tables]
            size = tables.size[segment.tables].astype(np.int64)
            known = (symbols >= 0) & (symbols < size)
            entries = tables.offset[segment.tables] + np.where(known, symbols, size)
            counts += np.bincount(entries, minlength=len(counts))
    return fit_tables(tables, counts, strength=STRENGTH)
