"""Training examples for the synthesis with latents as a container stores them.

Most stored latents come from the encoder's latent search, not from rounding. A synthesis that has learnt from rounded
latents alone, and frequency tables that were fitted to those, know nothing of what the search does to them
(`histocodec.codec.latent_search`).
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

SIDE = 1024  # largest side of a crop in pixels
QUALITIES = (4, 97)  # of crops: from, and up to but without
SEARCHED_SHARE = 0.75  # of crops; the others are rounded, as with effort 0
WINDOWS_PER_STEP, WINDOW_SIDE = 3, 26  # windows that a training step sees, and their largest side in latents
TABLE_STRENGTH = 8192.0  # how many symbols the present tables weigh as much as when they are refitted


@dataclass(frozen=True)
class StoredCrop:
    """A crop as a container stores it: latents (C, h, w) int16 at `quality`, of pixels (3, 16·h, 16·w) uint8 that were
    normalised by `mean` and `std`, (3,) float32 in grey values."""

    latents: Tensor
    quality: int
    pixels: Tensor
    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class SynthesisExample:
    """What the synthesis learns from: latents (B, C, h, w) float, gains undone, and the pixels that they should decode
    to, (B, 3, 16h, 16w) float, normalised; `std` (B, 3) turns an error in those into grey values. Only the `inner` rows
    and columns of the pixels count: the others lack latents around them."""

    latents: Tensor
    pixels: Tensor
    std: Tensor
    inner: tuple[slice, slice]


class CropEncoder:
    """Encodes crops with one model as `histocodec encode` does, except that it searches for no better statistics."""

    def __init__(self, weights: ModelWeights, workers: Workers) -> None:
        self.weights, self.workers = weights, workers
        self.codec: ChunkCodec = workers.run(lambda: fast_chunk_codec(weights))
        self.transform = workers.run(lambda: Transform(weights, torch.device("cpu")))

    def encode(self, pixels: Pixels, stats: ChannelStats, quality: int, effort: int) -> StoredCrop:
        """A crop (H, W, 3) uint8, H and W multiples of 16, under these statistics, or better ones where it shows so
        much background that the encoder would align them to it."""
        slide, config, transform = WholeImage(pixels), self.weights.hyper, self.transform
        background = background_of(view := coarse_view(slide))
        aligned = background_share(view, slide.levels[0], background, side=CHUNK_PIXELS) >= ALIGNED_SHARE
        if aligned:
            stats = self.workers.run(lambda: transform.aligned(stats, background, quality))
        busiest = PixelWindow.read(slide, 0, busiest_region(slide, CHUNK_PIXELS), config)
        quantiser = Quantiser(
            transform, self.codec, stats, lambda: busiest.analyse(transform, stats),
            effort=effort, background=background if aligned else None,
        )  # fmt: skip
        grid = Grid(pixels.shape[0], pixels.shape[1], CHUNK_PIXELS)

        def chunk_latents(square: tuple[int, int]) -> NDArray[np.signedinteger]:
            window = PixelWindow.read(slide, 0, grid.region(*square), config).analyse(transform, stats)
            return quantiser.latents(window, quality, np.dtype(np.int16))[window.inner]

        rows = [[(row, column) for column in range(grid.columns)] for row in range(grid.rows)]
        latents = np.concatenate(
            [np.concatenate(list(self.workers.map(chunk_latents, row)), axis=2) for row in rows], axis=1
        )
        planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        mean, std = (torch.from_numpy(np.array(values)) for values in (stats.mean, stats.std))
        return StoredCrop(torch.from_numpy(latents), quality, planes, mean, std)


def stored_crops(
    weights: ModelWeights,
    images: Sequence[TrainingImage],
    *,
    crops: int,
    seed: int,
    threads: int | None,
    report: Callable[[str], None],
) -> list[StoredCrop]:
    """`crops` crops of each image at random scales and qualities, most of them encoded with the default effort. A
    function of images and seed alone."""
    workers = Workers(threads)
    try:
        encoder, encoded = CropEncoder(weights, workers), []
        for number in range(crops):
            for i, image in enumerate(images):
                rng = np.random.default_rng((seed, number, i))
                quality, effort = int(rng.integers(*QUALITIES)), int(rng.random() < SEARCHED_SHARE)
                stats = ChannelStats(image.mean.cpu().numpy(), image.std.cpu().numpy())
                encoded.append(encoder.encode(_crop(image, rng), stats, quality, effort))
            report(f"encoded {len(encoded)} of {crops * len(images)} crops")
        return encoded
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


def random_window(crop: StoredCrop, weights: ModelWeights, rng: np.random.Generator, side: int) -> SynthesisExample:
    """A random window of a crop, of at most `side` × `side` latents, as a batch of one. Its `inner` part leaves out the
    synthesis's halo where the crop goes on beyond the window."""
    (rows, columns), halo = crop.latents.shape[1:], weights.config.synthesis_halo
    row, column = (int(rng.integers(max(0, size - side) + 1)) for size in (rows, columns))
    area = Region(column, row, min(side, columns), min(side, rows))
    gain = torch.tensor(weights.inverse_gain(crop.quality))[:, None, None]
    latents = crop.latents[:, row : area.y_end, column : area.x_end].float() * gain
    pixels = crop.pixels[:, 16 * row : 16 * area.y_end, 16 * column : 16 * area.x_end].float()
    normalised = (pixels - crop.mean[:, None, None]) / crop.std[:, None, None]
    inner = tuple(
        slice(16 * halo * (first > 0), 16 * (count - halo * (last < size)))
        for first, last, count, size in (
            (row, area.y_end, area.height, rows), (column, area.x_end, area.width, columns)
        )
    )  # fmt: skip
    return SynthesisExample(latents[None], normalised[None], crop.std[None], (inner[0], inner[1]))


def windows_of_step(
    crops: Sequence[StoredCrop], weights: ModelWeights, step: int, *, seed: int
) -> list[SynthesisExample]:
    """The windows that a training step sees: a function of crops, seed and step alone."""
    rng = np.random.default_rng((seed, step))
    return [
        random_window(crops[int(rng.integers(len(crops)))], weights, rng, WINDOW_SIDE) for _ in range(WINDOWS_PER_STEP)
    ]


def tables_of_crops(weights: ModelWeights, crops: Sequence[StoredCrop]) -> TableSet:
    """The model's frequency tables, refitted to the symbols of these crops."""
    codec, tables = fast_chunk_codec(weights), weights.tables
    counts = np.zeros(len(tables.freq), np.int64)
    for crop in crops:
        for segment in codec.segments(pad_latents(crop.latents.numpy()), crop.quality):
            symbols = segment.values.astype(np.int64) - segment.whole_mean - tables.low[segment.tables]
            size = tables.size[segment.tables].astype(np.int64)
            regular = (symbols >= 0) & (symbols < size)
            entries = tables.offset[segment.tables] + np.where(regular, symbols, size)
            counts += np.bincount(entries, minlength=len(counts))
    return fit_tables(tables, counts, strength=TABLE_STRENGTH)
