"""What a benchmark's rows come to: rate differences, losses, the paper's ratios, means, and the report."""

import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from histocodec.benchmarks.compare import from_rows
from histocodec.benchmarks.compare.bench_result import BenchResult
from histocodec.benchmarks.compare.fixed_ratios import at_ratios
from histocodec.benchmarks.compare.image_groups import ALL, grouped
from histocodec.benchmarks.compare.rate_comparison import ALL_BANDS, compare, comparisons, losses, not_monotone
from histocodec.benchmarks.compare.report import headline, report
from histocodec.benchmarks.compare.summary import at_rates, speeds, summarise
from histocodec.benchmarks.measure.byte_budget import finest_within, raw_bytes_over
from histocodec.benchmarks.measure.measure_images import BenchOptions
from histocodec.benchmarks.measure.provenance import Machine, Model
from histocodec.benchmarks.measure.result_rows import OURS, Row, as_csv
from histocodec.errors import FormatError, UsageError
from tests.support.bench_rows import BPPS, FAST, PEER, curve, row, subject

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
GOOD, BAD, BLANK = subject("liver-good.png"), subject("liver-bad.png"), subject("skin-blank.png")


def all_rows() -> list[Row]:
    """Half of the peer's bytes on one image, twice as many on another, nothing in common on a third."""
    rows = [*curve(GOOD, OURS, factor=0.5), *curve(GOOD, PEER), *curve(BAD, OURS, factor=2.0), *curve(BAD, PEER)]
    return [*rows, *curve(BLANK, OURS), *(row(BLANK, PEER, bpp, 60 + bpp) for bpp in BPPS)]


def test_half_of_the_bytes_is_minus_50_per_cent_in_every_band_and_metric() -> None:
    found = compare(curve(GOOD, OURS, factor=0.5), curve(GOOD, PEER))
    for metric in ("psnr", "ms_ssim_db"):
        for band in ALL_BANDS:
            rate = found.bd_rate[metric]["in_slide_bytes"][band]
            assert rate is not None
            assert rate.percent == pytest.approx(-50, abs=0.02)


def test_a_band_is_of_the_peers_bits_per_pixel() -> None:
    rate = compare(curve(GOOD, OURS), curve(GOOD, PEER)).bd_rate["psnr"]["in_slide_bytes"]["0.25-0.75"]
    assert rate is not None
    assert rate.low == pytest.approx(29.0)
    assert 31 < rate.high < 33


def test_each_way_of_counting_has_a_rate_of_its_own() -> None:
    rates = compare(curve(GOOD, OURS), curve(GOOD, PEER)).bd_rate["psnr"]
    found = [rate.percent for count in ("in_slide_bytes", "bytes", "container_bytes") if (rate := rates[count]["all"])]
    assert found[0] == pytest.approx(0, abs=1e-9)
    assert found[0] < found[1] < found[2]


def test_curves_that_share_no_quality_are_not_compared() -> None:
    found = [one for one in comparisons(all_rows()) if one.image == BLANK.image]
    assert [one.bd_rate["psnr"]["bytes"]["all"] for one in found] == [None]


def test_an_image_is_a_loss_where_ours_is_the_larger_and_nowhere_else() -> None:
    found = losses(comparisons(all_rows()))
    assert {(one.image, one.peer, one.metric) for one in found} == {
        (BAD.image, PEER, "psnr"),
        (BAD.image, PEER, "ms_ssim_db"),
    }
    assert found[0].percent["0.25-0.75"] == pytest.approx(100, abs=0.1)


def test_means_are_over_the_images_of_a_source_and_over_all() -> None:
    found = {one.group: one for one in summarise(all_rows()).groups}
    assert set(found) == {"liver", "skin", ALL}
    liver, skin = (found[name].bd_rate["psnr"]["in_slide_bytes"]["all"] for name in ("liver", "skin"))
    assert liver is not None
    assert (liver.value, liver.images) == (pytest.approx(25, abs=0.1), 2)
    assert skin is None
    assert (found[ALL].images, found["liver"].images) == (3, 2)


def test_variants_are_never_put_together() -> None:
    rows = [one for variant in ("native", "blurred") for one in curve(subject("liver-a.png", variant), OURS)]
    assert [(group.variant, group.name, len(group.subjects)) for group in grouped(rows)] == [
        ("native", "liver", 1),
        ("blurred", "liver", 1),
    ]


def test_a_quality_that_costs_more_and_shows_less_is_reported() -> None:
    dip = row(GOOD, OURS, 3.0, 20.0, setting=99.0)
    assert not_monotone(curve(GOOD, OURS)) == ()
    assert not_monotone([*curve(GOOD, OURS), dip]) == ("liver-good.png, native",)


# The paper's ratios.


def test_a_ratio_is_of_the_raw_bytes() -> None:
    assert [raw_bytes_over(ratio, 500 * 500) for ratio in (32, 512)] == [23437, 1464]


@pytest.mark.parametrize(("wanted", "quality"), [(0, 0), (99, 0), (100, 0), (150, 50), (149, 49), (10_000, 100)])
def test_the_finest_quality_within_so_many_bytes_is_found(wanted: int, quality: int) -> None:
    tried: list[int] = []

    def size(at: int) -> int:
        tried.append(at)
        return 100 + at

    known = {0: 100, 40: 140, 80: 180}
    assert finest_within(wanted, known, size) == quality
    assert len(tried) <= 6
    assert not {0, 40, 80} & set(tried)


