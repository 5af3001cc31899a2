"""What a GPU computes is what the CPU computes, bit for bit. Without a GPU its kernels run in Triton's interpreter."""

import os
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is loaded
pytest.importorskip("triton", reason="Triton is not installed")

import histocodec
from histocodec.codec.chunk import HyperChunkCodec
from histocodec.codec.gpu import layers, synthesis
from histocodec.codec.gpu.chunk import GpuChunkDecoder, Latents
from histocodec.codec.gpu.synthesis import TritonEngine, denormalise, kernels_exact
from histocodec.codec.transform import Transform
from histocodec.entropy import rans
from histocodec.formats.decode.chunks import ChunkReader
from histocodec.formats.decode.gpu import GpuRegions
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.geometry import Margin, Region
from histocodec.models.transforms.exact import IntegerSynthesis
from histocodec.models.transforms.fast import fastest_engine
from histocodec.models.transforms.network import Hidden
from histocodec.normalise import ChannelStats
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.tiny import TINY, tiny_integer_weights
from tests.support.version2 import make_lossless

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
SIDE = 8
SHAPE = (TINY.latent_channels, SIDE, SIDE)
SIZE = (544, 528)
BACKGROUND = (240, 241, 239)


@pytest.fixture(autouse=True)
def for_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams of as many lanes as there can be, and large programs: it takes as long for one number as for many."""
    monkeypatch.setattr(rans, "BYTES_PER_LANE", 4)
    if DEVICE.type == "cpu":
        for module in (layers, synthesis):
            monkeypatch.setattr(module, "POSITIONS", 1024)
        monkeypatch.setattr(synthesis, "FULL_POSITIONS", 1024)
        monkeypatch.setattr(layers, "ROWS", 2048)


@pytest.fixture(scope="module")
def cpu_codec() -> HyperChunkCodec:
    return HyperChunkCodec(tiny_integer_weights())


@pytest.fixture(scope="module")
def decoder() -> GpuChunkDecoder:
    return GpuChunkDecoder(tiny_integer_weights(), DEVICE)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two by two chunks: tissue, a background chunk at (0, 0), and one stored losslessly at (1, 0)."""
    folder = tmp_path_factory.mktemp("gpu")
    model = folder / "integer.safetensors"
    model.write_bytes(tiny_integer_weights().data)
    image = synthetic_slide(*SIZE, seed=6)
    image[:512, :512] = BACKGROUND
    source = ArraySlide(image, background=BACKGROUND)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rans, "BYTES_PER_LANE", 4)
        histocodec.encode(
            source, folder / "a.zarr", model=str(model), device="cpu", embed_model=True, effort=0, quality=10
        )
    make_lossless(folder / "a.zarr", source, 0, 1, 0)
    return folder / "a.zarr"


