"""Resampling from strips gives what Pillow gives for the whole image."""

import numpy as np
import pytest
from PIL import Image

from histocodec.formats.decode import resample
from histocodec.formats.decode.resample import resampled

SIZES = [
    ((300, 200), (150, 100)), ((301, 207), (33, 19)), ((90, 70), (91, 140)), ((64, 64), (1, 1)), ((5, 700), (5, 31)),
    ((200, 5), (17, 5)), ((1, 1), (9, 7)), ((123, 456), (100, 3)),
]  # fmt: skip


@pytest.mark.parametrize("strip", [1, 700, 1 << 24])
@pytest.mark.parametrize(("source", "size"), SIZES)
def test_strips_resample_as_pillow_does(
    source: tuple[int, int], size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resample, "STRIP_PIXELS", strip)
    pixels = np.random.default_rng(0).integers(0, 256, (source[1], source[0], 3), np.uint8)
    narrow = Image.fromarray(pixels).resize((size[0], source[1]), Image.Resampling.LANCZOS)
    expected = np.asarray(narrow.resize(size, Image.Resampling.LANCZOS))
    assert np.array_equal(resampled(lambda start, end: pixels[start:end], source, size), expected)
