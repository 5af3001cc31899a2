"""The Python in the pages runs as it is printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import histocodec
from histocodec.sources.synthetic import synthetic_slide, write_pyramidal_tiff
from tests.support.modules import REPOSITORY
from tests.support.pages import pages, python_blocks

# Runs the blocks of one page in one namespace. Blank lines before each make errors name the page's own lines.
RUN = """
import sys
from pathlib import Path
from tests.support.pages import python_blocks

namespace = {"__name__": "__main__"}
for line, code in python_blocks(Path(sys.argv[1]).read_text(encoding="utf-8")):
    exec(compile("\\n" * (line - 1) + code, sys.argv[1], "exec"), namespace)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples find: slide.tif and, with the default model, slide.hc.zarr."""
    folder = tmp_path_factory.mktemp("examples")
    write_pyramidal_tiff(folder / "slide.tif", synthetic_slide(1200, 900, seed=1), mpp=0.5)
    histocodec.encode(folder / "slide.tif", folder / "slide.hc.zarr", effort=0, device="cpu")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, text in pages().items() if python_blocks(text)])
def test_the_examples_of_a_page_run_in_order(folder: Path, page: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # the tests' own, in another folder
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(REPOSITORY / page)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
