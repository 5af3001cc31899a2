"""A container of version 1: it is read, by zarr too, and what is damaged is found."""

import json
import math
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from histocodec.errors import FormatError, HistocodecError, UnsupportedError, UsageError
from histocodec.formats.container.arrays import Form, write_plain
from histocodec.formats.container.attributes import LevelAttributes, ModelReference, Stats
from histocodec.formats.container.read import is_container, open_container, sizes
from histocodec.formats.container.shard import read_chunk, read_index
from histocodec.formats.container.store import FolderStore
from histocodec.formats.container.version1.container import ContainerV1
from histocodec.formats.container.version1.integrity import container_problems
from histocodec.formats.container.version1.layout import block_error_form, plain_arrays, shard_key
from histocodec.formats.decode.verify import verify
from histocodec.geometry import ChunkKey, ShardKey
from histocodec.normalise import ChannelStats
from tests.support.containers import attributes, values_of, written
from tests.support.version1 import create_skeleton, finish, write_array, write_block_error, write_lossless, write_stats

WEIGHTS = b"not really weights"


def edited(root: Path, change: Callable[[dict[str, Any]], object], group: str = ".") -> None:
    file = root / group / "zarr.json"
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))


def test_arrays_come_back(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    for name in plain_arrays(container.attributes):
        if not name.startswith("integrity"):
            assert np.array_equal(container.array(name), values_of(container.attributes, name))
    assert container.tiles(0).shape == (2, 3)
    assert container.psnr(1).dtype == np.float32
    assert container.integrity(0).shape == (1, 2, 32)
    overview = container.overview()
    assert overview is not None and overview.shape == (10, 15, 3)
    assert container.icc_profile() == values_of(container.attributes, "metadata/icc").tobytes()
    assert container.associated("thumbnail").shape == (6, 7, 3)
    assert container.model_bytes() is None


def test_stats_come_back(tmp_path: Path) -> None:
    described = attributes()
    stats = Stats(
        ChannelStats(np.array([1, 2, 3], np.float32), np.array([4, 5, 6], np.float32)),
        np.array([7, 8, 9], np.uint8),
        np.arange(8, dtype=np.float32),
    )
    written(tmp_path / "a")
    write_stats(tmp_path / "a", described, stats)
    found = ContainerV1(FolderStore(tmp_path / "a"), described).stats()
    assert found.channels == stats.channels
    assert np.array_equal(found.background, stats.background)
    assert np.array_equal(found.background_latent, stats.background_latent)


def test_maps_keep_nan_and_infinity(tmp_path: Path) -> None:
    written(tmp_path / "a")
    psnr = np.array([[np.nan, np.inf, 30], [1, 2, 3]], np.float32)
    write_array(tmp_path / "a", attributes(), "psnr/0", psnr)
    assert np.array_equal(ContainerV1(FolderStore(tmp_path / "a"), attributes()).psnr(0), psnr, equal_nan=True)


def test_zarr_reads_everything_with_core_codecs(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    for name in plain_arrays(container.attributes):
        array: Any = zarr.open_array(tmp_path / "a" / name, mode="r")
        assert np.array_equal(np.asarray(array[...]), container.array(name))
        assert not any("histocodec" in str(codec) for codec in array.metadata.codecs)
    group = zarr.open_group(tmp_path / "a", mode="r")
    assert set(group.group_keys()) >= {"latents", "tiles", "stats", "overview"}
    assert group.metadata.consolidated_metadata is None


def test_zarr_opens_the_latents(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    array: Any = container.latents(0)
    assert (array.shape, array.dtype, array.chunks, array.shards) == (
        (8, 7, 10),
        np.int8,
        (8, 4, 4),
        (8, 8, 8),
    )
    assert array.metadata.dimension_names == ("channel", "row", "column")
    assert container.latents(1).dtype == np.int16


def test_the_overview_is_ngff_from_the_root_and_from_its_group(tmp_path: Path) -> None:
    written(tmp_path / "a")
    for group in ("", "overview"):
        node = zarr.open_group(tmp_path / "a" / group, mode="r")
        ome: Any = node.attrs["ome"]
        assert ome["version"] == "0.5"
        dataset = ome["multiscales"][0]["datasets"][0]
        assert node[dataset["path"]].shape == (3, 10, 15)  # type: ignore[union-attr]
        assert dataset["coordinateTransformations"] == [{"type": "scale", "scale": [1.0, 2.6, 2.5]}]
        assert [axis["name"] for axis in ome["multiscales"][0]["axes"]] == ["c", "y", "x"]
        assert ome["multiscales"][0]["axes"][1]["unit"] == "micrometer"


def test_without_mpp_the_overview_has_no_unit(tmp_path: Path) -> None:
    written(tmp_path / "a", attributes(mpp=None))
    ome: Any = zarr.open_group(tmp_path / "a", mode="r").attrs["ome"]
    assert "unit" not in ome["multiscales"][0]["axes"][1]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / name)
    for file in (tmp_path / "a").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_writing_twice_changes_nothing(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    before = sizes(FolderStore(tmp_path / "a"))
    finish(tmp_path / "a", container.attributes)
    assert sizes(FolderStore(tmp_path / "a")) == before


def test_an_embedded_model_is_held_to_its_digest(tmp_path: Path) -> None:
    import hashlib

    digest = hashlib.sha256(WEIGHTS).hexdigest()
    described = attributes(model=ModelReference("tiny", digest, 8, embedded=len(WEIGHTS)))
    container = written(tmp_path / "a", described)
    with pytest.raises(FormatError, match="is not the model"):
        container.model_bytes()
    write_array(tmp_path / "a", described, "model/weights", np.frombuffer(WEIGHTS, np.uint8))
    assert container.model_bytes() == WEIGHTS


def test_a_map_of_block_errors_is_optional_and_checked(tmp_path: Path) -> None:
    described, root = attributes(), tmp_path / "a"
    container = written(root, described)
    assert container.block_error(0) is None
    form = block_error_form(described, 0)
    values = np.full(form.shape, 3.5, np.float32)
    values[0, 0] = np.nan
    write_block_error(root, described, 0, values)
    assert np.array_equal(container.block_error(0), values, equal_nan=True)
    for wrong in (np.full(form.shape, 255.5, np.float32), np.full(form.shape, -np.inf, np.float32)):
        write_plain(root / "block_error" / "0", form, wrong)
        with pytest.raises(FormatError, match="not allowed there; 0 to 255 and NaN are"):
            container.block_error(0)
    write_plain(root / "block_error" / "0", Form((7, 7), "float32"), np.zeros((7, 7), np.float32))
    with pytest.raises(FormatError, match="shape"):
        container.block_error(0)
    with pytest.raises(UsageError, match="0 to 255 and NaN are"):
        write_block_error(root, described, 0, -values)


def test_lossless_chunks_come_back_cut_at_the_edge(tmp_path: Path) -> None:
    described = attributes()
    pixels = np.random.default_rng(0).integers(0, 256, (100 - 64, 150 - 128, 3), dtype=np.uint8)
    write_lossless(tmp_path / "a", described, ChunkKey(0, 1, 2), pixels)
    container = written(tmp_path / "a")
    assert np.array_equal(container.lossless(ChunkKey(0, 1, 2)), pixels)
    array: Any = zarr.open_array(tmp_path / "a/lossless/0", mode="r")
    assert np.array_equal(array[64:, 128:], pixels)
    with pytest.raises(FormatError, match="is missing"):
        container.lossless(ChunkKey(0, 0, 0))
    assert list(container_problems(container)) == []


def test_chunks_are_found_by_their_place(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    tiles, present = container.tiles(0), container.present_shards(0)
    for row, column in np.ndindex(*tiles.shape):
        if present[row // 2, column // 2]:
            name = shard_key(ShardKey(0, row // 2, column // 2))
            chunk = read_chunk(container.store, name, read_index(container.store, name, 4), row % 2 * 2 + column % 2)
            assert chunk == (b"x" if tiles[row, column] else None)


def test_wrong_arrays_are_not_written(tmp_path: Path) -> None:
    described = attributes()
    with pytest.raises(UsageError, match=r"float32 \(2, 3\); uint8 \(2, 3\) is needed"):
        write_array(tmp_path, described, "tiles/0", np.zeros((2, 3), np.float32))
    with pytest.raises(UsageError, match=r"uint8 \(3, 2\)"):
        write_array(tmp_path, described, "tiles/0", np.zeros((3, 2), np.uint8))
    with pytest.raises(UsageError, match="not allowed there"):
        write_array(tmp_path, described, "tiles/0", np.full((2, 3), 3, np.uint8))
    with pytest.raises(UsageError, match="no array"):
        write_array(tmp_path, described, "tiles/2", np.zeros((1, 1), np.uint8))


def test_finishing_without_an_array_is_refused(tmp_path: Path) -> None:
    create_skeleton(tmp_path / "a", attributes())
    with pytest.raises(UsageError, match="cannot be finished without tiles/0"):
        finish(tmp_path / "a", attributes())


def test_an_unfinished_container_does_not_look_whole(tmp_path: Path) -> None:
    level = replace(attributes().levels[0], bytes=None)
    create_skeleton(tmp_path / "a", attributes(levels=(level,)))
    with pytest.raises(FormatError, match="never finished"):
        open_container(tmp_path / "a")


def test_what_is_no_container_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_container(tmp_path / "none")
    with pytest.raises(UnsupportedError, match="no histocodec container"):
        open_container(tmp_path)
    zarr.create_group(tmp_path / "z")
    with pytest.raises(UnsupportedError, match="is Zarr, but no histocodec container"):
        open_container(tmp_path / "z")
    (tmp_path / "file").write_text("x")
    assert not any(is_container(tmp_path / name) for name in ("none", "z", "file", "."))
    assert is_container(written(tmp_path / "a").path)


def test_a_root_that_is_no_json_is_a_format_error(tmp_path: Path) -> None:
    root = written(tmp_path / "a").path
    text = (root / "zarr.json").read_bytes()
    for broken in (text[:-5], b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff"):
        (root / "zarr.json").write_bytes(broken)
        with pytest.raises(FormatError, match=r"zarr\.json: is not JSON"):
            open_container(root)


def test_attributes_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    root = written(tmp_path / "a").path
    zarr.open_group(root, mode="r+").attrs["mine"] = [1, 2]
    zarr.open_array(root / "tiles/0", mode="r+").attrs["mine"] = 1
    container = open_container(root)
    assert container.tiles(0).shape == (2, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [2, 10**9]), ("data_type", "uint16"), ("zarr_format", 2), ("fill_value", 1), ("codecs", []),
        ("node_type", "group"), ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [1, 1]}}),
        ("extra", {}), ("dimension_names", None), ("fill_value", False),
    ],
)  # fmt: skip
def test_array_metadata_must_be_what_the_attributes_imply(tmp_path: Path, field: str, value: Any) -> None:
    container = written(tmp_path / "a")
    edited(tmp_path / "a", lambda m: m.update({field: value}), "tiles/0")
    edited(tmp_path / "a", lambda m: m.update({field: value}), "latents/0")
    with pytest.raises(FormatError, match=rf"tiles/0/zarr\.json: {field} is"):
        container.tiles(0)
    with pytest.raises(FormatError, match=rf"latents/0/zarr\.json: {field} is"):
        container.latents(0)


def test_a_foreign_model_in_the_latents_is_refused(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    file = tmp_path / "a/latents/0/zarr.json"
    file.write_text(file.read_text().replace("0" * 64, "1" * 64))
    with pytest.raises(FormatError, match=r"latents/0/zarr\.json: codecs is"):
        container.latents(0)


def test_a_gzip_bomb_does_not_unfold(tmp_path: Path) -> None:
    import gzip

    container = written(tmp_path / "a")
    (tmp_path / "a/tiles/0/c/0/0").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(FormatError, match=r"tiles/0/c/0/0: is cut short, or does not hold uint8 \(2, 3\)"):
        container.tiles(0)
    (tmp_path / "a/tiles/0/c/0/0").write_bytes(bytes(10**5))
    with pytest.raises(FormatError, match="more than 1030 bytes"):
        container.tiles(0)


def test_values_out_of_range_are_refused(tmp_path: Path) -> None:
    import gzip

    container = written(tmp_path / "a")
    (tmp_path / "a/quality/0/c/0/0").write_bytes(gzip.compress(b"\x65" * 6))
    with pytest.raises(FormatError, match="not allowed there"):
        container.quality(0)
    for value in (0.0, -1.0, math.nan, math.inf):
        (tmp_path / "a/stats/std/c/0").write_bytes(gzip.compress(struct.pack("<3f", value, 1, 1)))
        with pytest.raises(FormatError, match="not allowed there"):
            container.stats()


def test_a_sound_container_has_no_problems(tmp_path: Path) -> None:
    assert list(container_problems(written(tmp_path / "a"))) == []


def test_every_damaged_or_missing_file_is_found(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    files = [path for path in sorted(container.path.rglob("*")) if path.is_file()]
    assert len(files) > 40
    for path in files:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 16
        for damaged in (bytes(flipped), whole[:-1], None):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            found = list(container_problems(container))
            assert found, path
            assert any(str(path.relative_to(container.path)) in str(problem) for problem in found), (
                path,
                found,
            )
        path.write_bytes(whole)
    assert list(container_problems(container)) == []


def test_a_shard_where_none_may_be_is_found(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    tiles = np.zeros_like(container.tiles(0))
    write_array(container.path, container.attributes, "tiles/0", tiles)
    write_array(container.path, container.attributes, "integrity/0", np.zeros((2, 32), np.uint8))
    finish(container.path, container.attributes)
    assert any("is there, although" in str(problem) for problem in container_problems(container))
    shutil.rmtree(container.path / "latents/0/c")
    assert list(container_problems(container)) == []
    assert not container.present_shards(0).any()


def test_maps_that_contradict_each_other_do_not_verify(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    psnr = np.where(container.tiles(0) == 0, np.nan, np.float32(30)).astype(np.float32)
    assert (container.tiles(0) == 0).any()
    for values, expected in ((psnr, False), (np.full_like(psnr, 30), True)):
        write_array(container.path, container.attributes, "psnr/0", values)
        finish(container.path, container.attributes)
        problems = verify(container.path, quick=True).problems
        assert any("is background by one of tiles/0 and psnr/0 only" in problem for problem in problems) is expected


def test_levels_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    for level in (-1, 2):
        with pytest.raises(UsageError, match=f"level {level} does not exist; it has 0 to 1"):
            container.tiles(level)


def test_random_damage_never_gives_a_foreign_error(tmp_path: Path) -> None:
    container = written(tmp_path / "a")
    file, rng = container.path / "zarr.json", np.random.default_rng(0)
    whole = file.read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        data[rng.integers(len(data))] = rng.integers(256)
        file.write_bytes(data)
        with suppress(HistocodecError):
            open_container(container.path)


def test_everything_but_latents_takes_little(tmp_path: Path) -> None:
    """The bound of the whole container: 2 % of 3.4 MB, of which the overview may take 1 %."""
    levels = tuple(
        LevelAttributes(11072 // 4**n, 8292 // 4**n, 4.0**n, "int8", 50, bytes=10**6, psnr=36.123456789)
        for n in range(3)
    )
    properties = {f"tiff.Property{n}": "some words of a vendor" for n in range(40)}
    described = attributes(
        levels=levels, chunk=32, shard=8, model=ModelReference("hyper-2", "a" * 64, 256), icc=None,
        overview=None, associated={}, properties=properties,
    )  # fmt: skip
    written(tmp_path / "a", described)
    found = sizes(FolderStore(tmp_path / "a"))
    assert found.total - found.latents < 30_000
