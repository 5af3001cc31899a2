"""Files of every format version decode for ever, to the same integers."""

import gzip
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from histocodec.codec import LatentCoder
from histocodec.formats.reader import open_compressed
from histocodec.formats.verify import verify
from histocodec.models.weights import load_model
from tests.make_golden import GOLDEN, MODEL_ID, golden_latents

VERSIONS = sorted(folder.name for folder in GOLDEN.iterdir())
PIXEL_TOLERANCE = 1  # grey values between machines: the synthesis is floating point


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict]:
    folder = GOLDEN / request.param
    packed = (folder / f"{MODEL_ID}.safetensors.gz").read_bytes()
    (tmp_path / f"{MODEL_ID}.safetensors").write_bytes(gzip.decompress(packed))
    with zipfile.ZipFile(folder / "slide.zarr.zip") as archive:
        archive.extractall(tmp_path / "slide.zarr")
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tmp_path))
    return tmp_path, json.loads((folder / "facts.json").read_text())


def test_a_golden_chunk_decodes_and_is_written_again_byte_for_byte(golden: tuple[Path, dict]) -> None:
    folder, facts = golden
    coder, chunk = LatentCoder(load_model(folder / f"{MODEL_ID}.safetensors")), bytes.fromhex(facts["chunk"])
    assert np.array_equal(coder.decode(chunk, (8, 8, 8)), golden_latents())
    assert coder.encode(golden_latents(), 37) == chunk


def test_a_golden_container_has_its_latents_and_its_pixels(golden: tuple[Path, dict]) -> None:
    folder, facts = golden
    with open_compressed(folder / "slide.zarr", device="cpu") as slide:
        assert slide.weights.sha256 == facts["model_sha256"]
        assert slide.mpp == (0.25, 0.5)
        assert slide.icc_profile == b"profile"
        latents = np.asarray(slide.latents(0)[:])
        pixels = slide.read(slide.levels[0].region, 0)
    assert hashlib.sha256(latents.astype("<i2").tobytes()).hexdigest() == facts["latents_sha256"]
    assert np.abs(pixels[::26, ::30].mean(2) - np.array(facts["mean_pixels"])).max() <= PIXEL_TOLERANCE


def test_a_golden_container_is_sound(golden: tuple[Path, dict]) -> None:
    report = verify(golden[0] / "slide.zarr", device="cpu")
    assert report.ok, report.problems
