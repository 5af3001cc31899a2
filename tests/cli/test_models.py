"""`histocodec models`: what is installed, and how a model gets from one machine to another."""

import json
from pathlib import Path

import pytest

from histocodec.cli.main import run
from histocodec.models.weights import DATA_VARIABLE, MODELS_VARIABLE
from histocodec.sources.synthetic import synthetic_slide, write_pyramidal_tiff
from tests.support.commands import Captured, decoding, encoding, failure
from tests.support.tiny import tiny_weights


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of models, empty; nothing else is installed but what the package has."""
    monkeypatch.setenv(MODELS_VARIABLE, "")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "data"))
    return tmp_path / "data" / "histocodec" / "models"


def printed(capsys: Captured, *arguments: str | Path) -> dict[str, object]:
    capsys.readouterr()
    assert run([*(str(argument) for argument in arguments), "--json"]) == 0
    result: dict[str, object] = json.loads(capsys.readouterr().out)
    return result


def test_a_decoder_gets_from_one_machine_to_another(
    capsys: Captured, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tiny_weights()
    here = tmp_path / "here"
    here.mkdir()
    (here / "tiny-0.safetensors").write_bytes(weights.data)
    monkeypatch.setenv(MODELS_VARIABLE, str(here))
    write_pyramidal_tiff(tmp_path / "a.tif", synthetic_slide(200, 100))
    for options in ((), ("--overwrite",)):
        given = encoding(tmp_path / "a.tif", tmp_path / "a.hc.zarr", Path("tiny-0"), "--overview", "none", *options)
        assert run([str(part) for part in given]) == 0
    exported = printed(capsys, "models", "export", "tiny-0", tmp_path / "d.safetensors", "--decoder-only")
    assert (exported["encodes"], exported["sha256"]) == (False, weights.decoder_sha256)
    monkeypatch.setenv(MODELS_VARIABLE, "")  # and now the other machine
    code, line = failure(capsys, *decoding(tmp_path / "a.hc.zarr"))
    assert code == 4
    assert weights.decoder_sha256 in line
    assert "`histocodec models add FILE`" in line
    added = printed(capsys, "models", "add", tmp_path / "d.safetensors")
    assert (added["added"], added["path"]) == (
        True,
        str(folder / f"tiny-0.{weights.decoder_sha256[:12]}.decoder.safetensors"),
    )
    assert run([str(part) for part in decoding(tmp_path / "a.hc.zarr")]) == 0
    assert printed(capsys, "models", "add", tmp_path / "d.safetensors")["added"] is False
    code, line = failure(capsys, *encoding(tmp_path / "a.tif", tmp_path / "b.hc.zarr", Path("tiny-0")))
    assert (code, "it only decodes" in line) == (2, True)


def test_the_list_has_every_model_that_is_found(capsys: Captured, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "tiny-0.safetensors").write_bytes(tiny_weights().data)
    models = printed(capsys, "models", "list")["models"]
    assert isinstance(models, list)
    assert [model["id"] for model in models] == ["tiny-0", "hyper-6", "vae-512"]
    weights = tiny_weights()
    assert models[0] == {
        "id": "tiny-0", "family": "hyper", "sha256": weights.sha256, "decoder_sha256": weights.decoder_sha256,
        "bytes": len(weights.data), "encodes": True, "path": str(folder / "tiny-0.safetensors"),
    }  # fmt: skip
    assert run(["models", "list"]) == 0
    text = capsys.readouterr().out
    for word in ("hyper-6", weights.sha256, weights.decoder_sha256, "encodes and decodes", str(folder)):
        assert word in text


def test_files_that_are_not_found_by_containers_are_told(capsys: Captured, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "other.safetensors").write_bytes(tiny_weights().data)
    (folder / "broken.safetensors").write_bytes(b"nonsense")
    problems = printed(capsys, "models", "list")["problems"]
    assert isinstance(problems, list)
    assert "broken.safetensors: not a safetensors file" in problems[0]
    assert "other.safetensors: holds the model 'tiny-0'" in problems[1]
    assert "call it tiny-0.safetensors" in problems[1]
    capsys.readouterr()
    assert run(["models", "list"]) == 0
    assert "call it tiny-0.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (("export", "nothing", "x.safetensors"), 4, "'nothing' is not installed: installed are hyper-6, vae-512"),
        (("export", "hyper-6", "x.bin"), 2, "must end in .safetensors"),
        (("export", "hyper-6", "no/folder/x.safetensors"), 1, "does not exist"),
        (("add", "no.safetensors"), 4, "cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line(
    capsys: Captured, arguments: tuple[str, ...], exit_code: int, words: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, line = failure(capsys, "models", *arguments)
    assert (code, words in line) == (exit_code, True), line
    assert not list(tmp_path.iterdir())


def test_encode_says_where_the_decoder_is(capsys: Captured, tmp_path: Path, tiny_file: Path) -> None:
    write_pyramidal_tiff(tmp_path / "a.tif", synthetic_slide(200, 100))
    target, file = tmp_path / "a.hc.zarr", f"tiny-0.{tiny_weights().decoder_sha256[:12]}.decoder.safetensors"
    report = printed(capsys, *encoding(tmp_path / "a.tif", target, tiny_file, "--model-beside"))
    assert report["model_file"] == str(tmp_path / file)
    assert run([str(part) for part in encoding(tmp_path / "a.tif", target, tiny_file, "--overwrite")]) == 0
    assert "decoder in" not in capsys.readouterr().out
    options = ("--overwrite", "--model-beside")
    assert run([str(part) for part in encoding(tmp_path / "a.tif", target, tiny_file, *options)]) == 0
    assert f"decoder in {tmp_path / file}" in capsys.readouterr().out
