"""Nuclei are found where they were drawn, and two images agree as far as they do."""

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from histocodec.benchmarks.measure.nuclei import Labels, NucleiAgreement, agreement, compare, segment
from histocodec.benchmarks.measure.stains import RGB_FROM_STAINS
from histocodec.errors import UnsupportedError
from histocodec.slide import Pixels

Disc = tuple[float, float, float]  # y, x, radius
DISCS: list[Disc] = [
    (30 + 45 * row, 30 + 45 * column, 7 + (row + column) % 4) for row in range(5) for column in range(5)
]


def section(discs: list[Disc], *, side: int = 240, noise: float = 2.0) -> Pixels:
    """Nuclei on pink tissue, with a sensor's noise."""
    y, x = np.ogrid[:side, :side]
    amounts = np.zeros((side, side, 3))
    amounts[..., 1] = 0.25
    for top, left, radius in discs:
        amounts[(y - top) ** 2 + (x - left) ** 2 <= radius**2] = (0.7, 0.2, 0)
    light: NDArray[np.float64] = 255 * 10 ** -(amounts @ RGB_FROM_STAINS)
    light += np.random.default_rng(0).normal(0, noise, light.shape)
    return np.clip(light, 0, 255).astype(np.uint8)


def bars(*widths: int) -> Labels:
    """Nuclei of so many pixels beside each other; a negative one is a gap."""
    row = [number * (width > 0) for number, width in enumerate(widths, 1) for _ in range(abs(width))]
    values = np.unique(row, return_inverse=True)[1]
    return np.asarray([values + (0 not in row)], np.int32)


def test_drawn_nuclei_are_counted_exactly_and_lie_where_they_were_drawn() -> None:
    labels = segment(section(DISCS))
    assert labels.dtype == np.int32
    assert labels.max() == len(DISCS)
    assert len({labels[int(y), int(x)] for y, x, _ in DISCS} - {0}) == len(DISCS)
    for y, x, radius in DISCS:
        area = np.count_nonzero(labels == labels[int(y), int(x)])
        assert area == pytest.approx(np.pi * radius**2, rel=0.2)


def test_touching_nuclei_are_separated() -> None:
    assert segment(section([(60, 60, 10), (60, 77, 10), (150, 150, 8)])).max() == 3


def test_long_nuclei_are_left_whole() -> None:
    """Spindles, 36 by 16 pixels, at any angle."""
    spindles: list[Disc] = []
    for n in range(16):
        y, x, angle = 30 + 60 * (n // 4), 30 + 60 * (n % 4), n * np.pi / 16
        for part in np.linspace(-0.9, 0.9, 37):
            along, radius = 18 * part, 8 * np.sqrt(1 - part**2)
            spindles.append((y + along * np.sin(angle), x + along * np.cos(angle), radius))
    assert segment(section(spindles)).max() == 16


def test_something_too_large_is_no_nucleus() -> None:
    assert segment(section([(60, 60, 40), (180, 60, 8), (180, 180, 15)])).max() == 2


def test_a_ring_of_nuclei_is_not_filled() -> None:
    """As around the lumen of a gland."""
    ring: list[Disc] = [(120 + 40 * np.sin(n * np.pi / 8), 120 + 40 * np.cos(n * np.pi / 8), 8) for n in range(16)]
    labels = segment(section(ring))
    assert labels.max() == 16
    assert labels[120, 120] == 0


def test_a_pale_pore_is_part_of_its_nucleus() -> None:
    pixels = section([(60, 60, 12)], noise=0)
    pixels[58:62, 58:62] = pixels[0, 0]
    assert np.all(segment(pixels)[56:64, 56:64] == 1)


def test_specks_are_no_nuclei() -> None:
    assert segment(section([*DISCS, (8, 8, 2), (8, 200, 3)])).max() == len(DISCS)


def test_sizes_are_in_microns() -> None:
    """Twice as large at half the pixel size is the same section."""
    large = np.repeat(np.repeat(section(DISCS), 2, 0), 2, 1)
    assert segment(large, mpp=0.25).max() == len(DISCS)
    assert segment(section([(60, 60, 3.5), (150, 150, 8)]), mpp=0.5).max() == 1
    assert segment(section([(60, 60, 3.5), (150, 150, 8)]), mpp=1.0).max() == 2


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_a_section_without_nuclei_has_none(noise: float) -> None:
    assert segment(section([], noise=noise)).max() == 0


def test_the_same_image_gives_the_same_labels() -> None:
    assert np.array_equal(segment(section(DISCS)), segment(section(DISCS)))


def test_an_image_agrees_with_itself() -> None:
    pixels = section(DISCS)
    assert agreement(pixels, pixels) == NucleiAgreement(25, 25, 0.0, 1.0, 1.0)


def test_a_lost_nucleus_is_missed() -> None:
    found = agreement(section(DISCS), section(DISCS[:-1]))
    assert (found.original, found.decoded) == (25, 24)
    assert found.count_error == pytest.approx(1 / 25)
    assert found.f1 == pytest.approx(2 * 24 / (25 + 24))
    assert 0.95 < found.dice < 1


def test_images_without_nuclei_agree_with_each_other_and_with_no_other() -> None:
    empty, full = section([]), section(DISCS)
    assert agreement(empty, empty) == NucleiAgreement(0, 0, 0.0, 1.0, 1.0)
    assert agreement(full, empty) == NucleiAgreement(25, 0, 1.0, 0.0, 0.0)
    assert agreement(empty, full) == NucleiAgreement(0, 25, 25.0, 0.0, 0.0)


def test_half_of_the_union_makes_partners_and_less_does_not() -> None:
    assert compare(bars(12), bars(6, -6)).f1 == 1
    assert compare(bars(12), bars(5, -7)).f1 == 0
    assert compare(bars(12), bars(6, -6)).dice == pytest.approx(2 * 6 / 18)


def test_two_halves_of_a_nucleus_are_not_both_its_partner() -> None:
    found = compare(bars(12), bars(6, 6))
    assert (found.original, found.decoded, found.count_error, found.dice) == (1, 2, 1.0, 1.0)
    assert found.f1 == pytest.approx(2 / 3)


def test_without_scikit_image_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'histocodec\[bench\]'"):
        segment(section([]))
