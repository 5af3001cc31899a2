"""Squares: steps of the error at the edges of blocks, told from noise, wrong colours and busy places."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histocodec.benchmarks.measure.squares import BLOCK, Squares, squares, total
from histocodec.benchmarks.studies.squares import Coded, compare, table
from histocodec.errors import UsageError
from histocodec.slide import Pixels
from histocodec.sources.synthetic import synthetic_slide
from tests.support.tiny import tiny_model


def glass(rows: int = 96, columns: int = 128) -> Pixels:
    noise = np.random.default_rng(0).normal(230, 1.5, (rows, columns, 3))
    return np.clip(noise.round(), 0, 255).astype(np.uint8)


def with_squares(image: Pixels, height: int, *, offset: int = 0) -> Pixels:
    rows, columns = ((np.arange(side) + offset) // BLOCK for side in image.shape[:2])
    drawn = (rows[:, None] + columns) % 2 * height
    return (image + drawn[..., None]).astype(np.uint8)


def test_the_height_of_squares_is_found() -> None:
    found = squares(glass(), with_squares(glass(), 4))
    assert found.height == pytest.approx(4)
    assert found.edges == 96 * 7 + 128 * 5


def test_noise_and_a_wrong_colour_are_no_squares() -> None:
    noisy = (glass() + np.random.default_rng(1).integers(-3, 4, (96, 128, 3)) + 5).astype(np.uint8)
    found = squares(glass(), noisy)
    assert abs(found.excess) < 0.02
    assert found.height < 0.6


def test_squares_off_the_grid_do_not_count() -> None:
    assert squares(glass(), with_squares(glass(), 4, offset=5)).excess < 0


def test_squares_count_in_smooth_places_alone() -> None:
    busy = np.random.default_rng(2).integers(0, 200, (64, 64, 3)).astype(np.uint8)
    found = squares(busy, with_squares(busy, 9))
    assert (found.edges, found.besides) == (0, 0)
    assert math.isnan(found.excess)
    assert math.isnan(found.height)


def test_a_smooth_block_beside_busy_ones_does_not_count() -> None:
    image = np.random.default_rng(2).integers(0, 200, (48, 80, 3)).astype(np.uint8)
    image[16:32, 16:32] = 230  # smooth, and alone
    image[16:32, 48:80] = 230  # two
    noisy = image + np.random.default_rng(3).integers(0, 5, image.shape).astype(np.uint8)
    found = squares(image, noisy)
    assert (found.edges, found.besides) == (16, 2 * 16 * 12)


def test_a_tall_image_has_the_squares_of_a_wide_one() -> None:
    wide, drawn = glass(), with_squares(glass(), 3)
    tall = squares(wide.swapaxes(0, 1), drawn.swapaxes(0, 1))
    assert (tall.edges, tall.height) == (squares(wide, drawn).edges, pytest.approx(3))


def test_images_add_up() -> None:
    one, other = squares(glass(), with_squares(glass(), 2)), squares(glass(), with_squares(glass(), 6))
    assert total([one, other]).height == pytest.approx(math.sqrt((4 + 36) / 2))


def test_images_of_two_sizes_are_not_compared() -> None:
    with pytest.raises(UsageError, match="same"):
        squares(glass(), glass(64))


def test_a_table_has_no_figure_where_nothing_is_smooth() -> None:
    rows = [Coded("a.png", "one", 0.1, 0.09, 30.0, Squares(0.0, 0, 0.0, 0))]
    rows += [Coded("a.png", "other", 0.1, 0.09, 31.0, Squares(8.0, 2, 6.0, 2))]
    assert table(rows).splitlines()[2:] == [
        "| one | 0.1 | 0.0900 | 30.00 dB | – | – |",
        "| other | 0.1 | 0.0900 | 31.00 dB | +15.5 % | 1.00 |",
    ]


def test_codecs_are_compared_in_the_same_bytes(tmp_path: Path) -> None:
    image = tmp_path / "synthetic-1.png"
    Image.fromarray(synthetic_slide(128, 128, seed=0)).save(image)
    model = str(tiny_model(tmp_path))
    found = list(compare([image], [0.5], models=[model], peers=["jpeg2000"], effort=0))
    assert [row.codec.split()[0] for row in found] == ["histocodec", "JPEG"]
    assert found[1].bpp <= 0.5
    assert len(table(found).splitlines()) == 4
    with pytest.raises(UsageError, match="unknown"):
        list(compare([image], [0.5], models=[model], peers=["gif"], effort=0))
