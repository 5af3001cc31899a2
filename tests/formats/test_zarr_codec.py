"""`histocodec.latent` inside zarr: an ordinary integer array, whatever its values."""

import asyncio
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ShardingCodec

from histocodec.errors import FormatError, MissingModelError, UsageError
from histocodec.formats.container import zarr_codec
from histocodec.formats.container.zarr_codec import LatentCodec
from histocodec.models.config import HyperConfig
from histocodec.models.export import export_model
from histocodec.models.hyper import HyperModel
from histocodec.models.weights import ModelWeights

CHANNELS = 8


@pytest.fixture(scope="module")
def weights() -> ModelWeights:
    torch.manual_seed(0)
    config = HyperConfig(latent_channels=CHANNELS, hyper_channels=4, hyper_width=8, context_width=8)
    return export_model(HyperModel(config), "tiny")


@pytest.fixture(scope="module")
def codec(weights: ModelWeights) -> LatentCodec:
    zarr_codec.provide_model(weights)
    zarr_codec.register()
    return LatentCodec(weights.id, weights.sha256, 50)


def created(
    path: Path,
    codec: LatentCodec,
    *,
    dtype: str = "int8",
    side: int = 8,
    shape: tuple[int, ...] = (CHANNELS, 20, 13),
) -> "zarr.Array[Any]":
    sharding = ShardingCodec(chunk_shape=(shape[0], side, side), codecs=[codec, Crc32cCodec()])
    return zarr.create_array(
        path,
        shape=shape,
        chunks=(shape[0], 2 * side, 2 * side),
        dtype=dtype,
        serializer=sharding,
        compressors=None,
    )


def noise(shape: tuple[int, ...], dtype: str, seed: int = 0) -> NDArray[Any]:
    limits = np.iinfo(dtype)
    values = np.random.default_rng(seed).laplace(0, 3, shape)
    values.flat[:2] = limits.min, limits.max
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_any_integers_come_back_through_zarr(tmp_path: Path, codec: LatentCodec, dtype: str) -> None:
    array = created(tmp_path / "a", codec, dtype=dtype)
    values = noise(array.shape, dtype)
    array[:] = values
    again = zarr.open_array(tmp_path / "a", mode="r")
    assert again.dtype == values.dtype
    assert np.array_equal(np.asarray(again[:]), values)
    assert np.array_equal(np.asarray(again[2:5, 7:17, 3:9]), values[2:5, 7:17, 3:9])


def test_it_works_without_shards(tmp_path: Path, codec: LatentCodec) -> None:
    array = zarr.create_array(
        tmp_path / "a",
        shape=(CHANNELS, 5, 9),
        chunks=(CHANNELS, 4, 4),
        dtype="int8",
        serializer=codec,
        compressors=None,
    )
    values = noise(array.shape, "int8")
    array[:] = values
    assert np.array_equal(np.asarray(array[:]), values)


def test_the_chunk_carries_the_quality_of_the_codec(codec: LatentCodec) -> None:
    values = noise((CHANNELS, 8, 8), "int8")
    for quality in (0, 100):
        data = LatentCodec(codec.model, codec.sha256, quality).encode_chunk(values)
        assert data[0] == quality
        assert np.array_equal(codec.decode_chunk(data, values.shape, np.dtype("int8")), values)


def test_values_beyond_int8_are_not_read_as_int8(codec: LatentCodec) -> None:
    values = np.full((CHANNELS, 4, 4), 128, np.int16)
    data = codec.encode_chunk(values)
    assert np.array_equal(codec.decode_chunk(data, values.shape, np.dtype("int16")), values)
    with pytest.raises(FormatError, match="from 128 to 128; its array is int8"):
        codec.decode_chunk(data, values.shape, np.dtype("int8"))


@pytest.mark.parametrize("shape", [(CHANNELS, 6, 6), (CHANNELS, 4, 8), (CHANNELS, 4), (6, 4, 4), (CHANNELS, 0, 0)])
def test_other_chunk_shapes_are_refused(codec: LatentCodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="multiples of 4"):
        codec.encode_chunk(np.zeros(shape, np.int8))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int32"])
