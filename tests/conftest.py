"""What several test modules share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real tissue, where this machine has it: HISTOCODEC_DATA, else ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HISTOCODEC_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real tissue here: {folder} is no folder, and HISTOCODEC_DATA names no other")
    return folder
