"""The statistics search: cheaper than those that were measured, the same in every run, background still exact."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch

import histocodec
from histocodec.codec.chunk import HyperChunkCodec
from histocodec.codec.quantise import Quantiser
from histocodec.codec.transform import Transform
from histocodec.codec.window import PixelWindow, Window
from histocodec.formats.container.read import open_container
from histocodec.formats.encode.options import EncodeOptions
from histocodec.formats.encode.scope import Scope, draft_attributes
from histocodec.formats.encode.statistics import (
    LEAST_PIECES,
    PIECES,
    OperatingPoint,
    _Cost,
    _curve,
    _log_bits,
    search_statistics,
)
from histocodec.geometry import Region
from histocodec.normalise import ChannelStats, tissue_stats
from histocodec.slide import Pixels
from histocodec.sources.array import ArraySlide
from histocodec.sources.synthetic import BACKGROUND, synthetic_slide
from histocodec.threads import Workers
from tests.support.tiny import tiny_model, tiny_weights

pytestmark = pytest.mark.usefixtures("one_thread")

QUALITY = 60


@pytest.fixture
def workers() -> Iterator[Workers]:
    pool = Workers(1)
    yield pool
    pool.close()


@lru_cache(maxsize=1)
def transform() -> Transform:
    return Transform(tiny_weights(), torch.device("cpu"))


def scope_of(slide: ArraySlide) -> Scope:
    draft = draft_attributes(slide, (0,), BACKGROUND, EncodeOptions(background="code"), tiny_weights(), 1)
    return Scope(slide, (0,), draft)


def cost(slide: ArraySlide, stats: ChannelStats, quality: int) -> tuple[float, float]:
    chunk = PixelWindow.read(slide, 0, slide.levels[0].region, tiny_weights().config)
    window = chunk.analyse(transform(), stats)
    plain = Quantiser(transform(), HyperChunkCodec(tiny_weights()), stats, lambda: window, effort=0)
    return plain.rounded_cost(window, quality)


def test_they_are_cheaper_at_equal_error(workers: Workers) -> None:
    slide = ArraySlide(synthetic_slide(256, 256, seed=2))
    measured = tissue_stats(slide)
    codec = HyperChunkCodec(tiny_weights())
    scope, start = scope_of(slide), OperatingPoint(measured, QUALITY)
    found = search_statistics(scope, start, transform(), codec, workers, effort=2)
    again = search_statistics(scope, start, transform(), codec, workers, effort=2)
    assert found == again
    assert found.stats != measured
    bits, error = cost(slide, found.stats, found.quality)
    worse = [cost(slide, measured, quality) for quality in range(QUALITY - 12, QUALITY + 13)]
    at_equal_error = np.interp(np.log(error), *zip(*sorted((np.log(e), np.log(b)) for b, e in worse), strict=True))
    assert np.log(bits) < at_equal_error
    fainter = np.prod(found.stats.std / measured.std) ** (1 / 3)
    weights = [tiny_weights().hyper.rate_weight(quality) for quality in (found.quality, QUALITY)]
    assert fainter**2 == pytest.approx(weights[0] / weights[1], rel=1e-4)  # bits are worth the same error as before


def test_the_mean_that_background_needs_is_kept(workers: Workers) -> None:
    slide = ArraySlide(synthetic_slide(256, 256, seed=2))
    measured = tissue_stats(slide)

    def align(stats: ChannelStats, quality: int) -> ChannelStats:
        return ChannelStats(measured.mean + quality / 20, stats.std)

    start, codec = OperatingPoint(measured, QUALITY), HyperChunkCodec(tiny_weights())
    found = search_statistics(scope_of(slide), start, transform(), codec, workers, effort=2, align=align)
    assert np.allclose(found.stats.mean, measured.mean + found.quality / 20)
    assert not np.array_equal(found.stats.std, measured.std)


def test_a_slide_may_be_coded_as_a_fainter_one_or_a_stronger_one(workers: Workers) -> None:
    pixels, codec = synthetic_slide(256, 256, seed=2), HyperChunkCodec(tiny_weights())
    found = []
    for factor in (0.4, 2.5):  # of what statistics should be
        slide = ArraySlide(pixels)
        start = OperatingPoint(tissue_stats(slide).fainter(BACKGROUND, factor), QUALITY)
        point = search_statistics(scope_of(slide), start, transform(), codec, workers, effort=1)
        found.append(point.quality)
    assert found[1] <= QUALITY <= found[0]
    assert found[1] < found[0]


def test_without_effort_only_a_large_slide_is_taken_for_another(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, codec = ArraySlide(synthetic_slide(256, 256, seed=2)), HyperChunkCodec(tiny_weights())
    scope, start = scope_of(slide), OperatingPoint(tissue_stats(slide).fainter(BACKGROUND, 2.5), QUALITY)
    assert search_statistics(scope, start, transform(), codec, workers, effort=0) == start
    monkeypatch.setattr("histocodec.formats.encode.statistics.LARGE", 0.2)  # chunks: a quarter of one is this slide
    found = search_statistics(scope, start, transform(), codec, workers, effort=0)
    assert found.quality < QUALITY
    assert np.ptp(found.stats.std / start.stats.std) < 1e-6  # no directions


def test_what_loses_clearly_on_one_part_of_the_sample_is_not_tried_on_the_others(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, codec = ArraySlide(synthetic_slide(900, 600, seed=2)), HyperChunkCodec(tiny_weights())
    scope, start = scope_of(slide), OperatingPoint(tissue_stats(slide), QUALITY)
    rounded_cost, tried = Quantiser.rounded_cost, []

    def counting(self: Quantiser, window: Window, quality: int) -> tuple[float, float]:
        tried.append(self.stats)
        return rounded_cost(self, window, quality)

    monkeypatch.setattr(Quantiser, "rounded_cost", counting)
    found = search_statistics(scope, start, transform(), codec, workers, effort=0.5)
    first, *others = [len(list(group)) for _, group in groupby(tried, id)]
    assert first == 3 * 4  # chunks, at three qualities: what the others are compared with
    assert min(others) < max(others) == 4
    pair = Workers(2)
    try:
        assert search_statistics(scope, start, transform(), codec, pair, effort=0.5) == found
    finally:
        pair.close()


def test_many_places_are_tried_instead_of_few_chunks(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Region] = []
    read = Scope.read

    def remembered(self: Scope, region: Region, level: int) -> Pixels:
        tried.append(region)
        return read(self, region, level)

    monkeypatch.setattr(Scope, "read", remembered)
    codec = HyperChunkCodec(tiny_weights())
    for height, width, sizes, count in (
        (512, 700, {(512, 512), (188, 512)}, 2),
        (1024, 2048, {(256, 256)}, LEAST_PIECES),
        (3072, 3072, {(256, 256)}, PIECES),
    ):
        tried.clear()
        slide = ArraySlide(synthetic_slide(width, height, seed=2))
        start = OperatingPoint(tissue_stats(slide), QUALITY)
        search_statistics(scope_of(slide), start, transform(), codec, workers, effort=0.1)
        assert {(region.width, region.height) for region in tried} <= sizes
        assert len(tried) == len(set(map(str, tried))) == count


def test_more_effort_tries_more_directions_and_never_ends_dearer(workers: Workers) -> None:
    slide, codec = ArraySlide(synthetic_slide(256, 256, seed=2)), HyperChunkCodec(tiny_weights())
    measured = tissue_stats(slide)
    start = OperatingPoint(ChannelStats(measured.mean + 12, measured.std), QUALITY)
    reached = []
    for effort in (0.1, 1, 2):
        found = search_statistics(scope_of(slide), start, transform(), codec, workers, effort=effort)
        curve = _curve([_Cost(*cost(slide, start.stats, q)) for q in range(QUALITY - 16, QUALITY + 17, 4)])
        bits, error = cost(slide, found.stats, found.quality)
        reached.append(np.log(bits) - _log_bits(curve, error))
    assert reached[0] <= 0.01
    assert reached[2] < reached[0]


def test_a_curve_is_read_between_its_points_and_beyond() -> None:
    curve = _curve([_Cost(100, 40), _Cost(150, 45), _Cost(200, 10), _Cost(400, 2.5), _Cost(900, 0)])
    assert [point.bits for point in curve] == [100, 200, 400]
    for error, bits in ((80, 100 / 2**0.5), (20, 200 / 2**0.5), (10, 200), (5, 200 * 2**0.5), (1.25, 400 * 2**0.5)):
        assert np.exp(_log_bits(curve, error)) == pytest.approx(bits)
    assert _log_bits(curve, 0) == _log_bits(curve, 1)


def test_a_slide_of_one_colour_is_coded(tmp_path: Path) -> None:
    slide, model = ArraySlide(np.full((300, 300, 3), (150, 80, 150), np.uint8)), str(tiny_model(tmp_path))
    report = histocodec.encode(slide, tmp_path / "a.zarr", model=model, device="cpu", quality=95)
    assert report.psnr > 30


def test_background_alone_keeps_its_statistics(workers: Workers) -> None:
    slide = ArraySlide(np.full((600, 600, 3), BACKGROUND, np.uint8), background=BACKGROUND)
    start, codec = OperatingPoint(tissue_stats(slide), 50), HyperChunkCodec(tiny_weights())
    assert search_statistics(scope_of(slide), start, transform(), codec, workers, effort=2) == start


def test_background_is_exact_at_the_quality_that_a_target_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.full((512, 1024, 3), BACKGROUND, np.uint8)
    pixels[:, 256:768] = synthetic_slide(512, 512, seed=3)
    qualities = iter([40, 40, 60, 60])  # at first, aligned, refined, aligned again
    monkeypatch.setattr("histocodec.formats.encode.plan.choose_quality", lambda *_: next(qualities))
    model = str(tiny_model(tmp_path))
    histocodec.encode(ArraySlide(pixels), tmp_path / "a.zarr", model=model, device="cpu", ratio=20)
    container = open_container(tmp_path / "a.zarr")
    assert container.attributes.levels[0].quality == 60
    stats, colour = container.stats().channels, container.attributes.background.colour
    exact = transform().aligned(stats, colour, 60)
    assert np.allclose(exact.mean, stats.mean, atol=0.05)
    assert not np.allclose(transform().aligned(stats, colour, 40).mean, stats.mean, atol=0.05)


def test_the_mean_under_which_background_came_out_best_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = tissue_stats(ArraySlide(synthetic_slide(256, 256, seed=2)))
    latents, off = iter((90, 80, 70, 60)), iter((3.0, -1.0, 5.0, 7.0))  # as at a quality whose latents follow the mean
    monkeypatch.setattr(Transform, "analyse_colour", lambda *_: np.full(48, next(latents), np.float32))
    monkeypatch.setattr(
        Transform,
        "synthesise_unrounded",
        lambda *_: torch.tensor(BACKGROUND)[None, :, None, None].expand(1, 3, 16, 16) + next(off),
    )
    assert np.allclose(transform().aligned(stats, BACKGROUND, 60).mean, stats.mean - 3)


def test_only_effort_looks_for_them(tmp_path: Path) -> None:
    slide, model = ArraySlide(synthetic_slide(512, 512, seed=3)), str(tiny_model(tmp_path))
    stored = []
    for effort in (0, 1):
        path = tmp_path / f"{effort}.zarr"
        histocodec.encode(slide, path, model=model, device="cpu", quality=50, effort=effort, embed_model=True)
        stored.append(open_container(path).stats().channels)
        with histocodec.open(path, device="cpu") as opened:
            assert opened.read(opened.levels[0].region, 0).shape == (512, 512, 3)
    assert np.array_equal(stored[0].std, tissue_stats(slide).std)  # the mean is moved for background
    assert not np.array_equal(stored[1].std, stored[0].std)
