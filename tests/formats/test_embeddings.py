"""The group embeddings/ of a container: what is in it, that it disturbs nothing, and that damage to it is found."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from histocodec.errors import FormatError, OutputError, UnsupportedError
from histocodec.formats.container.arrays import Form, read_plain, write_plain
from histocodec.formats.container.embeddings import COVERED, read_embeddings, write_embeddings
from histocodec.formats.container.pack import write_zip
from histocodec.formats.container.read import open_container
from histocodec.formats.decode.verify import verify
from histocodec.formats.embed import embed
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.models.weights import load_model
from histocodec.search.embedding import log_energies
from histocodec.sources.array import ArraySlide
from histocodec.sources.synthetic import synthetic_slide

WHERE = "embeddings/tiny-0"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """600 × 400 pixels of tissue, right of 600 of background, embedded."""
    pixels = np.full((400, 1200, 3), 240, np.uint8)
    pixels[:, 600:] = synthetic_slide(600, 400, seed=3)
    path = tmp_path_factory.mktemp("embeddings") / "slide.zarr"
    options = EncodeOptions(quality=60, model=str(tiny_file), embed_model=True, device="cpu", workers=1)
    encode_slide(ArraySlide(pixels, background=(240, 240, 240)), path, options)
    write_embeddings(path, embed(path, workers=1))
    return path


@pytest.fixture
def slide(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "slide.zarr"))


def test_there_is_a_vector_for_each_patch_of_tissue_and_none_for_background(made: Path) -> None:
    found = read_embeddings(made)
    places = {(int(x), int(y)) for x, y in found.positions}
    # 400 rows are a whole patch and one of 144 pixels, 1200 columns four whole and one of 176.
    assert {place for place in places if place[0] > 512} == {(x, y) for x in (768, 1024) for y in (0, 256)}
    assert min(x for x, _ in places) == 512  # tissue begins at 600
    assert found.vectors.shape == (len(places), 48)
    assert found.patch_side_level0 == found.patch_side == 256


def test_a_vector_is_that_of_the_dequantised_latents(made: Path, tiny_file: Path) -> None:
    found, weights = read_embeddings(made), load_model(tiny_file)
    number = found.positions.tolist().index([768, 0])
    latents = np.asarray(open_container(made).latents(0)[:, 0:16, 48:64])
    expected = log_energies(latents * weights.inverse_gain(60)[:, None, None])
    np.testing.assert_allclose(found.vectors[number], expected, atol=5e-3)


def test_any_zarr_reader_sees_the_arrays(made: Path) -> None:
    group = zarr.open_group(made / WHERE, mode="r")
    found = read_embeddings(made)
    np.testing.assert_array_equal(np.asarray(group["vectors"]).astype(np.float32), found.vectors)
    np.testing.assert_array_equal(np.asarray(group["positions"]), found.positions)


def test_a_container_is_sound_with_embeddings(made: Path) -> None:
    report = verify(made, device="cpu", workers=1)
    assert report.problems == ()


def test_nothing_else_in_the_container_or_beside_it_changes(slide: Path) -> None:
    def others() -> dict[str, bytes]:
        files = (path for path in slide.parent.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files if "embeddings" not in path.parts}

    before = others()
    write_embeddings(slide, embed(slide, workers=1), overwrite=True)
    assert others() == before


def test_a_container_that_is_one_file_gets_the_same_embeddings(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "slide.hcz"
    write_zip(made, file)
    again = read_embeddings(file)
    with pytest.raises(OutputError, match="--overwrite replaces it"):
        write_embeddings(file, again)
    write_embeddings(file, again, overwrite=True)
    assert dict(open_container(file).store.entries()) == dict(open_container(made).store.entries())
    assert list(tmp_path.iterdir()) == [file]
    assert np.array_equal(read_embeddings(file).vectors, read_embeddings(made).vectors)


def test_embeddings_are_not_replaced_unasked(slide: Path) -> None:
    with pytest.raises(OutputError, match="--overwrite"):
        write_embeddings(slide, read_embeddings(slide))


def test_a_failed_write_leaves_the_old_ones(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_embeddings(slide)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("histocodec.formats.container.embeddings.write_metadata", full)
    with pytest.raises(OutputError, match="No space left"):
        write_embeddings(slide, found, overwrite=True)
    np.testing.assert_array_equal(read_embeddings(slide).vectors, found.vectors)
    assert [path.name for path in slide.parent.iterdir()] == ["slide.zarr"]


def test_a_slide_without_embeddings_says_what_adds_them(slide: Path) -> None:
    shutil.rmtree(slide / "embeddings")
    with pytest.raises(UnsupportedError, match="histocodec embed"):
        read_embeddings(slide)


def test_a_slide_of_background_has_nothing_to_embed(tmp_path: Path, tiny_file: Path) -> None:
    path = tmp_path / "blank.zarr"
    background = ArraySlide(np.full((300, 300, 3), 240, np.uint8))
    options = EncodeOptions(quality=60, model=str(tiny_file), embed_model=True, device="cpu", workers=1)
    encode_slide(background, path, options)
    with pytest.raises(UnsupportedError, match="no tissue"):
        embed(path, workers=1)


@pytest.mark.parametrize("name", ["vectors/c/0/0", "positions/c/0/0", "vectors/zarr.json", "digests/c/0"])
def test_a_missing_file_is_found(slide: Path, name: str) -> None:
    (slide / WHERE / name).unlink()
    assert any(name in problem for problem in verify(slide, quick=True).problems)


def test_altered_vectors_are_found_by_verify(slide: Path) -> None:
    """Sound gzip of other values, which only the SHA-256 tells apart."""
    array = zarr.open_group(slide / WHERE, mode="r+")["vectors"]
    array[0, 0] = 7.0
    (problem,) = verify(slide, quick=True).problems
    assert "vectors/c/0/0: was altered" in problem


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [
        ("count", 2**31, "count"),
        ("length", 0, "length"),
        ("embedder", 3, "embedder"),
        ("level", 9, "level"),
        ("latents", "0" * 64, "other latents"),
        ("model", {"id": "tiny-0", "sha256": "0" * 64}, "is of model"),
    ],
)
def test_a_description_that_does_not_fit_is_a_format_error(slide: Path, member: str, value: object, words: str) -> None:
    file = slide / WHERE / "zarr.json"
    node = json.loads(file.read_bytes())
    node["attributes"]["histocodec_embedding"][member] = value
    file.write_text(json.dumps(node))
    with pytest.raises(FormatError, match=words):
        read_embeddings(slide)
    assert not verify(slide, quick=True).ok


def test_embeddings_of_a_later_version_are_unsupported(slide: Path) -> None:
    file = slide / WHERE / "zarr.json"
    file.write_text(file.read_text().replace('"version":1', '"version":2'))
    with pytest.raises(UnsupportedError, match="version 2"):
        read_embeddings(slide)


def test_groups_of_other_programs_are_left_alone(slide: Path) -> None:
    zarr.open_group(slide, mode="r+").create_group("embeddings/another")
    assert verify(slide, quick=True).ok


def test_reading_vectors_and_searching_need_no_torch() -> None:
    program = (
        "import sys, histocodec.formats.container.embeddings, histocodec.search.nearest, histocodec.cli.search; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("length", [1, 48])  # with one value a vector, positions are the larger
def test_a_small_file_that_claims_much_memory_is_refused_before_it_is_taken(slide: Path, length: int) -> None:
    folder, count = slide / WHERE, (1 << 28) // length
    root = json.loads((folder / "zarr.json").read_text())
    root["attributes"]["histocodec_embedding"] |= {"count": count, "length": length}
    (folder / "zarr.json").write_text(json.dumps(root))
    for name, shape in (("vectors", [count, length]), ("positions", [count, 2])):
        array = json.loads((folder / name / "zarr.json").read_text())
        array["shape"] = array["chunk_grid"]["configuration"]["chunk_shape"] = shape
        (folder / name / "zarr.json").write_text(json.dumps(array))
        # Half a megabyte, as much as gzip makes of 512 MiB of zeros; what it holds is never looked at.
        (folder / name / "c/0/0").write_bytes(bytes(520_000))
    with pytest.raises(FormatError, match=r"has 520000 bytes for an array of .*at least a 64th is needed"):
        read_embeddings(slide)


def store_vectors(slide: Path, vectors: np.ndarray) -> None:
    """Write the vectors anew, as somebody who forges them would."""
    form = Form(vectors.shape, "float16", ("patch", "value"))
    write_plain(slide / WHERE / "vectors", form, vectors.astype(np.float16))


def test_altered_vectors_are_not_read(slide: Path) -> None:
    vectors = read_embeddings(slide).vectors.copy()
    store_vectors(slide, vectors)
    assert np.array_equal(read_embeddings(slide).vectors, vectors)
    vectors[0, 0] += 1
    store_vectors(slide, vectors)
    with pytest.raises(FormatError, match=r"vectors/c/0/0: was altered"):
        read_embeddings(slide)


def test_digests_have_a_fixed_order(slide: Path) -> None:
    container = open_container(slide)
    size = sum(64 + 2 + len(name) + 1 for name in COVERED)
    lines = read_plain(container.store, f"{WHERE}/digests", Form((size,), "uint8")).tobytes().splitlines(keepends=True)
    write_plain(slide / WHERE / "digests", Form((size,), "uint8"), np.frombuffer(b"".join(lines[::-1]), np.uint8))
    with pytest.raises(FormatError, match="was altered"):
        read_embeddings(slide)


def test_a_file_too_large_for_its_array_is_not_hashed(slide: Path) -> None:
    file = slide / WHERE / "positions/c/0/0"
    with file.open("r+b") as opened:
        opened.truncate(1 << 33)  # sparse
    with pytest.raises(FormatError, match=r"positions/c/0/0: has 8589934592 bytes; at most \d+ are allowed"):
        read_embeddings(slide)
    assert any("8589934592" in problem for problem in verify(slide).problems)


def test_vectors_beyond_float16_are_not_written(slide: Path) -> None:
    found = read_embeddings(slide)
    vectors = found.vectors.copy()
    vectors[0, 0] = 70_000
    with pytest.raises(FormatError, match="too large for vectors in float16"):
        write_embeddings(slide, replace(found, vectors=vectors), overwrite=True)
    assert np.array_equal(read_embeddings(slide).vectors, found.vectors)
