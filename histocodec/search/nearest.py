"""Exact search with numpy alone: the patches nearest to a query's patches, and the slides nearest to a slide.

Distances are cosine distances of whitened vectors: 0 for equal directions, 1 for unrelated, 2 for opposite ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.search.database import IndexedSlide
from histocodec.search.index import Index
from histocodec.search.whitening import Vectors

ROWS_AT_ONCE = 1 << 16  # vectors compared at once: 4 MB of them
MAX_QUERIES = 256  # patches that represent a slide in a query; Yottixel's mosaics have about as many


@dataclass(frozen=True)
class PatchHit:
    """A patch that was found: its row in the index, and its distance to the nearest patch of the query."""

    slide: IndexedSlide
    row: int
    distance: float


@dataclass(frozen=True)
class SlideHit:
    """A slide that was found: each patch of the query has a distance to its nearest patch there; this is the median."""

    slide: IndexedSlide
    distance: float


def nearest_patches(index: Index, queries: Vectors, slides: Sequence[IndexedSlide], k: int) -> list[PatchHit]:
    """Find the `k` patches of `slides` that are nearest to any of `queries` (n, d), which are whitened.

    The hits are sorted by distance, then by row.
    """
    vectors = index.vectors()
    rows, distances = np.empty(0, np.int64), np.empty(0, np.float32)
    for first, end in _row_ranges(slides):
        nearest = _distances(queries, vectors[first:end]).min(axis=0)
        last = min(k, len(nearest)) - 1
        farthest = distances[-1] if len(distances) == k else np.partition(nearest, last)[last]
        candidates = np.flatnonzero(nearest <= farthest)
        rows = np.concatenate([rows, first + candidates])
        distances = np.concatenate([distances, nearest[candidates]])
        best = np.lexsort((rows, distances))[:k]
        rows, distances = rows[best], distances[best]
    return [PatchHit(index.slide_of(int(row)), int(row), float(d)) for row, d in zip(rows, distances, strict=True)]


def nearest_slides(index: Index, queries: Vectors, slides: Sequence[IndexedSlide], k: int) -> list[SlideHit]:
    """Find the `k` slides nearest to a slide with the whitened vectors `queries` (n, d), nearest first.

    Every patch of the query looks for its nearest patch in a slide, and the median of these distances ranks the slide,
    as in Yottixel (Kalra et al., Medical Image Analysis 65, 2020). Of a large query, MAX_QUERIES patches are used,
    evenly spaced.
    """
    sample = queries[np.linspace(0, len(queries) - 1, min(len(queries), MAX_QUERIES)).astype(np.int64)]
    vectors, hits = index.vectors(), []
    for slide in slides:
        nearest = np.full(len(sample), np.inf, np.float32)
        for first, end in _row_ranges([slide]):
            np.minimum(nearest, _distances(sample, vectors[first:end]).min(axis=1), out=nearest)
        hits.append(SlideHit(slide, float(np.median(nearest))))
    return sorted(hits, key=lambda hit: (hit.distance, hit.slide.first_row))[:k]


def _distances(queries: Vectors, vectors: Vectors) -> NDArray[np.float32]:
    """(n, d) and (m, d) → (n, m)"""
    return np.asarray(np.maximum(1 - queries @ vectors.T, 0), np.float32)


def _row_ranges(slides: Sequence[IndexedSlide]) -> Iterator[tuple[int, int]]:
    """Ranges of at most ROWS_AT_ONCE rows that cover the slides in order; slides that adjoin share a range."""
    start = end = 0
    for slide in sorted(slides, key=lambda slide: slide.first_row):
        if slide.first_row != end:
            yield from _split(start, end)
            start = slide.first_row
        end = slide.end_row
    yield from _split(start, end)


def _split(start: int, end: int) -> Iterator[tuple[int, int]]:
    for first in range(start, end, ROWS_AT_ONCE):
        yield first, min(first + ROWS_AT_ONCE, end)
