"""The container of version 2: what is written can be read, by zarr too; what SPEC does not allow is refused."""

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import rfc8785
import zarr
from numpy.typing import NDArray

from histocodec.errors import FormatError, HistocodecError, UnsupportedError, UsageError
from histocodec.formats.container import attributes as limits
from histocodec.formats.container import read as module
from histocodec.formats.container.arrays import MAX_METADATA, Form, pack_bytes, pack_values
from histocodec.formats.container.attributes import KEY, LevelAttributes, ModelReference, SourceAttributes
from histocodec.formats.container.attributes_json import (
    EXTENSION,
    FEATURE,
    MAX_FEATURES,
    MAX_INLINE,
    MAX_PLANES,
    PLANE,
    TIME,
    UID,
    digest_of,
    from_json,
    to_json,
)
from histocodec.formats.container.check import latents_check
from histocodec.formats.container.container import ContainerV2
from histocodec.formats.container.fields import Node
from histocodec.formats.container.layout import latents_metadata, plain_forms
from histocodec.formats.container.maps import EXACT, LOSSLESS_MAPS, MAPS, UNMEASURED, LevelMaps, planes_of
from histocodec.formats.container.problems import container_problems
from histocodec.formats.container.read import is_container, open_container, sizes
from histocodec.formats.container.shard import MAX_CHUNK_BYTES
from histocodec.formats.container.states import BACKGROUND, LOSSLESS
from histocodec.formats.container.store import FolderStore
from histocodec.geometry import ChunkKey
from histocodec.models.config import MODEL_ID
from tests.support.version2 import (
    STATES,
    Contents,
    Json,
    attributes,
    chunk_data,
    lossless_pixels,
    opened,
    resealed,
    rewritten,
    stored_json,
    written,
)

SCHEMA = json.loads((Path(module.__file__).parents[1] / "schema.json").read_text())
WEIGHTS = b"not really weights"
Plane = NDArray[np.uint8]
PACKED = replace(attributes().maps, inline=b"packed")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A container whose maps are in its attributes."""
    written(tmp_path / "a")
    return tmp_path / "a"


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same container with its maps in arrays, as those of large slides are."""
    monkeypatch.setattr("histocodec.formats.container.write.MAX_INLINE", 0)
    written(tmp_path / "large")
    return tmp_path / "large"


def sound_json() -> Json:
    """Attributes with every member that a container of this kind can have."""
    contents = attributes(model=ModelReference("tiny", "0" * 64, 8, embedded=18))
    described = replace(
        contents, overview=(15, 10), associated={"thumbnail": (7, 6)}, icc=5,
        sha256={"overview": "a" * 64, "associated-thumbnail": "b" * 64, "icc": "c" * 64},
        maps=PACKED, provenance=replace(contents.provenance, uid="5" * 32, features={"lossless": "critical"}),
    )  # fmt: skip
    value: Json = json.loads(json.dumps(to_json(described)))
    return value


def set_member(value: Json, field: str, member: object) -> None:
    node: Any = value
    *path, last = (int(part) if part.isdigit() else part for part in field.split("/"))
    for part in path:
        node = node[part]
    node[last] = member


def sealed(value: Json) -> Json:
    """The value with the digest that it needs, where it can have one."""
    with suppress(UsageError):
        value["digest"] = digest_of(value)
    return value


def parsed(value: Json) -> Any:
    return from_json(Node(sealed(value), "zarr.json: histocodec"))


# What is written can be read.


def test_maps_come_back(root: Path) -> None:
    container, expected = opened(root), Contents.of(root)
    again = written(root.parent / "b")
    for level, state in enumerate(STATES):
        assert np.array_equal(container.tiles(level), state)
        assert container.tiles(level).dtype == container.quality(level).dtype == np.uint8
        assert container.psnr(level).dtype == container.block_error(level).dtype == np.float32
        for name in LevelMaps.__dataclass_fields__:
            found = getattr(expected.maps[level], name)
            assert np.array_equal(found, getattr(again.maps(level), name), equal_nan=name in ("psnr", "block_error"))
    assert container.digests().shape == (6, 32)  # two shards and one, of latents and of lossless pixels
    with pytest.raises(UsageError, match="level 2 does not exist; it has 0 to 1"):
        container.tiles(2)
    with pytest.raises(UsageError, match="level -1 does not exist"):
        container.maps(-1)


def test_maps_are_the_same_in_the_attributes_and_in_arrays(root: Path, large: Path) -> None:
    inline, arrays = opened(root), opened(large)
    assert {file.name for file in large.iterdir()} - {file.name for file in root.iterdir()} == {
        "maps-0", "maps-1", "digests",
    }  # fmt: skip
    for level in (0, 1):
        for name in LevelMaps.__dataclass_fields__:
            ours, theirs = getattr(inline.maps(level), name), getattr(arrays.maps(level), name)
            assert np.array_equal(ours, theirs, equal_nan=name in ("psnr", "block_error")), name
    assert np.array_equal(inline.digests(), arrays.digests())
    assert list(container_problems(arrays)) == []
    assert inline.attributes.provenance.uid == arrays.attributes.provenance.uid


def test_attributes_and_statistics_come_back(root: Path) -> None:
    found, expected = opened(root).attributes, attributes()
    assert (found.overview, found.associated, found.icc) == ((15, 10), {"thumbnail": (7, 6)}, 5)
    for name in ("generator", "model", "levels", "background", "source", "mpp", "objective_power", "properties"):
        assert getattr(found, name) == getattr(expected, name), name
    assert (found.dropped, found.chunk, found.shard) == (expected.dropped, expected.chunk, expected.shard)
    assert opened(root).stats() == expected.stats
    assert found.provenance.settings == expected.provenance.settings
    assert found.provenance.extensions == expected.provenance.extensions
    assert found.provenance.created == "2025-12-01T00:00:00Z"
    assert found.provenance.features == {"lossless": "critical"}


