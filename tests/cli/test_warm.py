"""`histocodec warm`: after it, reading compiles nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import histocodec
from histocodec.kernels.compile import SAID
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide

READ = """
import sys, histocodec
from histocodec.kernels.jit import compiled_kernels
with histocodec.open(sys.argv[1], device="cpu") as slide:
    slide.read_array(40, 40, 64, 64)
    slide.read_array(0, 0, 600, 400)
print(compiled_kernels())
"""


@pytest.mark.slow
def test_after_warm_nothing_is_compiled_and_nothing_is_said(tmp_path: Path) -> None:
    slide = ArraySlide(synthetic_slide(600, 400, seed=1), name="a")
    histocodec.encode(slide, tmp_path / "a.hcz", effort=0)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment)

    first = run("-m", "histocodec", "warm", "--json")
    assert first.stderr.count(SAID) == 1
    assert json.loads(first.stdout)["compiled"] > 5
    names = {path.name.rpartition("-")[0] for path in (tmp_path / "cache" / "histocodec").iterdir()}
    assert not names & {"place", "_encode", "_find_entries"}  # which only an encoder needs
    again = run("-m", "histocodec", "warm", "--json")
    assert json.loads(again.stdout)["compiled"] == 0
    assert not again.stderr
    read = run("-c", READ, str(tmp_path / "a.hcz"))
    assert read.stdout.strip() == "0"
    assert not read.stderr
