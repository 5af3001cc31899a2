"""Vectors made comparable: decorrelated, scaled to equal variance, and of length 1.

The statistics are those of the slides that an index is built from. They are kept in it and never change, so that
vectors added later, and those of queries, are measured on the same scale.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import UsageError

Vectors = NDArray[np.float32]  # (n, D)

MOST_DIMENSIONS = 16  # more find less: noise of the small components is scaled up; see benchmarks/results/search
# Of the mean variance of what is kept, added to each variance: a component that hardly varies among a few slides is
# not blown up.
SHRINKAGE = 0.1
MOST_FITTED = 100_000  # vectors, evenly spread; their covariance is then known better than it matters


@dataclass(frozen=True, eq=False)
class Whitening:
    """`mean` (D,), `basis` (D, d): a vector v becomes the direction of (v - mean) · basis. All float32."""

    mean: Vectors
    basis: Vectors

    @classmethod
    def fit(cls, vectors: Vectors, *, dimensions: int = MOST_DIMENSIONS) -> "Whitening":
        """The first principal components of these vectors, as many of `dimensions` as they have."""
        if not len(vectors):
            raise UsageError("there is no vector to learn the scale from; at least one patch is needed")
        chosen = vectors[np.linspace(0, len(vectors) - 1, min(len(vectors), MOST_FITTED)).astype(np.int64)]
        mean = chosen.mean(axis=0, dtype=np.float64)
        centred = chosen - mean
        variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))  # ascending
        variances, directions = variances[::-1][:dimensions], directions[:, ::-1][:, :dimensions]
        floor = SHRINKAGE * max(float(variances.mean()), 1e-6)  # above 0 even where all vectors are the same
        basis = directions / np.sqrt(np.maximum(variances, 0) + floor)
        return cls(mean.astype(np.float32), basis.astype(np.float32))

    @property
    def dimensions(self) -> int:
        return int(self.basis.shape[1])

    def apply(self, vectors: Vectors) -> Vectors:
        """(n, D) → (n, d), each of length 1."""
        white = (vectors - self.mean) @ self.basis
        lengths = np.linalg.norm(white, axis=1, keepdims=True)
        return np.asarray(white / np.maximum(lengths, 1e-12), np.float32)
