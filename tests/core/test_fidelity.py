"""PSNR and squared error: exact, and each other's inverse."""

import math

import numpy as np
import pytest

from histocodec.fidelity import mean_squared_error, psnr, psnr_map, squared_error


def test_squared_errors_are_exact() -> None:
    black, white = np.zeros((600, 500, 3), np.uint8), np.full((600, 500, 3), 255, np.uint8)
    assert squared_error(black, white) == 600 * 500 * 3 * 255**2
    assert squared_error(white, white) == 0


def test_psnr_is_in_decibels_against_255() -> None:
    assert psnr(255**2, 1) == 0
    assert psnr(3 * 6.5025, 3) == pytest.approx(40)
    assert psnr(0, 3) == math.inf


def test_a_mean_squared_error_has_the_psnr_that_it_came_from() -> None:
    for decibels in (0.0, 31.4, 60.0):
        assert psnr(mean_squared_error(decibels), 1) == pytest.approx(decibels)


def test_a_map_has_the_psnr_of_each_element() -> None:
    errors, samples = np.array([[255.0**2, 0, np.nan]]), np.array([[1.0, 3, np.nan]])
    decibels = psnr_map(errors, samples)
    assert decibels.dtype == np.float32
    assert np.array_equal(decibels, np.float32([[0, np.inf, np.nan]]), equal_nan=True)
