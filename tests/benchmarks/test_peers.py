"""The peers are lossy, keep full colour where they say so, and are brought to a PSNR or a size."""

import struct
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from histocodec.benchmarks.peers.codecs import JPEG2000, JPEG2000_TILES, PEERS
from histocodec.benchmarks.peers.contender import (
    Contender,
    code_at_bytes,
    code_at_psnr,
    code_at_setting,
    code_curve,
)
from histocodec.benchmarks.peers.tiles import tiled
from histocodec.errors import UnsupportedError
from histocodec.slide import Pixels
from histocodec.sources.synthetic import synthetic_slide

ALL = [contender for contenders in PEERS.values() for contender in contenders]
INTEGER_SETTINGS = [contender for contender in ALL if contender.integer_settings]
COD = b"\xff\x52"  # JPEG 2000's marker of the coding style

every = pytest.mark.parametrize("peer", ALL, ids=lambda peer: peer.name)


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return synthetic_slide(256, 256, seed=4)


def between(peer: Contender, share: float) -> float:
    low, high = peer.settings
    setting = low + share * (high - low)
    return float(round(setting)) if peer.integer_settings else setting


def fake(settings: tuple[float, float] = (1, 100)) -> tuple[Contender, Counter[float]]:
    """A codec whose settings are its sizes, and a count of how often each setting was tried."""
    tried: Counter[float] = Counter()

    def encode(pixels: Pixels, setting: float, threads: int) -> bytes:
        tried[setting] += 1
        return bytes(int(setting))

    def decode(data: bytes, threads: int) -> Pixels:
        return np.full((16, 16, 3), 101 - len(data), np.uint8)

    return Contender("fake", "0", settings, encode, decode, integer_settings=True), tried


def test_the_command_lines_names_are_in_order_of_importance() -> None:
    assert list(PEERS) == ["jpeg2000", "jpegxl", "avif", "htj2k", "webp", "jpeg"]
    assert PEERS["jpeg2000"] == (JPEG2000, JPEG2000_TILES)
    assert len({peer.name for peer in ALL}) == len(ALL)


@every
@pytest.mark.parametrize("size", [(61, 130), (1, 1)])
def test_a_peer_gives_back_an_image_of_the_same_size(peer: Contender, size: tuple[int, int]) -> None:
    part = np.ascontiguousarray(synthetic_slide(130, 64, seed=3)[: size[0], : size[1]])
    decoded = peer.decode(peer.encode(part, between(peer, 0.6)))
    assert decoded.shape == part.shape
    assert decoded.dtype == np.uint8


@every
def test_a_peer_is_lossy_and_a_larger_setting_is_better_and_larger(peer: Contender, pixels: Pixels) -> None:
    found = [code_at_setting(peer, pixels, between(peer, share)) for share in (0.3, 0.5, 0.7)]
    assert all(a.psnr < b.psnr and len(a.data) < len(b.data) for a, b in pairwise(found))
    assert found[-1].psnr < 60


@every
def test_a_peer_keeps_fine_colour_just_where_it_is_not_called_subsampled(peer: Contender) -> None:
    """Stripes one pixel wide of two colours of the same luma."""
    stripes = np.empty((64, 64, 3), np.uint8)
    stripes[:, 0::2], stripes[:, 1::2] = (200, 60, 100), (60, 130, 107)
    found = code_at_setting(peer, stripes, between(peer, 0.9)).psnr
    if "4:2:0" in peer.name:
        assert found < 20
    else:
        assert found > 30


@pytest.mark.parametrize("peer", [JPEG2000, JPEG2000_TILES, *PEERS["htj2k"]], ids=lambda peer: peer.name)
def test_wavelet_codecs_use_the_colour_transform_and_the_9_7_wavelet_in_6_resolutions(
    peer: Contender, pixels: Pixels
) -> None:
    data = peer.encode(pixels, between(peer, 0.5))
    start = data.index(COD) + 2
    # After length and style: order, layers, colour transform, decompositions, block size, block style, wavelet.
    transform, decompositions, *_, block_style, wavelet = struct.unpack_from(">BBBBBB", data, start + 6)
    assert (transform, decompositions, wavelet) == (1, 5, 0)
    assert bool(block_style & 0x40) == (peer.name == "HTJ2K")


