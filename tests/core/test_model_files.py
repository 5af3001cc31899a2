"""What a model file says of itself is checked when it is parsed: its header, its config, and every tensor of `g_s`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

import histocodec
from histocodec.codec.networks import synthesis_network
from histocodec.codec.transform import Transform
from histocodec.errors import FormatError, UsageError
from histocodec.geometry import Margin
from histocodec.models.config import HyperConfig, VaeConfig
from histocodec.models.prior.graph import COMPRESS_PEAK, LINEAR_CLIP, check_accumulators, layers
from histocodec.models.transforms.floating import float_synthesis_tensors
from histocodec.models.weights import ModelWeights, parse_model
from histocodec.normalise import DEFAULT_STATS
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.tiny import TINY, TINY_VAE, tiny_integer_weights, tiny_vae_weights, tiny_weights

Arrays = dict[str, np.ndarray[Any, Any]]
MODELS = [tiny_weights, tiny_integer_weights, tiny_vae_weights]


def with_header(weights: ModelWeights, change: Callable[[str], str]) -> bytes:
    """The model's file with another text as its header."""
    size = int.from_bytes(weights.data[:8], "little")
    header = change(weights.data[8 : 8 + size].decode()).encode()
    return len(header).to_bytes(8, "little") + header + weights.data[8 + size :]


def saved(weights: ModelWeights, change: Callable[[Arrays], object] = lambda arrays: None, **metadata: str) -> bytes:
    """The model's file with other tensors, and with other members of its metadata."""
    arrays = {name: array.copy() for name, array in load(weights.data).items()}
    change(arrays)
    config = weights.config
    described = {"format": "histocodec.model/1", "id": "m", "family": config.family, "config": config.to_json()}
    return save(arrays, metadata=described | metadata)


def test_the_header_is_what_it_was_if_nothing_changes() -> None:
    assert parse_model(with_header(tiny_weights(), lambda header: header), name="m").sha256 == tiny_weights().sha256


@pytest.mark.parametrize(
    ("name", "twice"),
    [("gain", '"gain":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"gain"'), ("format", '"format":"x","format"')],
)
def test_a_tensor_or_the_format_given_twice_is_refused(name: str, twice: str) -> None:
    data = with_header(tiny_weights(), lambda header: header.replace(f'"{name}"', twice, 1))
    with pytest.raises(FormatError, match=f"has the name '{name}' twice"):
        parse_model(data, name="m")


def test_a_member_of_the_config_given_twice_is_refused() -> None:
    config = TINY.to_json().replace('"anchors"', '"anchors": 3, "anchors"')
    with pytest.raises(FormatError, match="config is not understood: an object has the name 'anchors' twice"):
        parse_model(saved(tiny_weights(), config=config), name="m")


def test_metadata_are_strings() -> None:
    with pytest.raises(FormatError, match="__metadata__ is no object of strings"):
        parse_model(with_header(tiny_weights(), lambda h: h.replace('"id":"tiny-0"', '"id":7')), name="m")


@pytest.mark.parametrize("model_id", ["", "../m", "a/b", "/etc/passwd", "m.safetensors", ".hidden", "x" * 65, "a\nb"])
def test_an_id_is_never_a_path(model_id: str) -> None:
    with pytest.raises(FormatError, match=r"m: id .* is needed"):
        parse_model(saved(tiny_weights(), id=model_id), name="m")


@pytest.mark.parametrize("member", sorted(set(json.loads(TINY.to_json())) - {"integer_synthesis", "hidden16"}))
def test_a_hyper_config_lacks_nothing_that_has_no_meaning_when_absent(member: str) -> None:
    config = json.loads(TINY.to_json())
    del config[member]
    with pytest.raises(FormatError, match=f"model config: {member} is missing"):
        HyperConfig.from_json(json.dumps(config))


@pytest.mark.parametrize("member", sorted(set(json.loads(TINY_VAE.to_json())) - {"shortcut"}))
def test_a_vae_config_lacks_nothing_that_has_no_meaning_when_absent(member: str) -> None:
    config = json.loads(TINY_VAE.to_json())
    del config[member]
    with pytest.raises(FormatError, match=f"model config: {member} is missing"):
        VaeConfig.from_json(json.dumps(config))


def test_configs_of_the_first_files_are_read() -> None:
    first = json.loads(TINY.to_json())
    del first["integer_synthesis"], first["hidden16"]
    assert HyperConfig.from_json(json.dumps(first)) == TINY
    first = json.loads(TINY_VAE.to_json())
    del first["shortcut"]
    assert VaeConfig.from_json(json.dumps(first)) == TINY_VAE


@pytest.mark.parametrize(
    "change",
    [{"lambda_min": 0}, {"lambda_min": -1.0}, {"lambda_min": "1"}, {"lambda_min": True}, {"lambda_max": 1e300},
     {"lambda_max": None}, {"lambda_min": 0.1, "lambda_max": 0.05}, {"anchors": 1}, {"anchors": 102},
     {"anchors": 9.0}, {"anchors": True}, {"more": 1}],
)  # fmt: skip
def test_values_that_only_training_uses_are_checked_too(change: dict[str, object]) -> None:
    config = json.dumps({**json.loads(TINY.to_json()), **change})
    with pytest.raises(FormatError, match=f"model config: .*{next(iter(change))}"):
        HyperConfig.from_json(config)
    for token in ("NaN", "Infinity", "1e999"):
        with pytest.raises(FormatError, match="model config"):
            HyperConfig.from_json(TINY.to_json().replace(f'"lambda_max": {TINY.lambda_max}', f'"lambda_max": {token}'))


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, hidden16=8, synthesis16=(), synthesis8=(False, True, True)), TINY_VAE,
     replace(TINY_VAE, stride=128, widths=(4, 4, 8, 12), shortcut=True), replace(TINY_VAE, widths=(4, 4, 4, 4))],
)  # fmt: skip
def test_the_described_tensors_are_those_of_the_network(config: HyperConfig | VaeConfig) -> None:
    from histocodec.models.transforms.network import Synthesis
    from histocodec.models.vae.network import VaeDecoder

    network = VaeDecoder(config, folded=True) if isinstance(config, VaeConfig) else Synthesis(config)
    expected = {f"g_s.{name}": (tuple(tensor.shape), "float16") for name, tensor in network.state_dict().items()}
    assert dict(float_synthesis_tensors(config)) == expected


