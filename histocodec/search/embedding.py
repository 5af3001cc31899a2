"""What a patch's vector is, and which vectors may be compared.

An embedder is a function from a patch of one container's latents to a vector, and a name. The name is stored with
the vectors: another function, another name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import UnsupportedError
from histocodec.tissue import GLASS_DISTANCE

Latents = NDArray[np.float32]  # (C, h, w), gains undone

SIDE = 16  # latents a side of a patch: 256 pixels, as most of the field takes
LEAST_SIDE = 8  # latents of a patch that are within the level; a narrower rest at the edge is left out
LEAST_TISSUE = 0.25  # of a patch's latents
BLOCK_SAMPLES = 16 * 16 * 3  # that one position of latents stands for
CHANNELS = 64  # the first of them: the finer patterns are the scanner's rather than the tissue's
# Added to each energy before the logarithm: with 1, the finest patterns count as much as any, and they are those of
# the scanner; see benchmarks/results/search.
FLOOR = 20.0


@dataclass(frozen=True)
class Embedder:
    """`vector` maps a patch of latents (C, h, w) to (D,); h and w are LEAST_SIDE to SIDE, less on a smaller level."""

    name: str
    vector: Callable[[Latents], NDArray[np.float32]]


def log_energies(latents: Latents) -> NDArray[np.float32]:
    """The logarithm of each channel's variance within the patch: how much there is of each pattern, wherever it
    lies. The mean is left out; in it is little but the stain. (C, h, w) → (64,), or (C,) where C is less"""
    return np.asarray(np.log(latents[:CHANNELS].var(axis=(1, 2)) + FLOOR), np.float32)


EMBEDDERS: Mapping[str, Embedder] = {"hyper": Embedder("log-energies/1", log_energies)}  # by the model's family


def embedder_of(family: str) -> Embedder:
    if family not in EMBEDDERS:
        raise UnsupportedError(f"models of family {family!r} have no embedder; {', '.join(EMBEDDERS)} have one")
    return EMBEDDERS[family]


def tissue_share(latents: Latents, background: NDArray[np.float32], std: NDArray[np.float32]) -> float:
    """How much of a patch is not bare glass, 0 to 1, without its pixels: the share of positions whose latents are
    farther from those of glass than glass varies. The transform keeps distances roughly (it began as a KLT), so the
    squared distance over the samples of a block is that of its pixels, in units of the slide's `std` (3,)."""
    squares = np.square(latents - background[:, None, None]).sum(axis=0) / BLOCK_SAMPLES
    return float((np.sqrt(squares) * std.mean() > GLASS_DISTANCE).mean())


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
    latents: str
    vectors: NDArray[np.float32]  # (n, D)
    positions: NDArray[np.int32]  # (n, 2): x, y of each patch's upper left corner, in pixels of level 0
