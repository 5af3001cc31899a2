"""What the latent search thinks that latents cost is what the chunk codec would write."""

from functools import lru_cache

import numpy as np
import pytest

from histocodec.codec.chunk import HyperChunkCodec, pad_latents
from histocodec.codec.latent_prices import Pricer, Prices
from histocodec.codec.latent_search_kernels import NEVER
from histocodec.entropy.cost import NEAR, near_bits, symbol_bits
from histocodec.kernels.distributions import TABLE_BITS
from histocodec.kernels.instructions import NAMES
from histocodec.models.prior.fast import float_product
from histocodec.models.prior.native import NativePrior
from tests.support.tiny import tiny_weights

SHAPE = (10, 9)  # which no step divides evenly
QUALITY = 60


@lru_cache(maxsize=1)
def reference() -> HyperChunkCodec:
    return HyperChunkCodec(tiny_weights())


def native(instructions: int) -> HyperChunkCodec:
    weights = tiny_weights()
    prior = NativePrior(weights.hyper, weights.arrays, float_product, instructions=instructions)
    return HyperChunkCodec(weights, prior=prior)


def sample(seed: int, *, largest: int = 3, channels: int = 29) -> np.ndarray:
    """Latents (h, w, C), the last ones of which are 0."""
    rng = np.random.default_rng(seed)
    latents = np.zeros((*SHAPE, tiny_weights().config.latent_channels), np.int16)
    part = latents[:, :, :channels]
    part[:] = rng.integers(-largest, largest + 1, part.shape) * (rng.random(part.shape) < 0.2)
    return latents


def priced(pricer: Pricer, latents: np.ndarray) -> Prices:
    prices = Prices.room(latents.shape)
    pricer(latents, prices)
    return prices


def test_prices_are_those_of_the_segments_that_would_be_written() -> None:
    codec, latents = reference(), sample(1)
    prices = priced(Pricer(codec, latents, QUALITY), latents)
    padded, tables = pad_latents(latents.transpose(2, 0, 1)), codec.weights.tables
    _, *steps = codec.segments(padded, QUALITY)
    total = sum(symbol_bits(s.values - s.whole_mean, s.tables, tables).sum() for s in steps)
    coded = prices.bits > NEVER
    assert coded[:, :, :32].all()  # 29 channels are coded as 32
    assert not coded[:, :, 32:].any()
    assert np.allclose(prices.bits.sum(axis=2, where=coded), prices.by_position, rtol=1e-5)
    assert prices.by_position.sum() < total  # which has the zeros beyond the edge, too
    table, mean = prices.codes & (1 << TABLE_BITS) - 1, prices.codes >> TABLE_BITS
    expected = symbol_bits((latents - mean)[coded], table[coded], tables)
    assert np.array_equal(prices.bits[coded], expected)


@pytest.mark.parametrize("instructions", range(len(NAMES)), ids=NAMES)
def test_native_prices_are_the_same_for_one_state_of_a_chunk_after_the_other(instructions: int) -> None:
    first = sample(1)
    ours, theirs = Pricer(native(instructions), first, QUALITY), Pricer(reference(), first, QUALITY)
    assert ours.channels == theirs.channels == 32
    others = sample(2), sample(3, largest=3000), np.where(sample(4) > 0, np.int16(-32768), 0).astype(np.int16)
    for latents in (first, *others, np.zeros_like(first), first):
        found, expected = priced(ours, latents), priced(theirs, latents)
        assert np.array_equal(found.bits, expected.bits)
        assert np.array_equal(found.codes, expected.codes)
        assert np.allclose(found.by_position, expected.by_position, rtol=1e-6)


def test_near_symbols_cost_what_all_symbols_do() -> None:
    tables = tiny_weights().tables
    near = near_bits(tables)
    for symbol in range(-NEAR, NEAR):
        expected = symbol_bits(np.full(len(tables), symbol), np.arange(len(tables)), tables)
        assert np.array_equal(near[:, symbol + NEAR], expected)
