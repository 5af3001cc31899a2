"""Indexes and what is nearest, on made-up vectors: what is found, stored and refused."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from histocodec.errors import FormatError, OutputError, UnsupportedError, UsageError
from histocodec.search import nearest
from histocodec.search.database import Entry
from histocodec.search.embedding import Embeddings, VectorKind, embedder_of, log_energies, tissue_share
from histocodec.search.index import DATABASE, Index, build
from histocodec.search.nearest import nearest_patches, nearest_slides
from histocodec.search.whitening import Whitening

KIND = VectorKind("tiny-0", "0" * 64, "log-energies/1", 24)


def entry(name: str, seed: int, count: int = 30, **labels: str) -> Entry:
    """A slide of `count` patches whose vectors lie around a random point."""
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(0, 3, 24) + rng.normal(0, 1, (count, 24))).astype(np.float32)
    positions = np.stack([np.arange(count) * 256, np.full(count, seed)], axis=1).astype(np.int32)
    return Entry(name, Embeddings(KIND, 0, 256, 256.0, (0.5, 0.5), f"{seed:064}", vectors, positions), labels)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    entries = [entry("a", 1, organ="lung"), entry("b", 2, organ="lung"), entry("c", 3, 20, organ="colon")]
    return build(tmp_path / "an.index", entries)


def queries(index: Index, of: Entry) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return index.whitened(of.embeddings.kind, of.embeddings.vectors, of.path)


# Vectors.


def test_whitened_vectors_have_unit_length_and_uncorrelated_values() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(2000, 24)) @ rng.normal(size=(24, 24)) + 5).astype(np.float32)
    white = Whitening.fit(vectors, dimensions=8).apply(vectors)
    covariance = np.cov(white.T)
    assert white.shape == (2000, 8)
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1, rtol=1e-5)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.02


def test_whitening_one_vector_is_finite() -> None:
    vectors = np.ones((1, 24), np.float32)
    assert np.isfinite(Whitening.fit(vectors).apply(vectors)).all()


def test_a_vector_does_not_depend_on_where_in_the_patch_things_lie() -> None:
    latents = np.random.default_rng(0).normal(0, 4, (120, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(log_energies(np.roll(latents, (3, 5), (1, 2))), log_energies(latents), rtol=1e-4)
    assert log_energies(latents).shape == (64,)


def test_latents_of_background_are_no_tissue() -> None:
    background, std = np.full(48, 2, np.float32), np.full(3, 40, np.float32)
    latents = np.broadcast_to(background[:, None, None], (48, 16, 16)).copy()
    assert tissue_share(latents, background, std) == 0
    latents[:, :4] += 10
    assert tissue_share(latents, background, std) == 0.25


def test_a_family_without_embedder_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="hyper, vae have one"):
        embedder_of("unheard-of")


# What is nearest.


def test_a_patch_of_the_index_finds_itself_first(index: Index) -> None:
    hits = nearest_patches(index, index.vectors()[[37]], index.slides, 5)
    assert hits[0].row == 37
    assert hits[0].distance == pytest.approx(0, abs=1e-5)
    assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)


def test_search_in_parts_finds_what_one_comparison_finds(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    query_vectors = queries(index, entry("q", 9, 7))
    distances = (1 - query_vectors @ index.vectors().T).min(axis=0)
    monkeypatch.setattr(nearest, "ROWS_AT_ONCE", 13)
    hits = nearest_patches(index, query_vectors, index.slides, 12)
    assert [hit.row for hit in hits] == np.argsort(distances, kind="stable")[:12].tolist()
    np.testing.assert_allclose([hit.distance for hit in hits], np.sort(distances)[:12], atol=1e-6)


def test_only_slides_with_the_label_are_searched(index: Index) -> None:
    chosen = index.slides_with({"organ": "colon"})
    hits = nearest_patches(index, queries(index, entry("q", 1)), chosen, 100)
    assert {hit.slide.path for hit in hits} == {"c"}
    assert len(hits) == 20


def test_slides_are_ranked_by_the_median_of_the_least_distances(index: Index) -> None:
    query_vectors = queries(index, entry("q", 2, 11))
    hits = nearest_slides(index, query_vectors, index.slides, 3)
    medians = {
        slide.path: float(
            np.median((1 - query_vectors @ index.vectors()[slide.first_row : slide.end_row].T).min(axis=1))
        )
        for slide in index.slides
    }
    assert [hit.slide.path for hit in hits] == sorted(medians, key=lambda path: medians[path])
    assert hits[0].slide.path == "b"
    assert hits[0].distance == pytest.approx(medians["b"], abs=1e-6)


# What an index keeps.


def test_an_opened_index_is_what_was_built(index: Index) -> None:
    opened = Index(index.folder)
    assert [(s.path, s.patch_count, s.mpp, s.labels["organ"]) for s in opened.slides] == [
        ("a", 30, (0.5, 0.5), "lung"), ("b", 30, (0.5, 0.5), "lung"), ("c", 20, (0.5, 0.5), "colon"),
    ]  # fmt: skip
    assert opened.facts.kind == KIND
    assert opened.position(opened.slides[1], 33) == (3 * 256, 2)
    np.testing.assert_array_equal(opened.positions()[[0, 30, 79]], [(0, 1), (0, 2), (19 * 256, 3)])
    assert list(opened.problems()) == []


def test_an_index_is_the_same_after_adding_and_removing(index: Index) -> None:
    before, slides = np.array(index.vectors()), index.slides
    index.add([entry("d", 4)])
    assert index.facts.rows == 110
    index.remove(["d"])
    np.testing.assert_array_equal(index.vectors(), before)
    assert index.slides == slides
    assert sorted(path.name for path in index.folder.iterdir()) == [DATABASE, "vectors-1.f32"]


def test_removing_a_slide_in_the_middle_keeps_the_others(index: Index) -> None:
    remaining = np.array(index.vectors()[60:])
    index.remove(["b"])
    np.testing.assert_array_equal(index.vectors()[30:], remaining)
    assert index.position(index.slides[1], 31) == (256, 3)
    assert list(index.problems()) == []


def test_rows_that_an_interrupted_run_left_are_overwritten(index: Index) -> None:
    with index.vectors_path.open("ab") as file:
        file.write(b"half a row")
    opened = Index(index.folder)
    opened.add([entry("d", 4)])
    assert list(opened.problems()) == []
    assert opened.vectors_path.stat().st_size == 110 * opened.facts.whitening.dimensions * 4


def test_an_add_that_fails_adds_nothing(index: Index) -> None:
    other = entry("e", 5)
    wrong = replace(other, embeddings=replace(other.embeddings, kind=replace(KIND, sha256="1" * 64)))
    with pytest.raises(UsageError, match=r"e: its vectors are .*111111.*holds .*000000"):
        index.add([entry("d", 4), wrong])
    assert Index(index.folder).slides == index.slides


def test_a_change_by_another_process_is_not_overwritten(index: Index) -> None:
    other = Index(index.folder)
    other.add([entry("d", 4)])
    with pytest.raises(OutputError, match="another process"):
        index.remove(["a"])
    assert len(Index(index.folder).slides) == 4


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already, as a"):
        build(tmp_path / "an.index", [entry("a", 1), entry("b", 1)])
    assert list(tmp_path.iterdir()) == []


# What is refused.


def test_a_slide_that_is_in_the_index_is_refused(index: Index) -> None:
    with pytest.raises(UsageError, match=r"a: is in .* already"):
        index.add([entry("a", 7)])


def test_a_slide_that_is_not_in_the_index_cannot_be_removed(index: Index) -> None:
    with pytest.raises(UsageError, match="x: is not in"):
        index.remove(["a", "x"])
    assert len(Index(index.folder).slides) == 3


def test_a_query_of_another_model_is_refused(index: Index) -> None:
    with pytest.raises(UsageError, match=r"other-model.*holds.*tiny-0"):
        index.whitened(replace(KIND, model="other-model"), np.zeros((1, 24), np.float32), "q")


def test_an_empty_query_is_refused(index: Index) -> None:
    with pytest.raises(UsageError, match=r"q: .*at least one"):
        index.whitened(KIND, np.zeros((0, 24), np.float32), "q")


def test_a_label_that_no_slide_has_is_refused_with_those_that_there_are(index: Index) -> None:
    with pytest.raises(UsageError, match="no slide has organ=skin; there are organ=colon, organ=lung"):
        index.slides_with({"organ": "skin"})


def test_a_folder_that_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not an index"):
        Index(tmp_path)


@pytest.mark.parametrize("content", [b"nonsense" * 1000, b""])
def test_a_damaged_database_is_a_format_error(index: Index, content: bytes) -> None:
    (index.folder / DATABASE).write_bytes(content)
    with pytest.raises((FormatError, UnsupportedError), match=DATABASE):
        Index(index.folder)


def test_a_database_with_overwritten_pages_is_a_format_error(index: Index) -> None:
    database = index.folder / DATABASE
    data = bytearray(database.read_bytes())
    data[100:] = bytes(len(data) - 100)  # all but the header
    database.write_bytes(data)
    with pytest.raises(FormatError, match="Build"):
        Index(index.folder)


def test_a_database_of_a_later_version_is_unsupported(index: Index) -> None:
    with sqlite3.connect(index.folder / DATABASE) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(UnsupportedError, match="version 2"):
        Index(index.folder)


def test_vectors_cut_short_are_a_format_error(index: Index) -> None:
    index.vectors_path.write_bytes(index.vectors_path.read_bytes()[:-4])
    with pytest.raises(FormatError, match=r"vectors-0\.f32: has"):
        Index(index.folder)


def test_altered_vectors_are_found(index: Index) -> None:
    data = bytearray(index.vectors_path.read_bytes())
    data[40 * index.facts.whitening.dimensions * 4] ^= 1
    index.vectors_path.write_bytes(data)
    assert [problem.rpartition(" of ")[2] for problem in Index(index.folder).problems()] == ["b were altered"]


# With the extra.


def test_a_graph_finds_nearly_what_exact_search_finds(index: Index) -> None:
    pytest.importorskip("usearch.index", reason="the extra search is not installed")
    from histocodec.search.graph import approximate_patches, updated_graph

    query_vectors = queries(index, entry("q", 9, 10))
    updated_graph(index)
    index.add([entry("d", 4)])  # the graph has fewer vectors now, and is brought up to date
    for vector in query_vectors:
        exact = {hit.row for hit in nearest_patches(index, vector[None], index.slides, 10)}
        assert len(exact & {hit.row for hit in approximate_patches(index, vector[None], 10)}) >= 9


def test_a_damaged_graph_is_a_format_error(index: Index) -> None:
    pytest.importorskip("usearch.index", reason="the extra search is not installed")
    from histocodec.search.graph import updated_graph

    index.graph_path.write_bytes(b"nonsense")
    with pytest.raises(FormatError, match="graph-0"):
        updated_graph(index)
