"""Chunks, maps, statistics and models know whose they are: what belongs elsewhere is refused when it is read."""

import json
import pickle
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import histocodec
from histocodec.codec.chunk import HyperChunkCodec
from histocodec.errors import FormatError
from histocodec.formats.container.arrays import Form, pack_values
from histocodec.formats.container.check import latents_check
from histocodec.formats.container.files import write_atomically
from histocodec.formats.container.shard import CRC_BYTES, crc32c, index_bytes, pack_shard
from histocodec.formats.decode.verify import verify
from histocodec.formats.embed import embed
from histocodec.geometry import Region
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.damage import fill_shard
from tests.support.slides import ICC, SIZE, WIDE, encoded, whole
from tests.support.tiny import tiny_model, tiny_weights
from tests.support.version2 import (
    Contents,
    change_shard,
    lossless_shards,
    make_lossless,
    opened,
    resealed,
    reversed_shard,
    rewritten,
    shard_chunks,
    shards,
    stored_json,
)

ELSEWHERE = "it was altered, or belongs to another place or slide"
PIXELS_ELSEWHERE = "were not encoded here; they belong to another place or slide"


class Pictured(ArraySlide):
    """A slide with an ICC profile and a thumbnail."""

    def __init__(self, seed: int) -> None:
        super().__init__(synthetic_slide(*SIZE, seed=seed), name="a.svs", icc_profile=ICC + bytes([seed]))
        self.associated = {"label": synthetic_slide(40, 30, seed=seed)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """Holds one.zarr and two.zarr, made alike of slides of one size: 3 × 2 chunks, of which (1, 2) and (0, 1) of level
    0 are stored losslessly, and a smaller level. wide.zarr has two shards."""
    folder = tmp_path_factory.mktemp("pair")
    options: dict[str, Any] = {"quality": 50, "effort": 0, "background": "code", "embed_model": True}
    for seed, name in ((11, "one.zarr"), (12, "two.zarr")):
        source = Pictured(seed)
        encoded(source, folder / name, tiny_file, **options, keep_label=True)
        make_lossless(folder / name, source, 0, 1, 2)
        make_lossless(folder / name, source, 0, 0, 1)
    encoded(ArraySlide(synthetic_slide(*WIDE, seed=4)), folder / "wide.zarr", tiny_file, **options)
    return folder


@pytest.fixture
def one(pair: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair / "one.zarr", tmp_path / "one.zarr"))


@pytest.fixture
def two(pair: Path) -> Path:
    return pair / "two.zarr"


@pytest.fixture
def wide(pair: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair / "wide.zarr", tmp_path / "wide.zarr"))


def pixels(path: Path) -> list[Pixels]:
    """All pixels of all levels."""
    with histocodec.open(path, device="cpu") as slide:
        return [whole(slide, level) for level in range(len(slide.levels))]


def latents_of(path: Path) -> list[NDArray[np.signedinteger]]:
    """All latents of all levels."""
    with histocodec.open(path, device="cpu") as slide:
        return [np.asarray(slide.latents(level)[:]) for level in range(len(slide.levels))]


def refuses(path: Path, message: str) -> None:
    """Latents are refused, and so are pixels."""
    with pytest.raises(FormatError, match=message):
        latents_of(path)
    refuses_pixels(path, message)


def refuses_pixels(path: Path, message: str) -> None:
    """Whole levels and small regions are refused, whichever of them reads first."""
    with pytest.raises(FormatError, match=message):
        pixels(path)
    with histocodec.open(path, device="cpu") as slide, pytest.raises(FormatError, match=message):
        for level in slide.levels:  # small regions take another way through the decoder
            for y in range(0, level.height, 250):
                for x in range(0, level.width, 250):
                    slide.read(Region(x, y, 20, 20).intersect(level.region), slide.levels.index(level))
    assert not verify(path, quick=True).ok


def swapped(left: Path, right: Path) -> None:
    first, second = left.read_bytes(), right.read_bytes()
    left.write_bytes(second)
    right.write_bytes(first)


def test_latents_are_those_that_zarr_finds_in_the_container(one: Path) -> None:
    for level, latents in enumerate(latents_of(one)):
        assert np.array_equal(latents, np.asarray(opened(one).latents(level)[:]))


def test_latents_can_be_pickled_and_are_read_in_a_process_of_their_own(one: Path) -> None:
    with histocodec.open(one, device="cpu") as slide:
        latents = slide.latents()
        again = pickle.loads(pickle.dumps(latents))
        assert again.shape == latents.shape
        assert np.array_equal(np.asarray(again[:]), np.asarray(latents[:]))


