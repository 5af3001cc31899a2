"""The attributes of version 1: those that were written are read and fit the schema; code and schema refuse the rest."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from histocodec.errors import FormatError, UnsupportedError, UsageError
from histocodec.formats.container import attributes as limits
from histocodec.formats.container.attributes import KEY, LevelAttributes, ModelReference, SourceAttributes
from histocodec.formats.container.fields import Node
from histocodec.formats.container.layout import NO_SHARD
from histocodec.formats.container.states import BACKGROUND, CODED, LOSSLESS
from histocodec.formats.container.version1.attributes import from_json
from histocodec.geometry import ChunkKey, Region
from histocodec.models.config import MODEL_ID
from tests.support.containers import SCHEMA, attributes, written
from tests.support.version1 import create_skeleton, to_json


def test_attributes_come_back(tmp_path: Path) -> None:
    described = attributes()
    assert written(tmp_path / "a").attributes == described
    assert from_json(Node(json.loads(json.dumps(to_json(described))), "")) == described


def test_what_is_written_fits_the_schema(tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for described in (
        attributes(),
        attributes(mpp=None, objective_power=None, icc=None, overview=None, associated={}, dropped=()),
        attributes(model=ModelReference("m.1", "a" * 64, 256, embedded=3)),
        attributes(levels=(LevelAttributes(1, 1, 1, "int8", 0),), source=SourceAttributes("", None, "")),
    ):
        jsonschema.validate(json.loads(json.dumps(to_json(described))), SCHEMA)
    root = json.loads((written(tmp_path / "a").path / "zarr.json").read_text())
    jsonschema.validate(root["attributes"][KEY], SCHEMA)


HOSTILE: list[tuple[str, Any]] = [
    ("generator", 1), ("generator", "x" * 1025),
    ("model", []), ("model.id", "../m"), ("model.id", "a.safetensors"), ("model.sha256", "A" * 64),
    ("model.stride", 8), ("model.channels", 6), ("model.channels", 2048), ("model.embedded", 2**40),
    ("chunk", 3), ("chunk", 6), ("chunk", 128), ("shard", 0), ("shard", 33),
    ("levels", []), ("levels", {}), ("levels.0", 1), ("levels.0.width", 2**31), ("levels.0.width", 1.5),
    ("levels.0.height", 0), ("levels.0.downsample", -1), ("levels.0.dtype", "int32"), ("levels.0.dtype", []),
    ("levels.0.quality", 101), ("levels.0.bytes", -1), ("levels.0.psnr", "inf"), ("levels.0.psnr", -1),
    ("mpp", [1]), ("mpp", [0, 1]), ("mpp", ["1", 1]), ("objective_power", 0),
    ("background.mode", "none"), ("background.colour", [0, 0, 256]), ("background.colour", "red"),
    ("source.name", None), ("properties", {"a": 1}), ("properties", []), ("icc", 0), ("icc", 2**30),
    ("overview", [1, 10**6]), ("associated.0.name", "../x"), ("associated.0.name", "a..b"),
    ("associated.0.name", "zarr.json"), ("associated.0.name", "a/b"), ("associated.0.width", 10**6),
    ("dropped", [1]), ("dropped", ["x"] * 65), ("more", 1),
]  # fmt: skip


def changed(field: str, value: Any) -> dict[str, Any]:
    found: Any = json.loads(json.dumps(to_json(attributes())))
    node = found
    *path, last = (int(part) if part.isdigit() else part for part in field.split("."))
    for part in path:
        node = node[part]
    node[last] = value
    return dict(found)


@pytest.mark.parametrize(("field", "value"), HOSTILE)
def test_attributes_out_of_range_are_refused_by_code_and_schema(field: str, value: Any) -> None:
    name = field.split(".")[0]
    with pytest.raises(FormatError, match=rf"zarr\.json: histocodec.*{name}"):
        from_json(Node(changed(field, value), "zarr.json: histocodec"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(field, value), SCHEMA)


def test_every_missing_field_is_named() -> None:
    for field in to_json(attributes()):
        found = to_json(attributes())
        del found[field]
        with pytest.raises(FormatError, match=f"'{field}' is missing"):
            from_json(Node(found, "x"))


def test_numbers_that_are_none_are_refused() -> None:
    for text in ("NaN", "Infinity", "1e999"):
        with pytest.raises(FormatError, match="objective_power"):
            from_json(Node(changed("objective_power", json.loads(text)), "x"))


def test_two_images_of_one_name_are_refused() -> None:
    image = {"name": "Macro", "width": 1, "height": 1}
    found = changed("associated", [image, {**image, "name": "macro"}])
    with pytest.raises(FormatError, match="occurs twice"):
        from_json(Node(found, "x"))


def test_another_family_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="family: 'flow'"):
        from_json(Node(changed("model.family", "flow"), "x"))


def test_absurd_sizes_are_refused_before_anything_is_allocated() -> None:
    level = {**changed("chunk", 4)["levels"][0], "width": 2**31 - 1, "height": 2**31 - 1}
    with pytest.raises(FormatError, match=r"levels\[0\]: has .* chunks; at most 16777216"):
        from_json(Node(changed("levels", [level]), "x"))


def test_nothing_is_written_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="generator"):
        create_skeleton(tmp_path / "a", attributes(generator="x" * 2000))


def test_chunks_are_cut_at_the_edge_and_found_by_region() -> None:
    described = attributes()  # level 0: 150 x 100 pixels in chunks of 64 x 64
    assert described.chunk_region(ChunkKey(0, 1, 2)) == Region(128, 64, 22, 36)
    assert list(described.chunks_in(0, Region(60, 70, 10, 5))) == [ChunkKey(0, 1, 0), ChunkKey(0, 1, 1)]
    assert list(described.chunks_in(0, Region(200, 0, 10, 10))) == []
    with pytest.raises(UsageError, match="outside the grid"):
        described.chunk_region(ChunkKey(0, 2, 0))


def test_limits_in_code_and_schema_are_the_same() -> None:
    properties = SCHEMA["properties"]
    assert SCHEMA["$defs"]["level"]["properties"]["width"]["maximum"] == limits.MAX_SIDE
    assert properties["icc"]["maximum"] == limits.MAX_ICC
    assert properties["model"]["properties"]["embedded"]["maximum"] == limits.MAX_MODEL
    assert properties["model"]["properties"]["id"]["pattern"] == f"^{MODEL_ID}$"
    assert properties["associated"]["items"]["properties"]["name"]["pattern"] == f"^{limits.IMAGE_NAME}$"
    assert bytes(32) == NO_SHARD
    assert (BACKGROUND, CODED, LOSSLESS) == (0, 1, 2)
