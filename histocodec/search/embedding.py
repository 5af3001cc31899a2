"""What a patch's vector is, and which vectors may be compared.

An embedder is a function from a patch of one container's latents to a vector, and a name. The name is stored with
the vectors: another function, another name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import UnsupportedError
from histocodec.slide import Mpp
from histocodec.tissue import GLASS_DISTANCE

Latents = NDArray[np.float32]  # (C, h, w), gains undone

LEAST_TISSUE = 0.25  # of a patch's latents
BLOCK_SAMPLES = 16 * 16 * 3  # that one position of latents stands for
CHANNELS = 64  # the first of them: the finer patterns are the scanner's rather than the tissue's
# Added to each energy before the logarithm: with 1, the finest patterns count as much as any, and they are those of
# the scanner; see benchmarks/results/search.
FLOOR = 20.0


@dataclass(frozen=True)
class Embedder:
    """`vector` maps a patch of latents (C, h, w) to (D,); h and w are `least` to `side`, less on a smaller level.
    `tissue` says how much of a patch is not bare glass, 0 to 1, from the patch, the latents of glass (C,) and the
    slide's standard deviation (3,)."""

    name: str
    vector: Callable[[Latents], NDArray[np.float32]]
    tissue: Callable[[Latents, NDArray[np.float32], NDArray[np.float32]], float]
    side: int  # latents
    least: int  # latents of a patch that are within the level; a narrower rest at the edge is left out


def log_energies(latents: Latents) -> NDArray[np.float32]:
    """The logarithm of each channel's variance within the patch: how much there is of each pattern, wherever it
    lies. The mean is left out; in it is little but the stain. (C, h, w) → (64,), or (C,) where C is less"""
    return np.asarray(np.log(latents[:CHANNELS].var(axis=(1, 2)) + FLOOR), np.float32)


def mean(latents: Latents) -> NDArray[np.float32]:
    """The mean of a patch's posterior, as it was quantised: (D, 1, 1) → (D,)"""
    return latents[:, 0, 0].copy()


def tissue_share(latents: Latents, background: NDArray[np.float32], std: NDArray[np.float32]) -> float:
    """How much of a patch is not bare glass, 0 to 1, without its pixels: the share of positions whose latents are
    farther from those of glass than glass varies. The transform keeps distances roughly (it began as a KLT), so the
    squared distance over the samples of a block is that of its pixels, in units of the slide's `std` (3,)."""
    squares = np.square(latents - background[:, None, None]).sum(axis=0) / BLOCK_SAMPLES
    return float((np.sqrt(squares) * std.mean() > GLASS_DISTANCE).mean())


def differs_from_glass(latents: Latents, background: NDArray[np.float32], std: NDArray[np.float32]) -> float:
    """1 where a patch's vector is farther from that of glass than a third of that vector's own length, else 0. The
    autoencoder's distances are not those of pixels; the third was set by eye on two sections, and pale tissue can fall
    below it."""
    distance = np.linalg.norm(mean(latents) - background)
    return float(distance > np.linalg.norm(background) / 3)


# By the model's family. A patch of a `hyper` model has 256 pixels a side, as most of the field takes; one of a `vae`
# model is what the model itself calls a patch.
EMBEDDERS: Mapping[str, Embedder] = {
    "hyper": Embedder("log-energies/1", log_energies, tissue_share, side=16, least=8),
    "vae": Embedder("mean/1", mean, differs_from_glass, side=1, least=1),
}


def embedder_of(family: str) -> Embedder:
    if family not in EMBEDDERS:
        raise UnsupportedError(f"models of family {family!r} have no embedder; {', '.join(EMBEDDERS)} have one")
    return EMBEDDERS[family]


@dataclass(frozen=True)
class Kind:
    """What two vectors must have in common to be compared: the model, by id and SHA-256, the embedder, the length."""

    model: str
    sha256: str
    embedder: str
    length: int

    def __str__(self) -> str:
        return f"{self.embedder} of model {self.model} ({self.sha256[:12]}…), {self.length} values"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The vectors of one slide. `latents` is the SHA-256 of what they were computed from: see SPEC."""

    kind: Kind
    level: int
    patch: int  # pixels of that level a side
    span: float  # the same in pixels of level 0
    mpp: Mpp | None  # microns per pixel of that level
    latents: str
    vectors: NDArray[np.float32]  # (n, D)
    positions: NDArray[np.int32]  # (n, 2): x, y of each patch's upper left corner, in pixels of level 0
