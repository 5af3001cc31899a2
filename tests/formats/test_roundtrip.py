"""A slide is encoded and comes back: its facts, latents, background, rate and quality."""

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import zarr
from openslide.deepzoom import DeepZoomGenerator

import histocodec
from histocodec.errors import MissingModelError, UsageError
from histocodec.formats.container.read import open_container
from histocodec.formats.container.states import BACKGROUND, CODED
from histocodec.formats.container.zarr_codec import register
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.formats.decode.verify import verify
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.geometry import ChunkKey, Region
from histocodec.models.weights import MODELS_VARIABLE
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from histocodec.tissue import BACKGROUND_DISTANCE
from tests.support.slides import GLASS, ICC, PROPERTIES, SIZE, WIDE, Rich, contents, encoded, whole
from tests.support.version2 import lossless_shards, make_lossless, shards

# What is known about the slide.


def test_facts_survive(slide: CompressedSlide) -> None:
    assert slide.mpp == (0.25, 0.25)
    assert slide.level_dimensions == (SIZE, (325, 225))
    assert slide.level_downsamples == (1.0, 4.0)
    assert slide.icc_profile == ICC
    assert {name: slide.properties[name] for name in PROPERTIES} == PROPERTIES
    assert float(slide.properties["openslide.mpp-x"]) == 0.25
    assert CompressedSlide.detect_format(slide.name) == "histocodec"


def test_openslides_own_properties_speak_of_the_container(slide: CompressedSlide, folder: Path) -> None:
    with histocodec.open(folder / "wide.zarr") as other:
        for opened in (slide, other):
            properties = opened.properties
            assert int(properties["openslide.level-count"]) == opened.level_count
            for level, (width, height) in enumerate(opened.level_dimensions):
                assert int(properties[f"openslide.level[{level}].width"]) == width
                assert int(properties[f"openslide.level[{level}].height"]) == height
                assert float(properties[f"openslide.level[{level}].downsample"]) == opened.level_downsamples[level]
            listed = {name.split(".")[2] for name in properties if name.startswith("openslide.associated.")}
            assert listed == set(opened.associated)


def test_images_carry_the_profile(slide: CompressedSlide) -> None:
    zoom = DeepZoomGenerator(slide)
    for image in (
        slide.read_region((0, 0), 0, (64, 64)),
        slide.get_thumbnail((64, 64)),
        zoom.get_tile(zoom.level_count - 1, (0, 0)),
    ):
        assert image.info["icc_profile"] == ICC


def test_what_the_source_does_not_say_stays_unknown(folder: Path) -> None:
    with histocodec.open(folder / "wide.zarr") as slide:
        assert slide.mpp is None
        assert slide.objective_power is None
        assert slide.icc_profile is None
        assert all(name.startswith("openslide.level") for name in slide.properties if name != "openslide.vendor")
        with pytest.raises(UsageError, match="resolution is not known"):
            slide.read_array(0, 0, 5, 5, mpp=1.0)


def test_label_and_macro_are_left_out_unless_asked_for(tmp_path: Path, tiny_file: Path) -> None:
    slide = Rich(synthetic_slide(600, 500, seed=5))
    report = encoded(slide, tmp_path / "without.zarr", tiny_file)
    assert {"label", "macro"} <= set(report.dropped)
    encoded(slide, tmp_path / "with.zarr", tiny_file, keep_label=True, keep_macro=True, embed_model=True)
    with histocodec.open(tmp_path / "with.zarr") as kept:
        assert kept.objective_power == 40
        assert kept.properties["openslide.objective-power"] == "40"
        assert {"label", "macro"} <= set(kept.associated)
        assert np.array_equal(kept.associated["label"], slide.associated["label"])
        assert kept.associated_images["macro"].size == (9, 8)
        shutil.rmtree(tmp_path / "with.zarr" / "associated-label")
        assert "label" in list(kept.associated_images)  # listing decodes nothing


def test_the_attributes_fit_the_schema(folder: Path) -> None:
    schema = json.loads((Path(__file__).parents[2] / "formats" / "schema.json").read_text())
    for name in ("a.zarr", "wide.zarr"):
        written = json.loads((folder / name / "zarr.json").read_text())
        jsonschema.validate(written["attributes"]["histocodec"], schema)


def test_levels_are_derived_where_a_large_source_has_none(folder: Path) -> None:
    with histocodec.open(folder / "wide.zarr", device="cpu") as slide:
        assert slide.level_dimensions == (WIDE, (1600, 10), (400, 3))