def test_other_dtypes_are_refused_when_the_array_is_made(tmp_path: Path, codec: LatentCodec, dtype: str) -> None:
    with pytest.raises(UsageError, match=f"arrays of {dtype}"):
        created(tmp_path / "a", codec, dtype=dtype)


def test_unsharded_arrays_of_other_shapes_are_refused_when_made(tmp_path: Path, codec: LatentCodec) -> None:
    with pytest.raises(UsageError, match="multiples of 4"):
        zarr.create_array(
            tmp_path / "a",
            shape=(8, 6, 6),
            chunks=(8, 6, 6),
            dtype="int8",
            serializer=codec,
            compressors=None,
        )


def test_a_model_of_other_channels_is_a_format_error(codec: LatentCodec) -> None:
    with pytest.raises(FormatError, match="12 channels; model tiny has 8"):
        codec.decode_chunk(bytes(4), (12, 4, 4), np.dtype("int8"))


def test_a_missing_model_is_named_when_a_chunk_is_read(tmp_path: Path, codec: LatentCodec) -> None:
    array = created(tmp_path / "a", codec)
    array[:] = noise(array.shape, "int8")
    metadata = tmp_path / "a/zarr.json"
    metadata.write_text(metadata.read_text().replace(codec.sha256, "0" * 64))
    foreign = zarr.open_array(tmp_path / "a", mode="r")
    assert foreign.shape == array.shape
    with pytest.raises(MissingModelError, match="tiny"):
        foreign[:, :4, :4]


def test_damage_within_a_chunk_is_a_format_error(codec: LatentCodec) -> None:
    data = codec.encode_chunk(noise((CHANNELS, 8, 8), "int8"))
    with pytest.raises(FormatError):
        codec.decode_chunk(data[:-3], (CHANNELS, 8, 8), np.dtype("int8"))


@pytest.mark.parametrize(
    "configuration",
    [
        None,
        {"model": "tiny", "sha256": "0" * 64},
        {"model": "tiny", "sha256": "0" * 64, "quality": 50, "more": 1},
        {"model": "../tiny", "sha256": "0" * 64, "quality": 50},
        {"model": "/etc/x.safetensors", "sha256": "0" * 64, "quality": 50},
        {"model": "x.safetensors", "sha256": "0" * 64, "quality": 50},
        {"model": 7, "sha256": "0" * 64, "quality": 50},
        {"model": "tiny", "sha256": "0" * 63, "quality": 50},
        {"model": "tiny", "sha256": "0" * 64, "quality": 101},
        {"model": "tiny", "sha256": "0" * 64, "quality": True},
    ],
)
def test_a_configuration_out_of_range_is_refused(configuration: Any) -> None:
    with pytest.raises(UsageError, match=r"histocodec\.latent"):
        LatentCodec.from_dict({"name": "histocodec.latent", "configuration": configuration})


def test_metadata_and_codec_are_two_views_of_one_thing(codec: LatentCodec) -> None:
    assert LatentCodec.from_dict(codec.to_dict()) == codec
    assert codec.to_dict()["name"] == "histocodec.latent"
    assert not codec.is_fixed_size


def test_chunks_are_decoded_off_the_event_loop(
    tmp_path: Path, codec: LatentCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = created(tmp_path / "a", codec)
    array[:] = noise(array.shape, "int8")
    loops: list[bool] = []
    decode = LatentCodec.decode_chunk

    def watched(self: LatentCodec, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        try:
            asyncio.get_running_loop()
            loops.append(True)
        except RuntimeError:
            loops.append(False)
        assert threading.current_thread() is not threading.main_thread()
        return decode(self, data, shape, dtype)

    monkeypatch.setattr(LatentCodec, "decode_chunk", watched)
    array[:]
    assert loops and not any(loops)


def test_importing_the_codec_imports_no_torch() -> None:
    modules = "histocodec.formats.container.zarr_codec, histocodec.formats.container.read"
    code = f"import sys, {modules}\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_entry_point_names_the_codec() -> None:
    found = [e for e in entry_points(group="zarr.codecs") if e.name == "histocodec.latent"]
    if not found:
        pytest.skip("the package is not installed here")
    assert found[0].load() is LatentCodec
