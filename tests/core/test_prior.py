"""The prior: one definition, evaluated alike by training, numpy and torch, in any precision, batch and thread."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from histocodec.codec.chunk import HyperChunkCodec
from histocodec.errors import FormatError
from histocodec.kernels.instructions import NAMES
from histocodec.models.config import GROUPS, QUALITIES, HyperConfig
from histocodec.models.prior.exact import IntegerPrior
from histocodec.models.prior.fast import FastPrior, float_product, int8_product
from histocodec.models.prior.graph import accumulator_peak, check_accumulators, layers
from histocodec.models.prior.native import NativePrior
from histocodec.models.prior.training import step_mask
from histocodec.models.weights import DEFAULT_MODEL, find_model
from tests.support.tiny import TINY, tiny_network, tiny_weights

SIDE = 16


def latents(seed: int, *, spread: float = 6.0, channels: int = TINY.latent_channels) -> np.ndarray:
    rng = np.random.default_rng(seed)
    decay = spread * 0.9 ** np.arange(channels)
    return np.rint(rng.normal(0, 1, (channels, SIDE, SIDE)) * decay[:, None, None]).astype(np.int16)


@pytest.mark.parametrize("quality", [0, 37, 100])
def test_training_and_coding_evaluate_the_same_integers(quality: int) -> None:
    network, weights = tiny_network(), tiny_weights()
    y = torch.from_numpy(latents(1).astype(np.float32))[None]
    as_tensor = torch.tensor([float(quality)])
    log_gain, _ = network.gains(as_tensor)
    graph, training = network.prior.graph, network.prior.ops(as_tensor, log_gain)
    integer = IntegerPrior(weights.config, weights.arrays).ops(np.array([quality]))
    with torch.no_grad():
        z = graph.h_a(training, y)
        assert np.array_equal(z.numpy(), graph.h_a(integer, y.numpy()))
        assert np.any(z.numpy())
        h = graph.h_s(training, z)
        assert np.array_equal(h.numpy(), graph.h_s(integer, z.numpy()))
        for k in range(GROUPS):
            so_far = y * step_mask(k, *y.shape[1:])
            expected = graph.step(training, k, so_far, h)
            found = graph.step(integer, k, so_far.numpy(), h.numpy())
            for a, b in zip(expected, found, strict=True):
                assert np.array_equal(a.numpy(), b)


def codecs() -> dict[str, HyperChunkCodec]:
    """Every way in which a prior can be evaluated here."""
    weights = tiny_weights()
    ways: dict[str, FastPrior | IntegerPrior] = {
        f"{xp.__name__} {dtype}": IntegerPrior(weights.config, weights.arrays, xp=xp, dtype=dtype)
        for xp in (np, torch)
        for dtype in ("float32", "float64")
    }
    ways["bytes"] = FastPrior(weights.config, weights.arrays, int8_product())
    for number, instructions in enumerate(NAMES):
        ways[instructions] = NativePrior(weights.hyper, weights.arrays, float_product, instructions=number)
    return {name: HyperChunkCodec(weights, prior=prior) for name, prior in ways.items()}


@pytest.mark.parametrize("name", list(codecs()))
def test_every_library_and_precision_writes_and_reads_the_same_bytes(name: str) -> None:
    reference, other = HyperChunkCodec(tiny_weights()), codecs()[name]
    for seed, spread in ((1, 2.0), (2, 40.0), (3, 3000.0)):
        for quality in (0, 50, 100):
            y = latents(seed, spread=spread)
            data = reference.encode(y, quality)
            assert other.encode(y, quality) == data
            assert np.array_equal(other.decode(data, y.shape), y)


@pytest.mark.parametrize("name", ["numpy float64", "bytes", *NAMES])
def test_a_chunk_at_the_slides_edge_is_coded_alike(name: str) -> None:
    reference, other = HyperChunkCodec(tiny_weights()), codecs()[name]
    y = latents(4, spread=20.0)
    y[28:], y[:, 10:], y[:, :, 6:] = 0, 0, 0
    data = reference.encode(y, 70)
    assert data[1:4] == bytes((7, 5, 3))
    assert other.encode(y, 70) == data
    assert np.array_equal(other.decode(data, y.shape), y)


@pytest.mark.parametrize("instructions", range(len(NAMES)), ids=NAMES)
def test_native_kernels_compute_the_shipped_models_prior_exactly(instructions: int) -> None:
    weights, rng = find_model(DEFAULT_MODEL), np.random.default_rng(instructions)
    config = weights.hyper
    reference = HyperChunkCodec(weights, prior=IntegerPrior(config, weights.arrays, dtype="float64"))
    native = NativePrior(config, weights.arrays, float_product, instructions=instructions)
    for quality, shape, spread in ((0, (16, 12), 2.0), (63, (8, 20), 60.0), (100, (4, 4), 3e4)):
        decay = spread * 0.97 ** np.arange(config.latent_channels)
        y = np.rint(rng.normal(0, 1, (config.latent_channels, *shape)) * decay[:, None, None])
        y = y.clip(-32768, 32767).astype(np.int16)
        y[rng.integers(20, 200) :], y[:, rng.integers(2, shape[0]) :] = 0, 0
        data = reference.encode(y, quality)
        assert np.array_equal(HyperChunkCodec(weights, prior=native).decode(data, y.shape), y)


@pytest.mark.parametrize("instructions", range(len(NAMES)), ids=NAMES)
def test_native_kernels_are_exact_for_the_largest_weights_and_latents(instructions: int) -> None:
    """Weights and biases over the whole range of the format, so that activations are cut off at both ends."""
    config, rng = HyperConfig(latent_channels=132, hyper_channels=36, hyper_width=68, context_width=132), np.random
    generator = rng.default_rng(instructions)
    arrays: dict[str, np.ndarray] = dict(tiny_weights().arrays)
    for layer in layers(config):
        shape = (layer.outputs, 3, 3) if layer.kind == "depthwise" else (layer.outputs, layer.inputs)
        rows = QUALITIES if layer.by_quality else 1
        arrays[f"prior.{layer.name}.weight"] = generator.choice(np.array([-127, -1, 0, 2, 127], np.int8), shape)
        arrays[f"prior.{layer.name}.bias"] = generator.integers(-(1 << 17), 1 << 17, (rows, layer.outputs), np.int32)
    arrays["prior.base_index"] = generator.integers(0, 48, (QUALITIES, config.latent_channels), np.uint8)
    arrays["prior.hyper_mean"] = np.zeros((QUALITIES, config.hyper_channels), np.int16)
    reference = IntegerPrior(config, arrays, dtype="float64")
    native = NativePrior(config, arrays, float_product, instructions=instructions)
    for shape, extent in (((132, 8, 12), (33, 4, 6)), ((132, 12, 36), (7, 3, 17)), ((132, 4, 4), (32, 1, 1))):
        pair = native.chunk(70, shape, extent), reference.chunk(70, shape, extent)
        z = generator.integers(-127, 128, (36, shape[1] // 4, shape[2] // 4))
        for chunk in pair:
            chunk.begin(z)
        for k in range(GROUPS):
            found, expected = (chunk.parameters(k) for chunk in pair)
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
            values = generator.choice(np.array([-32768, -1023, -3, 0, 0, 1, 200, 32767], np.int32), len(found[0]))
            for chunk in pair:
                chunk.place(k, values)
        assert np.array_equal(pair[0].latents, pair[1].latents)


def test_native_kernels_refuse_what_the_reference_refuses() -> None:
    weights, rng = tiny_weights(), np.random.default_rng(9)
    reference = HyperChunkCodec(weights)
    native = HyperChunkCodec(weights, prior=NativePrior(weights.hyper, weights.arrays, float_product))
    refused = 0
    for seed, spread in ((1, 2.0), (2, 300.0), (3, 20000.0)):
        y = latents(seed, spread=spread)
        data = reference.encode(y, 60)
        for n in range(30):
            broken = bytearray(data)
            broken[rng.integers(4, len(data))] ^= 1 << rng.integers(8)
            cut = bytes(broken[: len(data) - (n % 3) * rng.integers(0, 9)])
            try:
                expected = reference.decode(cut, y.shape)
            except FormatError:
                refused += 1
                with pytest.raises(FormatError):
                    native.decode(cut, y.shape)
            else:
                assert np.array_equal(native.decode(cut, y.shape), expected)
        assert np.array_equal(native.decode(data, y.shape), y)
    assert refused > 60


def test_two_native_chunks_may_be_decoded_in_turns() -> None:
    weights = tiny_weights()
    native = NativePrior(weights.hyper, weights.arrays, float_product)
    reference = IntegerPrior(weights.hyper, weights.arrays)
    shape, extent = (TINY.latent_channels, SIDE, SIDE), (TINY.latent_channels // 4, SIDE // 2, SIDE // 2)
    pairs = [(native.chunk(q, shape, extent), reference.chunk(q, shape, extent)) for q in (20, 90)]
    for seed, pair in enumerate(pairs):
        z = np.random.default_rng(seed).integers(-127, 128, (TINY.hyper_channels, SIDE // 4, SIDE // 4))
        for chunk in pair:
            chunk.begin(z)
    for k in range(GROUPS):
        for seed, pair in enumerate(pairs):
            found, expected = (chunk.parameters(k) for chunk in pair)
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
            values = np.random.default_rng(10 * k + seed).integers(-40, 41, len(found[0])).astype(np.int32)
            for chunk in pair:
                chunk.place(k, values)


def test_the_product_of_bytes_is_exact_or_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (40, 384)).astype(np.int8), rng.integers(-127, 128, (24, 384)).astype(np.int8)
    exact = a.astype(np.int64) @ b.T.astype(np.int64)
    assert np.array_equal(int8_product()(a, b), exact)
    assert np.array_equal(float_product(a, b), exact)

    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = (a.int()[:, :, None] * b.int()[None]).unflatten(1, (-1, 2)).sum(2)
        return pairs.clamp(-32768, 32767).sum(1).int()

    monkeypatch.setattr(torch, "_int_mm", saturating)
    int8_product.cache_clear()
    try:
        assert int8_product() is float_product
    finally:
        int8_product.cache_clear()


def test_a_matrix_precision_that_the_caller_lowered_changes_no_bit() -> None:
    codec, y = codecs()["torch float32"], latents(5, spread=100.0)
    data = codec.encode(y, 80)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # bfloat16 inputs: the prior's have 8 bits at most
    try:
        assert codec.encode(y, 80) == data
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_batch_gives_what_its_items_give_alone() -> None:
    weights = tiny_weights()
    prior = IntegerPrior(weights.config, weights.arrays)
    items = np.stack([latents(seed) for seed in range(5)]).astype(np.float32)
    qualities = np.array([0, 20, 50, 99, 100])
    together = prior.graph.h_a(prior.ops(qualities), items)
    for i, quality in enumerate(qualities):
        alone = prior.graph.h_a(prior.ops(np.array([quality])), items[i : i + 1])
        assert np.array_equal(together[i : i + 1], alone)


def test_eight_threads_write_what_one_writes() -> None:
    codec = HyperChunkCodec(tiny_weights())
    chunks = [latents(seed) for seed in range(16)]
    alone = [codec.encode(y, 60) for y in chunks]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda y: codec.encode(y, 60), chunks)) == alone


def test_the_context_of_a_step_sees_nothing_that_is_coded_later() -> None:
    weights = tiny_weights()
    prior = IntegerPrior(weights.config, weights.arrays)
    ops = prior.ops(np.array([50]))
    covered = np.zeros((TINY.latent_channels, SIDE, SIDE), int)
    for k in range(GROUPS):
        earlier = step_mask(k, TINY.latent_channels, SIDE, SIDE).numpy()
        now = np.zeros((1, TINY.latent_channels, SIDE, SIDE), np.float32)
        ops.place(now, np.ones_like(ops.cells(now, k)), k)
        assert not np.any(earlier * now[0])
        covered += now[0].astype(int)
    assert (covered == 1).all()


def test_accumulators_of_the_full_size_stay_exact_at_any_weight_the_fan_in_allows() -> None:
    for layer in layers(HyperConfig()):
        taps = 9 if layer.kind == "depthwise" else layer.inputs
        if taps <= 256:
            weight = np.full((layer.outputs, taps), 127, np.int8)
            assert accumulator_peak(layer, weight, np.zeros((1, layer.outputs))) < 2**23, layer.name


def test_a_model_whose_accumulators_could_round_is_refused() -> None:
    arrays = dict(tiny_weights().arrays)
    name = "prior.h_a.1.bias"
    arrays[name] = np.full_like(arrays[name], 2**23)
    with pytest.raises(FormatError, match=r"h_a\.1"):
        check_accumulators(TINY, arrays)


def test_every_quality_has_its_own_parameters() -> None:
    weights = tiny_weights()
    assert weights.arrays["gain"].shape == (QUALITIES, TINY.latent_channels)
    assert (np.diff(weights.arrays["gain"], axis=0) > 0).all()
