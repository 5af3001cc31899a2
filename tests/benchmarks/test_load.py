"""Many readers of one container at once get the right pixels.

`python -m histocodec.benchmarks.studies.load` measures how fast.
"""

from pathlib import Path

import numpy as np
import pytest

from histocodec.benchmarks.studies.load import load
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide


@pytest.fixture(scope="module")
def source() -> ArraySlide:
    return ArraySlide(synthetic_slide(1100, 900, seed=8), name="load")


@pytest.fixture(scope="module")
def container(source: ArraySlide, tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "a.zarr"
    encode_slide(source, path, EncodeOptions(model=str(tiny_file), device="cpu", levels=(0,), embed_model=True))
    return path


def test_sixteen_threads_and_two_processes_get_the_right_pixels(source: ArraySlide, container: Path) -> None:
    for found in load(source, container, threads=16, processes=2, seconds=0.5):
        assert found.regions >= 2, found
        assert found.wrong == 0, found


def test_a_wrong_region_is_counted(source: ArraySlide, container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from histocodec.benchmarks.studies import load as module

    monkeypatch.setattr(module, "_crop", lambda pixels, region: np.zeros(3))
    processes, threads, _ = load(source, container, threads=2, processes=1, seconds=0.1)
    assert processes.wrong == processes.regions > 0
    assert threads.wrong == threads.regions > 0


def test_clients_of_the_server_get_answers_without_errors(container: Path) -> None:
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    from histocodec.benchmarks.studies.serve_load import measure

    for found in measure(container, clients=4, seconds=0.5, options=("--device", "cpu")):
        assert found.answers >= 4, found
        assert found.errors == 0, found
        assert found.median <= found.tail <= found.longest
