"""An index's patches in the plane: UMAP's coordinates, and a scatter plot of them."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from histocodec.extras import requires_extra
from histocodec.search.whitening import Vectors

NEIGHBOURS = 15  # umap-learn's own default
INCHES, DPI = (7.0, 5.0), 200
# Of colour-blind people's palettes the longest with good contrast on white (Okabe and Ito 2008, without yellow).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")
MARKERS = ("o", "^", "s", "D", "v")  # the next, once all colours are used
OTHER = "#bbbbbb"


def check_installed() -> None:
    """UnsupportedError, before any work is done, where the extra is missing."""
    with requires_extra("umap"):
        import umap  # noqa: F401 - that they are there


def coordinates(vectors: Vectors, *, seed: int = 0) -> NDArray[np.float32]:
    """(n, d) → (n, 2). The same in every run on one machine."""
    with requires_extra("umap"):
        import umap
    neighbours = min(NEIGHBOURS, len(vectors) - 1)
    # A random start where there are too few for the spectral one, which needs more points than dimensions.
    start = "spectral" if len(vectors) > 2 * NEIGHBOURS else "random"
    reducer = umap.UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1, init=start)
    return np.asarray(reducer.fit_transform(np.ascontiguousarray(vectors)), np.float32)


def scatter(points: NDArray[np.float32], groups: Sequence[str], title: str) -> bytes:
    """A PNG: one colour and marker a group, the most frequent first; those without a name in grey."""
    with requires_extra("umap"):
        from matplotlib.figure import Figure
    names, counts = np.unique(np.array(groups), return_counts=True)
    ordered = sorted(zip(names.tolist(), counts.tolist(), strict=True), key=lambda one: (not one[0], -one[1], one[0]))
    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    size = float(np.clip(6000 / len(points), 1, 24))
    for number, (name, count) in enumerate(ordered):
        chosen = points[np.array(groups) == name]
        axes.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=size,
            linewidths=0,
            alpha=0.8,
            color=COLOURS[number % len(COLOURS)] if name else OTHER,
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
