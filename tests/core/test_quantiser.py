"""Rate–distortion optimised quantisation: search chunks for the same decoder."""

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from histocodec.codec.chunk import HyperChunkCodec
from histocodec.codec.gains import quantise
from histocodec.codec.latent_search import Latents, LatentSearch, SearchTerms
from histocodec.codec.quantise import Quantiser
from histocodec.codec.transform import Transform
from histocodec.codec.window import Window
from histocodec.errors import UsageError
from histocodec.fidelity import squared_error
from histocodec.formats.decode.slide import open_compressed
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.geometry import Margin
from histocodec.normalise import ChannelStats
from histocodec.sources.array import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.tiny import tiny_model, tiny_weights

STATS = ChannelStats(np.array([180.0, 140.0, 175.0], np.float32), np.array([40.0, 45.0, 35.0], np.float32))
INT16 = np.dtype(np.int16)
HALO = 2


@lru_cache(maxsize=1)
def transform() -> Transform:
    return Transform(tiny_weights(), torch.device("cpu"))


@lru_cache(maxsize=1)
def window() -> Window:
    """A chunk of 10×9 latents, HALO more around it but at the top; its pixels end within the last latents."""
    pixels = synthetic_slide(224, 208, seed=3)[: (10 + HALO) * 16, : (9 + 2 * HALO) * 16]
    y = transform().analyse(pixels, Margin(), STATS)
    return Window(y, Margin(0, HALO, HALO, HALO), pixels[: 160 - 5, HALO * 16 : (9 + HALO) * 16 - 3])


def quantiser(effort: float) -> Quantiser:
    return Quantiser(transform(), HyperChunkCodec(tiny_weights()), STATS, window, effort=effort)


def decoded(data: bytes) -> np.ndarray:
    return HyperChunkCodec(tiny_weights()).decode(data, (48, 12, 12))


def priced(data: bytes, quality: int) -> tuple[float, float]:
    """Bits and squared error of a coded chunk between its neighbours, rounded; by the decoder itself."""
    weights = tiny_weights()
    bits = 8 * len(data)
    whole = quantise(window().y, weights.gain(quality), INT16)
    whole[window().inner] = decoded(data)[:, :10, :9]
    scaled = (whole * weights.inverse_gain(quality)[:, None, None]).astype(np.float32)
    pixels = transform().synthesise([scaled], window().margin, STATS)[0]
    height, width, _ = window().pixels.shape
    return bits, squared_error(pixels[:height, :width], window().pixels)


def exchange(quality: int) -> float:
    """Bits that a unit of squared error costs on this chunk, from one quality to another."""
    (bits, error), (more, less) = (
        priced(quantiser(0).encode(window(), q, 12, INT16), q) for q in (quality - 5, quality + 5)
    )
    assert more > bits
    assert less < error
    return (more - bits) / (error - less)


def test_no_effort_is_rounding() -> None:
    chunk = decoded(quantiser(0).encode(window(), 50, 12, INT16))
    expected = quantise(window().y, tiny_weights().gain(50), INT16)[:, :10, HALO : HALO + 9]
    assert chunk.shape == (48, 12, 12)
    assert np.array_equal(chunk[:, :10, :9], expected)
    assert not chunk[:, 10:].any()
    assert not chunk[:, :, 9:].any()


@pytest.mark.parametrize("quality", [20, 60, 95])
def test_effort_makes_a_chunk_cheaper(quality: int) -> None:
    found = [priced(quantiser(e).encode(window(), quality, 12, INT16), quality) for e in (0, 1, 6)]
    plain, little, much = (bits + exchange(quality) * error for bits, error in found)
    assert little < 0.99 * plain
    assert much < 1.01 * little  # as the search itself weighs them, which is over more qualities


def test_a_part_of_an_effort_is_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def search(self: LatentSearch, rounded: Latents, window: Window, terms: SearchTerms, steps: int) -> Latents:
        asked.append(steps)
        return rounded[window.inner]

    monkeypatch.setattr(LatentSearch, "search", search)
    for effort in (0.01, 0.1, 0.34, 1, 1.2):
        quantiser(effort).latents(window(), 60, INT16)
    assert asked == [1, 1, 3, 9, 11]


