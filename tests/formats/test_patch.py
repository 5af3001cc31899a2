"""The patch: programs that call OpenSlide themselves open compressed slides. Each runs in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
{first}
import openslide
from openslide import OpenSlide, open_slide
{then}
path, picture = sys.argv[1], sys.argv[2]
for opened in (OpenSlide(path), open_slide(path), openslide.open_slide(path)):
    size = opened.read_region((5, 5), 0, (3, 2)).size
    print(type(opened).__name__, opened.dimensions, size, opened._filename == path)
print(OpenSlide.detect_format(path), OpenSlide.detect_format(picture), type(open_slide(picture)).__name__)
try:
    OpenSlide(picture)
except openslide.OpenSlideUnsupportedFormatError:
    print("as before")
"""
EXPECTED = ["CompressedSlide (1300, 900) (3, 2) True"] * 3 + ["histocodec None ImageSlide", "as before"]
WAYS = {
    "call": ("", "import histocodec; histocodec.patch_openslide(); histocodec.patch_openslide()"),
    "variable": ("import histocodec", ""),
    "program": ("", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_openslide_opens_containers_and_all_else_as_before(folder: Path, tmp_path: Path, way: str) -> None:
    program, picture = tmp_path / "program.py", tmp_path / "picture.ppm"
    first, then = WAYS[way]
    program.write_text(PROGRAM.format(first=first, then=then))
    picture.write_bytes(b"P6 2 2 255\n" + bytes(12))
    run = [sys.executable, *(["-m", "histocodec.patched"] if way == "program" else []), str(program)]
    environment = {**os.environ, "HISTOCODEC_PATCH_OPENSLIDE": "1" if way == "variable" else "0"}
    done = subprocess.run(
        [*run, str(folder / "a.zarr"), str(picture)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.stdout.splitlines() == EXPECTED, done.stderr


def test_a_program_that_is_not_named_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-m", "histocodec.patched"], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "usage" in done.stderr
