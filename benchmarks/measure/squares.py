"""Squares: how much of the coding error is steps at the edges of blocks, where nothing in the picture hides them.

A block transform at a low rate draws squares in glass, lumen and smooth stroma. There the error jumps from one block to
the next and hardly changes within a block. A codec without blocks has steps of the same size everywhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import UsageError
from histocodec.slide import Pixels

BLOCK = 16  # pixels a side; blocks begin at the image's first pixel, as those of all codecs here do
SMOOTH = 36.0  # variance of a block, in grey values², mean of the channels: below it an edge shows
BESIDE = tuple(i for i in range(2, BLOCK - 1) if i != BLOCK // 2)  # where steps are no edges, of blocks of 8 neither


@dataclass(frozen=True)
class Squares:
    """Sums over the edges between two smooth blocks: the squared steps of the error, from one pixel to the next, at the
    edge and within the two blocks, in grey values², and how many steps each is a sum of. Those of several images add
    up."""

    edge: float
    edges: int
    beside: float
    besides: int

    def __add__(self, other: "Squares") -> "Squares":
        return Squares(
            self.edge + other.edge, self.edges + other.edges, self.beside + other.beside, self.besides + other.besides
        )

    @property
    def excess(self) -> float:
        """By how much the RMS step at an edge exceeds that beside it, as a share: 0 without squares; nan where nothing
        is smooth."""
        if not (self.edges and self.beside):
            return float("nan")
        return float(np.sqrt(self.edge / self.edges / (self.beside / self.besides))) - 1

    @property
    def height(self) -> float:
        """The RMS step that the edges have beyond that beside them, in grey values."""
        if not self.edges:
            return float("nan")
        return float(np.sqrt(max(0.0, self.edge / self.edges - self.beside / self.besides)))


def squares(original: Pixels, decoded: Pixels) -> Squares:
    """The squares of a decoded image beside the original, both (H, W, 3) uint8; rows and columns beyond the last whole
    block are left out. Raises UsageError where the shapes differ."""
    if original.shape != decoded.shape or original.ndim != 3 or original.shape[2] != 3:
        raise UsageError(
            f"cannot compare images of shapes {original.shape} and {decoded.shape}; both must have the same (H, W, 3)"
        )
    rows, columns = (side // BLOCK for side in original.shape[:2])
    whole = original[: rows * BLOCK, : columns * BLOCK].astype(np.float32)
    error = decoded[: rows * BLOCK, : columns * BLOCK] - whole
    smooth = whole.reshape(rows, BLOCK, columns, BLOCK, 3).var(axis=(1, 3)).mean(axis=2) < SMOOTH
    return _along_rows(error, smooth) + _along_rows(error.swapaxes(0, 1), smooth.T)


def _along_rows(error: NDArray[np.float32], smooth: NDArray[np.bool_]) -> Squares:
    """The steps from left to right: error (H, W, 3), smooth (H/16, W/16)."""
    shows = smooth.repeat(BLOCK, axis=0)  # (H, W/16)
    steps = np.square(np.diff(error, axis=1)).mean(axis=2)  # (H, W - 1); column i leads to pixel i + 1
    at_edges, both = steps[:, BLOCK - 1 :: BLOCK], shows[:, 1:] & shows[:, :-1]
    within = np.stack([steps[:, i - 1 :: BLOCK] for i in BESIDE]).sum(axis=0)  # (H, W/16)
    # Of the same blocks: one that borders on a busy one has errors that an edge between two smooth ones has not.
    return Squares(
        float(at_edges[both].sum(dtype=np.float64)),
        int(both.sum()),
        float((within[:, 1:] + within[:, :-1])[both].sum(dtype=np.float64)),
        2 * int(both.sum()) * len(BESIDE),
    )


def total(parts: Iterable[Squares]) -> Squares:
    """The sum of the squares of several images."""
    return sum(parts, Squares(0.0, 0, 0.0, 0))
