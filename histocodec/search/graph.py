"""What is nearest, approximately and in less time: usearch's HNSW graph over an index's vectors.

The graph is derived from the vectors. It is saved beside them, and brought up to date whenever it has fewer.
"""

import secrets
from typing import TYPE_CHECKING

import numpy as np

from histocodec.errors import FormatError, OutputError
from histocodec.extras import requires_extra
from histocodec.search.index import Index
from histocodec.search.nearest import PatchHit
from histocodec.search.whitening import Vectors

if TYPE_CHECKING:
    from usearch.index import Index as Graph


def check_installed() -> None:
    """UnsupportedError, before any work is done, where the extra is missing."""
    with requires_extra("search"):
        import usearch.index  # noqa: F401 - that it is there


def up_to_date(index: Index) -> "Graph":
    """The graph of all vectors, and saved so."""
    with requires_extra("search"):
        from usearch.index import Index as Graph
    path, rows = index.graph_path, index.facts.rows
    graph = Graph(ndim=index.facts.whitening.dimensions, metric="cos", dtype="f32")
    try:
        if path.is_file():
            graph.load(path)
    except (RuntimeError, ValueError) as exc:
        raise FormatError(f"{path}: cannot be read: {exc}. Delete it, and it is made anew") from exc
    done = len(graph)
    if done > rows or graph.ndim != index.facts.whitening.dimensions:
        raise FormatError(f"{path}: has {done} vectors, the index {rows}. Delete it, and it is made anew")
    if done < rows:
        graph.add(np.arange(done, rows, dtype=np.uint64), np.ascontiguousarray(index.vectors()[done:]))
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            graph.save(temporary)
            temporary.replace(path)
        except (OSError, RuntimeError) as exc:
            temporary.unlink(missing_ok=True)
            raise OutputError(f"{path}: cannot be written: {exc}") from exc
    return graph


def approximate_patches(index: Index, queries: Vectors, k: int) -> list[PatchHit]:
    """As `nearest.nearest_patches` among all slides, but now and then one of the k is missed."""
    graph = up_to_date(index)
    least: dict[int, float] = {}
    for query in queries:
        found = graph.search(query, min(k, len(graph)))
        for row, distance in zip(found.keys.tolist(), found.distances.tolist(), strict=True):
            least[row] = min(distance, least.get(row, np.inf))
    best = sorted(least.items(), key=lambda item: (item[1], item[0]))[:k]
    return [PatchHit(index.slide_of(row), row, max(distance, 0.0)) for row, distance in best]
