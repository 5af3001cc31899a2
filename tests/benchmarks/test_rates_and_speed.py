"""Rate differences against known values; what is timed, and how much memory it takes."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histocodec.benchmarks.compare.bjontegaard import Curve, Pchip, bd_rate
from histocodec.benchmarks.measure.memory import peak_bytes
from histocodec.benchmarks.measure.provenance import Model, cpu_name, installed
from histocodec.benchmarks.studies.speed import speed_lines, speed_of_slide
from histocodec.errors import UsageError
from histocodec.sources.synthetic import synthetic_slide

POINTS = [(1000.0, 24.0), (2000.0, 27.5), (4500.0, 30.0), (9000.0, 34.0), (20000.0, 36.5)]


def curve(points: list[tuple[float, float]]) -> Curve:
    found = Curve.of(points)
    assert found is not None
    return found


def scaled(factor: float) -> Curve:
    return curve([(size * factor, quality) for size, quality in POINTS])


# The arithmetic.


def test_pchip_gives_the_values_that_scipy_gives() -> None:
    pchip = Pchip(np.array([0.0, 1, 3, 4, 6]), np.array([0.0, 2, 3, 3, 7]))
    at = np.array([0.0, 0.25, 0.5, 2, 3.5, 4.5, 5.9, 6])
    expected = [0.0, 0.62388392857143, 1.20535714285714, 2.71428571428571, 3.0, 3.3125, 6.67016666666667, 7.0]
    assert pchip(at) == pytest.approx(expected, abs=1e-12)
    assert pchip.mean(0.5, 5.0) == pytest.approx(2.78155313051146, abs=1e-12)


def test_pchip_through_two_points_is_a_line() -> None:
    pchip = Pchip(np.array([1.0, 3.0]), np.array([2.0, 6.0]))
    assert pchip(np.array([1.5, 2.0])) == pytest.approx([3.0, 4.0])


def test_a_curve_against_itself_is_0_per_cent() -> None:
    found = bd_rate(curve(POINTS), curve(POINTS))
    assert found is not None
    assert (found.percent, found.low, found.high) == pytest.approx((0, 24, 36.5))


@pytest.mark.parametrize(("factor", "percent"), [(0.5, -50.0), (2.0, 100.0), (0.9, -10.0)])
def test_a_curve_of_so_many_times_the_bytes_is_so_many_per_cent(factor: float, percent: float) -> None:
    found = bd_rate(curve(POINTS), scaled(factor))
    assert found is not None
    assert found.percent == pytest.approx(percent)
    band = bd_rate(curve(POINTS), scaled(factor), anchor_bytes=(2000, 9000))
    assert band is not None
    assert (band.percent, band.low, band.high) == pytest.approx((percent, 27.5, 34))


def test_what_only_one_curve_reaches_is_not_compared() -> None:
    better = curve([(1000, 40.0), (2000, 44.0)])
    assert bd_rate(curve(POINTS), better) is None
    assert bd_rate(curve(POINTS), scaled(0.5), anchor_bytes=(100, 200)) is None


def test_points_that_nobody_would_use_are_left_out() -> None:
    useless = [(3000.0, 26.0), (2000.0, 25.0), (50000.0, math.inf)]
    found = bd_rate(curve(POINTS), curve(POINTS + useless))
    assert found is not None
    assert found.percent == pytest.approx(0)
    assert Curve.of([(1.0, 20.0), (2.0, 20.0)]) is None


# Speed and memory.


@pytest.mark.slow
def test_speed_times_both_codecs_on_the_same_pixels(tiny_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "made-up.png"
    Image.fromarray(synthetic_slide(512, 512, seed=2)).save(path)
    with installed(str(tiny_file)) as weights:
        found = speed_of_slide(path, model=Model.of(weights), threads=2, device="cpu", repeat=1)
    assert (found.slide, found.region) == ("made-up.png", "512x512+0+0")
    measured = found.measured
    ours, theirs = measured.codings
    assert ours.psnr == pytest.approx(theirs.psnr, abs=0.05)
    timings = {(one.codec, one.what, one.threads) for one in measured.timings}
    both = {("histocodec", what, n) for what in ("encode", "decode", "entropy decoding") for n in (1, 2)}
    assert both | {(theirs.codec, what, n) for what in ("encode", "decode") for n in (1, 2)} <= timings
    assert any(what.startswith("cold region") for _, what, _ in timings)
    assert {(one.what, one.threads) for one in measured.ratios} == {
        (what, n) for what in ("encode", "decode") for n in (1, 2)
    }
    assert all(min(one.seconds) > 0 for one in measured.timings)
    assert len(measured.memory) == 4
    assert any(f"{measured.ratios[0].ours_over_peer:.2f} x" in line for line in speed_lines(found))


def test_speed_refuses_a_slide_smaller_than_its_cold_region(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    Image.fromarray(synthetic_slide(300, 200)).save(path)
    with pytest.raises(UsageError, match=r"small\.png"):
        speed_of_slide(path, model=Model("none", ""), threads=1, device="cpu")


def test_peak_memory_is_what_a_call_takes_for_a_while() -> None:
    found = peak_bytes(lambda: np.ones(32 << 20, np.uint8).sum())
    assert found is None or 30 << 20 < found < 64 << 20


def test_a_processor_is_told_from_another_of_the_same_name() -> None:
    first = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
    assert cpu_name(first + "\n" + first.replace("25", "26")) == "AMD EPYC, family 25, model 17"
    assert cpu_name("model name\t: one that says no more") == "one that says no more"
    assert cpu_name("CPU implementer\t: 0x41") == ""
