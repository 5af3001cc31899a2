"""A model's decoder is enough to read: installed, embedded, or beside the container, one file for a folder."""

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import histocodec
from histocodec.errors import FormatError, MissingModelError, OutputError, UsageError
from histocodec.formats.container.arrays import Form, pack_values
from histocodec.formats.container.model_files import add_model, export_model, installed_models
from histocodec.formats.encode.options import EncodeOptions
from histocodec.models.decoder_file import decoder_file_name
from histocodec.models.weights import DATA_VARIABLE, MODELS_VARIABLE, ModelWeights, find_model, load_model
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.tiny import tiny_vae_weights, tiny_weights

SIZE = (300, 200)


@pytest.fixture(autouse=True)
def no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed but what the package has and a test adds."""
    monkeypatch.setenv(MODELS_VARIABLE, "")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "data"))


def encode(target: Path, weights: ModelWeights, *, seed: int = 1, **options: object) -> histocodec.EncodeReport:
    """Encode a slide with a model whose file is gone afterwards."""
    model = target.parent / "whole" / f"{weights.id}.safetensors"
    model.parent.mkdir(exist_ok=True)
    model.write_bytes(weights.data)
    slide = ArraySlide(synthetic_slide(*SIZE, seed=seed))
    chosen = {"model": str(model), "device": "cpu", "quality": 40, "overview": None, **options}
    report = histocodec.encode(slide, target, **chosen)  # type: ignore[arg-type]  # of a dict of all types
    shutil.rmtree(model.parent)
    return report


def decoded(container: Path) -> Pixels:
    with histocodec.open(container, device="cpu") as slide:
        return slide.read_array(0, 0, *SIZE)


@pytest.fixture
def expected(tmp_path: Path) -> Pixels:
    """What `encode` with the first tiny model decodes to, where the whole model is installed."""
    encode(tmp_path / "embedded.hc.zarr", tiny_weights(), embed_model=True)
    return decoded(tmp_path / "embedded.hc.zarr")


@pytest.mark.parametrize("model", [tiny_weights, tiny_vae_weights])
def test_an_installed_decoder_decodes_bit_for_bit(tmp_path: Path, model: Callable[[], ModelWeights]) -> None:
    weights = model()
    encode(tmp_path / "a.hc.zarr", weights)
    encode(tmp_path / "b.hc.zarr", weights, embed_model=True)
    with pytest.raises(MissingModelError) as raised:
        decoded(tmp_path / "a.hc.zarr")
    for word in (weights.id, weights.decoder_sha256, "`histocodec models add FILE`", "models export"):
        assert word in str(raised.value)
    (tmp_path / "got.safetensors").write_bytes(weights.decoder)
    installed, added = add_model(tmp_path / "got.safetensors")
    assert (added, installed.encodes) == (True, False)
    assert Path(installed.path).parent == tmp_path / "data" / "histocodec" / "models"
    assert np.array_equal(decoded(tmp_path / "a.hc.zarr"), decoded(tmp_path / "b.hc.zarr"))


def test_encoding_with_a_decoder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "got.safetensors").write_bytes(tiny_weights().decoder)
    add_model(tmp_path / "got.safetensors")
    for model in ("tiny-0", str(tmp_path / "got.safetensors")):
        with pytest.raises(UsageError, match=r"model tiny-0: has no analysis .* so it only decodes"):
            histocodec.encode(ArraySlide(synthetic_slide(*SIZE)), tmp_path / "a.hc.zarr", model=model, device="cpu")
    assert not (tmp_path / "a.hc.zarr").exists()


def test_an_embedded_model_is_the_decoder_alone(tmp_path: Path) -> None:
    encode(tmp_path / "a.hc.zarr", tiny_weights(), embed_model=True)
    with histocodec.open(tmp_path / "a.hc.zarr", device="cpu") as slide:
        assert slide.container.model_bytes() == tiny_weights().decoder
    assert len(tiny_weights().decoder) < len(tiny_weights().data)


def test_an_embedded_model_is_not_read_where_it_is_installed(tmp_path: Path, expected: Pixels) -> None:
    container = tmp_path / "a.hc.zarr"
    encode(container, tiny_weights(), embed_model=True)
    shutil.rmtree(container / "model")
    with pytest.raises(FormatError, match="model"):
        decoded(container)
    (tmp_path / "got.safetensors").write_bytes(tiny_weights().decoder)
    add_model(tmp_path / "got.safetensors")
    assert np.array_equal(decoded(container), expected)


def test_the_embedded_flagship_takes_1_5_megabytes() -> None:
    decoder = np.frombuffer(find_model("hyper-6").decoder, np.uint8)
    assert len(pack_values(decoder, Form(decoder.shape, "uint8"))) < 1_600_000


# Beside.


def test_one_decoder_beside_serves_a_folder_of_slides(tmp_path: Path, expected: Pixels) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    weights = tiny_weights()
    file = folder / f"tiny-0.{weights.decoder_sha256[:12]}.decoder.safetensors"
    report = encode(folder / "a.hc.zarr", weights, model_beside=True)
    assert report.model_file == str(file)
    assert file.read_bytes() == weights.decoder
    first = file.stat()
    encode(folder / "b.hc.zarr", weights, seed=2, model_beside=True)
    assert file.stat().st_ino == first.st_ino  # written once
    assert sorted(path.name for path in folder.iterdir()) == ["a.hc.zarr", "b.hc.zarr", file.name]
    assert np.array_equal(decoded(folder / "a.hc.zarr"), expected)
    assert decoded(folder / "b.hc.zarr").std() > 0


def test_a_relative_path_finds_the_decoder_beside(
    tmp_path: Path, expected: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(tmp_path / "a.hc.zarr", tiny_weights(), model_beside=True)
    monkeypatch.chdir(tmp_path / "a.hc.zarr")
    assert np.array_equal(decoded(Path(".")), expected)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(decoded(Path("a.hc.zarr")), expected)


def test_a_single_file_finds_the_decoder_beside(tmp_path: Path, expected: Pixels) -> None:
    root = tmp_path / "a.hc.zarr"
    encode(root, tiny_weights(), model_beside=True)
    with zipfile.ZipFile(tmp_path / "a.hcz", "w", zipfile.ZIP_STORED) as archive:
        archive.write(root / "zarr.json", "zarr.json")
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.relative_to(root).as_posix() != "zarr.json":
                archive.write(path, path.relative_to(root).as_posix())
    shutil.rmtree(root)
    assert np.array_equal(decoded(tmp_path / "a.hcz"), expected)


def test_zarr_decodes_the_latents_of_an_open_slide_with_the_decoder_beside(tmp_path: Path) -> None:
    weights = tiny_weights(5)  # of no other test: codecs are kept for the whole process
    encode(tmp_path / "a.hc.zarr", weights, model_beside=True)
    encode(tmp_path / "b.hc.zarr", weights, embed_model=True)
    with histocodec.open(tmp_path / "a.hc.zarr", device="cpu") as slide:
        found = np.asarray(slide.latents(0)[:])
    with histocodec.open(tmp_path / "b.hc.zarr", device="cpu") as slide:
        assert np.array_equal(found, np.asarray(slide.latents(0)[:]))


def test_the_decoder_beside_must_be_the_very_one(tmp_path: Path, expected: Pixels) -> None:
    weights, other = tiny_weights(), tiny_weights(1)
    encode(tmp_path / "a.hc.zarr", weights, model_beside=True)
    file = tmp_path / decoder_file_name(weights.id, weights.decoder_sha256)
    file.write_bytes(other.decoder)
    with pytest.raises(MissingModelError, match=f"{weights.decoder_sha256} is not installed, nor is {file.name} in"):
        decoded(tmp_path / "a.hc.zarr")
    file.write_bytes(weights.decoder[:-1])
    with pytest.raises(FormatError, match=file.name):
        decoded(tmp_path / "a.hc.zarr")
    (tmp_path / "whole.safetensors").write_bytes(weights.data)
    add_model(tmp_path / "whole.safetensors")  # what is installed is found first
    assert np.array_equal(decoded(tmp_path / "a.hc.zarr"), expected)


def test_a_file_that_is_no_decoder_is_not_replaced(tmp_path: Path) -> None:
    weights = tiny_weights()
    file = tmp_path / decoder_file_name(weights.id, weights.decoder_sha256)
    file.write_bytes(b"somebody's")
    with pytest.raises(OutputError, match=r"is not the decoder of model tiny-0, whose name it has; remove it first"):
        encode(tmp_path / "a.hc.zarr", weights, model_beside=True)
    assert file.read_bytes() == b"somebody's"
    assert not list(tmp_path.glob("a.hc.zarr*"))


def test_an_encode_that_fails_leaves_no_decoder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="level 7 does not exist"):
        encode(tmp_path / "a.hc.zarr", tiny_weights(), model_beside=True, levels=(0, 7))
    assert not list(tmp_path.glob("*.decoder.safetensors"))


def test_embedded_and_beside_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--embed-model and --model-beside exclude each other"):
        EncodeOptions(embed_model=True, model_beside=True)


# Installed.


def test_another_model_of_the_same_id_is_installed_only_on_request(tmp_path: Path, expected: Pixels) -> None:
    weights = tiny_weights()
    encode(tmp_path / "a.hc.zarr", weights)
    (tmp_path / "first.safetensors").write_bytes(weights.data)
    (tmp_path / "second.safetensors").write_bytes(tiny_weights(1).data.replace(b'"id":"tiny-1"', b'"id":"tiny-0"'))
    assert add_model(tmp_path / "first.safetensors")[1]
    assert not add_model(tmp_path / "first.safetensors")[1]
    with pytest.raises(OutputError, match="another model 'tiny-0' is installed"):
        add_model(tmp_path / "second.safetensors")
    assert find_model("tiny-0").sha256 == weights.sha256
    added, _ = add_model(tmp_path / "second.safetensors", overwrite=True)
    assert find_model("tiny-0").sha256 == added.sha256 == load_model(tmp_path / "second.safetensors").sha256
    assert np.array_equal(decoded(tmp_path / "a.hc.zarr"), expected)  # with the decoder that stayed


def test_models_are_added_to_the_first_folder_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, f"{tmp_path / 'one'}:{tmp_path / 'two'}")
    (tmp_path / "m.safetensors").write_bytes(tiny_weights().data)
    assert add_model(tmp_path / "m.safetensors")[0].path == str(tmp_path / "one" / "tiny-0.safetensors")


def test_a_home_that_nobody_may_look_into_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image that runs as another user than its HOME belongs to."""
    encode(tmp_path / "a.hc.zarr", tiny_weights(), embed_model=True)
    encode(tmp_path / "b.hc.zarr", tiny_weights(), model_beside=True)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv(DATA_VARIABLE, str(home))

    def forbidden(call: Callable[..., object]) -> Callable[..., object]:
        def checked(path: object, *args: object, **options: object) -> object:
            if str(path).startswith(f"{home}/"):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *args, **options)

        return checked

    for name in ("stat", "lstat", "scandir"):
        monkeypatch.setattr(os, name, forbidden(getattr(os, name)))
    with pytest.raises(PermissionError):
        (home / "histocodec").is_dir()
    assert find_model("hyper-6").id == "hyper-6"
    assert np.array_equal(decoded(tmp_path / "b.hc.zarr"), decoded(tmp_path / "a.hc.zarr"))
    assert [model.id for model in installed_models()[0]] == ["hyper-6", "vae-512"]
    with pytest.raises(MissingModelError, match="installed are hyper-6, vae-512"):
        find_model("nothing")


