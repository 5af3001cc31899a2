"""Scaling for `histocodec serve`: tiles fit together, levels are chosen for their size, nothing huge is read."""

import numpy as np
import pytest

from histocodec.cli.viewer.deepzoom import first_level, last_level, tile_at
from histocodec.cli.viewer.limits import SOURCE_PIXELS, RefusedError
from histocodec.cli.viewer.scaling import level_scale, reading_of
from histocodec.geometry import Level, ceil_div
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide
from histocodec.sources.pyramid import box_mean
from histocodec.sources.synthetic import synthetic_slide

SIZE = (1301, 1100)


@pytest.fixture(scope="module")
def slide() -> ArraySlide:
    return ArraySlide(synthetic_slide(*SIZE, seed=5))


def tiles(slide: ArraySlide, level: int) -> Pixels:
    """A level of DeepZoom, put together from its tiles."""
    full = slide.levels[0]
    factor = 2 ** (last_level(full) - level)
    width, height = ceil_div(full.width, factor), ceil_div(full.height, factor)
    whole = np.zeros((height, width, 3), np.uint8)
    for column, row in np.ndindex(ceil_div(width, 512), ceil_div(height, 512)):
        tile = tile_at(full, f"{level}/{column}_{row}.png")
        reading = reading_of(slide.levels, tile.box, tile.size)
        whole[tile.region.y : tile.region.y_end, tile.region.x : tile.region.x_end] = reading.scaled(
            slide.read(reading.region, reading.level)
        )
    return whole


def test_the_last_level_is_level_0(slide: ArraySlide) -> None:
    assert np.array_equal(tiles(slide, last_level(slide.levels[0])), slide.read(slide.levels[0].region, 0))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_pixels_of_smaller_levels_are_means_without_seams(slide: ArraySlide, steps: int) -> None:
    found = tiles(slide, last_level(slide.levels[0]) - steps).astype(int)
    factor = 2**steps
    means = box_mean(slide.read(slide.levels[0].region, 0), factor)
    inside = (slice(SIZE[1] // factor), slice(SIZE[0] // factor))  # the rest reaches beyond the edge
    assert np.abs(found[inside] - means[inside]).max() <= 1


def test_a_scale_that_is_no_whole_number_has_no_seams_either(slide: ArraySlide) -> None:
    pixels = []
    for left in (0, 400):  # 3 pixels become 2
        reading = reading_of(slide.levels, (1.5 * left, 0, 1.5 * (left + 400), 600), (400, 400))
        pixels.append(reading.scaled(slide.read(reading.region, 0)))
    reading = reading_of(slide.levels, (0, 0, 1200, 600), (800, 400))
    whole = reading.scaled(slide.read(reading.region, 0)).astype(int)
    assert np.abs(np.concatenate(pixels, 1) - whole).max() <= 1


def test_a_level_whose_last_columns_the_scanner_cut_keeps_its_factor() -> None:
    levels = (Level(1301, 1003, 1.0), Level(325, 250, 4.0077), Level(81, 62, 16.12))
    assert level_scale(levels, 1) == (0.25, 0.25)
    assert level_scale(levels, 2) == (1 / 16, 1 / 16)
    assert level_scale((Level(1000, 1000, 1.0), Level(300, 300, 3.33)), 1) == (0.3, 0.3)


def test_the_smallest_level_that_has_the_pixels_is_read() -> None:
    levels = tuple(Level(102_400 // 4**n, 81_920 // 4**n, float(4**n)) for n in range(4))
    for size, level in ((1600, 3), (3200, 2), (6400, 2), (25_600, 1), (102_400, 0)):
        wanted = (0.0, 0.0, 1024.0, 1024.0)
        scale = 102_400 / size
        assert reading_of(levels, wanted, (round(1024 / scale), round(1024 / scale))).level == level


def test_what_would_be_made_of_too_many_pixels_is_refused() -> None:
    levels = (Level(100_000, 100_000, 1.0),)
    with pytest.raises(RefusedError, match="megapixels of level 0"):
        reading_of(levels, (0, 0, 100_000, 100_000), (512, 512))
    first = first_level(levels)
    tile = tile_at(levels[0], f"{first}/0_0.png")
    assert reading_of(levels, tile.box, tile.size).region.area <= SOURCE_PIXELS
    with pytest.raises(RefusedError):
        tile = tile_at(levels[0], f"{first - 1}/0_0.png")
        reading_of(levels, tile.box, tile.size)
    assert first_level((*levels, Level(5000, 5000, 20.0))) == 0
