"""The latent chunk: lossless for any integers, an error for any bytes that are not one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from histocodec.codec.chunk import HEADER_BYTES, HyperChunkCodec, quality_of
from histocodec.errors import FormatError, UsageError
from tests.support.tiny import TINY, tiny_weights

CHANNELS = TINY.latent_channels
SHAPE = (CHANNELS, 8, 8)


@pytest.fixture(scope="module")
def codec() -> HyperChunkCodec:
    return HyperChunkCodec(tiny_weights())


@settings(max_examples=40, deadline=None)
@given(arrays(np.int8, SHAPE), st.integers(0, 100))
def test_any_int8_array_comes_back(y: np.ndarray, quality: int) -> None:
    codec = HyperChunkCodec(tiny_weights())
    data = codec.encode(y, quality)
    assert np.array_equal(codec.decode(data, SHAPE), y)
    assert quality_of(data) == quality


@settings(max_examples=20, deadline=None)
@given(arrays(np.int16, SHAPE))
def test_any_int16_array_comes_back(y: np.ndarray) -> None:
    codec = HyperChunkCodec(tiny_weights())
    assert np.array_equal(codec.decode(codec.encode(y, 100), SHAPE), y)


def test_the_extremes_of_int16_come_back(codec: HyperChunkCodec) -> None:
    y = np.zeros(SHAPE, np.int16)
    y[0], y[1] = -32768, 32767
    assert np.array_equal(codec.decode(codec.encode(y, 0), SHAPE), y)


def test_a_zero_chunk_is_its_header(codec: HyperChunkCodec) -> None:
    data = codec.encode(np.zeros(SHAPE, np.int8), 42)
    assert data == bytes((42, 0, 0, 0))
    assert not codec.decode(data, SHAPE).any()


def test_zeros_beyond_the_extent_cost_nothing(codec: HyperChunkCodec) -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(-3, 4, (8, 4, 4)).astype(np.int8)
    y = np.zeros(SHAPE, np.int8)
    y[:8, :4, :4] = small
    data = codec.encode(y, 50)
    assert data[1:HEADER_BYTES] == bytes((2, 2, 2))
    assert np.array_equal(codec.decode(data, SHAPE), y)


@pytest.mark.parametrize("shape", [(CHANNELS, 6, 8), (CHANNELS + 4, 8, 8), (CHANNELS, 512, 8), (8, 8)])
def test_a_wrong_shape_is_refused(codec: HyperChunkCodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="multiple of 4"):
        codec.encode(np.zeros(shape, np.int8), 0)


@pytest.mark.parametrize(
    "header", [b"", b"\x00\x00", bytes((101, 1, 1, 1)), bytes((0, 255, 1, 1)), bytes((0, 1, 0, 1)), bytes((0, 1, 5, 1))]
)
def test_a_hostile_header_is_refused(codec: HyperChunkCodec, header: bytes) -> None:
    with pytest.raises(FormatError, match="latent chunk"):
        codec.decode(header + (bytes(8) if len(header) == 4 else b""), SHAPE)


def test_a_chunk_cut_anywhere_is_refused(codec: HyperChunkCodec) -> None:
    rng = np.random.default_rng(1)
    y = np.rint(rng.normal(0, 3, SHAPE)).astype(np.int8)
    data = codec.encode(y, 30)
    for end in range(len(data)):
        with pytest.raises(FormatError):
            codec.decode(data[:end], SHAPE)


def test_random_bytes_never_crash(codec: HyperChunkCodec) -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        data = bytes((int(rng.integers(101)), 4, 4, 4)) + rng.bytes(int(rng.integers(0, 200)))
        try:
            codec.decode(data, SHAPE)
        except FormatError:
            continue


def test_a_model_predicts_its_own_latents_better_than_noise(codec: HyperChunkCodec) -> None:
    rng = np.random.default_rng(3)
    decay = 8 * 0.85 ** np.arange(CHANNELS)
    y = np.rint(rng.normal(0, 1, SHAPE) * decay[:, None, None]).astype(np.int8)
    shuffled = rng.permuted(y, axis=0)
    assert len(codec.encode(y, 30)) < len(codec.encode(shuffled, 30))