def test_the_containers_are_sound_and_differ(one: Path, two: Path, wide: Path) -> None:
    for path in (one, two, wide):
        report = verify(path, device="cpu")
        assert report.ok, report.problems
    assert not np.array_equal(pixels(one)[0], pixels(two)[0])
    assert opened(one).attributes.provenance.uid != opened(two).attributes.provenance.uid
    assert len(shards(wide)) == 2
    assert len(lossless_shards(one)) == 1


# Shards and chunks of latents.


def test_another_slides_shard_is_refused(one: Path, two: Path) -> None:
    (name,) = shards(one)
    shutil.copy(two / name, one / name)
    refuses(one, ELSEWHERE)


def test_another_slides_shard_is_refused_even_if_its_chunks_have_the_same_sizes(one: Path, two: Path) -> None:
    """Then they lie where the maps say, with sound checksums."""
    (name,) = shards(one)
    shutil.copy(two / name, one / name)
    contents, theirs = Contents.of(one), Contents.of(two)
    contents.maps[0].size[...] = theirs.maps[0].size
    contents.write(one)
    refuses(one, ELSEWHERE)


def test_shards_that_changed_places_are_refused(wide: Path) -> None:
    left, right = shards(wide)
    swapped(wide / left, wide / right)
    refuses(wide, f"{ELSEWHERE}|is missing")


def test_shards_of_two_levels_that_changed_places_are_refused(one: Path) -> None:
    swapped(one / shards(one, 0)[0], one / shards(one, 1)[0])
    refuses(one, f"{ELSEWHERE}|is missing|does not match its checksum")


def test_chunks_that_changed_places_are_refused(one: Path) -> None:
    def swap(chunks: list[bytes | None]) -> None:
        chunks[0], chunks[1] = chunks[1], chunks[0]

    change_shard(one, shards(one)[0], swap)
    refuses(one, ELSEWHERE)


def test_a_chunk_in_two_places_is_refused(one: Path) -> None:
    def copy(chunks: list[bytes | None]) -> None:
        chunks[1] = chunks[0]

    change_shard(one, shards(one)[0], copy)
    refuses(one, ELSEWHERE)


def test_a_missing_chunk_is_refused(one: Path) -> None:
    def drop(chunks: list[bytes | None]) -> None:
        chunks[1] = None

    change_shard(one, shards(one)[0], drop)
    refuses(one, "chunk 1 is missing")


def test_a_missing_shard_is_refused(wide: Path) -> None:
    for name in shards(wide):
        moved = (wide / name).rename(wide.parent / "moved")
        refuses(wide, f"{name}: is missing")
        moved.rename(wide / name)
    assert verify(wide, quick=True).ok


def test_a_shard_cut_short_is_refused(one: Path) -> None:
    (name,) = shards(one)
    data = (one / name).read_bytes()
    first = len(shard_chunks(one, name)[0] or b"") + CRC_BYTES
    for size in (0, 10, first - 1, first, first + 10):
        (one / name).write_bytes(data[:size])
        refuses(one, name)


def test_a_shard_without_its_end_still_has_its_chunks_and_does_not_verify(one: Path) -> None:
    """The maps say where chunks lie; the index serves Zarr."""
    (name,) = shards(one)
    expected = pixels(one)
    data = (one / name).read_bytes()
    (one / name).write_bytes(data[:-7])
    assert all(map(np.array_equal, pixels(one), expected))
    assert [name in problem for problem in verify(one, quick=True).problems] == [True]


def test_chunks_that_overlap_are_refused(one: Path) -> None:
    (name,) = shards(one)
    chunks = shard_chunks(one, name)
    count = len(chunks)
    data = bytearray((one / name).read_bytes())
    at = len(data) - index_bytes(count)
    body = bytearray(data[at:-CRC_BYTES])
    body[16:32] = body[:16]  # chunk 1 lies where chunk 0 does
    forged = b"gap" + bytes(data[:at]) + bytes(body) + crc32c(bytes(body))  # not where the maps say
    (one / name).write_bytes(forged)
    refuses(one, "chunks 0 and 1 overlap")


def test_a_shard_where_the_maps_have_none_is_ignored_and_does_not_verify(one: Path) -> None:
    """It holds nothing that anybody would read."""
    expected = pixels(one)
    stray = "latents/0/c/0/0/7"
    shutil.copy(one / shards(one)[0], one / stray)
    assert all(map(np.array_equal, pixels(one), expected))
    assert [stray in problem for problem in verify(one, quick=True).problems] == [True]


