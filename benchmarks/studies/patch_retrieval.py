"""How often the nearest patch shows the same thing: precision of retrieval among labelled patches."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from histocodec.search.whitening import Vectors, Whitening

Names = NDArray[np.str_]  # (n,)
Label = Literal["organ", "source"]
Fit = Callable[[Vectors], Callable[[Vectors], Vectors]]  # from what is searched to what makes vectors comparable


@dataclass(frozen=True, eq=False)
class Patches:
    """Where each patch comes from, (n,) each."""

    organ: Names
    case: Names  # the patient or slide
    source: Names  # the data set: one scanner or hospital, one kind of image

    def where(self, chosen: NDArray[np.bool_]) -> "Patches":
        """The chosen patches only."""
        return Patches(self.organ[chosen], self.case[chosen], self.source[chosen])


@dataclass(frozen=True)
class Precision:
    """Of the nearest one and five patches, the share that has the query's label: the mean over queries, and the mean
    over labels. NaN without queries."""

    at_1: float
    at_5: float
    at_1_by_label: float
    at_5_by_label: float
    queries: int  # those for which there is a right answer


def listed_images(data: Path) -> list[dict[str, str]]:
    """Read DATA/images.csv (path, organ, source, case, …), each path once: some are listed twice."""
    with (data / "images.csv").open(newline="") as file:
        return list({row["path"]: row for row in csv.DictReader(file)}.values())


def precision(patches: Patches, vectors: Vectors | None, fit: Fit, groups: Names, label: Label = "organ") -> Precision:
    """Let the patches of each group search among all others, by cosine.

    `vectors` are (n, D), and `fit` is fitted only to those that are searched; without vectors the result is chance.
    Queries whose label no other group has are left out.
    """
    labels: Names = getattr(patches, label)
    at_1, at_5, asked_labels = [], [], []
    for group in np.unique(groups):
        queries, searched = np.flatnonzero(groups == group), np.flatnonzero(groups != group)
        queries = queries[np.isin(labels[queries], labels[searched])]
        if not len(queries):
            continue
        right = labels[queries, None] == labels[None, searched]  # (queries, searched)
        if vectors is None:
            at_1.append(right.mean(axis=1))
            at_5.append(right.mean(axis=1))
        else:
            comparable = fit(vectors[searched])
            similarity = comparable(vectors[queries]) @ comparable(vectors[searched]).T
            nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :5]
            hits = np.take_along_axis(right, nearest, axis=1)
            at_1.append(hits[:, 0].astype(np.float64))
            at_5.append(hits.mean(axis=1))
        asked_labels.append(labels[queries])
    if not asked_labels:
        return Precision(np.nan, np.nan, np.nan, np.nan, 0)
    first, five, asked = (np.concatenate(parts) for parts in (at_1, at_5, asked_labels))
    by_label = [(first[asked == name].mean(), five[asked == name].mean()) for name in np.unique(asked)]
    first_by_label, five_by_label = np.mean(by_label, axis=0)
    return Precision(
        at_1=float(first.mean()),
        at_5=float(five.mean()),
        at_1_by_label=float(first_by_label),
        at_5_by_label=float(five_by_label),
        queries=len(asked),
    )


def as_they_are(searched: Vectors) -> Callable[[Vectors], Vectors]:
    """Compare vectors as they are."""
    return _unit


def standardised(searched: Vectors) -> Callable[[Vectors], Vectors]:
    """Scale each dimension by mean and standard deviation of what is searched."""
    mean, std = searched.mean(axis=0), searched.std(axis=0) + 1e-6
    return lambda vectors: _unit((vectors - mean) / std)


def whitened(dimensions: int) -> Fit:
    """Whiten to so many dimensions, as an index does."""
    return lambda searched: Whitening.fit(searched, dimensions=dimensions).apply


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
