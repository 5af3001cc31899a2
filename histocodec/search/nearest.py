"""What is nearest, exactly: patches to a query's patches, and slides to a slide. numpy alone.

Distances are cosine distances of whitened vectors: 0 the same, 1 unrelated, 2 opposite.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.search.database import IndexedSlide
from histocodec.search.index import Index
from histocodec.search.whitening import Vectors

BLOCK = 1 << 16  # rows compared at once: 4 MB of vectors
MOST_QUERIES = 256  # patches of a slide that ask for it; Yottixel's mosaics have about as many


@dataclass(frozen=True)
class PatchHit:
    """A patch, and the cosine distance to the nearest of the query's."""

    slide: IndexedSlide
    row: int
    distance: float


@dataclass(frozen=True)
class SlideHit:
    """A slide, and the median of the query's patches' distances to what is nearest to each in it."""

    slide: IndexedSlide
    distance: float


def nearest_patches(index: Index, queries: Vectors, slides: Sequence[IndexedSlide], k: int) -> list[PatchHit]:
    """The k patches of `slides` nearest to any of `queries` (n, d), whitened; by distance, then by row."""
    vectors = index.vectors()
    rows, distances = np.empty(0, np.int64), np.empty(0, np.float32)
    for first, end in _blocks(slides):
        found = _distances(queries, vectors[first:end]).min(axis=0)
        last = min(k, len(found)) - 1
        farthest = distances[-1] if len(distances) == k else np.partition(found, last)[last]
        near = np.flatnonzero(found <= farthest)
        rows = np.concatenate([rows, first + near])
        distances = np.concatenate([distances, found[near]])
        best = np.lexsort((rows, distances))[:k]
        rows, distances = rows[best], distances[best]
    return [PatchHit(index.slide_of(int(row)), int(row), float(d)) for row, d in zip(rows, distances, strict=True)]


def nearest_slides(index: Index, queries: Vectors, slides: Sequence[IndexedSlide], k: int) -> list[SlideHit]:
    """The k slides nearest to a slide with the vectors `queries` (n, d), whitened. Each of its patches looks for the
    nearest in the other slide; the median of these distances ranks the slides, as in Yottixel (Kalra et al. 2020).
    A large slide asks with MOST_QUERIES of its patches, evenly spread."""
    asking = queries[np.linspace(0, len(queries) - 1, min(len(queries), MOST_QUERIES)).astype(np.int64)]
    vectors, hits = index.vectors(), []
    for slide in slides:
        least = np.full(len(asking), np.inf, np.float32)
        for first, end in _blocks([slide]):
            np.minimum(least, _distances(asking, vectors[first:end]).min(axis=1), out=least)
        hits.append(SlideHit(slide, float(np.median(least))))
    return sorted(hits, key=lambda hit: (hit.distance, hit.slide.first))[:k]


def _distances(queries: Vectors, vectors: Vectors) -> NDArray[np.float32]:
    """(queries, vectors)"""
    return np.asarray(np.maximum(1 - queries @ vectors.T, 0), np.float32)


def _blocks(slides: Sequence[IndexedSlide]) -> Iterator[tuple[int, int]]:
    """Ranges of rows that cover these slides, in order, neighbours together."""
    start = end = 0
    for slide in sorted(slides, key=lambda one: one.first):
        if slide.first != end:
            yield from _cut(start, end)
            start = slide.first
        end = slide.end
    yield from _cut(start, end)


def _cut(start: int, end: int) -> Iterator[tuple[int, int]]:
    for first in range(start, end, BLOCK):
        yield first, min(first + BLOCK, end)
