"""Encoding takes as much memory for a large slide as for a small one."""

import subprocess
import sys
from pathlib import Path

import pytest

import histocodec
from tests.support.peak import linux_only

REPOSITORY = Path(histocodec.__file__).parents[1]
LIMIT = 3 << 10  # MiB, whatever the slide
SIDES = (4096, 8192)  # 48 and 192 MiB of pixels

# A slide of any size that takes no memory: mostly background, and a patch of tissue in every eighth chunk.
ENCODE = """
import sys
import numpy as np
from histocodec.formats.decode import fidelity as measure
from histocodec.formats.encode.options import EncodeOptions
from histocodec.formats.encode.encode import encode_slide
from histocodec.geometry import Level
from histocodec.slide import BaseSlide
from histocodec.sources.synthetic import synthetic_slide
from pathlib import Path
from tests.support.peak import peak_memory

class Endless(BaseSlide):
    def __init__(self, side):
        levels = (Level(side, side, 1.0), Level(2048, 2048, side / 2048))  # masks are made in 2048 pixels
        super().__init__(name="endless", levels=levels, background=(240, 240, 240))
        self.patch = synthetic_slide(512, 512, seed=1)

    def _read_inside(self, region, level):
        pixels = np.full((region.height, region.width, 3), 240, np.uint8)
        for y in range(region.y // 512 * 512, region.y_end, 512):
            for x in range(region.x // 512 * 512, region.x_end, 512):
                if (x // 512 + 3 * (y // 512)) % 8 == 0:
                    rows = slice(max(y, region.y), min(y + 512, region.y_end))
                    columns = slice(max(x, region.x), min(x + 512, region.x_end))
                    part = self.patch[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
                    pixels[
                        rows.start - region.y : rows.stop - region.y,
                        columns.start - region.x : columns.stop - region.x,
                    ] = part
        return pixels

measure.CACHE_BYTES = 8 << 20  # so that both slides fill it, and one thread, whose allocations do not depend on chance
side, target, model = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
options = EncodeOptions(model=model, device="cpu", workers=1)
report = encode_slide(Endless(side), target, options)
assert report.chunks > side * side / 512**2 / 10, report
print(peak_memory())
"""


def peak(side: int, folder: Path, tiny_file: Path) -> int:
    """MiB of resident memory, at most, in a process of its own."""
    arguments = [str(side), str(folder / f"{side}.zarr"), str(tiny_file)]
    done = subprocess.run(
        [sys.executable, "-c", ENCODE, *arguments], capture_output=True, text=True, cwd=REPOSITORY, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@linux_only
def test_four_times_the_slide_takes_no_more_memory(tmp_path: Path, tiny_file: Path) -> None:
    small, large = (peak(side, tmp_path, tiny_file) for side in SIDES)
    pixels = 3 * (SIDES[1] ** 2 - SIDES[0] ** 2) >> 20
    assert large < LIMIT
    assert large - small < pixels / 2