def first_of(arrays: Arrays) -> str:
    return next(name for name in sorted(arrays) if name.startswith("g_s.") and name.endswith("weight"))


def rename(arrays: Arrays) -> None:
    arrays["g_s.other"] = arrays.pop(first_of(arrays))


def reshape(arrays: Arrays) -> None:
    arrays[first_of(arrays)] = arrays[first_of(arrays)][..., :1, None]


def widen(arrays: Arrays) -> None:
    arrays[first_of(arrays)] = arrays[first_of(arrays)].astype(np.float32)


def add(arrays: Arrays) -> None:
    arrays["g_s.other.weight"] = np.zeros(1, np.float16)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("change", [rename, reshape, widen, add])
def test_a_synthesis_that_does_not_fit_its_config_is_refused(
    model: Callable[[], ModelWeights], change: Callable[[Arrays], None]
) -> None:
    with pytest.raises(FormatError, match=r"tensor g_s\."):
        parse_model(saved(model(), change), name="m")


@pytest.mark.parametrize("name", ["gain", "inverse_gain"])
@pytest.mark.parametrize("value", [3e38, -3e38, 2.0**20 + 1])
def test_gains_beyond_any_sense_are_refused(name: str, value: float) -> None:
    for model in MODELS:
        with pytest.raises(FormatError, match=f"{name} has the magnitude"):
            parse_model(saved(model(), lambda arrays: arrays[name].__setitem__((0, 0), value)), name="m")


def test_the_largest_input_that_accumulators_are_checked_with_is_the_largest_that_the_table_may_hold() -> None:
    assert round(16 * float(np.arcsinh(LINEAR_CLIP))) == COMPRESS_PEAK
    assert {layer.input_peak for layer in layers(TINY) if "context" in layer.name} == {COMPRESS_PEAK}
    with pytest.raises(FormatError, match=r"prior\.compress has 123; at most 122"):
        parse_model(saved(tiny_weights(), lambda a: a["prior.compress"].__setitem__(-1, COMPRESS_PEAK + 1)), name="m")
    arrays = {name: array.copy() for name, array in tiny_weights().arrays.items()}
    arrays["prior.h_a.0.bias"][:] = 2**23 - 127 * TINY.latent_channels * COMPRESS_PEAK
    arrays["prior.h_a.0.weight"][:] = 127
    with pytest.raises(FormatError, match=r"h_a\.0: its accumulator can reach 8388608"):
        check_accumulators(TINY, arrays)


def decoder_only(weights: ModelWeights) -> bytes:
    def change(arrays: Arrays) -> None:
        for name in [name for name in arrays if name.startswith(("g_a.", "reach."))]:
            del arrays[name]

    return saved(weights, change, id="decoder")


@pytest.mark.parametrize("model", MODELS)
def test_a_model_without_an_analysis_decodes(
    model: Callable[[], ModelWeights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = ArraySlide(synthetic_slide(256, 256, seed=2))
    (tmp_path / "whole.safetensors").write_bytes(model().data)
    histocodec.encode(slide, tmp_path / "a.zarr", model=str(tmp_path / "whole.safetensors"), device="cpu", quality=50)
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tmp_path))
    (tmp_path / f"{model().id}.safetensors").write_bytes(model().data)
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:
        expected = opened.read(opened.levels[0].region, 0)
    weights = parse_model(model().decoder, name="m")
    synthesis_network(weights)
    assert weights.sha256 == model().decoder_sha256
    (tmp_path / f"{model().id}.safetensors").write_bytes(weights.data)
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:
        assert opened.weights.sha256 == weights.sha256
        assert np.array_equal(opened.read(opened.levels[0].region, 0), expected)


def test_encoding_with_a_model_without_an_analysis_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "decoder.safetensors").write_bytes(decoder_only(tiny_weights()))
    slide = ArraySlide(synthetic_slide(256, 256, seed=2))
    with pytest.raises(UsageError, match=r"has no analysis \(g_a\.\*\), so it only decodes"):
        histocodec.encode(slide, tmp_path / "a.zarr", model=str(tmp_path / "decoder.safetensors"), device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"decoder.safetensors"}


@pytest.mark.parametrize("model", [tiny_weights, tiny_vae_weights])
def test_a_synthesis_that_overflows_is_an_error_not_a_colour(model: Callable[[], ModelWeights]) -> None:
    """Every weight is finite, but their product is not."""

    def enlarge(arrays: Arrays) -> None:
        for name in arrays:
            if name.startswith("g_s.") and name.endswith("weight"):
                arrays[name][...] = 60_000

    weights = parse_model(saved(model(), enlarge, id="loud"), name="m")
    window = np.full((weights.config.latent_channels, 4, 4), 1e6, np.float32)
    transform = Transform(weights, torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(FormatError, match="model loud: its synthesis goes beyond floating point"):
        transform.synthesise([window], Margin(), DEFAULT_STATS)
