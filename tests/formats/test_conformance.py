"""The same container gives the same integers everywhere, and pixels that differ by no more than is promised."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from histocodec.codec.transform import Transform
from histocodec.codec.window import pad_pixels
from histocodec.formats.container.read import open_container
from histocodec.formats.decode.verify import verify
from histocodec.geometry import Margin
from histocodec.models.config import HyperConfig
from histocodec.models.weights import DEFAULT_MODEL, find_model, load_model
from histocodec.normalise import DEFAULT_STATS, ChannelStats
from histocodec.sources.synthetic import synthetic_slide
from tests.tools.conformance import KIT, KIT_2, MODEL_ID
from tests.tools.conformance.__main__ import VARIANTS, decode, integer_pixels
from tests.tools.conformance.decode_kit import unpack
from tests.tools.conformance.integer_pixels import EXPECTED_SHA256

FACTS, FACTS_2 = (json.loads((kit / "facts.json").read_text()) for kit in (KIT, KIT_2))
LATENTS = FACTS["latents_sha256"] | FACTS_2["latents_sha256"]
SHIPPED = {torch.float32: (1, 0.0), torch.bfloat16: (4, 0.01)}  # grey values from float64; share beyond 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conformance")
    unpack(folder)
    return folder


def check(found: dict[str, dict]) -> None:
    for name, facts in found.items():
        assert facts["latents"] == facts["fast"] == LATENTS[name.partition(".")[0]], name
        assert facts["rewritten"], name
        for dtype, (most, _) in facts["pixels"].items():
            assert most <= FACTS["tolerance"][dtype], (name, dtype)


def test_the_kit_is_small_and_its_model_is_what_it_was(folder: Path) -> None:
    for kit in (KIT, KIT_2):
        assert sum(file.stat().st_size for file in kit.iterdir()) < 200_000
    assert load_model(folder / f"{MODEL_ID}.safetensors").sha256 == FACTS["model_sha256"] == FACTS_2["model_sha256"]


def test_containers_of_version_2_are_there_in_both_forms_and_sound(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTOCODEC_MODELS", str(folder))
    for name in FACTS_2["latents_sha256"]:
        for form in (f"{name}.hcz", f"{name}.hc.zarr"):
            report = verify(folder / form, device="cpu")
            assert report.ok, report.problems
            assert open_container(folder / form).attributes.version == 2


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "one-thread"])
def test_every_variant_of_this_machine_decodes_the_kit_alike(folder: Path, variant: str) -> None:
    check(decode(folder, variant))


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_an_integer_synthesis_gives_the_same_pixels_everywhere(variant: str) -> None:
    assert integer_pixels(variant) == EXPECTED_SHA256


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_an_integer_synthesis_gives_the_same_pixels_on_a_gpu() -> None:
    assert integer_pixels("cuda", "cuda") == EXPECTED_SHA256


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_a_gpu_decodes_the_kit_alike(folder: Path) -> None:
    check(decode(folder, "cuda", "--device", "cuda"))


@pytest.mark.slow
def test_what_is_encoded_without_avx_decodes_alike_with_it(tmp_path: Path) -> None:
    unpack(tmp_path)
    there = decode(tmp_path, "no-avx", "--encode", "foreign")["foreign.zarr"]
    here = decode(tmp_path, "one-thread")["foreign.zarr"]
    assert here["latents"] == here["fast"] == there["latents"]
    assert here["rewritten"]


def synthesised(transform: Transform, y: np.ndarray, stats: ChannelStats) -> np.ndarray:
    return transform.synthesise([y], Margin(), stats)[0].astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("model", [DEFAULT_MODEL, "vae-512"])
@pytest.mark.parametrize("dtype", list(SHIPPED))
def test_pixels_of_the_shipped_models_differ_by_no_more_than_is_promised(dtype: torch.dtype, model: str) -> None:
    weights, stats = find_model(model), DEFAULT_STATS
    exact, other = (Transform(weights, torch.device("cpu"), dtype=d) for d in (torch.float64, dtype))
    y = exact.analyse(pad_pixels(synthetic_slide(256, 256, seed=4), weights.config.stride), Margin(), stats)
    quality = 60
    rounded = np.rint(y * weights.gain(quality)[:, None, None])
    scaled = (rounded * weights.inverse_gain(quality)[:, None, None]).astype(np.float32)
    difference = np.abs(synthesised(other, scaled, stats) - synthesised(exact, scaled, stats))
    whole_numbers = isinstance(weights.config, HyperConfig) and weights.config.integer_synthesis
    most, share = (0, 0.0) if whole_numbers else SHIPPED[dtype]
    assert difference.max() <= most
    assert (difference > 1).mean() <= share
