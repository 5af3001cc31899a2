"""Patches for the variational autoencoder: whole images cut into a grid, anew for each epoch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from histocodec.train.data.patches import BLANK, REDUCED, SHARE_NATIVE, TrainingImage

Normalise = Literal["slide", "patch", "fixed", "none"]

MOST_PATCHES = 2048  # of one image in one epoch, at random, so that a large slide does not outweigh the others
FIXED_MEAN, FIXED_STD = 160.0, 55.0  # grey values: the training images' own, rounded
LEAST_STD = 3.0  # grey values, for a patch that is normalised by itself


def non_blank(patches: Tensor) -> Tensor:
    """Which of the patches (N, 3, S, S) uint8 have a mean of at most 0.82 of white (Nasr et al. 2023), (N,) bool."""
    return patches.float().mean(dim=(1, 2, 3)) <= BLANK


def grid_patches(pixels: Tensor, side: int, *, top: int = 0, left: int = 0) -> Tensor:
    """Pixels (3, H, W) → (N, 3, side, side): the complete patches of a grid that starts at (top, left). None
    overlap."""
    rows, columns = (pixels.shape[1] - top) // side, (pixels.shape[2] - left) // side
    inside = pixels[:, top : top + rows * side, left : left + columns * side]
    return inside.reshape(3, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)


def normalised(patches: Tensor, mean: Tensor, std: Tensor, normalise: Normalise) -> tuple[Tensor, Tensor]:
    """Patches (N, 3, S, S) uint8 and their slides' mean and standard deviation (N, 3) each → patches float32, and the
    scale (N, 3, 1, 1) that turns an error in them into grey values.

    "slide" takes the slide's statistics, "patch" each patch's own, "fixed" the same for all slides, about those of
    tissue, and "none" only divides by 255.
    """
    x = patches.float()
    if normalise == "none":
        mean, std = torch.zeros_like(mean), torch.full_like(std, 255.0)
    elif normalise == "fixed":
        mean, std = torch.full_like(mean, FIXED_MEAN), torch.full_like(std, FIXED_STD)
    elif normalise == "patch":
        mean, std = x.mean(dim=(2, 3)), x.std(dim=(2, 3)).clamp(min=LEAST_STD)
    return (x - mean[:, :, None, None]) / std[:, :, None, None], std[:, :, None, None]


class PatchEpochs:
    """The batches of an epoch, as a function of images, seed and epoch alone.

    Each image has a scale of its own (most are reduced, so that their scanner's compression is averaged away) and is
    cut by a grid with an offset of its own. Blank patches are left out; the others come in random order, turned and
    mirrored. Without `augment` patches stay as they are, for images such as CIFAR-10's.
    """

    def __init__(
        self,
        images: Sequence[TrainingImage],
        *,
        batch: int,
        side: int,
        seed: int,
        normalise: Normalise = "slide",
        augment: bool = True,
    ) -> None:
        self.images, self.batch, self.side, self.seed = images, batch, side, seed
        self.normalise, self.augment = normalise, augment

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of patches (B, 3, S, S) float32, each with its scale (B, 3, 1, 1) as `normalised` gives it. A last
        batch that would be smaller is left out."""
        rng = np.random.default_rng((self.seed, epoch))
        patches, owner = self._cut(rng)
        means, stds = (torch.stack([getattr(image, name) for image in self.images]) for name in ("mean", "std"))
        order = torch.from_numpy(rng.permutation(len(patches))).to(patches.device)
        for start in range(0, len(order) - self.batch + 1, self.batch):
            chosen = order[start : start + self.batch]
            batch, image = patches[chosen], owner[chosen]
            if self.augment:
                batch = torch.rot90(batch, int(rng.integers(4)), (2, 3))
                batch = batch.flip(3) if rng.integers(2) else batch
            yield normalised(batch, means[image], stds[image], self.normalise)

    def _cut(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        cuts, owner = [], []
        for number, image in enumerate(self.images):
            pixels = image.pixels
            if self.augment:
                pixels = _scaled(pixels, 1.0 if rng.random() < SHARE_NATIVE else _between(rng, *REDUCED), self.side)
                top, left = (int(rng.integers(min(self.side, n - self.side + 1))) for n in pixels.shape[1:])
                cut = grid_patches(pixels, self.side, top=top, left=left)
            else:
                cut = grid_patches(pixels, self.side)
            cut = cut[non_blank(cut)]
            if len(cut) > MOST_PATCHES:
                cut = cut[torch.from_numpy(rng.permutation(len(cut))[:MOST_PATCHES]).to(cut.device)]
            cuts.append(cut)
            owner.append(torch.full((len(cut),), number, device=pixels.device))
        return torch.cat(cuts), torch.cat(owner)


@dataclass(frozen=True)
class FixedPatches:
    """Patches that stay the same, for validation: pixels (N, 3, S, S) uint8, and their slides' mean and standard
    deviation, (N, 3) each."""

    pixels: Tensor
    mean: Tensor
    std: Tensor
    normalise: Normalise = "slide"

    @classmethod
    def of(cls, images: Sequence[TrainingImage], side: int, normalise: Normalise = "slide") -> "FixedPatches":
        """All patches of the images that are not blank, at the images' own scale."""
        cuts = [grid_patches(image.pixels, side) for image in images]
        kept = [cut[non_blank(cut)] for cut in cuts]
        mean, std = (
            torch.cat([getattr(i, name).expand(len(cut), 3) for i, cut in zip(images, kept, strict=True)])
            for name in ("mean", "std")
        )
        return cls(torch.cat(kept), mean, std, normalise)

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of patches (B, 3, S, S) float32, their scale (B, 3, 1, 1) as `normalised` gives it, and their pixels
        (B, 3, S, S) uint8. The last batch may be smaller."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield *normalised(self.pixels[part], self.mean[part], self.std[part], self.normalise), self.pixels[part]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _scaled(pixels: Tensor, scale: float, least: int) -> Tensor:
    if scale == 1.0 and min(pixels.shape[1:]) >= least:
        return pixels
    size = [max(least, round(scale * n)) for n in pixels.shape[1:]]
    resized = F.interpolate(pixels[None].float(), size, mode="bicubic", antialias=True, align_corners=False)[0]
    return resized.round_().clamp_(0, 255).to(torch.uint8)
