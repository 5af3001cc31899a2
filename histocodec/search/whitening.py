"""Whitening: vectors are decorrelated, scaled to equal variance and normalised to length 1.

The statistics come from the slides that an index is built from. The index keeps them for ever, so that vectors added
later, and those of queries, are measured on the same scale.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import UsageError

Vectors = NDArray[np.float32]  # (n, D)

MAX_DIMENSIONS = 16  # more find less: they scale up the noise of small components; see benchmarks/results/search
# Share of the mean variance of the chosen components that is added to each variance, so that a component which hardly
# varies among a few slides is not blown up.
SHRINKAGE = 0.1
MAX_FITTED = 100_000  # vectors, evenly spaced; they estimate the covariance far more precisely than search needs


@dataclass(frozen=True, eq=False)
class Whitening:
    """A linear map: a vector v becomes the direction of (v - mean) · basis."""

    mean: Vectors  # (D,)
    basis: Vectors  # (D, d)

    @classmethod
    def fit(cls, vectors: Vectors, *, dimensions: int = MAX_DIMENSIONS) -> "Whitening":
        """Fit the first principal components of `vectors` (n, D), at most `dimensions` of them.

        Raises UsageError where there is no vector.
        """
        if not len(vectors):
            raise UsageError("there is no vector to fit the whitening to; at least one patch is needed")
        sample = vectors[np.linspace(0, len(vectors) - 1, min(len(vectors), MAX_FITTED)).astype(np.int64)]
        mean = sample.mean(axis=0, dtype=np.float64)
        centred = sample - mean
        variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))  # ascending
        variances, directions = variances[::-1][:dimensions], directions[:, ::-1][:, :dimensions]
        floor = SHRINKAGE * max(float(variances.mean()), 1e-6)  # above 0 even where all vectors are equal
        basis = directions / np.sqrt(np.maximum(variances, 0) + floor)
        return cls(mean.astype(np.float32), basis.astype(np.float32))

    @property
    def dimensions(self) -> int:
        """The length d of a whitened vector."""
        return int(self.basis.shape[1])

    def apply(self, vectors: Vectors) -> Vectors:
        """Whiten `vectors`: (n, D) → (n, d) float32, each of length 1."""
        white = (vectors - self.mean) @ self.basis
        lengths = np.linalg.norm(white, axis=1, keepdims=True)
        return np.asarray(white / np.maximum(lengths, 1e-12), np.float32)
