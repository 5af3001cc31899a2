"""Normalisation and its inverse, and the statistics they need."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from histocodec.errors import UsageError
from histocodec.normalise import DEFAULT_STATS, FAINT, IDENTITY_STATS, ChannelStats, pixel_stats, tissue_stats
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide


def stats(mean: float = 150.0, std: float = 40.0) -> ChannelStats:
    return ChannelStats(np.full(3, mean, np.float32), np.full(3, std, np.float32))


def test_denormalising_undoes_normalising() -> None:
    every = np.stack([np.arange(256, dtype=np.uint8)] * 3, axis=1)
    for one in (stats(), stats(3.7, 0.9), DEFAULT_STATS, IDENTITY_STATS):
        assert one.normalise(every).dtype == np.float32
        assert np.array_equal(one.denormalise(one.normalise(every)), every)


def test_what_leaves_the_range_is_clipped() -> None:
    assert stats().denormalise(np.array([[99.0, -99.0, 0.0]])).tolist() == [[255, 0, 150]]


def test_statistics_are_checked_and_cannot_be_changed() -> None:
    with pytest.raises(UsageError, match="above 0"):
        stats(std=0.0)
    with pytest.raises(UsageError, match="finite"):
        stats(mean=float("nan"))
    with pytest.raises(ValueError, match="read-only"):
        stats().mean[0] = 1


def test_tissue_counts_and_background_does_not() -> None:
    rng = np.random.default_rng(0)
    image = np.full((1024, 1024, 3), 245, np.uint8)
    image[256:768, 256:768] = np.clip(rng.normal((170, 100, 160), 20, (512, 512, 3)), 0, 255)
    found = tissue_stats(ArraySlide(image))
    assert np.abs(found.mean - (170, 100, 160)).max() < 2
    assert np.abs(found.std - 20).max() < 2


def test_statistics_are_the_same_in_every_thread() -> None:
    slide = ArraySlide(synthetic_slide(700, 600, seed=2))
    first = tissue_stats(slide)
    with ThreadPoolExecutor(3) as pool:
        assert all(found == first for found in pool.map(lambda _: tissue_stats(slide), range(3)))


def test_a_blank_slide_has_the_statistics_of_a_faint_one() -> None:
    found = tissue_stats(ArraySlide(np.full((500, 500, 3), 243, np.uint8)))
    assert found == DEFAULT_STATS.fainter((243, 243, 243), FAINT)


def test_of_a_fainter_slide_every_pixel_has_the_same_scores() -> None:
    pixels, background = np.array([[243, 241, 244], [143, 41, 184]], np.float32), (243, 241, 244)
    fainter = np.array(background) + 0.25 * (pixels - background)
    assert np.allclose(stats().fainter(background, 0.25).normalise(fainter), stats().normalise(pixels), atol=1e-5)


def test_a_slide_of_one_colour_has_finite_scores() -> None:
    image = np.full((300, 300, 3), (150, 80, 150), np.uint8)
    found = tissue_stats(ArraySlide(image))
    assert found == pixel_stats(image)
    assert found.std.tolist() == [1.0, 1.0, 1.0]
    assert np.array_equal(found.normalise(image), np.zeros(image.shape, np.float32))


def test_a_mask_says_what_is_tissue() -> None:
    image = np.full((512, 512, 3), (200, 120, 180), np.uint8)
    image[:, 256:] = (120, 60, 140)
    mask = np.zeros((8, 8), bool)
    mask[:, 4:] = True
    assert tissue_stats(ArraySlide(image), mask).mean.tolist() == [120, 60, 140]