def test_only_the_levels_that_are_asked_for_are_kept(tmp_path: Path, tiny_file: Path) -> None:
    pixels = synthetic_slide(64, 64)
    slide = ArraySlide([pixels, pixels[::2, ::2], pixels[::4, ::4]])
    encoded(slide, tmp_path / "a.zarr", tiny_file, levels=(2, 0))
    assert [(level.width, level.downsample) for level in open_container(tmp_path / "a.zarr").attributes.levels] == [
        (64, 1.0),
        (16, 4.0),
    ]
    with pytest.raises(UsageError, match="must include 0"):
        encoded(slide, tmp_path / "b.zarr", tiny_file, levels=(1,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr"]


# Latents.


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path, tiny_file: Path, source: ArraySlide) -> None:
    for workers in (1, 8):
        encoded(source, tmp_path / f"{workers}.zarr", tiny_file, workers=workers)
    assert contents(tmp_path / "1.zarr") == contents(tmp_path / "8.zarr")


def test_zarr_alone_opens_the_latents(
    folder: Path, tiny_file: Path, slide: CompressedSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, str(tiny_file.parent))
    register()
    array = zarr.open_array(folder / "a.zarr" / "latents/0", mode="r")
    assert array.shape == (48, 57, 82)
    latents = np.asarray(array[:])
    assert np.array_equal(latents, np.asarray(slide.latents(0)[:]))
    for row, column in np.argwhere(slide.container.tiles(0) == CODED).tolist():
        chunk = slide.decoder.reader.latents(ChunkKey(0, row, column))
        assert chunk is not None
        part = latents[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        assert chunk.y.dtype == array.dtype
        assert np.array_equal(chunk.y[:, : part.shape[1], : part.shape[2]], part)


def test_an_embedded_model_is_all_that_is_needed(
    tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, "")
    pixels = ArraySlide(synthetic_slide(200, 100))
    encoded(pixels, tmp_path / "with.zarr", tiny_file, embed_model=True)
    encoded(pixels, tmp_path / "without.zarr", tiny_file)
    with histocodec.open(tmp_path / "with.zarr", device="cpu") as slide:
        assert whole(slide).shape == (100, 200, 3)
    with pytest.raises(MissingModelError, match="tiny-0"):
        histocodec.open(tmp_path / "without.zarr")


# Background.


@pytest.mark.parametrize("quality", [0, 20, 50])
def test_background_beside_tissue_keeps_its_colour_at_any_quality(
    tmp_path: Path, tiny_file: Path, quality: int
) -> None:
    pixels = synthetic_slide(512, 512)
    pixels[:, 192:] = (243, 240, 244)
    options = EncodeOptions(quality=quality, model=str(tiny_file), levels=(0,), device="cpu", embed_model=True)
    encode_slide(ArraySlide(pixels), tmp_path / "a.zarr", options)
    with open_compressed(tmp_path / "a.zarr", device="cpu") as opened:
        found = opened.read(Region(384, 128, 128, 128), 0)
    assert np.abs(found.mean(axis=(0, 1)) - (243, 240, 244)).max() < 1


def test_background_is_skipped_and_has_exactly_its_colour(tmp_path: Path, tiny_file: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(-4, 5, (600, 1100, 3))
    pixels = (np.array(GLASS) + noise).astype(np.uint8)
    pixels[:500, :500] = synthetic_slide(500, 500)
    slide = ArraySlide(pixels, background=GLASS)
    encoded(slide, tmp_path / "a.zarr", tiny_file, levels=(0,), embed_model=True)
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:
        tiles = opened.container.tiles(0)
        assert tiles.tolist() == [[CODED, BACKGROUND, BACKGROUND], [BACKGROUND] * 3]
        assert (opened.read_array(512, 0, 588, 600) == GLASS).all()
        assert np.isnan(opened.container.psnr(0)[tiles == BACKGROUND]).all()
        assert np.isfinite(opened.container.psnr(0)[0, 0])


def test_background_is_coded_on_request(tmp_path: Path, tiny_file: Path) -> None:
    slide = ArraySlide(np.full((600, 600, 3), GLASS, np.uint8), background=GLASS)
    report = encoded(slide, tmp_path / "a.zarr", tiny_file, background="code", embed_model=True)
    assert report.chunks == 4
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:
        assert (opened.container.tiles(0) == CODED).all()
        assert np.abs(whole(opened).mean(axis=(0, 1)) - GLASS).max() < BACKGROUND_DISTANCE  # all that a tiny model can


def test_faint_tissue_is_not_dropped(tmp_path: Path, tiny_file: Path) -> None:
    """One patch a few grey levels beyond what counts as background, in a corner of a slide of background."""
    pixels = np.full((1024, 1024, 3), GLASS, np.uint8)
    faint = np.array(GLASS, np.uint8) - np.array([2, BACKGROUND_DISTANCE + 2, 2], np.uint8)
    pixels[700:764, 600:664] = faint
    pixels[100, 900] = faint  # a single pixel is reason enough
    encoded(ArraySlide(pixels), tmp_path / "a.zarr", tiny_file, levels=(0,), embed_model=True, quality=60)
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:
        assert opened.container.tiles(0).tolist() == [[BACKGROUND, CODED], [BACKGROUND, CODED]]
        decoded = opened.read_array(608, 708, 48, 48).reshape(-1, 3).mean(axis=0)
        assert np.abs(decoded - faint).max() < BACKGROUND_DISTANCE / 2


def test_more_quality_is_more_bytes_and_less_error(tmp_path: Path, tiny_file: Path) -> None:
    slide = ArraySlide(synthetic_slide(700, 600, seed=6))
    reports = [encoded(slide, tmp_path / f"{q}.zarr", tiny_file, quality=q) for q in (0, 25, 50, 75, 100)]
    for less, more in pairwise(reports):
        assert less.payload_bytes < more.payload_bytes
        assert less.psnr < more.psnr


def test_a_quality_between_two_is_between_them(tmp_path: Path, tiny_file: Path) -> None:
    source = ArraySlide(synthetic_slide(600, 500, seed=6))
    asked = (40, 40.3, 40.7, 41)
    reports = [encoded(source, tmp_path / f"{quality}.zarr", tiny_file, quality=quality, effort=0) for quality in asked]
    assert [report.quality for report in reports] == [40, 40, 40, 41]
    assert tuple(report.asked_quality for report in reports) == asked
    assert reports[0].payload_bytes < reports[1].payload_bytes < reports[2].payload_bytes
    assert all(lower.psnr < higher.psnr for lower, higher in pairwise(reports))


def test_a_target_psnr_is_reached_and_hardly_exceeded(tmp_path: Path, tiny_file: Path, source: ArraySlide) -> None:
    report = encoded(source, tmp_path / "a.zarr", tiny_file, target_psnr=31.0)
    assert 31.0 <= report.psnr < 31.2


@pytest.mark.parametrize(("option", "value", "bpp"), [("target_bpp", 0.3, 0.3), ("ratio", 40.0, 0.6)])
def test_a_target_rate_is_hardly_missed(
    tmp_path: Path, tiny_file: Path, source: ArraySlide, option: str, value: float, bpp: float
) -> None:
    report = encoded(source, tmp_path / "a.zarr", tiny_file, **{option: value}, overview=None)
    assert report.bpp == pytest.approx(bpp, rel=0.03)


@pytest.mark.parametrize(("option", "value"), [("target_psnr", 60.0), ("target_bpp", 0.001)])
def test_a_target_out_of_reach_is_refused(tmp_path: Path, tiny_file: Path, option: str, value: float) -> None:
    with pytest.raises(UsageError, match="quality"):
        encoded(ArraySlide(synthetic_slide(300, 300)), tmp_path / "a.zarr", tiny_file, **{option: value})
    assert list(tmp_path.iterdir()) == []


# Small and strange slides.


@pytest.mark.parametrize("size", [(1, 1), (700, 1), (1, 700), (17, 15), (513, 16)])
def test_slides_of_any_size_come_back(tmp_path: Path, tiny_file: Path, size: tuple[int, int]) -> None:
    pixels = synthetic_slide(800, 800, seed=7)[: size[1], : size[0]]
    source = ArraySlide(np.ascontiguousarray(pixels))
    encoded(source, tmp_path / "a.zarr", tiny_file, quality=90, background="code", embed_model=True)
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:
        assert opened.dimensions == size
        assert np.sqrt(((whole(opened).astype(float) - pixels) ** 2).mean()) < 12
    assert verify(tmp_path / "a.zarr", against=source, device="cpu").ok


def test_a_slide_of_background_alone_has_no_shards(tmp_path: Path, tiny_file: Path) -> None:
    source = ArraySlide(np.full((1100, 1200, 3), GLASS, np.uint8))
    report = encoded(source, tmp_path / "a.zarr", tiny_file, embed_model=True)
    assert (report.chunks, report.psnr) == (0, math.inf)
    assert shards(tmp_path / "a.zarr") == []
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:
        assert (whole(opened) == GLASS).all()
    assert verify(tmp_path / "a.zarr", against=source, device="cpu").ok


# Chunks that are stored as pixels.


def test_a_lossless_chunk_replaces_what_would_be_synthesised(
    tmp_path: Path, tiny_file: Path, source: ArraySlide, slide: CompressedSlide
) -> None:
    path = tmp_path / "a.zarr"
    encoded(source, path, tiny_file, embed_model=True)
    make_lossless(path, source, 0, 1, 2)
    expected = whole(slide).copy()
    expected[512:, 1024:] = source.read(Region(1024, 512, SIZE[0] - 1024, SIZE[1] - 512), 0)
    with histocodec.open(path, device="cpu") as opened:
        assert np.array_equal(whole(opened), expected)
        assert np.array_equal(opened.read_array(1000, 500, 60, 60), expected[500:560, 1000:1060])
        assert np.array_equal(np.asarray(opened.latents(0)[:]), np.asarray(slide.latents(0)[:]))
    report = verify(path, against=source, device="cpu")
    assert report.ok, report.problems
    assert report.psnr is not None
    (shard,) = lossless_shards(path)
    (path / shard).unlink()
    assert not verify(path, device="cpu").ok
