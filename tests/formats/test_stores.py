"""Stores that containers are read from: the same objects, whatever holds them."""

import asyncio
import os
import pickle
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.buffer import default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore

from histocodec.errors import FormatError, UsageError
from histocodec.formats.container.abstract_store import runs
from histocodec.formats.container.read import is_container, open_container
from histocodec.formats.container.store import FolderStore, Store, open_store
from tests.support.containers import written
from tests.support.servers import s3, serving

OBJECTS = {"zarr.json": b"{}", "a/b": bytes(range(100)), "a/empty": b""}


def in_folder(folder: Path) -> Iterator[Store]:
    for key, data in OBJECTS.items():
        (folder / "store" / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / "store" / key).write_bytes(data)
    yield open_store(folder / "store")


def in_zip(folder: Path) -> Iterator[Store]:
    with zipfile.ZipFile(folder / "store.hcz", "w") as archive:
        for key, data in OBJECTS.items():
            archive.writestr(key, data)
    yield open_store(folder / "store.hcz")


def in_zip_on_the_web(folder: Path) -> Iterator[Store]:
    list(in_zip(folder))
    with serving(folder) as server:
        yield open_store(f"{server.url}/store.hcz")


def in_s3(folder: Path) -> Iterator[Store]:
    list(in_folder(folder))
    with s3(folder) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield open_store("s3://slides/store")


def in_zarr_memory(folder: Path) -> Iterator[Store]:
    buffer = default_buffer_prototype().buffer
    yield open_store(MemoryStore({key: buffer.from_bytes(data) for key, data in OBJECTS.items()}))


def in_zarr_folder(folder: Path) -> Iterator[Store]:
    list(in_folder(folder))
    yield open_store(LocalStore(folder / "store"))


@pytest.fixture(params=[in_folder, in_zip, in_zip_on_the_web, in_s3, in_zarr_memory, in_zarr_folder])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    yield from request.param(tmp_path)


def test_every_store_has_the_same_objects(store: Store) -> None:
    assert sorted(store.keys()) == sorted(OBJECTS)
    assert dict(store.entries()) == {key: len(data) for key, data in OBJECTS.items()}
    assert {key: store.read(key, 100) for key in OBJECTS} == OBJECTS
    assert (store.size("a/b"), store.size("a/none"), store.size("a/b/c")) == (100, None, None)


def test_parts_come_in_the_order_that_was_asked_for(store: Store) -> None:
    data = OBJECTS["a/b"]
    parts = [(90, 10), (0, 5), (5, 5), (50, 1), (3, 4)]
    assert store.read_parts("a/b", parts) == [data[at : at + size] for at, size in parts]
    assert store.read_parts("a/b", []) == []
    assert store.read_tail("a/b", 7) == (data[-7:], 100)
    assert store.read_tail("a/b", 1000) == (data, 100)


def test_what_is_not_there_is_refused(store: Store) -> None:
    with pytest.raises(FormatError, match="a/none: is missing"):
        store.read("a/none", 9)
    with pytest.raises(FormatError, match="a/none: is missing"):
        store.read_parts("a/none", [(0, 1)])
    with pytest.raises(FormatError, match="more than 99 bytes"):
        store.read("a/b", 99)
    with pytest.raises(FormatError, match="a/b: ends at byte 100"):
        store.read_parts("a/b", [(0, 5), (99, 2)])


def test_a_store_can_be_pickled(store: Store) -> None:
    if store.path is None and "memory" in store.name:
        pytest.skip("what is in memory is not elsewhere")
    assert pickle.loads(pickle.dumps(store)).read("a/b", 100) == OBJECTS["a/b"]


def test_threads_share_a_store(store: Store) -> None:
    data = OBJECTS["a/b"]
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda at: store.read_parts("a/b", [(at, 3), (97 - at, 2)]), range(97))
        assert list(read) == [[data[at : at + 3], data[97 - at : 99 - at]] for at in range(97)]


def test_a_forked_child_reads_a_store(store: Store) -> None:
    store.read("a/b", 100)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if store.read_parts("a/b", [(1, 2)]) == [OBJECTS["a/b"][1:3]] else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_zarr_reads_every_store(store: Store) -> None:
    view = store.zarr()

    async def everything() -> dict[str, bytes | None]:
        buffers = {key: await view.get(key, default_buffer_prototype()) async for key in view.list()}
        return {key: None if data is None else data.to_bytes() for key, data in buffers.items()}

    assert asyncio.run(everything()) == OBJECTS
    with pytest.raises((UsageError, ValueError), match=r"only|read"):
        zarr.create_group(view, overwrite=True)


def test_neighbours_are_read_together() -> None:
    assert list(runs([(10, 5), (0, 10), (16, 4)])) == [[1, 0], [2]]
    assert list(runs([(10, 5), (0, 10), (16, 4)], gap=1)) == [[1, 0, 2]]
    assert list(runs([])) == []


def test_a_path_may_be_written_as_a_file_url_or_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "a b")
    monkeypatch.setenv("HOME", str(tmp_path))
    for location in (
        "~/a b",
        f"file://{tmp_path}/a%20b",
        str(tmp_path / "a b").encode(),
        FolderStore(tmp_path / "a b"),
    ):
        assert open_container(location).path == tmp_path / "a b"
    with pytest.raises(UsageError, match="does not exist"):
        open_container("~/none")


def test_a_zipped_container_is_the_same_container(tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a.hcz", "w") as archive:
        for key in sorted(folder.store.keys()):
            archive.write(tmp_path / "a" / key, key)
    container = open_container(tmp_path / "a.hcz")
    assert is_container(tmp_path / "a.hcz")
    assert container.attributes == folder.attributes
    assert np.array_equal(container.tiles(0), folder.tiles(0))