def test_statistics_come_back_to_the_last_bit() -> None:
    """Decimals that round to the float32 that were written, whatever these are."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        described = attributes()
        stats = described.stats
        assert stats is not None
        mean = rng.uniform(-(2**20), 2**20, 3).astype(np.float32)
        std = (2.0 ** rng.uniform(-20, 20, 3)).astype(np.float32).clip(np.float32(2**-20), np.float32(2**20))
        latent = (rng.uniform(-1, 1, 8) * 2.0 ** rng.uniform(-30, 30)).astype(np.float32)
        stats = replace(stats, channels=replace(stats.channels, mean=mean, std=std), background_latent=latent)
        value = json.loads(json.dumps(to_json(replace(described, stats=stats, maps=PACKED))))
        assert parsed({**value, "uid": "5" * 32}).stats == stats


def test_measurements_come_back_in_hundredths(root: Path) -> None:
    psnr = np.array([[0, np.nan, np.inf], [200, 0.004, np.nan]], np.float32)
    error = np.array([[255, np.nan, 0], [0.006, 12.3456, np.nan]], np.float32)

    def change(contents: Contents) -> None:
        contents.maps[0] = replace(contents.maps[0], psnr=psnr, block_error=error)

    rewritten(root, change)
    maps = opened(root).maps(0)
    assert np.array_equal(maps.psnr, np.array([[0, np.nan, np.inf], [200, 0, np.nan]], np.float32), equal_nan=True)
    wanted = np.array([[255, np.nan, 0], [0.01, 12.35, np.nan]], np.float32)
    assert np.array_equal(maps.block_error, wanted, equal_nan=True)


def test_images_and_the_profile_come_back(root: Path) -> None:
    container = opened(root)
    overview = container.overview()
    assert overview is not None
    assert overview.shape == (10, 15, 3)
    assert container.associated("thumbnail").shape == (6, 7, 3)
    assert len(container.icc_profile() or b"") == 5
    assert container.model_bytes() is None
    with pytest.raises(UsageError, match="has no array associated-label"):
        container.associated("label")


def test_chunks_and_lossless_pixels_are_found_by_their_place(root: Path) -> None:
    container = opened(root)
    for level in (0, 1):
        keys = [ChunkKey(level, row, column) for row, column in np.argwhere(container.tiles(level) != 0).tolist()]
        assert container.chunk_bytes(keys) == [chunk_data(key) for key in keys]
        assert container.chunk_bytes(keys[::-1]) == [chunk_data(key) for key in keys[::-1]]
    assert np.array_equal(container.lossless(ChunkKey(0, 0, 2)), lossless_pixels(ChunkKey(0, 0, 2))[:64, :22])
    array: Any = zarr.open_array(root / "lossless-0", mode="r")
    assert np.array_equal(array[:64, 128:], lossless_pixels(ChunkKey(0, 0, 2))[:, :22])
    assert not array[64:].any()


def test_zarr_reads_everything_but_latents_with_core_codecs(large: Path) -> None:
    container = opened(large)
    for name, form in plain_forms(container.attributes).items():
        array: Any = zarr.open_array(large / name, mode="r")
        assert (array.shape, array.dtype.name) == (form.shape, form.dtype)
        assert (array.metadata.dimension_names or ()) == form.names
        assert not any("histocodec" in str(codec) for codec in array.metadata.codecs)
    stored: Any = zarr.open_array(large / "maps-0", mode="r")
    assert np.array_equal(stored[...], container.maps(0).values(lossless=True))
    latents: Any = container.latents(0)
    assert (latents.shape, latents.dtype, latents.chunks, latents.shards) == ((8, 7, 10), "int8", (8, 4, 4), (8, 8, 8))
    assert latents.metadata.dimension_names == ("channel", "row", "column")


def test_consolidated_metadata_are_not_written(root: Path) -> None:
    group = zarr.open_group(root, mode="r")
    assert group.metadata.consolidated_metadata is None
    assert set(group.array_keys()) == {
        "lossless-0", "lossless-1", "overview", "associated-thumbnail", "icc",
    }  # fmt: skip
    assert list(group.group_keys()) == ["latents"]
    assert set(group["latents"].array_keys()) == {"0", "1"}


def test_the_overview_is_ngff_from_the_root(root: Path) -> None:
    node = zarr.open_group(root, mode="r")
    ome: Any = node.attrs["ome"]
    dataset = ome["multiscales"][0]["datasets"][0]
    assert (ome["version"], dataset["path"]) == ("0.5", "overview")
    assert node[dataset["path"]].shape == (3, 10, 15)  # type: ignore[union-attr]
    assert dataset["coordinateTransformations"] == [{"type": "scale", "scale": [1.0, 2.6, 2.5]}]
    assert [axis["name"] for axis in ome["multiscales"][0]["axes"]] == ["c", "y", "x"]
    assert [channel["label"] for channel in ome["omero"]["channels"]] == ["red", "green", "blue"]


def test_the_same_content_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    written(tmp_path / "b")
    files = {file.relative_to(root) for file in root.rglob("*") if file.is_file()}
    assert files == {file.relative_to(tmp_path / "b") for file in (tmp_path / "b").rglob("*") if file.is_file()}
    assert all((root / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_what_is_written_fits_the_schema(root: Path, large: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for value in (stored_json(root), stored_json(large), sound_json()):
        jsonschema.validate(value, SCHEMA)
        parsed(value)


def test_a_small_container_takes_few_bytes_besides_chunks(root: Path) -> None:
    """Files of a few hundred bytes were most of a small container of version 1."""
    found = sizes(FolderStore(root))
    assert found.total - found.latents - found.lossless < 9_000  # of which the images take a thousand
    assert sum(1 for file in root.rglob("*") if file.is_file()) == 9 + 3 + 4


# What makes a folder a container.


def test_the_roots_metadata_are_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed writer leaves no container."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("histocodec.formats.container.write.write_root", stop)
        written(tmp_path / "a")
    assert len(list((tmp_path / "a").rglob("zarr.json"))) == 8  # of all arrays, and of the latents' group
    assert not is_container(tmp_path / "a")
    with pytest.raises(UnsupportedError, match="is no histocodec container"):
        open_container(tmp_path / "a")


def test_a_reader_of_pixels_needs_the_metadata_of_the_root_alone(large: Path) -> None:
    for file in [*large.glob("*/zarr.json"), *large.glob("latents/*/zarr.json")]:
        file.unlink()
    container = opened(large)
    assert container.tiles(0).tolist() == STATES[0]
    assert container.chunk_bytes([ChunkKey(0, 1, 1)]) == [chunk_data(ChunkKey(0, 1, 1))]
    assert container.lossless(ChunkKey(0, 0, 2)).any()
    assert container.overview() is not None
    assert len(list(container_problems(container))) == 11


def test_what_other_programs_add_is_theirs(root: Path) -> None:
    group = zarr.open_group(root, mode="r+")
    group.attrs["mine"] = [1, 2]
    group.create_group("annotations").create_array("0", shape=(3,), dtype="uint8")
    group.create_array("mine", shape=(3,), dtype="uint8")
    assert list(container_problems(opened(root))) == []


# JSON.


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda text: text[:-5], id="cut short"),
        pytest.param(lambda text: b"\xef\xbb\xbf" + text, id="byte order mark"),
        pytest.param(lambda text: text.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(lambda text: text.decode().encode("utf-32-le"), id="UTF-32"),
        pytest.param(lambda text: text.replace(b'"uid"', b'"uid": "' + b"0" * 32 + b'", "uid"'), id="twice"),
        pytest.param(lambda text: text.replace(b'"uid"', b'"uid": "", "\\u0075id"'), id="twice, escaped"),
        pytest.param(lambda text: text.replace(b'"a.svs"', b'"\\udc80"'), id="half a pair"),
        pytest.param(lambda text: text.replace(b'"tiff.Artist"', b'"\\ud83d"'), id="half a pair in a name"),
        pytest.param(lambda text: text.replace(b'"a.svs"', b'"\xff"'), id="not UTF-8"),
        pytest.param(lambda text: text.replace(b"40.0", b"NaN"), id="NaN"),
        pytest.param(lambda text: text.replace(b"40.0", b"-Infinity"), id="infinite"),
        pytest.param(lambda text: b"[" * 100_000, id="deep"),
        pytest.param(lambda text: b'{"a":' * 5000 + b"1" + b"}" * 5000, id="deep objects"),
        pytest.param(lambda text: b'{"a": ' + b"9" * 5000 + b"}", id="endless number"),
        pytest.param(lambda text: b"", id="empty"),
    ],
)
def test_what_readers_of_json_understand_differently_is_refused(root: Path, spoil: Callable[[bytes], bytes]) -> None:
    file = root / "zarr.json"
    before = file.read_bytes()
    file.write_bytes(spoil(before))
    assert file.read_bytes() != before
    with pytest.raises(FormatError, match=r"zarr\.json"):
        open_container(root)


@pytest.mark.parametrize("other", ['{"x": "\\udc80"}', '{"\\ud800": 1}'])
def test_half_a_surrogate_pair_is_refused_in_what_other_programs_wrote(root: Path, other: str) -> None:
    file = root / "zarr.json"
    file.write_text(file.read_text().replace('"attributes":{', f'"attributes":{{"org.x":{other},', 1))
    with pytest.raises(FormatError, match="half a surrogate pair"):
        open_container(root)


def test_metadata_that_are_too_large_are_refused(root: Path) -> None:
    file = root / "zarr.json"
    text = file.read_bytes()
    file.write_bytes(text + b" " * (MAX_METADATA - len(text)))
    open_container(root)
    file.write_bytes(text + b" " * (MAX_METADATA - len(text) + 1))
    with pytest.raises(FormatError, match=f"more than {MAX_METADATA} bytes"):
        open_container(root)


def test_the_order_of_members_has_no_meaning(root: Path) -> None:
    metadata = json.loads((root / "zarr.json").read_text())

    def reversed_members(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: reversed_members(value[name]) for name in reversed(value)}
        return [reversed_members(item) for item in value] if isinstance(value, list) else value

    (root / "zarr.json").write_text(json.dumps(reversed_members(metadata), indent=3, ensure_ascii=False))
    assert opened(root).attributes == opened(root).attributes
    assert list(container_problems(opened(root))) == []


INTEGERS = [
    "model/stride", "model/channels", "model/embedded", "chunk", "levels/0/shard", "levels/0/width",
    "levels/0/height", "levels/0/quality", "levels/0/bytes", "background/colour/0", "source/bytes", "icc/bytes",
    "overview/width", "overview/height", "associated/0/width", "associated/0/height",
]  # fmt: skip


@pytest.mark.parametrize("field", INTEGERS)
def test_an_integer_is_written_as_one(field: str) -> None:
    value, node = sound_json(), sound_json()
    for part in field.split("/"):
        node = node[int(part) if part.isdigit() else part]  # type: ignore[index]
    for wrong in (float(node), True, str(node), None, [node]):  # type: ignore[arg-type]
        set_member(value, field, wrong)
        with pytest.raises(FormatError, match=field.split("/", maxsplit=1)[0]):
            parsed(value)


@pytest.mark.parametrize("field", ["mpp/0", "mpp/1", "objective_power", "levels/0/downsample", "levels/0/psnr"])
def test_a_number_may_be_an_integer(field: str) -> None:
    for number in (1, 1.0, 1e0):
        value = sound_json()
        set_member(value, field, number)
        parsed(value)
    for wrong in (True, "1", None, float("inf"), float("nan")):
        value = sound_json()
        set_member(value, field, wrong)
        with pytest.raises(FormatError):
            parsed(value)


def test_a_number_beyond_a_double_is_refused(root: Path) -> None:
    file = root / "zarr.json"
    text = file.read_text()
    for token in ("1e999", "-1e999"):
        file.write_text(text.replace("40.0", token))
        with pytest.raises(FormatError):
            open_container(root)


# Attributes out of range.


def objects() -> list[str]:
    return [
        "", "model", "levels/0", "normalisation", "background", "source", "icc", "overview", "associated/0",
    ]  # fmt: skip


@pytest.mark.parametrize("place", objects())
def test_an_unknown_member_is_refused(place: str) -> None:
    value = sound_json()
    set_member(value, f"{place}/more".removeprefix("/"), 1)
    with pytest.raises(FormatError, match="field 'more' is unknown"):
        parsed(value)


OPTIONAL = {
    "": {
        "features", "settings", "extensions", "mpp", "objective_power", "properties", "icc", "overview", "associated",
        "dropped",
    },
    "model": {"embedded"}, "levels/0": {"psnr", "derived"}, "normalisation": set(), "background": {"latent"},
    "source": {"name", "bytes", "sha256"}, "icc": set(), "overview": set(), "associated/0": set(),
}  # fmt: skip


@pytest.mark.parametrize("place", objects())
def test_members_are_needed_but_for_the_optional_ones(place: str) -> None:
    node: Any = sound_json()
    for part in filter(None, place.split("/")):
        node = node[int(part) if part.isdigit() else part]
    for name in node:
        value: Any = sound_json()
        inner = value
        for part in filter(None, place.split("/")):
            inner = inner[int(part) if part.isdigit() else part]
        del inner[name]
        if name in OPTIONAL[place]:
            parsed(value)
            jsonschema.validate(sealed(value), SCHEMA)
            continue
        if not (place == "" and name == "digest"):
            sealed(value)
        with pytest.raises(FormatError, match=f"'{name}' is missing|needs either maps|name"):
            from_json(Node(value, "x"))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(value, SCHEMA)


@pytest.mark.parametrize("place", objects())
def test_null_stands_for_nothing(place: str) -> None:
    """A member without a value is left out."""
    for name in OPTIONAL[place] | ({"maps", "digests", "planes"} if place == "" else set()):
        value = sound_json()
        set_member(value, f"{place}/{name}".removeprefix("/"), None)
        with pytest.raises(FormatError):
            parsed(value)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(value, SCHEMA)


def test_no_null_is_written() -> None:
    bare = attributes(
        mpp=None, objective_power=None, properties={}, dropped=(), source=SourceAttributes("", None, "array"),
        levels=(LevelAttributes(1, 1, 1.0, "int8", 0, bytes=0, shard=1),), maps=PACKED,
    )  # fmt: skip
    provenance = replace(bare.provenance, settings={}, extensions={})
    value = to_json(replace(bare, provenance=provenance))
    assert "null" not in json.dumps(value)
    uid = {**value, "uid": "0" * 32}
    assert parsed(uid).source == SourceAttributes("", None, "array")
    jsonschema.validate(json.loads(json.dumps(uid)), SCHEMA)


SHORT = base64.b64encode(gzip.compress(bytes(4 * 7), mtime=0)).decode()
NAN = base64.b64encode(gzip.compress(np.full(8, np.nan, "<f4").tobytes(), mtime=0)).decode()
LOUD = base64.b64encode(gzip.compress(np.full(8, 2.0**30 * 1.001, "<f4").tobytes(), mtime=0)).decode()
TWICE = base64.b64encode(gzip.compress(bytes(4 * 8), mtime=0) + gzip.compress(b"", mtime=0)).decode()

# What the schema cannot state is marked: there, only the code refuses.
HOSTILE: list[tuple[str, Any]] = [
    ("digest", "A" * 64), ("digest", "0" * 63), ("digest", 1),
    ("uid", "0" * 31), ("uid", "G" * 32), ("uid", ""), ("uid", "0" * 32 + "\n"),
    ("created", "2025-12-01"), ("created", "2025-12-01T00:00:00+00:00"), ("created", 1), ("created", "٢" * 4),
    ("created", "٢٠٢٥-12-01T00:00:00Z"), ("created", "2025-12-01T00:00:00Z\n"),
    ("generator", 1), ("generator", "x" * 1025),
    ("features", []), ("features", {"a": "vital"}), ("features", {"A": "ancillary"}), ("features", {"": "ancillary"}),
    ("features", {"a" * 65: "ancillary"}), ("features", {"lossless": "ancillary"}), ("features", {"a_b": "ancillary"}),
    ("features", {f"f{n}": "ancillary" for n in range(33)}),
    ("model", []), ("model/id", "../m"), ("model/id", "a.safetensors"), ("model/id", ""), ("model/id", "a" * 65),
    ("model/sha256", "A" * 64), ("model/stride", 8), ("model/stride", 32), ("model/channels", 6),
    ("model/channels", 0), ("model/channels", 1024), ("model/embedded", 0), ("model/embedded", 2**28 + 1),
    ("chunk", 0), ("chunk", 2), ("chunk", 6), ("chunk", 68), ("chunk", 128),
    ("levels/0/shard", 0), ("levels/1/shard", 33),
    ("levels", []), ("levels", {}), ("levels/0", 1), ("levels/0/width", 2**31), ("levels/0/width", 0),
    ("levels/0/height", 0), ("levels/0/height", -5), ("levels/0/downsample", 2.0), ("levels/1/downsample", 0.9),
    ("levels/1/downsample", 2.0**31), ("levels/0/dtype", "int32"), ("levels/0/dtype", []), ("levels/0/quality", 101),
    ("levels/0/quality", -1), ("levels/0/bytes", -1), ("levels/0/bytes", 2**53), ("levels/0/psnr", "inf"),
    ("levels/0/psnr", -1), ("levels/0/psnr", 200.1), ("levels/0/derived", 1), ("levels/0/maps", "0" * 64),
    ("normalisation/mean", [1, 2]), ("normalisation/mean/0", 2**20 + 1), ("normalisation/mean/0", -(2**20) - 1),
    ("normalisation/std/0", 0), ("normalisation/std/0", -1), ("normalisation/std/0", 2**20 + 1),
    ("normalisation/std/0", 2.0**-21), ("normalisation/std", [1, 2, 3, 4]),
    ("background/mode", "none"), ("background/colour", [0, 0, 256]), ("background/colour", [0, 0]),
    ("background/colour", "red"), ("background/latent", 1),
    ("mpp", [1]), ("mpp", [0, 1]), ("mpp", ["1", 1]), ("mpp", [1e-7, 1]), ("mpp", [1, 1e7]),
    ("objective_power", 0), ("objective_power", 1e7),
    ("source", {}), ("source/vendor", None), ("source/name", "x" * 1025), ("source/bytes", 2**53),
    ("source/sha256", "x"), ("settings", []), ("properties", {"a": 1}), ("properties", []),
    ("icc", 5), ("icc/bytes", 0), ("icc/bytes", 2**24 + 1), ("icc/sha256", ""),
    ("overview", [15, 10]), ("overview/width", 4097), ("overview/height", 0), ("overview/sha256", 0),
    ("associated", {}), ("associated/0/name", "../x"), ("associated/0/name", "a..b"), ("associated/0/name", "a/b"),
    ("associated/0/name", "zarr.json"), ("associated/0/name", ""), ("associated/0/name", "a" * 65),
    ("associated/0/width", 8193), ("associated/0/height", 0), ("dropped", [1]), ("dropped", ["x"] * 65),
    ("dropped", ["x" * 1025]), ("extensions", []), ("extensions", {"a/b": 1}), ("extensions", {"": 1}),
    ("extensions", {".a": 1}), ("extensions", {"a" * 129: 1}),
    ("planes", []), ("planes", {}), ("planes", ["a"]), ("planes", [["a"]]), ("planes", [["a", 0]]),
    ("planes", [["a", 9]]), ("planes", [["A", 1]]), ("planes", [["a", 1, 1]]), ("planes", [[1, "a"]]),
    ("planes", [[f"p{n}", 1] for n in range(33)]), ("planes", "state"),
    ("maps", 1), ("digests", "0" * 64), ("more", 1),
]  # fmt: skip
ONLY_CODE: list[tuple[str, Any]] = [
    ("maps", "!"), ("maps", "AAA"), ("maps", "A" * 4 * (MAX_INLINE // 3 + 2)), ("background/latent", "!"),
    ("background/latent", SHORT), ("background/latent", NAN), ("background/latent", LOUD),
    ("background/latent", TWICE), ("background/latent", base64.b64encode(bytes(10)).decode()),
    ("planes", [["state", 1]]), ("planes", [["a", 1], ["a", 2]]),
    ("levels/1/width", 151), ("levels/1/height", 101), ("chunk", 64.0 + 4),
]  # fmt: skip


@pytest.mark.parametrize(("field", "wrong"), [*HOSTILE, *ONLY_CODE])
def test_attributes_out_of_range_are_refused(field: str, wrong: object) -> None:
    value = sound_json()
    set_member(value, field, wrong)
    if field != "digest":
        sealed(value)
    with pytest.raises(FormatError, match=rf"zarr\.json: histocodec.*({field.split('/', maxsplit=1)[0]}|maps|as JSON)"):
        from_json(Node(value, "zarr.json: histocodec"))


@pytest.mark.parametrize(("field", "wrong"), [(f, w) for f, w in HOSTILE if not str(w).endswith("\n")])
def test_attributes_out_of_range_do_not_fit_the_schema(field: str, wrong: object) -> None:
    value = sound_json()
    set_member(value, field, wrong)
    if field == "more":  # may be the member of a feature
        return
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(sealed(value) if field != "digest" else value, SCHEMA)


def test_attributes_at_their_limits_are_taken() -> None:
    value = sound_json()
    for field, most in (
        ("chunk", 64), ("levels/0/shard", 32),
        ("model/channels", 1020), ("model/embedded", 2**28), ("levels/0/quality", 100),
        ("levels/0/bytes", 2**53 - 1), ("levels/0/psnr", 200), ("icc/bytes", 2**24), ("overview/width", 4096),
        ("associated/0/height", 8192), ("mpp", [1e-6, 1e6]), ("normalisation/mean/0", -(2**20)),
        ("normalisation/std/0", 2**-20), ("dropped", ["x" * 1024] * 64), ("generator", "\U0001f52c" * 1024),
        ("extensions", {"A" + "a" * 127: None}), ("features", {f"f{n}": "ancillary" for n in range(MAX_FEATURES)}),
        ("planes", [[f"p{n}", 1 + n % 8] for n in range(MAX_PLANES)]),
    ):  # fmt: skip
        set_member(value, field, most)
    del value["background"]["latent"]  # of 8 channels
    parsed(value)
    jsonschema.validate(value, SCHEMA)


def test_sides_of_chunks_are_limited_in_pixels() -> None:
    value = sound_json()
    value["model"].update(family="vae", stride=128)
    value["chunk"] = 8
    parsed(value)
    value["chunk"] = 12
    with pytest.raises(FormatError, match="multiple of 4 with at most 1024 pixels a side"):
        parsed(value)


def test_two_images_of_one_name_are_refused() -> None:
    value = sound_json()
    value["associated"].append({**value["associated"][0], "name": "THUMBNAIL"})
    with pytest.raises(FormatError, match="occurs twice"):
        parsed(value)


def test_absurd_sizes_are_refused_before_anything_is_allocated() -> None:
    value = sound_json()
    value["levels"] = [{**value["levels"][0], "width": 2**31 - 1, "height": 2**31 - 1}]
    with pytest.raises(FormatError, match=r"levels\[0\]: has .* chunks; at most 4194304"):
        parsed(value)


@pytest.mark.parametrize(("width", "height", "fits"), [(2**17, 2**17, True), (2**17 + 1, 2**17, False)])
def test_chunks_of_all_levels_together_are_limited(width: int, height: int, fits: bool) -> None:
    value = sound_json()  # chunks of 64 x 64 pixels
    value["levels"] = [{**value["levels"][0], "width": width, "height": height, "shard": 2}]
    if fits:
        parsed(value)  # 2**22 chunks and 2**20 shards
        value["levels"].append({**value["levels"][0], "width": 1, "height": 1, "downsample": 2})
    with pytest.raises(FormatError, match="in all levels together"):
        parsed(value)


def test_maps_are_all_in_the_attributes_or_all_in_arrays(large: Path) -> None:
    changes: list[Callable[[Json], object]] = [
        lambda v: v.update(maps="AAAA"), lambda v: v.pop("digests"), lambda v: v["levels"][1].pop("maps"),
        lambda v: [level.pop("maps") for level in v["levels"]],
    ]  # fmt: skip
    for change in changes:
        value = stored_json(large)
        change(value)
        with pytest.raises(FormatError, match="needs either maps, or digests and maps in every level"):
            parsed(value)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(value, SCHEMA)


def test_a_later_version_is_unsupported_whatever_else_it_says(root: Path) -> None:
    metadata = json.loads((root / "zarr.json").read_text())
    for version in (3, 99):
        metadata["attributes"][KEY] = {"version": version, "new": [None]}
        (root / "zarr.json").write_text(json.dumps(metadata))
        with pytest.raises(UnsupportedError, match=f"version {version}, written by a later version"):
            open_container(root)


@pytest.mark.parametrize("version", [0, -1, 2.0, True, "2", None, [2], 10**400])
def test_the_version_is_an_integer_above_zero(root: Path, version: object) -> None:
    metadata = json.loads((root / "zarr.json").read_text())
    metadata["attributes"][KEY]["version"] = version
    (root / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(FormatError, match=r"zarr\.json"):
        open_container(root)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**sound_json(), "version": 1.5 if version == 2.0 else version}, SCHEMA)


def test_another_family_is_unsupported() -> None:
    value = sound_json()
    value["model"]["family"] = "flow"
    with pytest.raises(UnsupportedError, match="family: 'flow'"):
        parsed(value)


def test_limits_in_code_and_schema_are_the_same() -> None:
    properties, level = SCHEMA["properties"], SCHEMA["$defs"]["level"]["properties"]
    assert level["width"]["maximum"] == limits.MAX_SIDE
    assert properties["levels"]["maxItems"] == limits.MAX_LEVELS
    assert properties["icc"]["properties"]["bytes"]["maximum"] == limits.MAX_ICC
    assert properties["model"]["properties"]["embedded"]["maximum"] == limits.MAX_MODEL
    assert properties["model"]["properties"]["id"]["pattern"] == f"^{MODEL_ID}$"
    assert properties["associated"]["items"]["properties"]["name"]["pattern"] == f"^{limits.IMAGE_NAME}$"
    assert properties["features"]["propertyNames"]["pattern"] == f"^{FEATURE}$"
    assert properties["features"]["maxProperties"] == MAX_FEATURES
    assert properties["extensions"]["propertyNames"]["pattern"] == f"^{EXTENSION}$"
    assert properties["planes"]["items"]["prefixItems"][0]["pattern"] == f"^{PLANE}$"
    assert properties["planes"]["maxItems"] == MAX_PLANES
    assert properties["uid"]["pattern"] == f"^{UID}$"
    assert properties["created"]["pattern"] == f"^{TIME}$"


# The digest.


def test_the_digest_is_that_of_canonical_json(root: Path) -> None:
    value = stored_json(root)
    digest = value.pop("digest")
    for plain in (value["mpp"], value["normalisation"]["mean"], value["normalisation"]["std"]):
        assert all(json.dumps(number) == repr(number) for number in plain)  # ECMAScript writes these alike
    value["objective_power"], value["levels"][0]["downsample"] = 40, 1
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == digest


@pytest.mark.parametrize("member", ["uid", "created", "generator", "source", "settings", "properties", "extensions"])
def test_any_change_is_refused_until_it_is_sealed(root: Path, member: str) -> None:
    other = {"uid": "f" * 32, "created": "2000-01-01T00:00:00Z", "generator": "x", "source": {"vendor": "x"}}
    metadata = json.loads((root / "zarr.json").read_text())
    metadata["attributes"][KEY][member] = other.get(member, {"org.x": "y"})
    (root / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(FormatError, match="digest: the attributes do not have this SHA-256: they were altered"):
        open_container(root)
    resealed(root, lambda value: None)
    open_container(root)


@pytest.mark.parametrize("number", [2**53, -(2**53), 10**400])
def test_numbers_that_canonical_json_does_not_have_are_refused(root: Path, number: int) -> None:
    metadata = json.loads((root / "zarr.json").read_text())
    metadata["attributes"][KEY]["extensions"] = {"org.x": number}
    text = json.dumps({"x": 0}) if number > 10**300 else None
    assert text is None or number > 2**53
    (root / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(FormatError):
        open_container(root)
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        to_json(attributes(provenance=replace(attributes().provenance, extensions={"org.x": number}), maps=PACKED))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\udc80", {1}])
def test_what_no_json_can_hold_is_not_written(value: object) -> None:
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        to_json(attributes(provenance=replace(attributes().provenance, settings={"a": value}), maps=PACKED))


def test_nothing_is_written_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="generator"):
        written(tmp_path / "a", attributes(generator="x" * 2000))
    assert not (tmp_path / "a/zarr.json").exists()


# The UID.


def uid_after(root: Path, change: Callable[[Contents], object]) -> str:
    copy = Path(shutil.copytree(root, root.parent / "copy", dirs_exist_ok=True))
    rewritten(copy, change)
    return opened(copy).attributes.provenance.uid


def test_the_uid_names_the_pixels_and_nothing_else(root: Path) -> None:
    def renamed(contents: Contents) -> None:
        contents.attributes = replace(contents.attributes, source=SourceAttributes("b.svs", None, "x"), mpp=None)

    uid = opened(root).attributes.provenance.uid
    assert uid_after(root, lambda contents: None) == uid_after(root, renamed) == uid


def of_maps(contents: Contents, name: str) -> None:
    getattr(contents.maps[1], name)[0, 0] += 1


def of_channels(contents: Contents, name: str) -> None:
    stats = contents.attributes.stats
    assert stats is not None
    changed = getattr(stats.channels, name).copy()
    changed[1] = np.nextafter(changed[1], np.float32(0))
    stats = replace(stats, channels=replace(stats.channels, **{name: changed}))
    contents.attributes = replace(contents.attributes, stats=stats)


@pytest.mark.parametrize(
    "change",
    [
        lambda contents: of_maps(contents, "quality"),
        lambda contents: of_maps(contents, "size"),
        lambda contents: of_maps(contents, "check"),
        lambda contents: of_channels(contents, "mean"),
        lambda contents: of_channels(contents, "std"),
    ],
)
def test_other_pixels_have_another_uid(root: Path, change: Callable[[Contents], None]) -> None:
    assert uid_after(root, change) != opened(root).attributes.provenance.uid


# Maps.

WRONG = [
    ("state", (0, 0), 3), ("state", (0, 0), 255), ("state", (0, 0), 2), ("state", (0, 1), 1), ("state", (0, 0), 0),
    ("state", (0, 2), 1), ("quality", (0, 0), 101), ("quality", (0, 1), 1), ("size", (0, 0), 0), ("size", (0, 0), 4),
    ("size", (0, 0), MAX_CHUNK_BYTES + 5), ("size", (0, 0), 2**32 - 1), ("size", (0, 1), 5), ("check", (0, 1), 1),
    ("psnr", (0, 0), 20_001), ("psnr", (0, 0), UNMEASURED), ("psnr", (0, 1), 3_000), ("psnr", (0, 1), EXACT),
    ("block_error", (0, 0), 25_501), ("block_error", (0, 0), EXACT), ("block_error", (0, 0), UNMEASURED),
    ("block_error", (0, 1), 0), ("lossless_size", (0, 2), 0), ("lossless_size", (0, 0), 5),
    ("lossless_size", (0, 2), MAX_CHUNK_BYTES + 5), ("lossless_check", (0, 0), 1),
]  # fmt: skip
PLANES = planes_of(LOSSLESS_MAPS)  # of `written`, whose level 0 has 2 x 3 chunks and level 1 a single one


def unpacked(value: Json) -> tuple[Plane, Plane, bytes]:
    """The maps of both levels as they are stored, and the digests."""
    raw = np.frombuffer(gzip.decompress(base64.b64decode(value["maps"])), np.uint8).copy()
    levels = raw[: 6 * PLANES].reshape(PLANES, 2, 3), raw[6 * PLANES : 7 * PLANES].reshape(PLANES, 1, 1)
    return *levels, raw[7 * PLANES :].tobytes()


def packed(*parts: Plane | bytes) -> str:
    """The attribute `maps` with these contents."""
    raw = b"".join(part if isinstance(part, bytes) else part.tobytes() for part in parts)
    return base64.b64encode(pack_bytes(raw)).decode()


def with_value(root: Path, name: str, at: tuple[int, int], number: int) -> None:
    """Forges one value of the maps of level 0 in a container whose maps are in its attributes."""
    start = 0
    for other, width in (*MAPS, *LOSSLESS_MAPS):
        if other == name:
            break
        start += width

    def change(value: Json) -> None:
        first, second, digests = unpacked(value)
        for byte in range(width):
            first[(start + byte, *at)] = number >> 8 * byte & 255
        value["maps"] = packed(first, second, digests)

    resealed(root, change)


@pytest.mark.parametrize(("name", "at", "number"), WRONG)
def test_values_of_maps_that_are_not_allowed_are_refused(
    root: Path, name: str, at: tuple[int, int], number: int
) -> None:
    with_value(root, name, at, number)
    with pytest.raises(FormatError, match=r"maps of level 0: \w+ of chunk \(\d, \d\) is \d+, which is not allowed"):
        opened(root).tiles(0)
    assert list(container_problems(opened(root)))


def test_values_of_maps_at_their_limits_are_taken(root: Path) -> None:
    for name, at, number in (
        ("quality", (0, 0), 100), ("size", (0, 0), MAX_CHUNK_BYTES + 4), ("size", (1, 0), 5),
        ("check", (0, 0), 2**32 - 1), ("psnr", (0, 0), 20_000), ("psnr", (1, 0), 0), ("psnr", (1, 1), EXACT),
        ("block_error", (0, 0), 25_500), ("block_error", (1, 0), 0),
    ):  # fmt: skip
        with_value(root, name, at, number)
    maps = opened(root).maps(0)
    assert (maps.quality[0, 0], maps.psnr[0, 0], maps.psnr[1, 1], maps.block_error[0, 0]) == (100, 200, np.inf, 255)


def test_unknown_maps_are_ignored(root: Path) -> None:
    expected = opened(root).maps(0)

    def change(value: Json) -> None:
        first, second, digests = unpacked(value)
        more = [np.concatenate([level, level[:1] + 77, level[:2]]) for level in (first, second)]
        value["planes"].append(["layer_size", 3])
        value["features"]["layer"] = "ancillary"
        value["maps"] = packed(*more, digests)

    resealed(root, change)
    found = opened(root).maps(0)
    for name in LevelMaps.__dataclass_fields__:
        same = np.array_equal(getattr(found, name), getattr(expected, name), equal_nan=name in ("psnr", "block_error"))
        assert same, name
    assert list(container_problems(opened(root))) == []


def test_maps_may_come_in_any_order_after_the_first_six(root: Path) -> None:
    expected = opened(root).maps(0)

    def change(value: Json) -> None:
        levels = unpacked(value)
        value["planes"].reverse()
        swapped = [np.concatenate([level[:-8], level[-4:], level[-8:-4]]) for level in levels[:2]]  # type: ignore[index]
        value["maps"] = packed(*swapped, levels[2])

    resealed(root, change)
    assert np.array_equal(opened(root).maps(0).lossless_check, expected.lossless_check)
    assert opened(root).lossless(ChunkKey(0, 0, 2)).any()


def test_lossless_chunks_need_the_feature(root: Path) -> None:
    def change(value: Json) -> None:
        first, second, digests = unpacked(value)
        del value["features"], value["planes"]
        value["maps"] = packed(first[: planes_of(())], second[: planes_of(())], digests[:96])

    resealed(root, change)
    with pytest.raises(FormatError, match="lossless_size of chunk"):
        opened(root).tiles(0)


def test_maps_of_all_levels_together_are_limited(root: Path) -> None:
    value = sound_json()
    value["levels"] = [{**value["levels"][0], "width": 2**17, "height": 2**17, "shard": 32}]
    value["planes"] = [["lossless_size", 4], ["lossless_check", 4]]
    parsed(value)  # 2**22 chunks of 22 bytes
    value["planes"] = [[f"p{n}", 8] for n in range(3)]
    with pytest.raises(FormatError, match=r"maps would have \d+ bytes; at most 134217728 are allowed"):
        parsed(value)


@pytest.mark.parametrize("size", [0, 1, 3000])
def test_maps_of_another_size_are_refused(root: Path, size: int) -> None:
    resealed(root, lambda value: value.update(maps=base64.b64encode(pack_bytes(bytes(size))).decode()))
    with pytest.raises(FormatError, match=r"maps: does not hold \d+ bytes as one gzip member"):
        opened(root).tiles(0)


def test_maps_that_are_no_gzip_member_are_refused(root: Path) -> None:
    packed = base64.b64decode(stored_json(root)["maps"])
    for wrong in (packed[:-1], packed + b"\0", packed + pack_bytes(b""), packed[10:], b"PK" + packed, b""):
        resealed(root, lambda value, wrong=wrong: value.update(maps=base64.b64encode(wrong).decode()))  # type: ignore[misc]
        with pytest.raises(FormatError, match="maps: "):
            opened(root).tiles(0)


def test_only_small_maps_are_within_the_attributes(tmp_path: Path) -> None:
    """64 x 64 chunks of which nothing can be told in 4 kB."""
    level = replace(attributes().levels[0], width=64 * 64, height=64 * 64)
    states = np.random.default_rng(1).integers(0, 2, (64, 64))
    container = written(tmp_path / "a", attributes(levels=(level,), shard=8), [states])
    assert container.attributes.maps.inline is None
    assert container.attributes.levels[0].maps is not None
    assert np.array_equal(opened(tmp_path / "a").tiles(0), states)
    assert list(container_problems(container)) == []


def test_the_gzip_member_of_maps_is_limited_to_the_byte(root: Path) -> None:
    def with_a_name(value: Json, size: int) -> None:
        member = base64.b64decode(value["maps"])
        name = b"n" * (size - len(member) - 1) + b"\0"
        value["maps"] = base64.b64encode(member[:3] + b"\x08" + member[4:10] + name + member[10:]).decode()

    resealed(root, lambda value: with_a_name(value, MAX_INLINE))
    opened(root).tiles(0)
    resealed(root, lambda value: with_a_name(value, MAX_INLINE + 1))
    with pytest.raises(FormatError, match=f"maps: holds {MAX_INLINE + 1} bytes"):
        opened(root)


def test_maps_in_the_attributes_take_no_more_than_a_mebibyte(root: Path) -> None:
    """Nine million background chunks would fit into 4 kB of gzip."""
    resealed(root, lambda value: value["levels"][0].update(width=64 * 1024, height=64 * 1024))
    with pytest.raises(FormatError, match=r"maps: would have \d+ bytes; at most 1048576 are allowed"):
        opened(root).tiles(0)


def test_the_check_is_that_of_the_specification() -> None:
    text = (Path(module.__file__).parents[1] / "SPEC.md").read_text(encoding="utf-8")
    y = (np.arange(4 * 4 * 4) - 32).reshape(4, 4, 4)

    def weight(i: int) -> int:
        x = i + 1
        x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
        return (x ^ x >> 16) | 1

    expected = (50 * weight(0) + sum(int(v) * weight(i + 1) for i, v in enumerate(y.ravel()))) % 2**32
    assert f"the check is {expected}" in text
    for dtype in (np.int8, np.int16):
        assert latents_check(y.astype(dtype), 50) == expected
        assert latents_check(np.asfortranarray(y.astype(dtype)), 50) == expected


def test_the_check_tells_single_changes_and_exchanges_apart() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(-128, 128, (8, 8, 8)).astype(np.int16)
    check = latents_check(y, 50)
    for _ in range(300):
        other = y.copy()
        at = tuple(rng.integers(0, 8, 3).tolist())
        other[at] ^= 1 << int(rng.integers(0, 15))
        assert latents_check(other, 50) != check
    assert latents_check(y, 51) != check
    assert latents_check(y.transpose(0, 2, 1), 50) != check
    assert latents_check(np.zeros_like(y), 0) == 0


# Features and extensions.


def test_an_unknown_critical_feature_is_refused_by_its_name(root: Path) -> None:
    resealed(root, lambda value: value["features"].update(layered="critical", another="ancillary"))
    with pytest.raises(UnsupportedError, match="needs the feature 'layered'"):
        open_container(root)


def test_an_unknown_ancillary_feature_is_ignored_with_all_that_is_its(root: Path) -> None:
    expected = opened(root).maps(0)

    def change(value: Json) -> None:
        value["features"]["regions"] = "ancillary"
        value["regions"] = {"outlines": [[1, 2], [3, 4]]}

    resealed(root, change)
    for name in ("regions/zarr.json", "regions-0/c/0/0/0"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"{}")
    assert np.array_equal(opened(root).maps(0).check, expected.check)
    assert list(container_problems(opened(root))) == []
    resealed(root, lambda value: value["features"].pop("regions"))
    with pytest.raises(FormatError, match="field 'regions' is unknown"):
        open_container(root)


def test_the_feature_lossless_is_there_if_some_chunk_is(root: Path, tmp_path: Path) -> None:
    assert stored_json(root)["features"] == {"lossless": "critical"}
    plain = written(tmp_path / "plain", states=([[1, 0, 1], [1, 1, 0]], [[1]]))
    assert "features" not in stored_json(tmp_path / "plain")
    assert "planes" not in stored_json(tmp_path / "plain")
    assert not (tmp_path / "plain/lossless-0").exists()
    assert plain.digests().shape == (3, 32)


def test_extensions_are_kept_by_whoever_rewrites_the_attributes(root: Path) -> None:
    kept = {"org.example.study": {"arm": 2, "of": [1.5, "x", None, True]}}
    assert stored_json(root)["extensions"] == kept
    rewritten(root, lambda contents: None)
    assert stored_json(root)["extensions"] == kept


# Arrays.


@pytest.mark.parametrize("name", ["maps-0", "maps-1", "digests"])
def test_an_array_of_maps_that_was_altered_is_refused(large: Path, name: str) -> None:
    (file,) = (path for path in (large / name / "c").rglob("0") if path.is_file())
    raw = bytearray(gzip.decompress(file.read_bytes()))
    raw[3] ^= 1
    file.write_bytes(pack_bytes(bytes(raw)))
    container = opened(large)
    with pytest.raises(FormatError, match=rf"{name}/c/[0/]+: is not what was written here \(its SHA-256 differs\)"):
        container.digests() if name == "digests" else container.maps(int(name[-1]))


def test_a_gzip_bomb_does_not_unfold(large: Path) -> None:
    (large / "maps-0/c/0/0/0").write_bytes(gzip.compress(bytes(10**6), mtime=0))
    with pytest.raises(FormatError, match=r"maps-0/c/0/0/0: is cut short, or does not hold uint8 \(22, 2, 3\)"):
        opened(large).maps(0)
    (large / "maps-0/c/0/0/0").write_bytes(bytes(10**5))
    with pytest.raises(FormatError, match="more than 1156 bytes"):
        opened(large).maps(0)


def test_an_embedded_model_is_held_to_its_digest(tmp_path: Path) -> None:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    root = tmp_path / "a"
    written(root, attributes(model=ModelReference("tiny", digest, 8, embedded=len(WEIGHTS))))
    form = Form((len(WEIGHTS),), "uint8")
    (root / "model/c").mkdir(parents=True)
    for data, sound in ((WEIGHTS, True), (WEIGHTS[::-1], False)):
        (root / "model/c/0").write_bytes(pack_values(np.frombuffer(data, np.uint8), form))
        if sound:
            assert opened(root).model_bytes() == WEIGHTS
            assert list(container_problems(opened(root))) == []
            continue
        with pytest.raises(FormatError, match="model/c/0: is not what was written here"):
            opened(root).model_bytes()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [2, 10**9]), ("data_type", "uint16"), ("zarr_format", 2), ("fill_value", 1), ("codecs", []),
        ("node_type", "group"), ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [1, 1]}}),
        ("extra", {}), ("dimension_names", None), ("fill_value", False), ("storage_transformers", ["reverse"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["latents/0", "lossless-0", "maps-0", "overview"])
def test_a_verification_reports_metadata_that_are_not_as_stated(
    large: Path, name: str, field: str, value: object
) -> None:
    file = large / name / "zarr.json"
    metadata = json.loads(file.read_text())
    file.write_text(json.dumps({**metadata, field: value}))
    (problem,) = map(str, container_problems(opened(large)))
    assert f"{name}/zarr.json: {field} is" in problem
    if name == "latents/0":
        with pytest.raises(FormatError, match=rf"latents/0/zarr\.json: {field} is"):
            opened(large).latents(0)


@pytest.mark.parametrize(
    "change",
    [
        lambda ome: ome["multiscales"][0]["datasets"][0].update(path="icc"),
        lambda ome: ome["multiscales"][0]["datasets"].append({"path": "icc"}),
        lambda ome: ome["multiscales"][0]["axes"].reverse(),
        lambda ome: ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0].update(scale=[1, 1, 1]),
        lambda ome: ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0].update(scale="x"),
        lambda ome: ome.update(multiscales=[]),
        lambda ome: ome.update(multiscales=3),
        lambda ome: ome.clear(),
    ],
)
def test_a_verification_reports_what_viewers_would_show_wrongly(root: Path, change: Callable[[Json], object]) -> None:
    """The attribute of OME-NGFF is not covered by the digest."""
    metadata = json.loads((root / "zarr.json").read_text())
    change(metadata["attributes"]["ome"])
    (root / "zarr.json").write_text(json.dumps(metadata))
    (problem,) = map(str, container_problems(opened(root)))
    assert "zarr.json: ome does not show the overview as the attributes describe it" in problem


def test_what_others_add_for_viewers_is_theirs(root: Path) -> None:
    metadata = json.loads((root / "zarr.json").read_text())
    metadata["attributes"]["ome"]["multiscales"][0]["name"] = "mine"
    del metadata["attributes"]["ome"]["omero"]
    (root / "zarr.json").write_text(json.dumps(metadata))
    assert list(container_problems(opened(root))) == []


# What a verification reports.


@pytest.mark.parametrize("which", ["root", "large"])
def test_every_damaged_or_missing_file_is_reported(which: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(which)
    container = opened(path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file != path / "zarr.json")
    assert len(files) == (15 if which == "root" else 21)
    for file in files:
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 16
        for damaged in (bytes(flipped), whole[:-1], b"", None):
            if damaged is None:
                file.unlink()
            else:
                file.write_bytes(damaged)
            found = list(map(str, container_problems(ContainerV2(container.store, container.attributes))))
            assert any(file.relative_to(path).as_posix() in problem for problem in found), (file, found)
        file.write_bytes(whole)
    assert list(container_problems(opened(path))) == []


@pytest.mark.parametrize(
    "name",
    [
        "latents/0/c/0/0/9", "latents/7/c/0/0/0", "lossless-0/c/9/9/0", "maps-0/c/0/0/0", "digests/zarr.json",
        "associated-label/c/0/0/0", "model/c/0", "overview/c/0/0/1", "notes.txt",
    ],
)  # fmt: skip
def test_a_file_that_was_added_is_reported(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"x")
    assert [str(problem) for problem in container_problems(opened(root))] == [
        f"{root / name}: does not follow from the attributes, so it was added later"
    ]


def test_what_a_killed_writer_left_behind_is_not_reported(root: Path) -> None:
    (root / "latents/0/.zarr.json.0123abcd.tmp").write_bytes(b"half")
    assert list(container_problems(opened(root))) == []


def test_a_shard_where_the_maps_have_none_is_reported(tmp_path: Path) -> None:
    container = written(tmp_path / "a", states=([[1, 1, 0], [1, 1, 0]], [[1]]))
    stray = tmp_path / "a/latents/0/c/0/0/1"
    shutil.copy(tmp_path / "a/latents/0/c/0/0/0", stray)
    found = list(map(str, container_problems(container)))
    assert f"{stray}: is there, although all its chunks are background" in found


def test_digests_that_disagree_with_the_maps_are_reported(root: Path) -> None:
    def change(contents: Contents) -> None:
        contents.digests = contents.digests.copy()
        contents.digests[0] = 0

    rewritten(root, change)
    assert any("maps and digests disagree" in str(problem) for problem in container_problems(opened(root)))


def test_a_shard_that_holds_other_chunks_than_the_maps_say_is_reported(root: Path) -> None:
    """Its digest fits: somebody sealed it so."""

    def change(contents: Contents) -> None:
        maps = contents.maps[0]
        maps.state[0, 1] = maps.state[0, 0]
        for name in ("quality", "size", "check", "psnr", "block_error"):
            getattr(maps, name)[0, 1] = getattr(maps, name)[0, 0]

    rewritten(root, change)
    assert any(
        "does not hold the chunks that the maps say" in str(problem) for problem in container_problems(opened(root))
    )


# Files that are none.


@pytest.mark.parametrize(
    "name",
    ["latents/0", "overview", "latents/0/c/0", "latents/0/c/0/0", "latents/0/c/0/0/0", "overview/c/0/0/0", "zarr.json"],
)
def test_a_link_is_refused_wherever_it_leads(root: Path, name: str) -> None:
    (root / name).rename(root.parent / "elsewhere")
    (root / name).symlink_to(root.parent / "elsewhere")
    with pytest.raises(FormatError, match="is a link"):
        container = opened(root)
        container.chunk_bytes([ChunkKey(0, 0, 0)])
        container.overview()


def test_a_pipe_is_not_waited_for(root: Path) -> None:
    for name in ("latents/0/c/0/0/0", "overview/c/0/0/0", "zarr.json"):
        (root / name).unlink()
        os.mkfifo(root / name)
        with pytest.raises(FormatError, match="no regular file"):
            container = opened(root)
            container.chunk_bytes([ChunkKey(0, 0, 0)])
            container.overview()
        (root / name).unlink()
        shutil.copytree(root, root.parent / "rest", dirs_exist_ok=True)
        written(root)


def test_random_damage_never_gives_a_foreign_error(root: Path) -> None:
    file, rng = root / "zarr.json", np.random.default_rng(0)
    whole = file.read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        data[rng.integers(len(data))] = rng.integers(256)
        file.write_bytes(data)
        with suppress(HistocodecError):
            open_container(root)


def test_sealed_damage_never_gives_a_foreign_error(root: Path) -> None:
    """Whatever the attributes say, in the right types or not."""
    rng, sound = np.random.default_rng(0), stored_json(root)
    odd: list[Any] = [None, True, -1, 0, 1, 2**31, 1e308, "", "x", [], {}, [[]], {"a": {}}, "Infinity", 0.5, 2**53]

    def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [at, *(place for key, member in inner for place in places(member, (*at, key)))]

    for place in places(sound)[1:]:
        value: Any = json.loads(json.dumps(sound))
        node = value
        for part in place[:-1]:
            node = node[part]
        node[place[-1]] = odd[int(rng.integers(len(odd)))]
        (root / "zarr.json").write_text(
            json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {KEY: sealed(value)}})
        )
        with suppress(HistocodecError):
            container = opened(root)
            for level in range(len(container.attributes.levels)):
                container.maps(level)
            list(container_problems(container))


def test_what_zarr_wrote_anew_is_taken(large: Path) -> None:
    """Attributes of other programs in our arrays change nothing."""
    for name in ("maps-0", "latents/0", "lossless-0", "overview"):
        zarr.open_array(large / name, mode="r+").attrs["mine"] = 1
    assert list(container_problems(opened(large))) == []
    assert opened(large).latents(0).shape == (8, 7, 10)


def test_the_maps_are_those_of_the_specification() -> None:
    text = (Path(module.__file__).parents[1] / "SPEC.md").read_text(encoding="utf-8")
    assert (BACKGROUND, LOSSLESS) == (0, 2)
    for name, width in MAPS:
        assert f"| `{name}` | {width} |" in text
    assert f"{EXACT} if nothing was lost, {UNMEASURED} for background" in text
    assert json.dumps(list(map(list, LOSSLESS_MAPS))) in text
    assert f"at most {MAX_INLINE} bytes, a writer MAY" in text


def test_the_example_of_the_specification_is_a_container(tmp_path: Path) -> None:
    text = (Path(module.__file__).parents[1] / "SPEC.md").read_text(encoding="utf-8")

    def block(introduction: str) -> str:
        _, _, after = text.partition(introduction)
        found = re.match(r".*\n\n((?:    .*\n)+)", after)
        assert found, introduction
        return found[1]

    def octets(lines: str) -> bytes:
        digits = [re.match(r"(?:[0-9a-f]{2} +)*[0-9a-f]{2}(?=  |$)", line.strip()) for line in lines.splitlines()]
        return bytes.fromhex("".join(match[0] for match in digits if match))

    value = json.loads(block("Its attribute `histocodec` is"))
    canonical = rfc8785.dumps({name: member for name, member in value.items() if name != "digest"})
    assert f"The canonical JSON of it has {len(canonical)} bytes" in text
    metadata = block("there, too. For the example under")
    shard = octets(block("The shard is the file `latents/0/c/0/0/0`"))
    for name, data in (
        ("zarr.json", json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {KEY: value}}).encode()),
        ("latents/zarr.json", b'{"zarr_format":3,"node_type":"group"}'),
        ("latents/0/zarr.json", metadata.encode()),
        ("latents/0/c/0/0/0", shard),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    container = opened(tmp_path)
    assert list(container_problems(container)) == []
    assert json.loads(metadata) == latents_metadata(container.attributes, 0)
    assert gzip.decompress(base64.b64decode(value["maps"])) == octets(block("Example: the 88 bytes"))
    assert container.maps(0).psnr[0].tolist() == pytest.approx([20.67, 21.5])
    zeros = np.zeros((8, 4, 4), np.int8)
    for row, column, quality in ((0, 0, 35), (0, 1, 35), (1, 0, 40)):
        assert container.chunk_bytes([ChunkKey(0, row, column)]) == [bytes([quality, 0, 0, 0])]
        assert container.maps(0).check[row, column] == latents_check(zeros, quality)
