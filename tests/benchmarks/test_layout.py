"""What a container takes beside its chunks, and what reading a cold region of it takes, counted."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from histocodec.benchmarks.measure.traffic import Request, longest_chain
from histocodec.benchmarks.studies import layout
from histocodec.benchmarks.studies.layout import HTTP, LOCAL, S3, Layout, cold_regions, layout_of, main, parts_of
from histocodec.formats.container import write
from histocodec.formats.container.pack import write_zip
from histocodec.formats.container.read import open_container
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.version1 import golden


@pytest.fixture(scope="module")
def slides(tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.hc.zarr and a.hcz: the same slide of 3 × 3 chunks."""
    root = tmp_path_factory.mktemp("layout")
    source = ArraySlide(synthetic_slide(600, 560, seed=8), name="a", icc_profile=b"profile")
    options = EncodeOptions(model=str(tiny_file), device="cpu", levels=(0,), chunk=256, effort=0, background="code")
    encode_slide(source, root / "a.hc.zarr", options)
    write_zip(root / "a.hc.zarr", root / "a.hcz")
    return root


@pytest.fixture
def model(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tiny_file.parent))


def counts(found: Layout, place: str) -> dict[str, int]:
    return {read.where: read.traffic.requests for read in found.reads if read.place == place}


def test_a_chain_is_of_requests_that_wait_for_each_other() -> None:
    assert longest_chain([]) == 0
    assert longest_chain([Request(0, 1), Request(0.5, 2), Request(2, 3), Request(2.5, 4)]) == 2
    assert longest_chain([Request(2, 3), Request(0, 1), Request(1, 2)]) == 3
    assert longest_chain([Request(0, 9), Request(1, 2), Request(3, 4)]) == 2


def test_all_bytes_of_a_container_are_parts_of_it(slides: Path) -> None:
    folder, file = parts_of(slides / "a.hc.zarr"), parts_of(slides / "a.hcz")
    files = [path for path in (slides / "a.hc.zarr").rglob("*") if path.is_file()]
    assert (folder.files, file.files) == (len(files), 1)
    for parts, total in (
        (folder, sum(path.stat().st_size for path in files)),
        (file, (slides / "a.hcz").stat().st_size),
    ):
        assert parts.chunks + parts.images + parts.profile_and_model + parts.rest == total
        assert parts.chunks == open_container(slides / "a.hc.zarr").maps(0).size.sum()  # type: ignore[attr-defined]
        assert parts.images == (slides / "a.hc.zarr/overview/c/0/0/0").stat().st_size
        assert parts.profile_and_model == (slides / "a.hc.zarr/icc/c/0").stat().st_size


def test_the_regions_lie_in_a_chunk_and_where_chunks_meet(slides: Path) -> None:
    regions = cold_regions(open_container(slides / "a.hc.zarr"))
    assert {name: (region.x, region.y) for name, region in regions.items()} == {
        "in a chunk": (256, 256),
        "four chunks": (128, 128),
    }


def test_requests_are_counted_where_they_arrive(slides: Path, model: None) -> None:
    folder, file = (layout_of(slides / name, delay=0) for name in ("a.hc.zarr", "a.hcz"))
    assert (folder.version, folder.form, file.form) == (2, "folder", "file")
    assert counts(folder, HTTP) == {"in a chunk": 2, "four chunks": 2}  # the attributes, and one range of the shard
    assert counts(file, HTTP) == {"in a chunk": 2, "four chunks": 2}  # the beginning and the end: all of a small one
    assert min(counts(folder, LOCAL).values()) >= 3
    root = (slides / "a.hc.zarr/zarr.json").stat().st_size
    chunks = open_container(slides / "a.hc.zarr").attributes.levels[0].bytes
    for read in folder.reads:
        assert root < read.traffic.bytes < root + (chunks or 0)


def test_maps_that_are_arrays_take_one_more_request(
    tiny_file: Path, model: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "MAX_INLINE", 0)
    source = ArraySlide(synthetic_slide(600, 560, seed=8), name="a")
    options = EncodeOptions(model=str(tiny_file), device="cpu", levels=(0,), chunk=256, effort=0, background="code")
    encode_slide(source, tmp_path / "a.hc.zarr", options)
    write_zip(tmp_path / "a.hc.zarr", tmp_path / "a.hcz")
    assert set(counts(layout_of(tmp_path / "a.hc.zarr", delay=0), HTTP).values()) == {3}
    assert set(counts(layout_of(tmp_path / "a.hcz", delay=0), HTTP).values()) == {2}


def test_containers_of_version_1_are_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tmp_path))
    pytest.importorskip("moto")
    found = layout_of(golden(tmp_path), s3=True, delay=0)
    assert found.version == 1
    assert found.parts.files > 20
    assert counts(found, S3) == counts(found, HTTP)
    assert counts(found, HTTP)["in a chunk"] > 10


def test_the_command_prints_tables_or_json(slides: Path, model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("moto")
    arguments = [str(slides / "a.hcz"), "--delay", "0", "--s3"]
    table = CliRunner().invoke(main, arguments)
    assert table.exit_code == 0, table.output
    assert "| a.hcz | four chunks | S3 | 2 |" in table.output
    result = CliRunner().invoke(main, [*arguments, "--json"])
    (found,) = json.loads(result.stdout)["containers"]
    assert {read["place"] for read in found["reads"]} == {LOCAL, HTTP, S3}
    monkeypatch.setattr(layout, "find_spec", lambda name: None)
    without = CliRunner().invoke(main, arguments)
    assert without.exit_code == 0
    assert "moto is not installed" in without.stderr
    assert S3 not in without.stdout
