"""Files of every format version decode for ever, to the same integers."""

import gzip
import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histocodec.codec.chunk import HyperChunkCodec, chunk_codec
from histocodec.formats.container.states import CODED, LOSSLESS
from histocodec.formats.decode.slide import open_compressed
from histocodec.formats.decode.verify import verify
from histocodec.models.weights import load_model
from tests.tools.make_golden import GOLDEN, MODEL_IDS, golden_latents

PIXEL_TOLERANCE = 2  # grey values between machines and arithmetics: the synthesis is floating point
CONTAINERS = sorted((file.parent.name, file.name) for file in GOLDEN.glob("*/*.zarr.zip"))


@dataclass(frozen=True)
class Golden:
    """A container and its model, unpacked, and what is known of it."""

    model: Path
    container: Path
    facts: dict[str, Any]


@pytest.fixture(params=CONTAINERS, ids="/".join)
def golden(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Golden:
    version, name = request.param
    folder, model = GOLDEN / version, f"{MODEL_IDS[version]}.safetensors"
    (tmp_path / model).write_bytes(gzip.decompress((folder / f"{model}.gz").read_bytes()))
    with zipfile.ZipFile(folder / name) as archive:
        archive.extractall(tmp_path / "slide.zarr")
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tmp_path))
    facts = json.loads((folder / "facts.json").read_text())
    return Golden(tmp_path / model, tmp_path / "slide.zarr", {**facts, **facts.get(name.partition(".")[0], {})})


def test_there_are_golden_files_of_every_version_and_family() -> None:
    assert {version for version, _ in CONTAINERS} == set(MODEL_IDS)
    assert len(CONTAINERS) == 6


def test_a_golden_chunk_decodes_and_is_written_again_byte_for_byte(golden: Golden) -> None:
    codec, chunk = chunk_codec(load_model(golden.model)), bytes.fromhex(golden.facts["chunk"])
    assert np.array_equal(codec.decode(chunk, (8, 8, 8)), golden_latents())
    plain = {"z": codec.hyper_latents(golden_latents(), 37, reluctance=0)} if isinstance(codec, HyperChunkCodec) else {}
    assert chunk in (codec.encode(golden_latents(), 37), codec.encode(golden_latents(), 37, **plain))


def test_a_golden_container_has_its_latents_and_its_pixels(golden: Golden) -> None:
    facts = golden.facts
    with open_compressed(golden.container, device="cpu") as slide:
        attributes = slide.container.attributes
        assert slide.weights.sha256 in (facts["model_sha256"], facts.get("decoder_sha256"))
        assert slide.mpp == (0.25, 0.5)
        assert slide.icc_profile == b"profile"
        latents = np.asarray(slide.latents(0)[:])
        pixels = slide.read(slide.levels[0].region, 0)
        states = slide.container.tiles(0)
    assert hashlib.sha256(latents.astype("<i2").tobytes()).hexdigest() == facts["latents_sha256"]
    lossless = "lossless" in attributes.provenance.features
    assert (states == (LOSSLESS if lossless else CODED)).all()
    tolerance = 0.01 if lossless else PIXEL_TOLERANCE
    assert np.abs(pixels[::26, ::30].mean(2) - np.array(facts["mean_pixels"])).max() <= tolerance
    if attributes.version > 1:
        provenance = attributes.provenance
        found = (provenance.digest, provenance.uid, provenance.created)
        assert found == (facts["digest"], facts["uid"], facts["created"])


def test_a_golden_container_is_sound(golden: Golden) -> None:
    report = verify(golden.container, device="cpu")
    assert report.ok, report.problems


def test_versions_1_and_2_share_their_models() -> None:
    for family in ("", "-vae"):
        old, new = (json.loads((GOLDEN / f"{version}{family}/facts.json").read_text()) for version in ("v1", "v2"))
        assert old["model_sha256"] == new["model_sha256"]
        assert old["chunk"] == new["chunk"]
