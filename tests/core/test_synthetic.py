"""The made-up section, and the TIFF it can be written to."""

from pathlib import Path

import numpy as np
import openslide
import pytest

from histocodec.errors import UsageError
from histocodec.sources import open_slide
from histocodec.sources.synthetic import synthetic_slide, write_pyramidal_tiff


def test_a_seed_always_gives_the_same_slide() -> None:
    first = synthetic_slide(500, 400, seed=5)
    assert first.shape == (400, 500, 3)
    assert np.array_equal(first, synthetic_slide(500, 400, seed=5))
    assert not np.array_equal(first, synthetic_slide(500, 400, seed=6))


def test_the_section_is_pink_with_blue_nuclei_on_a_bright_background() -> None:
    image = synthetic_slide(1024, 1024, seed=0).astype(int)
    red, green, blue = np.moveaxis(image, 2, 0)
    background = image.min(axis=2) > 225
    pink = (red > blue + 8) & (blue > green + 15)
    nuclei = (blue > red + 15) & (red < 130)
    assert 0.1 < background.mean() < 0.8
    assert pink.mean() > 0.15
    assert 0.005 < nuclei.mean() < 0.3


def test_a_pen_mark_is_there_only_when_asked_for() -> None:
    def green(image: np.ndarray) -> int:
        wide = image.astype(int)
        return int((wide[..., 1] > wide[..., [0, 2]].max(axis=2) + 40).sum())

    assert green(synthetic_slide(600, 600, seed=1)) == 0
    assert green(synthetic_slide(600, 600, seed=1, pen=True)) > 2000


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 300), (300, 2)])
def test_any_size_can_be_drawn(width: int, height: int) -> None:
    assert synthetic_slide(width, height).shape == (height, width, 3)


def test_no_size_is_refused() -> None:
    with pytest.raises(UsageError):
        synthetic_slide(0, 10)


@pytest.mark.parametrize("step", [2, 4])
def test_the_tiff_opens_in_openslide_with_its_levels(tmp_path: Path, step: int) -> None:
    path, image = tmp_path / "a.tif", synthetic_slide(1100, 900, seed=1)
    write_pyramidal_tiff(path, image, mpp=0.25, step=step, smallest=300)
    assert openslide.OpenSlide.detect_format(path) == "generic-tiff"
    with open_slide(path) as slide:
        assert len(slide.levels) == {2: 3, 4: 2}[step]
        assert slide.mpp == pytest.approx((0.25, 0.25))
        error = slide.read(slide.levels[0].region, 0).astype(float) - image
        assert np.sqrt((error**2).mean()) < 8
