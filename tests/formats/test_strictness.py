"""Metadata that would mean something else are refused; metadata that mean the same, however written, are taken."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import histocodec
from histocodec.errors import FormatError, UnsupportedError
from histocodec.formats.container.arrays import Form, write_plain
from histocodec.formats.container.read import open_container
from histocodec.formats.container.version1.container import ContainerV1
from histocodec.formats.container.version1.integrity import container_problems, read_listing
from histocodec.formats.container.version1.layout import LISTING
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.containers import written

Metadata = dict[str, Any]
DIGEST = "0" * 64


def rewritten(folder: Path, change: Callable[[Metadata], object]) -> None:
    """Change the metadata of a group or an array."""
    file = folder / "zarr.json"
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))


@pytest.mark.parametrize("change", [{"zarr_format": 2}, {"zarr_format": "3"}, {"node_type": "array"}])
def test_a_root_that_is_no_group_of_zarr_v3_is_refused(tmp_path: Path, change: Metadata) -> None:
    root = written(tmp_path / "a").path
    rewritten(root, lambda m: m.update(change))
    with pytest.raises(FormatError, match=rf"zarr\.json\.{next(iter(change))}: found"):
        open_container(root)


@pytest.mark.parametrize("member", ["zarr_format", "node_type"])
def test_a_root_that_does_not_say_what_it_is_is_refused(tmp_path: Path, member: str) -> None:
    root = written(tmp_path / "a").path
    rewritten(root, lambda m: m.pop(member))
    with pytest.raises(FormatError, match=rf"zarr\.json: field '{member}' is missing"):
        open_container(root)


def test_a_name_that_occurs_twice_is_refused_in_the_root_and_in_arrays(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    for file in (container.path / "zarr.json", container.path / "tiles/0/zarr.json"):
        file.write_text(file.read_text().replace('"zarr_format"', '"zarr_format":3,"zarr_format"'))
    with pytest.raises(FormatError, match="has the name 'zarr_format' twice"):
        container.tiles(0)
    with pytest.raises(FormatError, match="has the name 'zarr_format' twice"):
        open_container(container.path)


@pytest.mark.parametrize("transformers", [[{"name": "reverse"}], ["reverse"], None, {}, {"must_understand": False}])
def test_storage_transformers_are_refused_not_ignored(tmp_path: Path, transformers: object) -> None:
    container = written(tmp_path / "a")
    for name in ("tiles/0", "latents/0"):
        rewritten(container.path / name, lambda m: m.update(storage_transformers=transformers))
    with pytest.raises(FormatError, match=r"tiles/0/zarr\.json: storage_transformers is"):
        container.tiles(0)
    with pytest.raises(FormatError, match=r"latents/0/zarr\.json: storage_transformers is"):
        container.check_latent_metadata(0)


def abbreviate(metadata: Metadata) -> None:
    """Write names without a configuration as bare strings, as Zarr 3.1 allows."""
    metadata["codecs"] = [c["name"] if set(c) == {"name"} else c for c in metadata["codecs"]]
    for codec in metadata["codecs"]:
        if isinstance(codec, dict) and "codecs" in codec["configuration"]:
            for key in ("codecs", "index_codecs"):
                inner = codec["configuration"][key]
                codec["configuration"][key] = [c["name"] if set(c) == {"name"} else c for c in inner]


def spell_out(metadata: Metadata) -> None:
    """Write everything that Zarr 3.1 lets one leave out."""
    metadata["data_type"] = {"name": metadata["data_type"], "configuration": {}}
    metadata["codecs"] = [{"configuration": {}, "must_understand": True, **codec} for codec in metadata["codecs"]]
    metadata["storage_transformers"] = []


def add_what_may_be_ignored(metadata: Metadata) -> None:
    metadata["other"] = {"name": "other", "must_understand": False, "configuration": {"a": 1}}
    metadata["attributes"] = {"mine": 1}


SAME = [abbreviate, spell_out, add_what_may_be_ignored]


@pytest.mark.parametrize("change", SAME)
def test_metadata_that_mean_the_same_are_taken(tmp_path: Path, change: Callable[[Metadata], None]) -> None:
    container = written(tmp_path / "a")
    expected = container.tiles(0), container.psnr(0)
    for name in ("tiles/0", "psnr/0", "latents/0"):
        rewritten(container.path / name, change)
    assert np.array_equal(container.tiles(0), expected[0])
    assert np.array_equal(container.psnr(0), expected[1])
    container.check_latent_metadata(0)


@pytest.fixture(params=["version 1", "version 2"])
def decodable(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Path:
    """A container that decodes, to be changed."""
    if request.param == "version 1":
        path: Path = request.getfixturevalue("golden_v1")
        return path
    return Path(shutil.copytree(folder / "a.zarr", tmp_path / "a.zarr"))


def latents_of(path: Path) -> Path:
    """The array of latents of level 0."""
    return next(name for name in (path / "latents/0", path / "latents/0") if name.is_dir())


@pytest.mark.parametrize("change", SAME)
def test_pixels_are_read_whichever_way_the_metadata_are_written(
    decodable: Path, tmp_path: Path, change: Callable[[Metadata], None]
) -> None:
    changed = Path(shutil.copytree(decodable, tmp_path / "changed.zarr"))
    arrays = [file for file in changed.rglob("zarr.json") if '"node_type":"array"' in file.read_text()]
    assert latents_of(changed) / "zarr.json" in arrays
    for file in arrays:
        rewritten(file.parent, change)
    with histocodec.open(changed, device="cpu") as slide, histocodec.open(decodable, device="cpu") as unchanged:
        region = slide.levels[0].region
        assert np.array_equal(slide.read(region, 0), unchanged.read(region, 0))


def test_latents_that_zarr_cannot_open_are_an_error_of_ours(decodable: Path) -> None:
    container = open_container(decodable)
    expected = np.asarray(container.latents(0)[:])
    rewritten(latents_of(decodable), abbreviate)
    try:
        found = np.asarray(container.latents(0)[:])
    except UnsupportedError as exc:
        assert "cannot open it" in str(exc)  # zarr 3.1 wants an object even where a bare name is allowed
    else:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("member", "extension", "assumed", "other"),
    [("separator", "chunk_key_encoding", "/", "."), ("index_location", "codecs", "end", "start")],
)
def test_latents_may_state_what_zarr_assumes_and_nothing_else(
    folder: Path, tmp_path: Path, member: str, extension: str, assumed: str, other: str
) -> None:
    container = open_container(shutil.copytree(folder / "a.zarr", tmp_path / "a.zarr"))
    array, expected = tmp_path / "a.zarr/latents/0", np.asarray(container.latents(0)[:])

    def state(value: str) -> Callable[[Metadata], None]:
        def change(metadata: Metadata) -> None:
            stated = metadata[extension][0] if extension == "codecs" else metadata[extension]
            stated.setdefault("configuration", {})[member] = value

        return change

    assert member not in (array / "zarr.json").read_text()
    rewritten(array, state(assumed))
    assert np.array_equal(np.asarray(container.latents(0)[:]), expected)
    rewritten(array, state(other))
    with pytest.raises(FormatError, match=f"{extension} is"):
        container.latents(0)


def test_arrays_that_others_can_read_state_how_chunks_are_named(folder: Path) -> None:
    assert '"separator":"/"' in (folder / "a.zarr/overview/zarr.json").read_text()


def test_metadata_that_zarr_itself_writes_anew_are_taken(decodable: Path) -> None:
    container = open_container(decodable)
    expected = container.tiles(0), container.stats().channels, np.asarray(container.latents(0)[:])
    arrays = [file.parent for file in decodable.rglob("zarr.json") if '"node_type":"array"' in file.read_text()]
    for array in arrays:
        zarr.open_array(array, mode="r+").attrs["mine"] = 1
    assert np.array_equal(container.tiles(0), expected[0])
    assert container.stats().channels == expected[1]
    assert np.array_equal(np.asarray(container.latents(0)[:]), expected[2])


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(other={"must_understand": True}),
        lambda m: m.update(other={"must_understand": 0}),
        lambda m: m.update(codecs=["bytes", "zstd"]),
        lambda m: m.update(codecs=["gzip", "bytes"]),
        lambda m: m["codecs"].append({"name": "other", "must_understand": False}),
        lambda m: m["codecs"][0].update(more=1),
        lambda m: m["codecs"][0].update(must_understand="no"),
        lambda m: m["codecs"][0].update(configuration=[]),
        lambda m: m["chunk_grid"].update(must_understand=False, name="other"),
        lambda m: m.update(data_type={"name": "uint8", "configuration": {"a": 1}}),
    ],
)
def test_metadata_that_mean_something_else_are_refused(tmp_path: Path, change: Callable[[Metadata], object]) -> None:
    container = written(tmp_path / "a")
    rewritten(container.path / "tiles/0", change)
    with pytest.raises(FormatError, match=r"tiles/0/zarr\.json: \w+ is"):
        container.tiles(0)


def test_metadata_nested_without_end_are_refused(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    for depth in (100, 400, 480, 900, 3000):
        nested = '{"name":"sharding_indexed","configuration":{"codecs":[' * depth + "]}}" * depth
        for deep in (nested, "[" * depth + "]" * depth):
            (container.path / "tiles/0/zarr.json").write_text(f'{{"codecs": {deep}}}')
            with pytest.raises(FormatError, match=r"tiles/0/zarr\.json"):
                container.tiles(0)


def test_what_is_not_unicode_in_a_source_does_not_spoil_the_container(tmp_path: Path, tiny_file: Path) -> None:
    names = {"tiff.Make": "caf\udce9", "tiff.Model": "half \ud83d"}
    slide = ArraySlide(synthetic_slide(64, 64, seed=1), name="caf\udce9.svs", properties=names)
    histocodec.encode(slide, tmp_path / "a.zarr", model=str(tiny_file), device="cpu", keep_private=True)
    attributes = open_container(tmp_path / "a.zarr").attributes
    assert attributes.source.name == "caf\ufffd.svs"
    assert dict(attributes.properties) == {"tiff.Make": "caf\ufffd", "tiff.Model": "half \ufffd"}
    assert math.isclose(attributes.levels[0].downsample, 1)


def relisted(container: ContainerV1, change: Callable[[list[str]], list[str]], *, ending: str = "\n") -> None:
    """Write `integrity/files` with other lines."""
    lines = [f"{digest}  {name}" for name, digest in read_listing(container.store).items()]
    data = np.frombuffer(("\n".join(change(lines)) + ending).encode(), np.uint8)
    write_plain(container.path / LISTING, Form(data.shape, "uint8"), data)


@pytest.mark.parametrize("ending", ["\n", ""])
def test_a_listing_may_have_any_order_and_no_last_line_feed(tmp_path: Path, ending: str) -> None:
    container = written(tmp_path / "a")
    listed = read_listing(container.store)
    relisted(container, lambda lines: lines[::-1], ending=ending)
    assert read_listing(container.store) == listed
    assert list(container_problems(container)) == []


@pytest.mark.parametrize("line", ["", "x", f"{DIGEST} a", "A" * 64 + "  a", "0" * 63 + "  a", f"{DIGEST}  "])
def test_a_line_of_a_listing_is_a_digest_and_a_name(tmp_path: Path, line: str) -> None:
    container = written(tmp_path / "a")
    relisted(container, lambda lines: [line, *lines])
    with pytest.raises(FormatError, match="line 1 is not a SHA-256, two spaces and a file's name"):
        read_listing(container.store)


@pytest.mark.parametrize("name", ["../a", "a/../b", "/etc/b", "a//b", "a/", "./a", "a/./b", "a\tb", "a\r", "é", "\x7f"])
def test_a_listing_names_files_in_one_way_only(tmp_path: Path, name: str) -> None:
    container = written(tmp_path / "a")
    relisted(container, lambda lines: [*lines, f"{DIGEST}  {name}"])
    with pytest.raises(FormatError, match=r"line \d+ is not a SHA-256"):
        read_listing(container.store)


def test_a_listing_names_no_file_twice(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    relisted(container, lambda lines: [*lines, lines[0]])
    with pytest.raises(FormatError, match="a second time"):
        read_listing(container.store)
    assert ["a second time" in str(problem) for problem in container_problems(container)] == [True]
