"""What is background and what is tissue."""

from pathlib import Path

import numpy as np
import pytest

from histocodec.geometry import Level, Region
from histocodec.slide import Colour, Pixels
from histocodec.sources import ArraySlide, open_slide
from histocodec.sources.synthetic import synthetic_slide
from histocodec.tissue import background_share, estimate_background, is_background, stained, tissue_mask

BACKGROUND: Colour = (240, 236, 242)


def bare_glass(height: int = 200, width: int = 200, noise: float = 2.0) -> Pixels:
    pixels = np.random.default_rng(0).normal(BACKGROUND, noise, (height, width, 3))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def test_the_background_is_the_commonest_bright_colour() -> None:
    pixels = bare_glass()
    pixels[:80] = (180, 90, 150)
    found = estimate_background(ArraySlide(pixels))
    assert np.abs(np.array(found) - BACKGROUND).max() <= 1


def test_a_declared_background_is_believed() -> None:
    assert estimate_background(ArraySlide(bare_glass(), background=(250, 250, 250))) == (250, 250, 250)


def test_without_bare_glass_the_background_is_white() -> None:
    assert estimate_background(ArraySlide(np.full((64, 64, 3), (150, 60, 140), np.uint8))) == (255, 255, 255)


def test_noisy_bare_glass_is_background() -> None:
    assert is_background(bare_glass(), BACKGROUND)


def test_one_speck_makes_a_tile_worth_keeping() -> None:
    pixels = bare_glass()
    pixels[100, 100] = (200, 236, 242)
    assert not is_background(pixels, BACKGROUND)


def test_the_distance_is_the_largest_that_still_counts() -> None:
    pixels = np.full((8, 8, 3), BACKGROUND, np.uint8)
    pixels[3, 3, 1] -= 12
    assert is_background(pixels, BACKGROUND)
    pixels[3, 3, 1] -= 1
    assert not is_background(pixels, BACKGROUND)
    assert is_background(np.full((4, 4, 3), 255, np.uint8), (250, 250, 250))


def test_the_mask_finds_the_section() -> None:
    image = synthetic_slide(768, 768, seed=3)
    mask = tissue_mask(ArraySlide(image), longest=256)
    assert mask.shape == (256, 256)
    assert 0.2 < mask.mean() < 0.8
    assert not mask[:4, :4].any()


def test_a_blank_slide_has_no_tissue() -> None:
    assert not tissue_mask(ArraySlide(bare_glass())).any()


def test_a_slide_full_of_tissue_is_all_tissue() -> None:
    pixels = np.random.default_rng(1).normal((180, 100, 160), 15, (100, 100, 3)).clip(0, 255).astype(np.uint8)
    assert stained(pixels, (255, 255, 255)).mean() > 0.98


def test_a_real_section_lies_where_it_lies(data_dir: Path) -> None:
    with open_slide(data_dir / "slides" / "her2st-C5.tif") as slide:
        background = estimate_background(slide)
        assert np.abs(np.array(background) - (234, 217, 232)).max() <= 4
        mask = tissue_mask(slide)
        assert 0.1 < mask.mean() < 0.25
        assert is_background(slide.read(Region(6400, 200, 128, 128), 0), background)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3000, 2)])
def test_slides_of_any_shape_have_a_mask(size: tuple[int, int]) -> None:
    slide = ArraySlide(np.full((*size, 3), 255, np.uint8))
    assert not tissue_mask(slide).any()


def whole(image: np.ndarray) -> Level:
    return ArraySlide(image).levels[0]


def test_background_counts_where_it_is_coded() -> None:
    """Squares of background alone are left out; of the others, this is how much is background."""
    image = np.full((256, 512, 3), 244, np.uint8)
    image[:, :64] = (150, 80, 150)
    assert background_share(image, whole(image), (244, 244, 244), side=128) == pytest.approx(0.5)
    assert background_share(image[:, :64], whole(image[:, :64]), (244, 244, 244), side=128) == 0
