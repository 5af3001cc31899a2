"""The hyper-latent search: fewer bits for the same latents, and nothing for a reader to know."""

from functools import lru_cache

import numpy as np
import pytest
import torch

from histocodec.codec.chunk import HyperChunkCodec
from histocodec.codec.gains import quantise
from histocodec.codec.hyper_latent_search import search_hyper_latents
from histocodec.codec.transform import Transform
from histocodec.entropy.cost import symbol_bits
from histocodec.errors import UsageError
from histocodec.geometry import Margin
from histocodec.models.prior.exact import RELUCTANCE, hyper_latents
from histocodec.normalise import ChannelStats
from histocodec.sources.synthetic import synthetic_slide
from tests.support.tiny import tiny_weights

STATS = ChannelStats(np.array([180.0, 140.0, 175.0], np.float32), np.array([40.0, 45.0, 35.0], np.float32))


@lru_cache(maxsize=1)
def codec() -> HyperChunkCodec:
    return HyperChunkCodec(tiny_weights())


def latents(quality: int) -> np.ndarray:
    """A chunk (48, 16, 16) of which 13 rows and 10 columns are used, as at a level's corner."""
    weights = tiny_weights()
    pixels = synthetic_slide(160, 208, seed=5)
    y = Transform(weights, torch.device("cpu")).analyse(pixels, Margin(), STATS)
    chunk = np.zeros((48, 16, 16), np.int16)
    chunk[:, :13, :10] = quantise(y, weights.gain(quality), np.dtype(np.int16))
    return chunk


def bits(y: np.ndarray, quality: int, z: np.ndarray) -> float:
    """What an ideal coder takes: on so small a chunk, a saving of half a word may not show in the bytes."""
    segments, tables = codec().segments(y, quality, z=z), tiny_weights().tables
    return sum(float(symbol_bits(s.values - s.whole_mean, s.tables, tables).sum()) for s in segments)


@pytest.mark.parametrize("quality", [10, 30])
def test_a_searched_z_takes_fewer_bits_for_the_same_latents(quality: int) -> None:
    y = latents(quality)
    z, proposed = search_hyper_latents(codec(), y, quality), codec().hyper_latents(y, quality)
    data = codec().encode(y, quality, z=z)
    assert bits(y, quality, z) < bits(y, quality, proposed)
    assert len(data) <= len(codec().encode(y, quality))
    assert np.array_equal(codec().decode(data, y.shape), y)


def test_z_is_as_h_a_proposes_it_where_it_costs_next_to_nothing() -> None:
    y = latents(100)
    y[:] *= 20
    assert np.array_equal(search_hyper_latents(codec(), y, 100), codec().hyper_latents(y, 100))


@pytest.mark.parametrize(
    ("step", "expected", "z"),
    [(0.49, 0, 0), (0.53, 0, 0), (0.6, 0, 1), (1.53, 0, 1), (0.47, 1, 1), (0.4, 1, 0), (-0.53, 0, 0), (300, 0, 127)],
)
def test_a_proposed_z_is_rounded_after_it_went_a_little_towards_what_its_table_expects(
    step: float, expected: int, z: int
) -> None:
    accumulator, eighths = np.array([round(step * 2**11)]), np.array([8 * expected])
    assert hyper_latents(accumulator, eighths, 11, RELUCTANCE) == z
    assert hyper_latents(accumulator, eighths, 11, 0) == min(np.floor(step + 0.5), 127)


def test_any_z_gives_the_same_latents() -> None:
    y = latents(40)
    z = np.random.default_rng(0).integers(-127, 128, (8, 4, 4))
    data = codec().encode(y, 40, z=z)
    assert data != codec().encode(y, 40)
    assert np.array_equal(codec().decode(data, y.shape), y)


@pytest.mark.parametrize("z", [np.full((8, 4, 4), 128), np.zeros((8, 3, 4), int)], ids=["too large", "misshapen"])
def test_a_z_that_no_reader_would_take_is_refused(z: np.ndarray) -> None:
    with pytest.raises(UsageError, match="z"):
        codec().encode(latents(40), 40, z=z)
