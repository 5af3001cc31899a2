"""The variational autoencoder as a codec: its chunks, its container, its rates, its vectors."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from safetensors.numpy import load, save

import histocodec
from histocodec.codec.chunk import HyperChunkCodec, VaeChunkCodec, chunk_codec, fast_chunk_codec
from histocodec.codec.transform import Transform
from histocodec.errors import FormatError, HistocodecError, UnsupportedError, UsageError
from histocodec.formats.container.states import LOSSLESS
from histocodec.formats.decode.describe import describe
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.formats.decode.verify import verify
from histocodec.formats.embed import embed
from histocodec.geometry import Margin, Region
from histocodec.models.config import MOST_LATENTS, VaeConfig
from histocodec.models.vae.network import VaeDecoder, VaeEncoder, folded_state
from histocodec.models.weights import parse_model
from histocodec.normalise import DEFAULT_STATS
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.peak import linux_only, peak_memory
from tests.support.tiny import TINY_VAE, tiny_vae_model, tiny_vae_network, tiny_vae_patches, tiny_vae_weights
from tests.support.version2 import resealed

SHAPE = (TINY_VAE.latent_channels, 8, 8)
WITH_SHORTCUT = replace(TINY_VAE, shortcut=True)


@pytest.fixture
def codec() -> VaeChunkCodec:
    return VaeChunkCodec(tiny_vae_weights())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vae_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return synthetic_slide(1300, 900, seed=3)


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory, model: Path, pixels: Pixels) -> Path:
    path = tmp_path_factory.mktemp("vae") / "a.zarr"
    slide = ArraySlide(pixels, name="a.svs", mpp=0.25)
    histocodec.encode(slide, path, model=str(model), device="cpu", quality=70, background="code", embed_model=True)
    return path


def latents(seed: int = 0) -> np.ndarray:
    """Values as a patch has them, some beyond any table, zeros beyond a corner."""
    y = np.zeros(SHAPE, np.int16)
    y[:6, :7, :8] = np.random.default_rng(seed).normal(0, 6, (6, 7, 8)).astype(np.int16)
    y[0, 0, 0], y[5, 6, 7] = -32768, 32767
    return y


@pytest.mark.parametrize("quality", [0, 50, 100])
def test_a_chunk_comes_back(codec: VaeChunkCodec, quality: int) -> None:
    data = codec.encode(latents(), quality)
    assert np.array_equal(codec.decode(data, SHAPE), latents())
    assert data[0] == quality


def test_the_most_latents_fit_the_header() -> None:
    weights = tiny_vae_weights(replace(TINY_VAE, latent_channels=MOST_LATENTS, stride=128))
    most = VaeChunkCodec(weights)
    y = np.ones((MOST_LATENTS, 4, 4), np.int16)
    assert np.array_equal(most.decode(most.encode(y, 50), y.shape), y)


def test_a_zero_chunk_is_its_header(codec: VaeChunkCodec) -> None:
    assert codec.encode(np.zeros(SHAPE, np.int8), 3) == bytes((3, 0, 0, 0))


def test_a_family_has_its_codec() -> None:
    weights = tiny_vae_weights()
    assert isinstance(fast_chunk_codec(weights), VaeChunkCodec) and isinstance(chunk_codec(weights), VaeChunkCodec)
    with pytest.raises(UsageError, match="family vae; hyper is needed"):
        HyperChunkCodec(weights)


def test_a_chunk_cut_anywhere_is_refused(codec: VaeChunkCodec) -> None:
    data = codec.encode(latents(), 50)
    for length in range(len(data)):
        with pytest.raises(FormatError):
            codec.decode(data[:length], SHAPE)


def test_random_bytes_never_crash(codec: VaeChunkCodec) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytes((50, 2, 4, 4)) + rng.bytes(int(rng.integers(5, 200)))
        try:
            codec.decode(data, SHAPE)
        except FormatError:
            continue


def test_a_damaged_chunk_is_refused_or_decodes_to_integers(codec: VaeChunkCodec) -> None:
    sound, rng, refused = codec.encode(latents(), 50), np.random.default_rng(1), 0
    for _ in range(500):
        damaged = bytearray(sound)
        for place in rng.integers(0, len(sound), int(rng.integers(1, 4))):
            damaged[place] ^= int(rng.integers(1, 256))
        try:
            values = codec.decode(bytes(damaged), SHAPE)
        except FormatError:
            refused += 1
        else:
            assert (values.shape, values.dtype) == (SHAPE, np.int16)
    assert refused > 400


def test_tables_fit_the_latents_of_the_model(codec: VaeChunkCodec) -> None:
    """Its own latents cost less than the same numbers in other channels."""
    transform = Transform(codec.weights, torch.device("cpu"), dtype=torch.float32)
    y = transform.analyse(synthetic_slide(512, 512, seed=1), Margin(), DEFAULT_STATS)
    own = np.floor(y * codec.weights.gain(60)[:, None, None] + 0.5).astype(np.int16)
    mixed = own[::-1].copy()
    assert len(codec.encode(own, 60)) < len(codec.encode(mixed, 60))


@pytest.mark.parametrize("config", [TINY_VAE, WITH_SHORTCUT])
def test_batch_norms_are_folded_exactly(config: VaeConfig) -> None:
    network = tiny_vae_network(config)
    patches = tiny_vae_patches(64)[:4]
    encoder, decoder = VaeEncoder(config, folded=True), VaeDecoder(config, folded=True)
    encoder.load_state_dict(folded_state(network.g_a))
    decoder.load_state_dict(folded_state(network.g_s))
    with torch.no_grad():
        mean, _ = network.posterior(patches)
        assert torch.allclose(encoder(patches), mean, atol=1e-4)
        assert torch.allclose(decoder(mean), network.g_s(mean), atol=1e-4)


@pytest.mark.parametrize("config", [TINY_VAE, WITH_SHORTCUT])
def test_windows_are_their_patches(config: VaeConfig) -> None:
    weights = tiny_vae_weights(config)
    transform = Transform(weights, torch.device("cpu"), dtype=torch.float32)
    image = synthetic_slide(192, 128, seed=2)
    y = transform.analyse(image, Margin(), DEFAULT_STATS)
    alone = transform.analyse(np.ascontiguousarray(image[64:128, 128:192]), Margin(), DEFAULT_STATS)
    assert y.shape == (32, 2, 3)
    assert np.allclose(y[:, 1, 2], alone[:, 0, 0], atol=1e-4)
    whole = transform.synthesise([y], Margin(), DEFAULT_STATS)[0]
    part = transform.synthesise([y[:, 1:2, 2:3]], Margin(), DEFAULT_STATS)[0]
    assert np.abs(whole[64:128, 128:192].astype(int) - part).max() <= 1


def test_a_container_says_what_it_is_and_decodes_anywhere(container: Path, pixels: Pixels) -> None:
    with histocodec.open(container, device="cpu") as slide:
        assert isinstance(slide, CompressedSlide)
        model = slide.container.attributes.model
        assert (model.family, model.stride, slide.container.attributes.chunk) == ("vae", 64, 8)
        assert slide.latents(0).shape == (32, 15, 21)
        whole = slide.read(slide.levels[0].region, 0)
        assert whole.shape == pixels.shape
        for region in (Region(0, 0, 1, 1), Region(500, 500, 30, 30), Region(1290, 890, 10, 10), Region(63, 0, 2, 900)):
            assert np.array_equal(slide.read(region, 0), whole[region.within(Region(0, 0, 1300, 900))])
    assert verify(container, device="cpu").ok


def test_info_names_the_family_and_the_stride(container: Path) -> None:
    facts = describe(container)
    assert (facts["model_family"], facts["stride"], facts["channels"]) == ("vae", 64, 32)


def test_zarr_reads_the_latents(container: Path) -> None:
    with histocodec.open(container, device="cpu") as slide:
        latents = np.asarray(slide.latents(0)[:])
        slide.container.latents(0)  # gives zarr's codec the embedded model
        array = zarr.open_array(container / "latents/0", mode="r")
        assert np.array_equal(np.asarray(array[:]), latents)


@pytest.mark.parametrize("config", [replace(TINY_VAE, stride=32), replace(TINY_VAE, stride=128), WITH_SHORTCUT])
def test_other_shapes_work(config: VaeConfig, tmp_path: Path, pixels: Pixels) -> None:
    model = tiny_vae_model(tmp_path, config)
    path = tmp_path / "a.zarr"
    report = histocodec.encode(ArraySlide(pixels), path, model=str(model), device="cpu", quality=90, embed_model=True)
    assert report.chunks > 0
    assert verify(path, device="cpu").ok


@pytest.mark.parametrize("ratio", [None, 400])
def test_a_ratio_is_met_from_above_by_less_than_five_per_cent(ratio: int | None, model: Path, tmp_path: Path) -> None:
    slide = ArraySlide(synthetic_slide(3000, 2600, seed=8))
    report = histocodec.encode(
        slide, tmp_path / "a.zarr", model=str(model), device="cpu", ratio=ratio, levels=(0,), overview=None
    )
    wanted = ratio or TINY_VAE.ratio
    assert wanted is not None
    assert wanted <= report.ratio_raw <= 1.05 * wanted


def test_a_slide_too_small_for_the_model_is_told_what_to_do(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"at which model tiny-vae-64 aims, .*--quality"):
        histocodec.encode(ArraySlide(synthetic_slide(200, 200)), tmp_path / "a.zarr", model=str(model), device="cpu")
    assert not (tmp_path / "a.zarr").exists()


def test_a_slide_too_small_for_the_model_is_encoded_as_its_error_says(model: Path, tmp_path: Path) -> None:
    slide = ArraySlide(synthetic_slide(600, 600, seed=3))
    with pytest.raises(UsageError, match="the container's own files") as refused:
        histocodec.encode(slide, tmp_path / "a.zarr", model=str(model), device="cpu")
    options = re.search(r"--ratio (\S+) or less fits, or --quality (\d+) takes", str(refused.value))
    assert options is not None
    ratio, quality = float(options[1]), int(options[2])
    assert histocodec.encode(slide, tmp_path / "b.zarr", model=str(model), device="cpu", ratio=ratio).ratio_raw >= ratio
    histocodec.encode(slide, tmp_path / "c.zarr", model=str(model), device="cpu", quality=quality)


def test_a_quality_between_two_is_refused(model: Path, tmp_path: Path, pixels: Pixels) -> None:
    with pytest.raises(UsageError, match=r"--quality 70\.5: model tiny-vae-64 is of the family vae, .* integers"):
        histocodec.encode(ArraySlide(pixels), tmp_path / "a.zarr", model=str(model), device="cpu", quality=70.5)
    assert not (tmp_path / "a.zarr").exists()


def test_effort_is_refused(model: Path, tmp_path: Path, pixels: Pixels) -> None:
    with pytest.raises(UsageError, match="--effort 2: model tiny-vae-64 is of the family vae"):
        histocodec.encode(ArraySlide(pixels), tmp_path / "a.zarr", model=str(model), device="cpu", effort=2)
    assert not (tmp_path / "a.zarr").exists()


def test_a_floor_is_held(model: Path, tmp_path: Path, pixels: Pixels) -> None:
    report = histocodec.encode(
        ArraySlide(pixels[:600, :600]), tmp_path / "a.zarr", model=str(model), device="cpu", quality=50, min_psnr=40,
        embed_model=True,
    )  # fmt: skip
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as slide:
        tiles = slide.container.tiles(0)
    assert report.worst_psnr is not None and report.worst_psnr >= 40
    assert (tiles == LOSSLESS).any()  # an untrained model holds it in no other way


def test_there_is_a_vector_for_each_patch_of_tissue(container: Path) -> None:
    found = embed(container)
    assert found.kind.embedder == "mean/1"
    assert found.patch_side == 64
    assert found.vectors.shape[1] == 32
    assert 0 < len(found.vectors) <= 15 * 21
    assert set(np.unique(found.positions % 64)) == {0}
    with histocodec.open(container, device="cpu") as slide:
        x, y = (int(v) // 64 for v in found.positions[0])
        quality = slide.container.attributes.levels[0].quality
        scaled = np.asarray(slide.latents(0)[:, y, x]) * slide.weights.inverse_gain(quality)
    assert np.allclose(found.vectors[0], scaled, rtol=1e-3, atol=1e-3)


def with_metadata(**changes: str) -> bytes:
    data = tiny_vae_weights().data
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    return save(load(data), metadata={**metadata, **changes})


def test_a_model_of_an_unknown_family_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="of the family 'flow'; this version knows hyper, vae"):
        parse_model(with_metadata(family="flow"), name="x")


def test_a_model_without_its_tensors_is_refused() -> None:
    arrays = load(tiny_vae_weights().data)
    metadata = {"format": "histocodec.model/1", "id": "x", "family": "vae", "config": TINY_VAE.to_json()}
    del arrays["prior.latent_index"]
    with pytest.raises(FormatError, match=r"prior\.latent_index is missing"):
        parse_model(save(arrays, metadata=metadata), name="x")
    arrays["prior.latent_index"] = np.full((101, 32), 48, np.uint8)
    with pytest.raises(FormatError, match=r"prior\.latent_index has 48; at most 47"):
        parse_model(save(arrays, metadata=metadata), name="x")


@pytest.mark.parametrize(
    "change",
    [{"stride": 16}, {"stride": 64.0}, {"latent_channels": 6}, {"latent_channels": 1024}, {"widths": [4, 8, 8]},
     {"widths": [4, 8, 8, 5000]}, {"ratio": 0}, {"ratio": True}, {"bottleneck": "8"}, {"shortcut": 1}, {"more": 1},
     {"widths": None}],
)  # fmt: skip
def test_a_hostile_config_is_refused(change: dict[str, object]) -> None:
    config = {**json.loads(TINY_VAE.to_json()), **change}
    with pytest.raises(FormatError, match="model config"):
        VaeConfig.from_json(json.dumps(config))


@linux_only
def test_a_config_that_promises_more_than_the_file_has_allocates_nothing() -> None:
    arrays = load(tiny_vae_weights().data)
    config = replace(TINY_VAE, widths=(1024,) * 4, bottleneck=1024, stride=128)  # 300 million parameters
    metadata = {"format": "histocodec.model/1", "id": "x", "family": "vae", "config": config.to_json()}
    data = save(arrays, metadata=metadata)
    before = peak_memory()
    with pytest.raises(FormatError, match=r"tensor g_s\.dense\.weight is float16"):
        parse_model(data, name="x")
    assert peak_memory() - before < 64


def test_a_container_that_lies_about_its_model_is_refused(container: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy.zarr"
    shutil.copytree(container, copy)
    resealed(copy, lambda value: value["model"].update(stride=32))
    with pytest.raises(HistocodecError, match="stride 32"):
        histocodec.open(copy, device="cpu")
