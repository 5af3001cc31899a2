"""Training patches: random crops at random scales from images that stay in memory, on the CPU or a GPU."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from histocodec.geometry import Region
from histocodec.normalise import tissue_stats
from histocodec.slide import BaseSlide, Pixels, pyramid_levels
from histocodec.train.data.augment import disturbed, on_background

# Scales of a crop. Below 1 the source's own compression is averaged away. Above 1 tissue is smooth, like a blurred or
# out-of-focus field, where a block transform must learn not to lose.
REDUCED, ENLARGED = (0.5, 1.0), (1.0, 2.0)
SHARE_NATIVE, SHARE_ENLARGED = 0.1, 0.3
SHARE_ON_BACKGROUND, SHARE_DISTURBED = 0.12, 0.2  # of all patches; see `histocodec.train.data.augment`
PATCHES_PER_SCALE = 2  # patches in a row that share one scale, and with it one resampling call
BLANK = 0.82 * 255  # a patch with a brighter mean shows mostly background (Nasr et al. 2023)
KEPT_BLANK = 0.5  # share of such patches that stay: a codec that never saw pale tissue and lumina is poor at both
LEAST_CONTRAST = 4.0  # standard deviation, in grey values, of an image that is worth learning from

# Where each other use of a `PatchSampler` begins among its steps, so that it sees no batch that the main stage sees.
FROM_MODEL_STEP = 1 << 29
PRIOR_STEP = 1 << 30
PRUNE_STEP = 5 << 28
CALIBRATION_END = 3 << 29  # counted down from here: activation ranges first, then the rounding of weights
SYNTHESIS_STEP = 7 << 28
KLT_END = 1 << 32  # counted down from here


@dataclass(frozen=True)
class TrainingImage:
    """One image: pixels (3, H, W) uint8, its mean and standard deviation (3,) float32 in grey values, and the case it
    belongs to."""

    pixels: Tensor
    mean: Tensor
    std: Tensor
    case: str


@dataclass(frozen=True)
class Batch:
    """Patches (B, 3, S, S) float32, each normalised by its image's statistics; `std` (B, 3) turns an error in them into
    grey values."""

    pixels: Tensor
    std: Tensor


def training_image(pixels: NDArray[np.uint8], case: str, device: torch.device) -> TrainingImage | None:
    """An image (H, W, 3) uint8 with the statistics that the encoder would normalise it by. None where it shows
    nothing."""
    if pixels.std(axis=(0, 1)).max() < LEAST_CONTRAST:
        return None
    stats = tissue_stats(WholeImage(pixels))
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).to(device)
    mean, std = (torch.tensor(values, device=device) for values in (stats.mean, stats.std))
    return TrainingImage(planes, mean, std, case)


class WholeImage(BaseSlide):
    """An image in memory, (H, W, 3) uint8, as a slide of one level."""

    def __init__(self, pixels: Pixels) -> None:
        super().__init__(name="image", levels=pyramid_levels([(pixels.shape[1], pixels.shape[0])]))
        self._pixels = pixels

    def _read_inside(self, region: Region, level: int) -> Pixels:
        return self._pixels[region.y : region.y_end, region.x : region.x_end]


class PatchSampler:
    """Batches by step number: `batch` patches of `size` × `size` pixels. The batch of a step is a function of images,
    seed and step alone, so that a resumed run sees what an undisturbed one would have seen."""

    def __init__(self, images: Sequence[TrainingImage], *, batch: int, size: int, seed: int) -> None:
        self.images = images
        self.batch, self.size, self.seed = batch, size, seed
        areas = np.array([min(i.pixels.shape[1] * i.pixels.shape[2], 2_000_000) for i in images], np.float64)
        self.weights = np.sqrt(areas) / np.sqrt(areas).sum()  # large images more often, but not by their area

    def enlarged(self) -> "PatchSampler":
        """A sampler of crops half as wide again, half as many, for the end of a run: they have less edge, and a chunk
        is larger still."""
        size = max(64, self.size * 3 // 2 // 64 * 64)
        return PatchSampler(self.images, batch=max(1, self.batch // 2), size=size, seed=self.seed + 1)

    def __call__(self, step: int) -> Batch:
        """The batch of a step, 0 … 2³² - 1."""
        rng = np.random.default_rng((self.seed, step))
        pixels: list[Tensor] = []
        stds: list[Tensor] = []
        while len(pixels) < self.batch:
            scale = random_scale(rng)
            count = min(PATCHES_PER_SCALE, self.batch - len(pixels))
            crops = [self._crop(rng, scale) for _ in range(count)]
            patches = torch.stack([crop for crop, _ in crops]).float()
            if patches.shape[-1] != self.size:
                patches = F.interpolate(patches, (self.size,) * 2, mode="bicubic", antialias=True, align_corners=False)
            for patch, (_, image) in zip(patches, crops, strict=True):
                turned = torch.rot90(patch, int(rng.integers(4)), (1, 2))
                turned = turned.flip(2) if rng.integers(2) else turned
                made = (turned.clamp(0, 255) - image.mean[:, None, None]) / image.std[:, None, None], image.std
                made = on_background(*made, rng) if rng.random() < SHARE_ON_BACKGROUND else made
                made = disturbed(*made, rng) if rng.random() < SHARE_DISTURBED else made
                pixels.append(made[0])
                stds.append(made[1])
        return Batch(torch.stack(pixels), torch.stack(stds))

    def _crop(self, rng: np.random.Generator, scale: float) -> tuple[Tensor, TrainingImage]:
        image = self.images[int(rng.choice(len(self.images), p=self.weights))]
        side = min(round(self.size / scale), *image.pixels.shape[1:])
        height, width = image.pixels.shape[1:]
        for _ in range(4):
            y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            crop = image.pixels[:, y : y + side, x : x + side]
            if float(crop[:, ::8, ::8].float().mean()) <= BLANK or rng.random() < KEPT_BLANK:
                break
        scaled_side = round(self.size / scale)
        if side < scaled_side:  # the image is too small for this scale: its largest crop, resampled alike
            crop = F.interpolate(crop[None].float(), (scaled_side,) * 2, mode="bicubic", align_corners=False)[0]
        return crop, image


def random_scale(rng: np.random.Generator) -> float:
    """The scale of a training crop: most are reduced, some enlarged, a few native."""
    kind = rng.random()
    if kind < SHARE_NATIVE:
        return 1.0
    low, high = ENLARGED if kind < SHARE_NATIVE + SHARE_ENLARGED else REDUCED
    return math.exp(rng.uniform(math.log(low), math.log(high)))