@pytest.mark.parametrize(("wanted", "quality"), [(3700, 33.75), (3699, 33.625), (3400, 30), (9000, 100)])
def test_the_finest_part_of_a_quality_is_found(wanted: int, quality: float) -> None:
    known = {30.0: 3400, 35.0: 3800}
    assert finest_within(wanted, known, lambda at: int(1000 + 80 * at), parts=8) == quality
    assert all(size == int(1000 + 80 * at) for at, size in known.items())


def test_a_ratio_counts_only_images_where_neither_codec_is_larger() -> None:
    kind, fitting = "1:64", 24 / 64
    rows = [
        row(GOOD, OURS, fitting * 0.98, 32.0, kind=kind),
        row(GOOD, PEER, fitting * 0.99, 31.0, kind=kind),
        row(BAD, OURS, fitting * 1.01, 40.0, kind=kind),
        row(BAD, PEER, fitting * 0.99, 31.0, kind=kind),
    ]
    (group,) = grouped(rows)
    (found,) = at_ratios(group)
    assert (found.ratio, found.images, found.of, found.bpp) == (64, 1, 2, 0.375)
    assert (found.ours["psnr"], found.theirs["psnr"]) == (32.0, 31.0)


def test_rows_of_the_ratios_are_no_points_of_the_curve() -> None:
    ladder = row(GOOD, OURS, 0.2, 99.0, kind="1:120")
    with_it, without = comparisons([*all_rows(), ladder]), comparisons(all_rows())
    assert with_it == without


# Metrics at a rate, and speed.


def test_metrics_at_a_rate_lie_between_the_neighbouring_points() -> None:
    (group,) = grouped([*curve(GOOD, OURS), *curve(BAD, OURS, bpps=(0.01, 0.02))])
    found = {one.bpp: one for one in at_rates(group)}
    assert set(found) == {0.15, 0.5, 1.0}
    assert found[0.5].values["psnr"] == pytest.approx(31.0)
    assert 27 < found[0.15].values["psnr"] < 29
    assert (found[0.5].images, found[0.5].of) == (1, 2)


def test_a_lossless_point_has_no_place_in_a_mean() -> None:
    (group,) = grouped([*curve(GOOD, OURS), row(GOOD, OURS, 12.0, math.inf, setting=100.0)])
    assert all(math.isfinite(one.values["psnr"]) for one in at_rates(group))


def test_speed_is_that_of_timed_rows() -> None:
    (found,) = speeds([*curve(GOOD, OURS), row(GOOD, OURS, 0.7, 31.5, setting=33.0, speed=FAST)])
    assert (found.codec, found.rows, found.encode_mps_1, found.decode_mps_all) == (OURS, 1, 4.0, 12.0)


# The report.


@pytest.fixture(scope="module")
def result() -> BenchResult:
    rows = [*all_rows(), row(GOOD, OURS, 0.3, 30.0, kind="1:64"), row(GOOD, PEER, 0.3, 29.0, kind="1:64")]
    options = BenchOptions(("jpeg2000",), (0, 50), (64,), 6, "hyper-2", "cpu", 2)
    machine = Machine("a processor", 2, None, "a system", 0.5)
    return BenchResult(
        machine, {"zarr": "3"}, Model("hyper-2", "abc" * 20), options, summarise(rows), None, tuple(rows)
    )


def test_the_report_names_the_images_on_which_we_lose(result: BenchResult) -> None:
    text = report(result, plots=["rd-native-liver-psnr.png"], crops=False)
    losing = text.split("## Where we lose")[1].split("##")[0]
    assert "liver-bad.png" in losing
    assert "+100.0 %" in losing
    assert "liver-good.png" not in losing
    assert "(rd-native-liver-psnr.png)" in text
    assert "crops.png" not in text
    assert "a processor" in text
    assert "zarr 3" in text


def test_the_report_says_of_how_many_images_a_mean_is(result: BenchResult) -> None:
    table = report(result, plots=[], crops=True).split("## Bytes at equal PSNR")[1]
    (line,) = [line for line in table.split("##")[0].splitlines() if line.startswith("| all |")]
    assert line.endswith("| +25.0 % [2] |")


def test_the_terminal_shows_the_losses_of_the_report(result: BenchResult) -> None:
    lines = list(headline(result))
    assert any(line.startswith("  liver-bad.png against JPEG 2000") for line in lines)
    assert not any("liver-good.png" in line for line in lines)


# The tables from committed rows.


def test_the_committed_rows_give_the_published_rates() -> None:
    printed = CliRunner().invoke(from_rows.main, [str(RESULTS / "val"), "--without", "crc-img76.webp"])
    (line,) = [line for line in printed.output.splitlines() if line.startswith("| all | JPEG 2000 |")][:1]
    _, rate, _ = line.rsplit(" | ", 2)
    assert rate == "-33.3 %"
    assert "−33.3 %" in (RESULTS.parent / "RESULTS.md").read_text()


def test_an_image_that_is_not_there_cannot_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(as_csv(all_rows()))
    left_out = CliRunner().invoke(from_rows.main, [str(tmp_path), "--without", "gone.png"])
    assert isinstance(left_out.exception, UsageError)
    assert "gone.png" in str(left_out.exception)


def test_a_folder_without_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"rows\.csv"):
        from_rows.rows_of(tmp_path)
    (tmp_path / "rows.csv").write_text("image,setting\na,b\n")
    with pytest.raises(FormatError, match=r"rows\.csv"):
        from_rows.rows_of(tmp_path)