def test_a_chunk_of_another_slide_does_not_verify_even_if_the_digests_fit(one: Path, two: Path) -> None:
    (name,) = shards(one)
    shutil.copy(two / name, one / name)
    rewritten(one, lambda contents: contents.digest(one))
    assert verify(one, quick=True).ok
    report = verify(one, device="cpu")
    assert len(report.problems) == 6
    assert all(ELSEWHERE in problem for problem in report.problems)


def test_embeddings_are_not_made_of_another_slides_latents(one: Path, two: Path) -> None:
    (name,) = shards(one)
    shutil.copy(two / name, one / name)
    with pytest.raises(FormatError, match=ELSEWHERE):
        embed(one, level=0)


# What Zarr wrote.


def latents_for_writing(path: Path, level: int = 0) -> Any:
    opened(path).latents(level)  # registers the codec and provides the model
    return zarr.open_array(path / f"latents/{level}", mode="r+")


def test_a_shard_that_zarr_wrote_again_unchanged_reads_the_same(one: Path) -> None:
    expected, (name,) = pixels(one), shards(one)
    latents = latents_of(one)
    before = (one / name).read_bytes()
    array = latents_for_writing(one)
    array[:, 32:64, :32] = array[:, 32:64, :32]  # one chunk, for which Zarr writes the whole shard
    assert (one / name).read_bytes() != before
    assert all(map(np.array_equal, pixels(one), expected))
    assert all(map(np.array_equal, latents_of(one), latents))
    (problem,) = verify(one, quick=True).problems
    assert f"{name}: is not the file written here (its SHA-256 differs)" in problem


def test_a_shard_in_any_order_and_with_gaps_reads_the_same(one: Path) -> None:
    expected = pixels(one)
    for name in (*shards(one), *lossless_shards(one)):
        (one / name).write_bytes(reversed_shard(shard_chunks(one, name)))
    assert all(map(np.array_equal, pixels(one), expected))
    assert len(verify(one, quick=True).problems) == 2


def test_a_chunk_that_zarr_wrote_with_another_quality_is_refused(one: Path) -> None:
    array = latents_for_writing(one)
    values = array[...]
    file = one / "latents/0/zarr.json"
    sound = file.read_text()
    file.write_text(sound.replace('"quality":50', '"quality":51'))
    assert file.read_text() != sound
    zarr.open_array(one / "latents/0", mode="r+")[...] = values
    file.write_text(sound)
    refuses(one, "has quality 51, and was encoded with 50")


@pytest.mark.parametrize("at", [(0, 0, 0), (47, 31, 31), (20, 40, 70)])
def test_a_single_latent_that_was_changed_through_zarr_is_refused(one: Path, at: tuple[int, int, int]) -> None:
    array = latents_for_writing(one)
    array[at] = array[at] + (1 if array[at] < 0 else -1)
    refuses(one, ELSEWHERE)


def test_a_chunk_of_zeros_that_zarr_left_out_reads_the_same(one: Path) -> None:
    """Zarr stores no chunk that holds the fill value alone, and no shard of such chunks."""
    zeros = np.zeros((48, 32, 32), np.int8)
    fill_shard(one, HyperChunkCodec(tiny_weights()).encode(zeros, 50), check=latents_check(zeros, 50))
    expected, (name,) = pixels(one), shards(one)
    array = latents_for_writing(one)
    array[...] = array[...]
    assert not (one / name).exists()
    assert all(map(np.array_equal, pixels(one), expected))
    assert any(f"{name}: is missing" in problem for problem in verify(one, quick=True).problems)


def test_one_chunk_of_zeros_that_zarr_left_out_reads_the_same(one: Path) -> None:
    zeros, (name,) = np.zeros((48, 32, 32), np.int8), shards(one)
    chunk = HyperChunkCodec(tiny_weights()).encode(zeros, 50)

    def change(contents: Contents) -> None:
        contents.maps[0].size[0, 0] = len(chunk) + CRC_BYTES
        contents.maps[0].check[0, 0] = latents_check(zeros, 50)
        contents.digest(one)

    def first(chunks: list[bytes | None]) -> None:
        chunks[0] = chunk

    change_shard(one, name, first)
    rewritten(one, change)
    assert verify(one, device="cpu").ok
    expected, array = pixels(one), latents_for_writing(one)
    array[:, :40, :40] = array[:, :40, :40]
    assert shard_chunks(one, name)[0] is None
    assert all(map(np.array_equal, pixels(one), expected))