def some_latents(seed: int = 0, *, spread: float = 2.0, quads: int = SHAPE[0] // 4, rows: int = SIDE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y = np.zeros(SHAPE, np.int16)
    y[: 4 * quads, :rows] = np.rint(rng.laplace(size=(4 * quads, rows, SIDE)) * spread)
    return y


def natural(latents: Latents) -> np.ndarray:
    """(B, C, n, n)"""
    y = latents.y.permute(0, 4, 3, 1, 2).cpu().numpy()
    return y.reshape(len(y), -1, *y.shape[3:])


def test_the_kernels_are_believed_here() -> None:
    assert kernels_exact(DEVICE)


@pytest.mark.parametrize("spread", [1.0, 40.0])
@pytest.mark.parametrize("margin", [Margin(), Margin(3, 2, 0, 1)])
def test_the_synthesis_is_that_of_the_cpu(spread: float, margin: Margin) -> None:
    weights = tiny_integer_weights()
    config = weights.hyper
    latents = torch.from_numpy(np.random.default_rng(1).normal(size=(2, config.latent_channels, 9, 8)) * spread).float()
    engine = TritonEngine(config, weights.arrays, DEVICE)
    seen, wanted = Hidden(), Hidden()
    stats = ChannelStats(np.array([180, 140, 170], np.float32), np.array([41, 37, 29], np.float32))
    with torch.inference_mode():
        found = IntegerSynthesis(config, engine).window(latents.to(DEVICE), margin, seen)
        expected = IntegerSynthesis(config, fastest_engine(config, weights.arrays, CPU)).window(latents, margin, wanted)
    assert torch.equal(found.cpu(), expected)
    assert np.array_equal(denormalise(found, stats).cpu().numpy(), np.stack(Transform.denormalise(expected, stats)))
    for ours, theirs in zip(chain(*seen), chain(*wanted), strict=True):
        assert np.array_equal(ours.cpu().numpy(), theirs.numpy())


def test_the_encoder_gets_the_same_error_and_its_derivative() -> None:
    """Activations are held in another way here, and the derivative asks which are 0."""
    weights = tiny_integer_weights()
    stats = ChannelStats(np.array([180, 140, 170], np.float32), np.array([41, 37, 29], np.float32))
    rng = np.random.default_rng(2)
    latents = torch.from_numpy(np.rint(rng.normal(size=(1, weights.config.latent_channels, 6, 6))).astype(np.float32))
    image, margin = rng.integers(0, 256, (64, 64, 3), np.uint8), Margin(1, 1, 1, 1)
    plain, other = Transform(weights, CPU, dtype=torch.float32), Transform(weights, DEVICE, dtype=torch.float32)
    other.g_s = IntegerSynthesis(weights.hyper, TritonEngine(weights.hyper, weights.arrays, DEVICE))
    error, slope = plain.error_and_gradient(latents, margin, stats, image)
    found, change = other.error_and_gradient(latents.to(DEVICE), margin, stats, image)
    assert slope is not None
    assert change is not None
    assert np.array_equal(found, error)
    assert np.abs(change - slope).max() < 1e-4 * np.abs(slope).max()


def test_chunks_are_decoded_to_the_integers_that_were_coded(
    cpu_codec: HyperChunkCodec, decoder: GpuChunkDecoder
) -> None:
    far = some_latents(3, spread=60)
    far[0, 1, 2], far[5, 3, 3], far[47, 7, 7] = 32767, -32768, 3000  # beyond every table
    chunks = [some_latents(), some_latents(1, quads=3, rows=4), np.zeros(SHAPE, np.int16), far]
    qualities = [50, 0, 33, 100]
    found = decoder.decode([cpu_codec.encode(y, q) for y, q in zip(chunks, qualities, strict=True)], SIDE)
    assert found.sound.all()
    assert found.quality.tolist() == qualities
    assert np.array_equal(natural(found), np.stack(chunks))


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_writer_may_choose_the_lanes(
    cpu_codec: HyperChunkCodec, decoder: GpuChunkDecoder, monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    monkeypatch.setattr(rans, "MAX_LANES", lanes)
    y = some_latents(4, quads=4)
    found = decoder.decode([cpu_codec.encode(y, 40)], SIDE)
    assert found.sound.all()
    assert np.array_equal(natural(found)[0], y)


def test_broken_streams_are_told_from_sound_ones(cpu_codec: HyperChunkCodec, decoder: GpuChunkDecoder) -> None:
    y = some_latents(5, quads=2)
    y[2, 2, 2] = 2000
    whole = cpu_codec.encode(y, 40)
    rng = np.random.default_rng(0)
    tried = [whole, whole[:-1], whole[:4], whole[:30], whole + b"\0", b"", b"\xff" + whole[1:], b"\x28\xff" + whole[2:]]
    for _ in range(6):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        tried.append(bytes(data))
    found = decoder.decode(tried, SIDE)
    sound = []
    for n, data in enumerate(tried):
        try:
            expected = cpu_codec.decode(data, SHAPE)
        except histocodec.FormatError:
            sound.append(False)
        else:
            sound.append(True)
            assert np.array_equal(natural(found)[n], expected)
    assert found.sound.tolist() == sound
    assert sound[0] and not any(sound[1:8])


@pytest.mark.parametrize(
    "region",
    [
        pytest.param(Region(0, 0, *SIZE), id="all"),
        pytest.param(Region(500, 490, 44, 38), id="where four meet"),
        pytest.param(Region(520, 5, 20, 40), id="inside a block"),
        pytest.param(Region(10, 20, 30, 40), id="background alone"),
        pytest.param(Region(10, 20, 0, 40), id="nothing"),
    ],
)
def test_regions_are_those_of_the_cpu(path: Path, region: Region) -> None:
    with open_compressed(path, device="cpu") as slide, open_compressed(path, device=str(DEVICE)) as other:
        found = GpuRegions(other.decoder.reader, DEVICE).region(0, region)
        assert found.device.type == DEVICE.type
        assert np.array_equal(found.cpu().numpy(), slide.read(region, 0))


def test_strips_do_not_show(path: Path) -> None:
    region = Region(500, 3, 40, 520)
    pixels = np.zeros((region.height, region.width, 3), np.uint8)
    with open_compressed(path, device="cpu") as slide, open_compressed(path, device=str(DEVICE)) as other:
        regions = GpuRegions(other.decoder.reader, DEVICE)
        regions.strip_chunks = 1
        regions.copy(0, region, pixels)
        assert np.array_equal(pixels, slide.read(region, 0))


def test_what_is_broken_is_named_as_on_the_cpu(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a.zarr"
    shutil.copytree(path, copy)
    (shard,) = (file for file in (copy / "latents/0" / "c").rglob("*") if file.is_file())
    shard.write_bytes(b"\1" + shard.read_bytes()[1:])
    said = []
    for device in (CPU, DEVICE):
        with open_compressed(copy, device=str(device)) as slide, pytest.raises(histocodec.FormatError) as caught:
            if device is CPU:
                slide.read(Region(0, 0, *SIZE), 0)
            else:
                GpuRegions(slide.decoder.reader, DEVICE).region(0, Region(0, 0, *SIZE))
        said.append(str(caught.value))
    assert said[0] == said[-1]


@pytest.mark.parametrize("sound", [False, True])
def test_a_chunk_that_the_gpu_refuses_or_gets_wrong_is_the_cpus(
    path: Path, monkeypatch: pytest.MonkeyPatch, sound: bool
) -> None:
    """Where its stream looks sound, its check tells."""
    plain = GpuChunkDecoder.decode

    def doubtful(self: GpuChunkDecoder, chunks: list[bytes], side: int) -> Latents:
        found = plain(self, chunks, side)
        found.y[0] = 9
        found.sound[0] = sound
        return found

    decoded = []
    plain_decode = ChunkReader.decode
    monkeypatch.setattr(GpuChunkDecoder, "decode", doubtful)
    monkeypatch.setattr(ChunkReader, "decode", lambda self, key: decoded.append(key) or plain_decode(self, key))
    region = Region(530, 515, 14, 10)
    with open_compressed(path, device="cpu") as slide, open_compressed(path, device=str(DEVICE)) as other:
        found = GpuRegions(other.decoder.reader, DEVICE).region(0, region)
        assert len(decoded) == 1
        assert np.array_equal(found.cpu().numpy(), slide.read(region, 0))


@pytest.mark.parametrize("place", [(500, 490, 40, 30), (-20, -30, 60, 50), (530, 520, 60, 60), (700, 700, 9, 9)])
def test_a_tensor_is_what_read_array_gives(path: Path, place: tuple[int, int, int, int]) -> None:
    """Beyond the edge it is background; with a GPU's kernels and without them."""
    with open_compressed(path, device="cpu") as slide:
        expected = slide.read_array(*place)
        assert np.array_equal(slide.read_tensor(*place).numpy(), expected)
    with CompressedSlide(path, device=str(DEVICE)) as other:
        other.decoder.__dict__["gpu_regions"] = GpuRegions(other.decoder.reader, DEVICE)
        assert np.array_equal(other.read_tensor(*place).cpu().numpy(), expected)


def test_large_regions_are_read_by_the_kernels(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histocodec.formats.decode.slide.GPU_PIXELS", 400)
    asked = []
    plain = GpuRegions.region
    monkeypatch.setattr(GpuRegions, "region", lambda *given: asked.append(given[2]) or plain(*given))
    with open_compressed(path, device="cpu") as slide, CompressedSlide(path, device=str(DEVICE)) as other:
        other.decoder.__dict__["gpu_regions"] = GpuRegions(other.decoder.reader, DEVICE)
        for region in (Region(520, 510, 30, 30), Region(520, 510, 10, 10)):
            assert np.array_equal(other.read(region, 0), slide.read(region, 0))
    assert asked == [Region(520, 510, 24, 18)]
