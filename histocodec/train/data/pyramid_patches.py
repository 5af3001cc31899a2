"""Training patches drawn on the device that trains: crops of pyramids that were resampled once, all in one gather.

On a GPU a step takes milliseconds, and resampling each patch anew would take longer. Scales are then those of SCALES,
and all else is as in `PatchSampler`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from histocodec.train.data.augment import disturbed, on_background
from histocodec.train.data.patches import (
    BLANK,
    ENLARGED,
    KEPT_BLANK,
    REDUCED,
    SHARE_DISTURBED,
    SHARE_ON_BACKGROUND,
    Batch,
    PatchSampler,
    TrainingImage,
    random_scale,
)

SCALES = tuple(float(scale) for scale in np.geomspace(REDUCED[0], ENLARGED[1], 13))  # with 1.0 in the middle
CELL = 16  # side, in pixels of a level, of the cells whose brightness is kept on the CPU
ATTEMPTS = 4  # to find a crop that is not blank


class PyramidSampler(PatchSampler):
    """A `PatchSampler` whose images are resampled to all scales when it is made: 20 bytes for each pixel and colour.
    A level is at least `size` pixels on each side, so a small image is never reduced below that."""

    def __init__(self, images: Sequence[TrainingImage], *, batch: int, size: int, seed: int) -> None:
        super().__init__(images, batch=batch, size=size, seed=seed)
        self._means = torch.stack([image.mean for image in images])  # (I, 3)
        self._stds = torch.stack([image.std for image in images])
        levels = [_level(image.pixels, scale, size) for image in images for scale in SCALES]
        self._sides = np.array([level.shape[1:] for level in levels]).reshape(len(images), len(SCALES), 2)
        ends = np.cumsum([level[0].numel() for level in levels])
        self._offsets = np.concatenate(([0], ends[:-1])).reshape(len(images), len(SCALES))
        self._brightness = [_brightness(level) for level in levels]
        self._pixels = torch.cat([level.flatten(1) for level in levels], dim=1)  # (3, all pixels) uint8

    def enlarged(self) -> PatchSampler:
        """See `PatchSampler.enlarged`."""
        larger = super().enlarged()
        return PyramidSampler(self.images, batch=larger.batch, size=larger.size, seed=larger.seed)

    def __call__(self, step: int) -> Batch:
        """The batch of a step, 0 … 2³² - 1."""
        rng = np.random.default_rng((self.seed, step))
        chosen = rng.choice(len(self.images), size=self.batch, p=self.weights)
        corners = np.array([self._corner(int(image), rng) for image in chosen])
        turns = rng.integers(0, 2, (self.batch, 3))
        device = self._pixels.device
        images = torch.from_numpy(chosen).to(device)
        mean, std = self._means[images], self._stds[images]
        cropped = self._cropped(torch.from_numpy(corners).to(device), torch.from_numpy(turns).to(device))
        pixels = list((cropped - mean[:, :, None, None]) / std[:, :, None, None])
        stds = list(std)
        for i in range(self.batch):
            if rng.random() < SHARE_ON_BACKGROUND:
                pixels[i], stds[i] = on_background(pixels[i], stds[i], rng)
            if rng.random() < SHARE_DISTURBED:
                pixels[i], stds[i] = disturbed(pixels[i], stds[i], rng)
        return Batch(torch.stack(pixels), torch.stack(stds))

    def _corner(self, image: int, rng: np.random.Generator) -> tuple[int, int]:
        """A random crop of an image: where its first pixel is among all pixels, and how long a row of its level is."""
        level = int(np.abs(np.log(SCALES) - math.log(random_scale(rng))).argmin())
        height, width = (int(side) for side in self._sides[image, level])
        brightness = self._brightness[image * len(SCALES) + level]
        for _ in range(ATTEMPTS):
            y, x = int(rng.integers(height - self.size + 1)), int(rng.integers(width - self.size + 1))
            cells = brightness[y // CELL : -(-(y + self.size) // CELL), x // CELL : -(-(x + self.size) // CELL)]
            if float(cells.mean()) <= BLANK or rng.random() < KEPT_BLANK:
                break
        return int(self._offsets[image, level]) + y * width + x, width

    def _cropped(self, corners: Tensor, turns: Tensor) -> Tensor:
        """Crops (B, 3, S, S) float32 in grey values, from `corners` (B, 2) int64, as `_corner` gives them; each is
        transposed, mirrored downwards and mirrored sideways where `turns` (B, 3) says so."""
        steps = torch.arange(self.size, device=corners.device)
        transposed, down, sideways = (turns[:, i, None] for i in range(3))
        rows, columns = (torch.where(mirrored == 1, steps.flip(0), steps) for mirrored in (down, sideways))  # (B, S)
        first, width = corners[:, :1], corners[:, 1:]
        index = (first + rows * width)[:, :, None] + columns[:, None, :]
        turned = (first + rows)[:, :, None] + (columns * width)[:, None, :]
        index = torch.where(transposed[:, :, None] == 1, turned, index)  # (B, S, S)
        return self._pixels[:, index].transpose(0, 1).float()


def _level(pixels: Tensor, scale: float, least: int) -> Tensor:
    """An image (3, H, W) uint8 at a scale, at least `least` pixels on each side."""
    size = [max(least, round(side * scale)) for side in pixels.shape[1:]]
    if size == list(pixels.shape[1:]):
        return pixels
    scaled = F.interpolate(pixels[None].float(), size, mode="bicubic", antialias=True, align_corners=False)[0]
    return scaled.round().clamp(0, 255).to(torch.uint8)


def _brightness(level: Tensor) -> NDArray[np.float32]:
    """The mean grey value of each cell of a level (3, H, W): (⌈H/16⌉, ⌈W/16⌉) float32."""
    grey = level.float().mean(0)[None, None]
    cells = F.avg_pool2d(grey, CELL, ceil_mode=True, count_include_pad=False)[0, 0]
    return np.asarray(cells.cpu().numpy(), np.float32)
