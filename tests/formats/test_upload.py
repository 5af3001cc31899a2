"""Containers that are written to S3: whole or absent, replaced on request only, and sent again if interrupted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import histocodec
from histocodec.errors import OutputError, StoreError, UnsupportedError, UsageError
from histocodec.formats.container.client_process import ask
from histocodec.formats.container.obstore_client import locate
from histocodec.formats.container.read import open_container
from histocodec.formats.decode.verify import verify
from histocodec.formats.encode import upload as module
from histocodec.formats.encode.upload import staging_path
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.servers import s3
from tests.support.slides import encoded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3(tmp_path_factory.mktemp("bucket")) as environment:
        yield environment


@pytest.fixture(autouse=True)
def in_s3(bucket: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**bucket, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def slide() -> ArraySlide:
    return ArraySlide(synthetic_slide(700, 300, seed=5), name="made up")


def names(url: str) -> set[str]:
    server, key = locate(url)
    return {path for path, _ in ask(server, "list", key)}


@pytest.mark.parametrize("name", ["new.hcz", "new.hc.zarr"])
def test_what_is_written_to_s3_is_what_is_written_here(
    slide: ArraySlide, tmp_path: Path, tiny_file: Path, name: str
) -> None:
    url = f"s3://slides/{name}"
    report = encoded(slide, url, tiny_file, embed_model=True)
    encoded(slide, tmp_path / name, tiny_file, embed_model=True)
    assert report.path == url
    assert verify(url, device="cpu").ok
    here, there = open_container(tmp_path / name), open_container(url)
    assert there.attributes == here.attributes
    assert dict(there.store.entries()) == dict(here.store.entries())
    assert not staging_path(url).parent.exists() or not list(staging_path(url).parent.iterdir())


def test_nothing_is_replaced_unless_that_is_asked_for(slide: ArraySlide, tiny_file: Path) -> None:
    url = "s3://slides/kept.hc.zarr"
    encoded(slide, url, tiny_file, embed_model=True, quality=20)
    before = open_container(url).attributes
    with pytest.raises(OutputError, match="--overwrite replaces it"):
        encoded(slide, url, tiny_file, quality=60)
    assert open_container(url).attributes == before
    encoded(slide, url, tiny_file, quality=60, overwrite=True)
    assert open_container(url).attributes.levels[0].quality == 60
    assert not any("/model/" in name for name in names(url))  # which the old one had


@pytest.mark.parametrize("name", ["cut.hcz", "cut.hc.zarr"])
def test_an_upload_that_fails_leaves_no_container_and_is_sent_again(
    slide: ArraySlide, tiny_file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    url = f"s3://slides/{name}"
    sent: list[str] = []

    def failing(server: Any, operation: Any, key: str, *arguments: Any) -> Any:
        if operation == "put":
            if len(sent) == (0 if name.endswith(".hcz") else 2):
                raise StoreError(f"{key}: the server cannot be reached")
            sent.append(key)
        return ask(server, operation, key, *arguments)

    monkeypatch.setattr(module, "ask", failing)
    with pytest.raises(OutputError, match="--resume sends it again"):
        encoded(slide, url, tiny_file, embed_model=True)
    with pytest.raises((UnsupportedError, UsageError)):
        open_container(url)
    monkeypatch.setattr(module, "ask", ask)
    with pytest.raises(OutputError, match="--resume continues it"):
        encoded(slide, url, tiny_file, embed_model=True)
    encoded(slide, url, tiny_file, embed_model=True, resume=True)
    assert verify(url, device="cpu").ok
    with histocodec.open(url, device="cpu") as opened:
        assert np.abs(opened.read_array(0, 0, 64, 64).astype(int)).sum() > 0


@pytest.mark.parametrize("name", ["a.hcz", "a.hc.zarr"])
def test_a_bucket_that_does_not_exist_is_named_and_the_work_is_kept(
    slide: ArraySlide, tiny_file: Path, name: str
) -> None:
    url = f"s3://nowhere/{name}"
    with pytest.raises(OutputError, match=r"s3://nowhere/.*bucket .*does not exist.*--resume sends it again"):
        encoded(slide, url, tiny_file)
    assert list(staging_path(url).parent.iterdir())


def test_a_web_server_and_a_bare_bucket_are_refused_before_any_work(slide: ArraySlide, tiny_file: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot be written to"):
        encoded(slide, "https://example.org/slide.hcz", tiny_file)
    with pytest.raises(UsageError, match="names no container"):
        encoded(slide, "s3://slides", tiny_file)