def test_black_pixels_that_zarr_left_out_read_the_same(tmp_path: Path, tiny_file: Path) -> None:
    source, path = ArraySlide(np.zeros((40, 50, 3), np.uint8)), tmp_path / "a.zarr"
    encoded(source, path, tiny_file, embed_model=True, background="code")
    make_lossless(path, source, 0, 0, 0)
    (name,) = lossless_shards(path)
    array: Any = zarr.open_array(path / "lossless-0", mode="r+")
    array[...] = array[...]
    assert not (path / name).exists()
    assert not pixels(path)[0].any()
    assert not verify(path, quick=True).ok


# Lossless pixels.


def lossless_chunk(path: Path, row: int, column: int) -> int:
    """The number of a chunk in its shard, the only one."""
    return row * opened(path).attributes.shard_side(0) + column


def test_another_slides_lossless_pixels_are_refused(one: Path, two: Path) -> None:
    (name,) = lossless_shards(one)
    shutil.copy(two / name, one / name)
    refuses_pixels(one, PIXELS_ELSEWHERE)


def test_lossless_pixels_that_changed_places_are_refused(one: Path) -> None:
    a, b = lossless_chunk(one, 0, 1), lossless_chunk(one, 1, 2)

    def swap(chunks: list[bytes | None]) -> None:
        chunks[a], chunks[b] = chunks[b], chunks[a]

    change_shard(one, lossless_shards(one)[0], swap)
    refuses_pixels(one, PIXELS_ELSEWHERE)


def test_missing_lossless_pixels_are_refused(one: Path) -> None:
    (name,), number = lossless_shards(one), lossless_chunk(one, 0, 1)

    def drop(chunks: list[bytes | None]) -> None:
        chunks[number] = None

    change_shard(one, name, drop)
    refuses_pixels(one, f"chunk {number} is missing")
    (one / name).unlink()
    refuses_pixels(one, f"{name}: is missing")


