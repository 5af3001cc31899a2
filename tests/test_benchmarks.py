"""The benchmarks: their arithmetic against known values, and that their programs say all they have to say."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histocodec.benchmarks import rate, speed
from histocodec.benchmarks.bjontegaard import Curve, Pchip, bd_rate, bytes_difference
from histocodec.benchmarks.memory import peak_bytes
from histocodec.benchmarks.peers import JPEG2000, JPEG2000_TILES, Contender, coded, coded_at_psnr
from histocodec.benchmarks.provenance import run
from histocodec.synthetic import synthetic_slide

Captured = pytest.CaptureFixture[str]
POINTS = [(1000.0, 24.0), (2000.0, 27.5), (4500.0, 30.0), (9000.0, 34.0), (20000.0, 36.5)]


def curve(points: list[tuple[float, float]]) -> Curve:
    found = Curve.of(points)
    assert found is not None
    return found


def scaled(factor: float) -> Curve:
    return curve([(size * factor, quality) for size, quality in POINTS])


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "made-up.png"
    Image.fromarray(synthetic_slide(512, 512, seed=2)).save(path)
    return path


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
    assert bytes_difference(curve(POINTS), scaled(factor), 31.0) == pytest.approx(percent)


def test_what_only_one_curve_reaches_is_not_compared() -> None:
    better = curve([(1000, 40.0), (2000, 44.0)])
    assert bd_rate(curve(POINTS), better) is None
    assert bytes_difference(curve(POINTS), better, 42.0) is None
    assert bd_rate(curve(POINTS), scaled(0.5), anchor_bytes=(100, 200)) is None


def test_points_that_nobody_would_use_are_left_out() -> None:
    useless = [(3000.0, 26.0), (2000.0, 25.0), (50000.0, math.inf)]
    found = bd_rate(curve(POINTS), curve(POINTS + useless))
    assert found is not None
    assert found.percent == pytest.approx(0)
    assert Curve.of([(1.0, 20.0), (2.0, 20.0)]) is None


# The peers.


@pytest.mark.parametrize("peer", [JPEG2000, JPEG2000_TILES], ids=lambda peer: peer.name)
@pytest.mark.parametrize("size", [(700, 1030), (513, 40), (1, 1)])
def test_a_peer_gives_back_an_image_of_the_same_size(peer: Contender, size: tuple[int, int]) -> None:
    pixels = np.ascontiguousarray(synthetic_slide(1030, 700, seed=3)[: size[0], : size[1]])
    for threads in (1, 2):
        found = coded(peer, pixels, 32.0, threads=threads)
        assert found.psnr == pytest.approx(32.0, abs=1.5) or size == (1, 1)
        assert peer.decode(found.data).shape == pixels.shape


def test_a_peer_is_brought_to_a_wanted_psnr() -> None:
    """As near as it gets: on small images its rates are a few hundredths of a dB apart."""
    pixels = synthetic_slide(256, 256, seed=4)
    for wanted in (27.3, 33.0):
        assert coded_at_psnr(JPEG2000, pixels, wanted).psnr == pytest.approx(wanted, abs=0.1)


# The programs.


def test_rate_says_everything_about_an_image(tiny_file: Path, image_file: Path, capsys: Captured) -> None:
    out = image_file.with_name("rate.json")
    arguments = [str(image_file), "--model", str(tiny_file), "--qualities", "20,60", "--out", str(out)]
    assert run(rate.command, "rate", [*arguments, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "made (1 images) against JPEG 2000" in printed
    found = json.loads(out.read_text())
    assert found["model"]["id"] == "tiny-0"
    assert found["qualities"] == [20, 60]
    (image,) = found["images"]
    assert (image["group"], image["width"], image["height"]) == ("made", 512, 512)
    ours = [row for row in image["rows"] if row["codec"] == "histocodec"]
    assert [row["setting"] for row in ours] == [20, 60]
    for row in ours:
        assert row["in_slide_bytes"] < row["bytes"] < row["container_bytes"]
        assert row["bpp"] == pytest.approx(8 * row["bytes"] / 512**2)
    (comparison,) = image["comparisons"]
    (group,) = found["groups"]
    for count in rate.COUNTS:
        assert set(comparison["bd_rate"][count]) == set(group["bd_rate"][count]) == {"all", *rate.BANDS}
        assert group["bd_rate"][count]["all"]["images"] == 1


def test_rate_names_an_image_that_is_not_there(tmp_path: Path, capsys: Captured) -> None:
    assert run(rate.command, "rate", [str(tmp_path / "none.png")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_speed_times_both_codecs_on_the_same_pixels(
    tiny_file: Path, image_file: Path, capsys: Captured
) -> None:
    arguments = [str(image_file), "--model", str(tiny_file), "--quality", "40", "--repeat", "1", "--json"]
    assert run(speed.command, "speed", [*arguments, "--threads", "1,2", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["region"] == "512x512+0+0"
    measured = found["measured"]
    ours, theirs = measured["codings"]
    assert ours["psnr"] == pytest.approx(theirs["psnr"], abs=0.05)
    timings = {(one["codec"], one["what"], one["threads"]) for one in measured["timings"]}
    both = {("histocodec", what, n) for what in ("encode", "decode", "entropy decoding") for n in (1, 2)}
    assert both | {(theirs["codec"], what, n) for what in ("encode", "decode") for n in (1, 2)} <= timings
    assert any(what.startswith("cold region") for _, what, _ in timings)
    assert {(one["what"], one["threads"]) for one in measured["ratios"]} == {
        (what, n) for what in ("encode", "decode") for n in (1, 2)
    }
    assert all(min(one["seconds"]) > 0 for one in measured["timings"])
    assert len(measured["memory"]) == 4


def test_peak_memory_is_what_a_call_takes_for_a_while() -> None:
    found = peak_bytes(lambda: np.ones(32 << 20, np.uint8).sum())
    assert found is None or 30 << 20 < found < 64 << 20
