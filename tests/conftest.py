"""What several test modules share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("tests.support")

from tests.support.tiny import tiny_model  # noqa: E402  # after its asserts are told to explain themselves


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real tissue, where this machine has it: HISTOCODEC_DATA, else ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HISTOCODEC_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real tissue here: {folder} is no folder, and HISTOCODEC_DATA names no other")
    return folder


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's file, alone in its folder."""
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For networks so small that they are slower on several threads, above all beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
