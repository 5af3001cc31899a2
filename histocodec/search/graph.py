"""Approximate search, in less time: an HNSW graph over an index's vectors, by usearch.

The graph is derived from the vectors. It is saved beside them, and extended whenever the index has grown. The method:
Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
graphs", IEEE TPAMI 42 (2020).
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
    """Raise UnsupportedError where the extra `search` is missing: to be called before any work is done."""
    with requires_extra("search"):
        import usearch.index  # noqa: F401 - only whether it is there


def updated_graph(index: Index) -> "Graph":
    """Load the graph of an index, add the vectors that it lacks, and save it if it changed.

    Raises UnsupportedError where the extra `search` is missing, FormatError where the graph's file is damaged, and
    OutputError where it cannot be written.
    """
    with requires_extra("search"):
        from usearch.index import Index as Graph
    path, rows = index.graph_path, index.facts.rows
    graph = Graph(ndim=index.facts.whitening.dimensions, metric="cos", dtype="f32")
    try:
        if path.is_file():
            graph.load(path)
    except (RuntimeError, ValueError) as exc:
        raise FormatError(f"{path}: cannot be read: {exc}. Delete it, and it is made again") from exc
    present = len(graph)
    if present > rows or graph.ndim != index.facts.whitening.dimensions:
        raise FormatError(f"{path}: has {present} vectors, but the index {rows}. Delete it, and it is made again")
    if present < rows:
        graph.add(np.arange(present, rows, dtype=np.uint64), np.ascontiguousarray(index.vectors()[present:]))
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            graph.save(temporary)
            temporary.replace(path)
        except (OSError, RuntimeError) as exc:
            temporary.unlink(missing_ok=True)
            raise OutputError(f"{path}: cannot be written: {exc}") from exc
    return graph


def approximate_patches(index: Index, queries: Vectors, k: int) -> list[PatchHit]:
    """Find the `k` patches nearest to any of `queries` (n, d), whitened, among all slides of an index.

    It does what `histocodec.search.nearest.nearest_patches` does, but can miss some of the k. It raises what
    `updated_graph` raises.
    """
    graph = updated_graph(index)
    nearest: dict[int, float] = {}  # by row
    for query in queries:
        matches = graph.search(query, min(k, len(graph)))
        for row, distance in zip(matches.keys.tolist(), matches.distances.tolist(), strict=True):
            nearest[row] = min(distance, nearest.get(row, np.inf))
    best = sorted(nearest.items(), key=lambda item: (item[1], item[0]))[:k]
    return [PatchHit(index.slide_of(row), row, max(distance, 0.0)) for row, distance in best]