def test_lossless_pixels_cut_short_are_refused(one: Path) -> None:
    (name,) = lossless_shards(one)
    data = (one / name).read_bytes()
    for size in (0, 10, len(data) // 3):
        (one / name).write_bytes(data[:size])
        refuses_pixels(one, name)


def test_a_changed_sample_of_lossless_pixels_is_refused(one: Path) -> None:
    (name,), number = lossless_shards(one), lossless_chunk(one, 1, 2)
    side = opened(one).attributes.chunk_side
    values = np.array(zarr.open_array(one / "lossless-0", mode="r")[512:, 1024:])
    padded = np.zeros((side, side, 3), np.uint8)
    padded[: values.shape[0], : values.shape[1]] = values
    padded[3, 4, 1] ^= 1

    def replace(chunks: list[bytes | None]) -> None:
        chunks[number] = pack_values(padded, Form(padded.shape, "uint8"))

    change_shard(one, name, replace)
    refuses_pixels(one, PIXELS_ELSEWHERE)


def test_a_changed_sample_beyond_the_edge_is_refused(one: Path) -> None:
    """The check covers the padding, too: nothing can be hidden in it."""
    (name,), number = lossless_shards(one), lossless_chunk(one, 1, 2)
    side = opened(one).attributes.chunk_side
    values = np.array(zarr.open_array(one / "lossless-0", mode="r")[512:, 1024:])
    padded = np.zeros((side, side, 3), np.uint8)
    padded[: values.shape[0], : values.shape[1]] = values
    padded[-1, -1, -1] = 1

    def replace(chunks: list[bytes | None]) -> None:
        chunks[number] = pack_values(padded, Form(padded.shape, "uint8"))

    change_shard(one, name, replace)
    refuses_pixels(one, PIXELS_ELSEWHERE)


def test_lossless_pixels_that_zarr_wrote_again_unchanged_read_the_same(one: Path) -> None:
    expected, (name,) = pixels(one), lossless_shards(one)
    before = (one / name).read_bytes()
    array: Any = zarr.open_array(one / "lossless-0", mode="r+")
    array[:512, 512:1024] = array[:512, 512:1024]
    assert (one / name).read_bytes() != before
    assert all(map(np.array_equal, pixels(one), expected))
    (problem,) = verify(one, quick=True).problems
    assert f"{name}: is not the file written here (its SHA-256 differs)" in problem


# Attributes, statistics, maps, images, model.


@pytest.mark.parametrize("member", ["normalisation", "background", "maps", "levels", "uid", "features", "source"])
def test_another_slides_part_of_the_attributes_is_refused(one: Path, two: Path, member: str) -> None:
    root, theirs = json.loads((one / "zarr.json").read_text()), stored_json(two)
    ours = root["attributes"]["histocodec"]
    if ours[member] == theirs[member]:
        theirs[member] = {}
    ours[member] = theirs[member]
    (one / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(FormatError, match=r"digest: the attributes do not have this SHA-256|critical|needs"):
        histocodec.open(one, device="cpu")


def test_everything_of_another_slide_but_the_shards_is_refused_with_the_first_chunk(one: Path, two: Path) -> None:
    for name in ("zarr.json", "icc/c/0", "overview/c/0/0/0", "associated-label/c/0/0/0"):
        shutil.copy(two / name, one / name)
    refuses(one, f"{ELSEWHERE}|{PIXELS_ELSEWHERE}")


def test_another_slides_maps_are_refused_even_if_they_are_sealed(one: Path, two: Path) -> None:
    resealed(one, lambda value: value.update(maps=stored_json(two)["maps"]))
    refuses(one, f"{ELSEWHERE}|{PIXELS_ELSEWHERE}")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, one: Path, two: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Containers whose maps are arrays, as those of large slides are."""
    monkeypatch.setattr("histocodec.formats.container.write.MAX_INLINE", 0)
    other = Path(shutil.copytree(two, tmp_path / "two.zarr"))
    for path in (one, other):
        rewritten(path, lambda contents: None)
        assert verify(path, device="cpu").ok
    return {"one": one, "two": other}.__getitem__


@pytest.mark.parametrize("name", ["maps-0", "maps-1"])
def test_another_slides_maps_are_refused(large: Callable[[str], Path], name: str) -> None:
    shutil.copy(large("two") / name / "c/0/0/0", large("one") / name / "c/0/0/0")
    refuses(large("one"), rf"{name}/c/0/0/0: is not what was written here \(its SHA-256 differs\)")


def test_another_slides_digests_do_not_verify(large: Callable[[str], Path]) -> None:
    shutil.copy(large("two") / "digests/c/0/0", large("one") / "digests/c/0/0")
    problems = verify(large("one"), quick=True).problems
    assert any("digests/c/0/0: is not what was written here" in problem for problem in problems)


@pytest.mark.parametrize("name", ["overview/c/0/0/0", "associated-label/c/0/0/0", "icc/c/0"])
def test_another_slides_images_and_profile_are_refused(one: Path, two: Path, name: str) -> None:
    shutil.copy(two / name, one / name)
    container = opened(one)
    read = {"overview": container.overview, "icc": container.icc_profile}
    with pytest.raises(FormatError, match=f"{name}: is not what was written here"):
        read.get(name.partition("/")[0], lambda: container.associated("label"))()
    assert [name in problem for problem in verify(one, quick=True).problems] == [True]


def test_another_model_of_the_same_name_and_shape_is_refused(one: Path, tmp_path: Path) -> None:
    from histocodec.models.weights import load_model

    foreign = np.frombuffer(load_model(tiny_model(tmp_path, seed=1)).decoder, np.uint8)
    form = Form((opened(one).attributes.model.embedded or 0,), "uint8")
    padded = np.zeros(form.shape, np.uint8)
    padded[: min(len(foreign), len(padded))] = foreign[: len(padded)]
    write_atomically(one / "model/c/0", pack_values(padded, form))
    with pytest.raises(FormatError, match="model/c/0: is not what was written here"):
        pixels(one)


# The check itself.


def test_the_check_of_a_chunk_tells_any_two_neighbouring_chunks_apart(one: Path) -> None:
    for level in (0, 1):
        checks = opened(one).maps(level).check.ravel().tolist()
        assert all(a != b for a, b in pairwise(checks))


def test_a_shard_of_no_chunks_is_never_asked_for(tmp_path: Path, tiny_file: Path) -> None:
    glass = np.full((600, 600, 3), (240, 238, 241), np.uint8)
    encoded(ArraySlide(glass), tmp_path / "a.zarr", tiny_file, embed_model=True)
    assert shards(tmp_path / "a.zarr") == []
    (tmp_path / "a.zarr/latents/0/c/0/0").mkdir(parents=True)
    (tmp_path / "a.zarr/latents/0/c/0/0/0").write_bytes(pack_shard([b"x", None, None, None]))
    assert (pixels(tmp_path / "a.zarr")[0] == glass).all()
    assert not verify(tmp_path / "a.zarr", quick=True).ok