def test_z_is_searched_from_twice_the_effort_on() -> None:
    codec = HyperChunkCodec(tiny_weights())
    for effort, proposed in ((1.9, True), (2, False)):
        data = quantiser(effort).encode(window(), 20, 12, INT16)
        assert (data == codec.encode(decoded(data), 20)) == proposed


def test_a_tenth_of_an_effort_lies_between_none_and_all() -> None:
    found = [priced(quantiser(e).encode(window(), 60, 12, INT16), 60) for e in (0, 0.1, 1)]
    none, tenth, whole = (bits + exchange(60) * error for bits, error in found)
    assert whole < tenth < none


def test_a_move_goes_towards_zero_or_to_the_other_side_of_where_y_was() -> None:
    y = window().y[window().inner] * tiny_weights().gain(70)[:, None, None]
    chunk = decoded(quantiser(6).encode(window(), 70, 12, INT16))[:, :10, :9]
    rounded = np.floor(y + 0.5)
    assert (chunk != rounded).any()
    assert ((np.abs(chunk) < np.abs(rounded)) | (np.abs(chunk - y) < 1) | (chunk == rounded)).all()


def test_the_neighbours_are_left_alone() -> None:
    rounded = quantise(window().y, tiny_weights().gain(60), INT16)
    refined = quantiser(4).latents(window(), 60, INT16)
    assert (refined != rounded).any()
    refined[window().inner] = rounded[window().inner]
    assert np.array_equal(refined, rounded)


def test_nothing_leaves_the_type_it_is_stored_in() -> None:
    loud = Window(window().y * 100, window().margin, window().pixels)
    latents = quantiser(2).latents(loud, 90, np.dtype(np.int8))
    assert latents.dtype == np.int8
    assert latents.max() == 127
    assert decoded(quantiser(2).encode(loud, 90, 12, np.dtype(np.int8))).max() == 127


def test_a_slide_encoded_with_effort_is_cheaper_and_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    slide, model = ArraySlide(synthetic_slide(700, 600)), str(tiny_model(tmp_path))
    sizes, pixels = {}, {}
    for name, effort, workers in (("plain", 0, 2), ("one", 3, 1), ("two", 3, 2)):
        options = EncodeOptions(quality=40, effort=effort, model=model, workers=workers, levels=(0,), embed_model=True)
        sizes[name] = encode_slide(slide, tmp_path / f"{name}.zarr", options).payload_bytes
        with open_compressed(tmp_path / f"{name}.zarr", device="cpu") as opened:
            pixels[name] = opened.read(opened.levels[0].region, 0)
    assert sizes["one"] == sizes["two"] < sizes["plain"]
    assert np.array_equal(pixels["one"], pixels["two"])


def test_a_target_is_met_by_what_effort_makes_of_it(tmp_path: Path) -> None:
    slide, model = ArraySlide(synthetic_slide(1100, 1000)), str(tiny_model(tmp_path))
    options = EncodeOptions(target_psnr=26, effort=2, model=model, levels=(0,), device="cpu")
    report = encode_slide(slide, tmp_path / "a.zarr", options)
    assert 25.95 <= report.psnr < 27.5


def test_a_rate_is_kept_to_by_what_effort_makes_of_it(tmp_path: Path) -> None:
    slide = ArraySlide(synthetic_slide(600, 500))
    asked = EncodeOptions(quality=45, effort=1, model=str(tiny_model(tmp_path)), levels=(0,), device="cpu")
    bpp = encode_slide(slide, tmp_path / "a.zarr", asked).bpp
    asked = replace(asked, quality=None, target_bpp=bpp)
    assert 0.9 * bpp < encode_slide(slide, tmp_path / "b.zarr", asked).bpp <= bpp


@pytest.mark.parametrize("effort", [-1, 9.5, 10, math.nan])
def test_an_effort_that_does_not_exist_is_refused(effort: float) -> None:
    with pytest.raises(UsageError, match="--effort"):
        EncodeOptions(effort=effort)