def test_what_overshoots_white_does_not_come_back_black() -> None:
    (htj2k,) = PEERS["htj2k"]
    checked = np.where(np.indices((128, 128)).sum(0)[..., np.newaxis] // 8 % 2, 255, 90).astype(np.uint8)
    checked = np.repeat(checked, 3, axis=2)
    assert code_at_setting(htj2k, checked, 5).psnr > 35


@every
def test_a_peer_is_brought_to_a_wanted_psnr(peer: Contender, pixels: Pixels) -> None:
    found = code_at_psnr(peer, pixels, 33.0)
    assert found.psnr == pytest.approx(33.0, abs=0.5 if peer.integer_settings else 0.1)
    assert len(peer.encode(pixels, found.setting)) == len(found.data)


@every
def test_a_peer_is_brought_to_a_wanted_size(peer: Contender, pixels: Pixels) -> None:
    found = code_at_bytes(peer, pixels, 6000)
    assert 5000 < len(found.data) <= 6000
    if peer.integer_settings:
        assert len(peer.encode(pixels, found.setting + 1)) > 6000
    else:
        assert len(found.data) > 5800  # on small images OpenJPEG's sizes are up to 2.5 % apart


def test_whole_settings_are_tried_once_each_and_the_best_is_found() -> None:
    grey = np.zeros((16, 16, 3), np.uint8)
    for size in range(1, 101):
        contender, tried = fake()
        found = code_at_bytes(contender, grey, size, tolerance=0)
        assert (found.setting, len(found.data)) == (size, size)
        assert max(tried.values()) == 1
        contender, tried = fake()
        exact = code_at_setting(contender, grey, size).psnr
        tried.clear()
        assert code_at_psnr(contender, grey, exact + 0.001, tolerance=0).setting == size
        assert max(tried.values()) == 1


def test_the_coarsest_stands_in_where_nothing_is_small_enough() -> None:
    contender, _ = fake((5, 100))
    assert code_at_bytes(contender, np.zeros((16, 16, 3), np.uint8), 3).setting == 5


@pytest.mark.slow
@pytest.mark.parametrize("peer", [*PEERS["jpegxl"], *INTEGER_SETTINGS], ids=lambda peer: peer.name)
def test_a_ladder_rises_without_a_rung_twice(peer: Contender, pixels: Pixels) -> None:
    rungs = code_curve(peer, pixels, 29.0, 35.0, steps=5)
    assert 3 <= len(rungs) <= 5
    assert all(a.setting < b.setting and a.psnr < b.psnr for a, b in pairwise(rungs))
    assert rungs[0].psnr == pytest.approx(29, abs=1.5)
    assert rungs[-1].psnr == pytest.approx(35, abs=1)


def test_a_ladder_between_neighbouring_whole_settings_has_no_rung_between() -> None:
    contender, _ = fake()
    grey = np.zeros((16, 16, 3), np.uint8)
    low, high = code_at_setting(contender, grey, 95).psnr, code_at_setting(contender, grey, 96).psnr
    contender = replace(contender, settings=(95, 96))
    assert [one.setting for one in code_curve(contender, grey, low, high, steps=12)] == [95, 96]
    assert [one.setting for one in code_curve(contender, grey, low, low, steps=12)] == [95]


def test_tiles_of_a_codec_have_its_settings() -> None:
    (webp,) = PEERS["webp"]
    assert tiled(webp, 64).settings == webp.settings
    assert tiled(webp, 64).integer_settings
    assert tiled(webp, 64).name == "WebP 4:2:0, 64-px tiles"


def test_what_a_codec_cannot_encode_is_said_with_its_name_and_the_size() -> None:
    (webp,) = PEERS["webp"]
    with pytest.raises(UnsupportedError, match=r"WebP 4:2:0 .* cannot encode 16384 x 1 pixels"):
        webp.encode(np.zeros((1, 16384, 3), np.uint8), 50)