def test_a_relative_data_folder_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, "data")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "m.safetensors").write_bytes(tiny_weights().data)
    assert Path(add_model(tmp_path / "m.safetensors")[0].path).is_relative_to(tmp_path / "home" / ".local" / "share")


def test_what_is_no_model_is_not_added(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"nonsense")
    with pytest.raises(FormatError, match="not a safetensors file"):
        add_model(tmp_path / "m.safetensors")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("decoder_only", [False, True])
def test_an_exported_model_is_the_installed_one(tmp_path: Path, decoder_only: bool) -> None:
    weights = tiny_weights()
    (tmp_path / "m.safetensors").write_bytes(weights.data)
    add_model(tmp_path / "m.safetensors")
    written = export_model("tiny-0", tmp_path / "out.safetensors", decoder_only=decoder_only)
    assert (tmp_path / "out.safetensors").read_bytes() == (weights.decoder if decoder_only else weights.data)
    assert (written.encodes, written.decoder_sha256) == (not decoder_only, weights.decoder_sha256)
    with pytest.raises(OutputError, match="exists already"):
        export_model("tiny-0", tmp_path / "out.safetensors")
    export_model("tiny-0", tmp_path / "out.safetensors", overwrite=True)
    assert (tmp_path / "out.safetensors").read_bytes() == weights.data


def test_a_damaged_file_hides_no_sound_one(tmp_path: Path, expected: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "a.hc.zarr", tiny_weights())
    for name, data in (("one", b"nonsense"), ("two", tiny_weights().data)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tiny-0.safetensors").write_bytes(data)
    monkeypatch.setenv(MODELS_VARIABLE, f"{tmp_path / 'one'}:{tmp_path / 'two'}")
    assert np.array_equal(decoded(tmp_path / "a.hc.zarr"), expected)
