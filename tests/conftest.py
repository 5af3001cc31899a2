"""Fixtures that several test modules share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from histocodec.formats.decode.cache import SHARED_CACHE
from histocodec.threads import SHARED_WORKERS

pytest.register_assert_rewrite("tests.support")

from tests.support.tiny import tiny_model  # noqa: E402  # after its asserts are told to explain themselves

EPOCH = 1_764_547_200  # 2025-12-01T00:00:00Z


@pytest.fixture(scope="session", autouse=True)
def fixed_time() -> Iterator[None]:
    """Every container is made at the same moment, so that equal pixels give equal bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
        yield


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """The threads and the cache that all slides share are, after each test, what they were before it."""
    workers, limit = SHARED_WORKERS._chosen, SHARED_CACHE.limit
    yield
    if SHARED_WORKERS._chosen != workers:
        SHARED_WORKERS.resize(workers)
    if SHARED_CACHE.limit != limit:
        SHARED_CACHE.resize(limit)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real tissue: HISTOCODEC_DATA, or shared/data beside the repository. Without one, skips the test."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HISTOCODEC_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real tissue here: {folder} is not a folder; set HISTOCODEC_DATA to one")
    return folder


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the tiny model, alone in its folder."""
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run torch on one thread: networks this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
