"""A CPU reads pixels of models with an integer synthesis without torch, whether torch is installed or not."""

import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import histocodec
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from histocodec.threads import Workers
from tests.support.tiny import tiny_integer_weights

READ = """
import hashlib, sys
if sys.argv[2] == "missing":
    sys.modules["torch"] = None  # importing it fails, as if it were not installed
import histocodec
with histocodec.open(sys.argv[1]) as slide:
    parts = [slide.read_array(500, 300, 64, 64), slide.read_array(0, 0, 700, 600)]
    parts.append(slide.read_batch([(0, 0), (90, 400)], (100, 120)))
assert sys.modules.get("torch") is None, "torch was loaded"
print(hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
"""


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    model = folder / "tiny-integer.safetensors"
    model.write_bytes(tiny_integer_weights().data)
    slide = ArraySlide(synthetic_slide(700, 600, seed=7), name="a")
    histocodec.encode(slide, folder / "a.zarr", model=str(model), quality=60, effort=0, embed_model=True)
    return folder / "a.zarr"


@pytest.mark.parametrize("torch_is", ["installed", "missing"])
def test_a_region_is_read_without_torch(container: Path, torch_is: str) -> None:
    with histocodec.open(container, device="cpu") as slide:
        parts = [slide.read_array(500, 300, 64, 64), slide.read_array(0, 0, 700, 600)]
        parts.append(slide.read_batch([(0, 0), (90, 400)], (100, 120)))
    expected = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    done = subprocess.run(
        [sys.executable, "-c", READ, str(container), torch_is], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected


def test_a_tensor_is_read_all_the_same(container: Path) -> None:
    with histocodec.open(container, device="cpu") as slide:
        found = slide.read_tensor(20, 30, 90, 70)
        assert np.array_equal(found.numpy(), slide.read_array(20, 30, 90, 70))


def test_workers_that_began_without_torch_use_one_core_each_once_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, before = Workers(2), torch.get_num_threads()
    monkeypatch.delitem(sys.modules, "torch")
    assert workers.run(threading.get_ident) != threading.get_ident()
    monkeypatch.undo()
    assert workers.run(torch.get_num_threads) == 1
    assert torch.get_num_threads() == before
    workers.close()


LOADED = """
import sys, histocodec
with histocodec.open(sys.argv[1], device="cpu") as slide:
    slide.read_region((0, 0), 0, (256, 256))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""

# What a local read does without; each takes as long to import as many regions to decode.
NOT_LOADED = (
    "asyncio", "click", "filelock", "http", "imagecodecs", "jsonschema", "numba", "numcodecs", "obstore", "rich",
    "scipy", "ssl", "starlette", "tifffile", "torch", "triton", "wsidicom", "zarr",
)  # fmt: skip


def test_a_read_loads_what_it_needs_alone(container: Path) -> None:
    arguments = [sys.executable, "-c", LOADED, str(container)]
    subprocess.run(arguments, capture_output=True, check=True)  # compiles what is not there
    loaded = subprocess.run(arguments, capture_output=True, check=True, text=True).stdout.split()
    assert "numpy" in loaded
    assert not {*NOT_LOADED} & {*loaded}
