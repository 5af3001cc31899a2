"""The patches of an index in the plane: coordinates by UMAP, as a table and as a scatter plot.

The method: McInnes, Healy and Melville, "UMAP: Uniform Manifold Approximation and Projection for Dimension Reduction",
arXiv:1802.03426 (2018).
"""

import csv
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from histocodec.extras import requires_extra
from histocodec.search.whitening import Vectors

NEIGHBOURS = 15  # umap-learn's own default
INCHES, DPI = (7.0, 5.0), 200
# The longest palette for colour-blind readers with good contrast on white (Okabe and Ito 2008, without yellow).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")
MARKERS = ("o", "^", "s", "D", "v")  # the next one once all colours are used
UNLABELLED = "#bbbbbb"


def check_installed() -> None:
    """Raise UnsupportedError where the extra `umap` is missing: to be called before any work is done."""
    with requires_extra("umap"):
        import umap  # noqa: F401 - only whether it is there


def umap_coordinates(vectors: Vectors, *, seed: int = 0) -> NDArray[np.float32]:
    """Lay out vectors in the plane by cosine distance: (n, d) → (n, 2). The same in every run on one machine.

    Raises UnsupportedError where the extra `umap` is missing.
    """
    with requires_extra("umap"):
        import umap
    neighbours = min(NEIGHBOURS, len(vectors) - 1)
    # A random start where there are too few points for the spectral one, which needs more points than dimensions.
    start = "spectral" if len(vectors) > 2 * NEIGHBOURS else "random"
    reducer = umap.UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1, init=start)
    return np.asarray(reducer.fit_transform(np.ascontiguousarray(vectors)), np.float32)


def scatter_plot(points: NDArray[np.float32], groups: Sequence[str], title: str) -> bytes:
    """Plot points (n, 2) as a PNG: a colour and marker for each group, the most frequent first; no name is grey.

    Raises UnsupportedError where the extra `umap` is missing.
    """
    with requires_extra("umap"):
        from matplotlib.figure import Figure
    names, counts = np.unique(np.array(groups), return_counts=True)
    ordered = sorted(zip(names.tolist(), counts.tolist(), strict=True), key=lambda item: (not item[0], -item[1], item))
    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    size = float(np.clip(6000 / len(points), 1, 24))
    for number, (name, count) in enumerate(ordered):
        members = points[np.array(groups) == name]
        axes.scatter(
            members[:, 0],
            members[:, 1],
            s=size,
            linewidths=0,
            alpha=0.8,
            color=COLOURS[number % len(COLOURS)] if name else UNLABELLED,
            marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            label=f"{name or 'no label'} ({count})",
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("UMAP 1")
    axes.set_ylabel("UMAP 2")
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8, markerscale=max(1.0, 3 / size**0.5), frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def coordinates_csv(
    points: NDArray[np.float32],
    positions: NDArray[np.int64],
    paths: Sequence[str],
    groups: Sequence[str],
    group_column: str,
) -> str:
    """Write a row for each patch: its slide's path, its position (x, y), its group, and its point in the plane."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide", "x", "y", group_column, "umap_1", "umap_2"])
    for path, (x, y), group, (first, second) in zip(paths, positions, groups, points, strict=True):
        writer.writerow([path, x, y, group, f"{first:.4f}", f"{second:.4f}"])
    return text.getvalue()
