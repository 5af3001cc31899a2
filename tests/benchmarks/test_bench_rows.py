"""What a benchmark measures, and the rows that it stores."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histocodec.benchmarks.measure.images import choose, read, tissue_squares, varied
from histocodec.benchmarks.measure.measure_images import complete_curve
from histocodec.benchmarks.measure.result_rows import COLUMNS, OURS, Row, as_csv, flat, from_csv, from_flat
from histocodec.benchmarks.measure.row_store import RowStore
from histocodec.errors import FormatError, UnsupportedError, UsageError
from histocodec.geometry import Region
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.bench_rows import FAST, PEER, curve, row, subject


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "liver-1.png"
    Image.fromarray(synthetic_slide(80, 64, seed=2)).save(path)
    return path


def rows() -> list[Row]:
    about = subject("liver-1.png")
    lossless = row(about, OURS, 12.5, math.inf, setting=100.0)
    return [*curve(about, OURS), lossless, row(about, PEER, 0.3, 30.5, kind="1:64", setting=31.25, speed=FAST)]


# Images.


def test_a_small_image_is_measured_whole_in_each_variant(image: Path) -> None:
    samples = choose([image], variants=("native", "enlarged", "blurred"), regions=4, side=32, seed=0)
    native, enlarged, blurred = (read(sample) for sample in samples)
    assert [picture.subject.variant for picture in (native, enlarged, blurred)] == ["native", "enlarged", "blurred"]
    assert {picture.subject.image for picture in (native, enlarged, blurred)} == {"liver-1.png"}
    assert {picture.subject.group for picture in (native, enlarged, blurred)} == {"liver"}
    assert enlarged.pixels.shape == (128, 160, 3)
    assert (native.subject.mpp, enlarged.subject.mpp) == (0.5, 0.25)
    assert len({picture.subject.sha256 for picture in (native, enlarged, blurred)}) == 3
    assert np.array_equal(native.pixels, np.asarray(Image.open(image)))


def test_blurring_keeps_an_even_image_and_spreads_a_point_as_a_gaussian_of_2_pixels() -> None:
    even = np.full((40, 40, 3), 201, np.uint8)
    assert np.array_equal(varied(even, "blurred"), even)
    point = np.zeros((41, 41, 3), np.uint8)
    point[16:25, 16:25] = 255
    found = varied(point, "blurred")[20, :, 0] / 255
    at = np.arange(41) - 20.0
    edge = [0.5 * (math.erf((x + 4.5) / 8**0.5) - math.erf((x - 4.5) / 8**0.5)) for x in at]
    assert found == pytest.approx(np.array(edge) * edge[20], abs=0.01)


def test_squares_are_tissue_do_not_overlap_and_repeat_with_the_seed() -> None:
    pixels = np.full((1600, 1600, 3), 243, np.uint8)
    pixels[:, 800:] = (180, 90, 160)
    slide = ArraySlide(pixels, name="half background")
    found = tissue_squares(slide, count=5, side=200, seed=1)
    assert found == tissue_squares(slide, count=5, side=200, seed=1)
    assert found != tissue_squares(slide, count=5, side=200, seed=2)
    assert len(found) == 5
    for number, square in enumerate(found):
        assert (square.width, square.height) == (200, 200)
        assert square.x + 100 >= 800
        assert all(square.intersect(other).empty for other in found[number + 1 :])


def test_a_slide_without_enough_tissue_gives_its_fullest_squares() -> None:
    pixels = np.full((600, 600, 3), 243, np.uint8)
    pixels[310:350, 310:350] = (180, 90, 160)
    found = tissue_squares(ArraySlide(pixels, name="a speck"), count=1, side=300, seed=0)
    assert found == [Region(300, 300, 300, 300)]


def test_a_large_image_gives_regions_or_with_none_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.fromarray(np.full((64, 2100, 3), 120, np.uint8)).save(path)
    squares = choose([path], variants=["native"], regions=2, side=64, seed=0)
    assert [(one.region.width, one.region.height) for one in squares] == [(64, 64)] * 2
    assert [read(one).subject.image for one in squares] == [f"wide.png {one.region}" for one in squares]
    (whole,) = choose([path], variants=["native"], regions=0, side=64, seed=0)
    assert read(whole).subject.image == "wide.png"
    assert read(whole).pixels.shape == (64, 2100, 3)


def test_bad_sources_are_named(tmp_path: Path, image: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "twice").mkdir()
    twice = Path(tmp_path / "twice" / image.name)
    twice.write_bytes(image.read_bytes())
    Image.new("RGB", (8, 100)).save(tmp_path / "thin.png")
    for paths, error, words in (
        ([image, tmp_path / "gone.png"], UsageError, "gone"),
        ([image, tmp_path / "text.png"], UnsupportedError, "text"),
        ([image, twice], UsageError, "same name"),
        ([tmp_path / "thin.png"], UsageError, "thin"),
    ):
        with pytest.raises(error, match=words):
            choose(paths, variants=["native"], regions=1, side=64, seed=0)
    with pytest.raises(UsageError, match="upside-down"):
        choose([image], variants=["upside-down"], regions=1, side=64, seed=0)


# Rows.


def test_a_row_comes_back_from_json_as_it_was() -> None:
    for one in rows():
        assert from_flat(json.loads(json.dumps(flat(one), allow_nan=False))) == one


def test_csv_has_what_json_has() -> None:
    found = list(csv.DictReader(io.StringIO(as_csv(rows()))))
    assert [tuple(one) for one in found] == [COLUMNS] * len(rows())
    for line, one in zip(found, rows(), strict=True):
        assert line == {name: "" if value is None else str(value) for name, value in flat(one).items()}


def test_rows_come_back_from_csv_as_they_were() -> None:
    assert from_csv(as_csv(rows())) == rows()


def test_a_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    path, store = tmp_path / "new" / "rows.jsonl", RowStore(tmp_path / "new" / "rows.jsonl")
    for one in rows():
        store.add(one)
    again = RowStore(path)
    for one in rows():
        assert again.at(one.subject, one.coded_by, replace(one.point, setting=one.point.setting)) == one
    assert again.curve(rows()[0].subject, rows()[0].coded_by) == rows()[:-1]


def test_the_later_of_two_lines_about_the_same_thing_counts(tmp_path: Path) -> None:
    store, first = RowStore(tmp_path / "rows.jsonl"), rows()[0]
    store.add(first)
    store.add(replace(first, speed=FAST))
    assert RowStore(tmp_path / "rows.jsonl").at(first.subject, first.coded_by, first.point) == replace(
        first, speed=FAST
    )


def test_another_model_version_or_image_finds_nothing(tmp_path: Path) -> None:
    store, first = RowStore(), rows()[0]
    store.add(first)
    assert store.at(first.subject, first.coded_by, first.point) == first
    assert store.at(first.subject, replace(first.coded_by, model_sha256="other"), first.point) is None
    assert store.at(first.subject, replace(first.coded_by, version="other"), first.point) is None
    assert store.at(first.subject, replace(first.coded_by, tool="other"), first.point) is None
    assert store.at(replace(first.subject, sha256="other"), first.coded_by, first.point) is None
    assert store.at(first.subject, first.coded_by, replace(first.point, setting=3.5)) is None


def test_a_line_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for one in rows():
        RowStore(path).add(one)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    last = rows()[-1]
    assert RowStore(path).at(last.subject, last.coded_by, last.point) is None
    RowStore(path).add(last)
    assert path.read_bytes() == whole


def test_rows_of_another_shape_are_passed_over_and_nonsense_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"image": "liver-1.png"}\n')
    RowStore(path).add(rows()[0])
    assert RowStore(path).at(rows()[0].subject, rows()[0].coded_by, rows()[0].point) == rows()[0]
    path.write_text("nonsense\n")
    with pytest.raises(FormatError, match=r"rows\.jsonl: line 1"):
        RowStore(path)


# A peer's curve.


def peer_curve(low: float, high: float, points: int) -> list[Row]:
    found = curve(subject("liver-1.png"), PEER)
    return [
        replace(one, point=replace(one.point, from_psnr=low, to_psnr=high, steps=6, points=points)) for one in found
    ]


@pytest.mark.parametrize(
    ("low", "high", "steps", "points", "serves"),
    [
        (25.0, 35.0, 6, 6, True),
        (24.0, 36.0, 6, 6, True),
        (23.9, 35.0, 6, 6, False),  # ours reaches lower now
        (25.0, 36.1, 6, 6, False),
        (25.0, 35.0, 12, 6, False),  # more points are wanted
        (25.0, 35.0, 6, 7, False),  # it was interrupted
    ],
)
def test_a_peers_curve_serves_again_while_it_is_whole_and_reaches_as_far_as_ours(
    low: float, high: float, steps: int, points: int, serves: bool
) -> None:
    assert bool(complete_curve(peer_curve(24.0, 36.0, points), low, high, steps)) is serves
