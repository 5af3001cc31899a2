"""Embedders: functions that turn a patch of a container's latents into a vector.

An embedder has a name, which is stored with its vectors. Vectors are comparable only if model and embedder are the
same, so a changed function gets a new name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import UnsupportedError
from histocodec.slide import Mpp
from histocodec.tissue import BACKGROUND_DISTANCE

Latents = NDArray[np.float32]  # (C, h, w), dequantised

MIN_TISSUE_SHARE = 0.25  # of a patch's latents; patches with less tissue get no vector
BLOCK_SAMPLES = 16 * 16 * 3  # the samples of the block that one position of the latents stands for
CHANNELS = 64  # the first ones; later channels hold finer patterns, which belong to the scanner more than to the tissue
# Added to each energy before the logarithm. With 1, the finest patterns count as much as any other, and those are the
# scanner's; see benchmarks/results/search.
FLOOR = 20.0


@dataclass(frozen=True)
class Embedder:
    """A way to turn a patch into a vector, and the size of the patches that it takes.

    `vector` maps the latents (C, h, w) of a patch to (D,); h and w are between `min_side` and `side`, or less on a
    level that is smaller. `tissue` maps a patch (C, h, w), the latents of the background (C,) and the slide's standard
    deviation (3,) to the share of the patch that is not background, 0 to 1.
    """

    name: str
    vector: Callable[[Latents], NDArray[np.float32]]
    tissue: Callable[[Latents, NDArray[np.float32], NDArray[np.float32]], float]
    side: int  # latents
    min_side: int  # latents within the level; a narrower strip at its edge gets no vector


def log_energies(latents: Latents) -> NDArray[np.float32]:
    """Return the logarithm of each channel's variance within the patch: (C, h, w) → (min(C, 64),).

    It says how much there is of each pattern, wherever in the patch it lies. The channels' means are left out: they
    hold little but the stain.
    """
    return np.asarray(np.log(latents[:CHANNELS].var(axis=(1, 2)) + FLOOR), np.float32)


def mean(latents: Latents) -> NDArray[np.float32]:
    """Return the mean of the posterior of an autoencoder's patch, as it was quantised: (D, 1, 1) → (D,)."""
    return latents[:, 0, 0].copy()


def tissue_share(latents: Latents, background: NDArray[np.float32], std: NDArray[np.float32]) -> float:
    """Return the share of a patch that is not background, 0 to 1, without decoding its pixels.

    A position counts as tissue where its latents are farther from those of the background than the background varies.
    The transform roughly keeps distances, since its training starts from a KLT: the squared distance of the latents,
    divided by the samples of a block, is that of the pixels, in units of the slide's standard deviation `std` (3,).
    """
    squares = np.square(latents - background[:, None, None]).sum(axis=0) / BLOCK_SAMPLES
    return float((np.sqrt(squares) * std.mean() > BACKGROUND_DISTANCE).mean())


def differs_from_background(latents: Latents, background: NDArray[np.float32], std: NDArray[np.float32]) -> float:
    """Return 1 where a patch's vector is farther from the background's than a third of the latter's length, else 0.

    Distances of the autoencoder's latents are not those of pixels. The third was set by eye on two sections; pale
    tissue can fall below it.
    """
    distance = np.linalg.norm(mean(latents) - background)
    return float(distance > np.linalg.norm(background) / 3)


# By the model's family. A patch of a `hyper` model has 256 pixels a side, the usual size in the field; one of a `vae`
# model is what that model calls a patch.
EMBEDDERS: Mapping[str, Embedder] = {
    "hyper": Embedder("log-energies/1", log_energies, tissue_share, side=16, min_side=8),
    "vae": Embedder("mean/1", mean, differs_from_background, side=1, min_side=1),
}


def embedder_of(family: str) -> Embedder:
    """Return the embedder for models of `family`; raises UnsupportedError where there is none."""
    if family not in EMBEDDERS:
        raise UnsupportedError(f"models of family {family!r} have no embedder; {', '.join(EMBEDDERS)} have one")
    return EMBEDDERS[family]


@dataclass(frozen=True)
class VectorKind:
    """What two vectors must share to be comparable: model id, the model's SHA-256, embedder and length."""

    model: str
    sha256: str
    embedder: str
    length: int

    def __str__(self) -> str:
        return f"{self.embedder} of model {self.model} ({self.sha256[:12]}…), {self.length} values"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The vectors of a slide's patches of tissue, on one level."""

    kind: VectorKind
    level: int
    patch_side: int  # pixels of that level
    patch_side_level0: float  # the same in pixels of level 0
    mpp: Mpp | None  # microns per pixel of that level
    latents_sha256: str  # names the latents that they were computed from; see "Embeddings" in formats/SPEC.md
    vectors: NDArray[np.float32]  # (n, D)
    positions: NDArray[np.int32]  # (n, 2): x, y of each patch's upper left corner, in pixels of level 0

    def vectors_in(self, x: int, y: int, width: int, height: int) -> NDArray[np.float32]:
        """Return the vectors (m, D) of the patches whose centre lies in a rectangle, in pixels of level 0.

        Where no centre does, return that of the patch which covers the rectangle's own centre, if there is one.
        """
        centres = self.positions + self.patch_side_level0 / 2
        inside = ((centres >= (x, y)) & (centres < (x + width, y + height))).all(axis=1)
        if not inside.any():
            centre, ends = (x + width / 2, y + height / 2), self.positions + self.patch_side_level0
            inside = ((self.positions <= centre) & (ends > centre)).all(axis=1)
        return self.vectors[inside]
