"""Files of every format version decode for ever, to the same integers."""

import gzip
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from histocodec.codec.chunk import HyperChunkCodec, chunk_codec
from histocodec.formats.decode.slide import open_compressed
from histocodec.formats.decode.verify import verify
from histocodec.models.weights import load_model
from tests.tools.make_golden import GOLDEN, MODEL_IDS, golden_latents

VERSIONS = sorted(folder.name for folder in GOLDEN.iterdir())
PIXEL_TOLERANCE = 2  # grey values between machines and arithmetics: the synthesis is floating point


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict]:
    folder, model_id = GOLDEN / request.param, MODEL_IDS[request.param]
    packed = (folder / f"{model_id}.safetensors.gz").read_bytes()
    (tmp_path / f"{model_id}.safetensors").write_bytes(gzip.decompress(packed))
    with zipfile.ZipFile(folder / "slide.zarr.zip") as archive:
        archive.extractall(tmp_path / "slide.zarr")
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tmp_path))
    return tmp_path / f"{model_id}.safetensors", json.loads((folder / "facts.json").read_text())


def test_a_golden_chunk_decodes_and_is_written_again_byte_for_byte(golden: tuple[Path, dict]) -> None:
    model, facts = golden
    codec, chunk = chunk_codec(load_model(model)), bytes.fromhex(facts["chunk"])
    assert np.array_equal(codec.decode(chunk, (8, 8, 8)), golden_latents())
    plain = {"z": codec.hyper_latents(golden_latents(), 37, reluctance=0)} if isinstance(codec, HyperChunkCodec) else {}
    assert codec.encode(golden_latents(), 37, **plain) == chunk


def test_a_golden_container_has_its_latents_and_its_pixels(golden: tuple[Path, dict]) -> None:
    model, facts = golden
    with open_compressed(model.parent / "slide.zarr", device="cpu") as slide:
        assert slide.weights.sha256 == facts["model_sha256"]
        assert slide.mpp == (0.25, 0.5)
        assert slide.icc_profile == b"profile"
        latents = np.asarray(slide.latents(0)[:])
        pixels = slide.read(slide.levels[0].region, 0)
    assert hashlib.sha256(latents.astype("<i2").tobytes()).hexdigest() == facts["latents_sha256"]
    assert np.abs(pixels[::26, ::30].mean(2) - np.array(facts["mean_pixels"])).max() <= PIXEL_TOLERANCE


def test_a_golden_container_is_sound(golden: tuple[Path, dict]) -> None:
    report = verify(golden[0].parent / "slide.zarr", device="cpu")
    assert report.ok, report.problems
