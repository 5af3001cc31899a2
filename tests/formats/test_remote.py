"""Containers on other machines: a web server, S3, and what can go wrong between."""

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from zarr.buffer import default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore

import histocodec
from histocodec.cli.main import run
from histocodec.errors import FormatError, HistocodecError, StoreError, UnsupportedError, UsageError
from histocodec.formats.container import obstore_client
from histocodec.formats.container.pack import write_zip
from histocodec.formats.container.read import open_container
from histocodec.formats.container.store import open_store
from histocodec.formats.decode.slide import CompressedSlide
from tests.support.servers import STALL, Request, WebServer, s3, serving
from tests.support.slides import ICC

REGION = (4000, 0, 256, 40)  # of wide.zarr: in its two shards
IN_ONE_SHARD = (600, 0, 256, 40)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A folder to be served: a slide as a folder and as one file."""
    root = tmp_path_factory.mktemp("published")
    shutil.copytree(folder / "wide.zarr", root / "some slides/wide.hc.zarr")
    write_zip(folder / "wide.zarr", root / "some slides/wide.hcz")
    shutil.copy(root / "some slides/wide.hcz", root / "download")
    return root


@pytest.fixture
def web(published: Path) -> Iterator[WebServer]:
    with serving(published) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(published: Path) -> Iterator[dict[str, str]]:
    with s3(published) as environment:
        yield environment


@pytest.fixture
def in_s3(bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CONNECT_SECONDS": 0.5, "STALL_SECONDS": 0.5, "RETRIES": 2, "RETRY_SECONDS": 2.0}.items():
        monkeypatch.setattr(obstore_client, name, value)


@pytest.fixture(scope="module")
def pixels(folder: Path) -> np.ndarray:
    with histocodec.open(folder / "wide.zarr", device="cpu") as slide:
        return slide.read_array(*REGION)


@pytest.mark.parametrize("name", ["some%20slides/wide.hcz", "some%20slides/wide.hc.zarr", "download?signature=a%2Bb"])
def test_a_slide_reads_the_same_from_a_web_server(web: WebServer, pixels: np.ndarray, name: str) -> None:
    with histocodec.open(f"{web.url}/{name}", device="cpu") as slide:
        assert np.array_equal(slide.read_array(*REGION), pixels)
        assert slide.name == f"{web.url}/{name.split('?')[0]}".replace("%20", " ")
    if "?" in name:
        assert all(request.path.endswith("?signature=a%2Bb") for request in web.requests)


@pytest.mark.parametrize("name", ["some slides/wide.hcz", "some slides/wide.hc.zarr"])
def test_a_slide_reads_the_same_from_s3(in_s3: None, pixels: np.ndarray, name: str) -> None:
    with histocodec.open(f"s3://slides/{name}", device="cpu") as slide:
        assert np.array_equal(slide.read_array(*REGION), pixels)
        again: CompressedSlide = pickle.loads(pickle.dumps(slide))
        with again:
            assert np.array_equal(again.read_array(*REGION), pixels)
        latents = slide.latents()
        assert latents.shape[0] > 0 and np.asarray(latents[:, :8, :8]).any()


def test_an_archive_is_opened_with_two_requests(web: WebServer) -> None:
    open_container(f"{web.url}/some%20slides/wide.hcz")
    assert sorted(str(request.range) for request in web.requests) == ["bytes=-98304", "bytes=0-262143"]


@pytest.mark.parametrize("name", ["some%20slides/wide.hcz", "some%20slides/wide.hc.zarr"])
def test_a_cold_region_takes_at_most_six_requests(
    web: WebServer, name: str, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tiny_file.parent))
    with histocodec.open(f"{web.url}/{name}", device="cpu") as slide:
        slide.read_array(*REGION)
        assert len(web.requests) <= 6
        slide.read_array(*REGION)
        assert len(web.requests) <= 6
    assert not any("/model/" in request.path for request in web.requests)  # it is installed


@pytest.mark.parametrize("width", [300, 1200])  # read directly, and by whole chunks
def test_requests_are_as_many_whatever_the_number_of_threads(
    web: WebServer, width: int, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tiny_file.parent))
    counts = set()
    for workers in (1, 2, 5):
        web.requests.clear()
        with histocodec.open(f"{web.url}/some%20slides/wide.hc.zarr", device="cpu", workers=workers) as slide:
            slide.read_array(100, 0, width, 40)
        counts.add(len(web.requests))
    assert len(counts) == 1 and counts.pop() <= 6


def test_the_profile_is_read_when_it_is_asked_for(folder: Path, tiny_file: Path) -> None:
    with serving(folder) as server, histocodec.open(f"{server.url}/a.zarr", device="cpu") as slide:
        slide.read_array(0, 0, 64, 64)
        assert not any("/icc/" in request.path for request in server.requests)
        assert slide.read_region((0, 0), 0, (64, 64)).info["icc_profile"] == ICC
        slide.read_region((0, 64), 0, (64, 64))
        assert slide.get_thumbnail((32, 32)).info["icc_profile"] == ICC
        assert sum("/icc/" in request.path for request in server.requests) == 1


def test_info_and_decode_read_from_a_folder_of_a_web_server(
    web: WebServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{web.url}/some%20slides/wide.hc.zarr"
    assert run(["info", url]) == 0
    assert "wide.hc.zarr" in capsys.readouterr().out
    assert run(["decode", url, str(tmp_path / "a.png"), "--region", "0,0,64,40"]) == 0
    assert (tmp_path / "a.png").is_file()


class Regions(torch.utils.data.Dataset[torch.Tensor]):
    """Four regions of a slide."""

    def __init__(self, slide: CompressedSlide) -> None:
        self.slide = slide

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(self.slide.read_array(64 * number, 0, 64, 40))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("name", ["some slides/wide.hcz", "some slides/wide.hc.zarr"])
def test_the_workers_of_a_data_loader_read_from_s3(in_s3: None, method: str, name: str) -> None:
    with histocodec.open(f"s3://slides/{name}", device="cpu") as slide:
        expected = [slide.read_array(64 * number, 0, 64, 40) for number in range(4)]
        loader = torch.utils.data.DataLoader(
            Regions(slide), batch_size=None, num_workers=2, multiprocessing_context=method
        )
        assert all(np.array_equal(a, b) for a, b in zip(loader, expected, strict=True))


def test_a_slide_in_memory_reads_the_same(folder: Path, pixels: np.ndarray) -> None:
    buffer = default_buffer_prototype().buffer
    files = {path.relative_to(folder / "wide.zarr").as_posix(): path for path in (folder / "wide.zarr").rglob("*")}
    store = MemoryStore({key: buffer.from_bytes(path.read_bytes()) for key, path in files.items() if path.is_file()})
    with histocodec.open(store, device="cpu") as slide:
        assert np.array_equal(slide.read_array(*REGION), pixels)
        assert np.asarray(slide.latents()[:, :8, :8]).any()


def test_a_zarr_store_that_fails_is_no_damage(folder: Path) -> None:
    class Failing(LocalStore):
        async def get(self, key: str, *arguments: object, **more: object) -> None:
            raise ConnectionError("the database is away")

    with pytest.raises(StoreError, match="the database is away"):
        open_container(Failing(folder / "wide.zarr"))


def test_verify_reads_all_of_an_archive_or_of_a_bucket(in_s3: None, web: WebServer) -> None:
    locations = (
        f"{web.url}/some%20slides/wide.hcz",
        "s3://slides/some slides/wide.hcz",
        "s3://slides/some slides/wide.hc.zarr",
    )
    for location in locations:
        assert run(["verify", "--quick", location]) == 0


def test_a_folder_of_a_web_server_cannot_be_listed(web: WebServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "--quick", f"{web.url}/some%20slides/wide.hc.zarr"]) == 4
    assert "a web server does not list the files of a folder" in capsys.readouterr().err


def test_what_is_not_there_is_said_so(web: WebServer, in_s3: None) -> None:
    with pytest.raises(UsageError, match=r"none\.hcz: does not exist"):
        open_container(f"{web.url}/none.hcz")
    with pytest.raises(UsageError, match=r"none\.hcz: does not exist"):
        open_container("s3://slides/none.hcz")
    for location in (f"{web.url}/none.hc.zarr", "s3://slides/none.hc.zarr"):
        with pytest.raises(UnsupportedError, match="is no histocodec container"):
            open_container(location)


def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="ftp:// cannot be read"):
        open_container("ftp://host/slide.hcz")
    with pytest.raises(UsageError, match="names no bucket"):
        open_container("s3:///slide.hcz")


def test_a_request_that_fails_is_tried_again(web: WebServer, impatient: None) -> None:
    failed: list[Request] = []

    def once(request: Request) -> int | None:
        if request in failed:
            return None
        failed.append(request)
        return 503

    web.fault = once
    assert open_container(f"{web.url}/some%20slides/wide.hcz").tiles(0).size
    assert len(failed) == 2


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (403, StoreError, "access was refused"),
        (500, StoreError, "failed with status 500"),
        ("truncated", StoreError, "cut short"),
        ("stalled", StoreError, "did not answer in time"),
        ("short", StoreError, "cannot be read"),
    ],
)
@pytest.mark.parametrize("name", ["wide.hcz", "wide.hc.zarr"])
def test_what_goes_wrong_on_the_way_is_no_damage(
    web: WebServer, impatient: None, fault: int | str, error: type[HistocodecError], message: str, name: str
) -> None:
    url = f"{web.url}/some%20slides/{name}".replace("http://", "http://user:secret@")
    with histocodec.open(url, device="cpu") as slide:
        web.fault = lambda request: fault
        if name == "wide.hcz":  # all but the shards was read when it was opened
            with pytest.raises(error, match=message) as found:
                histocodec.open(url)
        else:
            with pytest.raises(error, match=message) as found:
                slide.read_array(*REGION)
    assert "secret" not in str(found.value) and found.value.__cause__ is None
    assert found.value.exit_code == 5


def test_a_server_without_ranges_is_named(published: Path) -> None:
    with serving(published, ranges=False) as server:
        with pytest.raises(UnsupportedError, match="HTTP ranges"):
            open_container(f"{server.url}/some%20slides/wide.hcz")
        container = open_container(f"{server.url}/some%20slides/wide.hc.zarr")
        assert container.tiles(0).size
        with pytest.raises(UnsupportedError, match="HTTP ranges"):
            container.store.read_parts("latents/0/c/0/0/0", [(0, 1)])


def test_a_server_that_is_not_there_is_said_so(impatient: None) -> None:
    with pytest.raises(StoreError, match="cannot be reached"):
        open_container("http://127.0.0.1:9/slide.hcz")


def test_an_archive_that_is_cut_short_is_damaged(web: WebServer, tmp_path: Path, published: Path) -> None:
    data = (published / "some slides/wide.hcz").read_bytes()
    for size in (0, 3, len(data) // 2, len(data) - 1):
        (published / "cut.hcz").write_bytes(data[:size])
        with pytest.raises(FormatError):
            open_container(f"{web.url}/cut.hcz")


@pytest.mark.parametrize("name", ["some slides/wide.hcz", "some slides/wide.hc.zarr"])
def test_a_forked_child_reads_from_s3(in_s3: None, pixels: np.ndarray, name: str) -> None:
    with histocodec.open(f"s3://slides/{name}", device="cpu") as slide:
        slide.read_array(0, 0, 8, 8)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if np.array_equal(slide.read_array(*REGION), pixels) else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert np.array_equal(slide.read_array(*REGION), pixels)


def test_a_password_in_a_url_is_sent_and_never_shown(web: WebServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = web.url.replace("//", "//user:p%40ss@") + "/some%20slides/wide.hcz?token=secret"
    assert run(["info", url]) == 0
    assert {request.authorization for request in web.requests} == {"Basic dXNlcjpwQHNz"}
    shown = capsys.readouterr()
    assert not any(word in shown.out + shown.err for word in ("p%40ss", "p@ss", "secret"))


@pytest.mark.parametrize("name", ["ü #1 100%.hcz", "a+b&c=d.hcz", "50%25.hcz"])
def test_names_may_have_any_characters(
    tmp_path: Path, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zip(folder / "wide.zarr", tmp_path / name)
    with serving(tmp_path) as server:
        assert open_container(f"{server.url}/{quote(name)}").tiles(0).size
    with s3(tmp_path) as environment:
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        assert open_container(f"s3://slides/{name}").tiles(0).size


def test_stores_are_named_without_credentials(web: WebServer) -> None:
    store = open_store(f"{web.url.replace('//', '//user:secret@')}/some%20slides/wide.hcz?token=secret")
    assert store.name == f"{web.url}/some slides/wide.hcz"
    with pytest.raises(FormatError) as found:
        store.read("none", 1)
    assert "secret" not in str(found.value)


def test_time_outs_of_tests_are_shorter_than_the_server_stalls(impatient: None) -> None:
    assert obstore_client.STALL_SECONDS < STALL
