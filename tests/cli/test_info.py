"""What `info` says of a container: on one screen for people, all of it as JSON, and the digest alone."""

import hashlib
import json
from pathlib import Path

import pytest
import rfc8785

from histocodec.cli.main import run
from histocodec.sources.synthetic import synthetic_slide, write_pyramidal_tiff
from tests.support.commands import encoding, failure
from tests.support.containers import written

Captured = pytest.CaptureFixture[str]
SCREEN = 50  # lines


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """Made of a TIFF without a pyramid, so that its second level is derived."""
    folder = tmp_path_factory.mktemp("info")
    write_pyramidal_tiff(folder / "slide.tif", synthetic_slide(1030, 300, seed=1), mpp=0.5, smallest=4096)
    options = ("--source-sha256", "--chunk", "256", "--quality", "40", "--effort", "0")
    assert run([str(part) for part in encoding(folder / "slide.tif", folder / "a.hc.zarr", tiny_file, *options)]) == 0
    return folder / "a.hc.zarr"


def info(capsys: Captured, *arguments: str | Path) -> str:
    capsys.readouterr()
    assert run(["info", *(str(part) for part in arguments)]) == 0
    return capsys.readouterr().out


def test_the_facts_say_what_names_a_container_and_where_it_is_from(capsys: Captured, container: Path) -> None:
    facts = json.loads(info(capsys, container, "--json"))
    stored = json.loads((container / "zarr.json").read_bytes())["attributes"]["histocodec"]
    assert {name: facts[name] for name in ("uid", "digest", "created", "generator")} == {
        name: stored[name] for name in ("uid", "digest", "created", "generator")
    }
    assert facts["settings"] == {"quality": 40, "effort": 0, "chunk": 256}
    assert facts["chunk"] == 256
    assert facts["features"] == {}
    assert facts["extensions"] == []
    assert facts["source"]["sha256"] == hashlib.sha256((container.parent / "slide.tif").read_bytes()).hexdigest()
    assert [level["derived"] for level in facts["levels"]] == [False, True]


def test_the_text_has_the_same_on_one_screen(capsys: Captured, container: Path) -> None:
    text, facts = info(capsys, container), json.loads(info(capsys, container, "--json"))
    assert len(text.splitlines()) <= SCREEN
    for word in (facts["uid"], facts["digest"], facts["created"], facts["source"]["sha256"], "256 x 256", "derived"):
        assert word in text
    assert "{" not in text


def test_digest_prints_nothing_but_the_digest(capsys: Captured, container: Path) -> None:
    stored = json.loads((container / "zarr.json").read_bytes())["attributes"]["histocodec"]
    del stored["digest"]
    assert info(capsys, container, "--digest") == hashlib.sha256(rfc8785.dumps(stored)).hexdigest() + "\n"


def test_what_has_no_digest_is_told(capsys: Captured, container: Path, tmp_path: Path) -> None:
    written(tmp_path / "old.zarr")
    code, line = failure(capsys, "info", tmp_path / "old.zarr", "--digest")
    assert (code, "version 1, which has no digest" in line) == (4, True)
    code, line = failure(capsys, "info", container.parent / "slide.tif", "--digest")
    assert (code, "not a container, so it has no digest" in line) == (4, True)


@pytest.mark.parametrize("option", [("--json",), ("--map", "a.png")])
def test_digest_goes_with_no_other_output(capsys: Captured, container: Path, option: tuple[str, ...]) -> None:
    code, line = failure(capsys, "info", container, "--digest", *option)
    assert code == 2
    assert "--digest prints one line" in line


def test_containers_of_version_1_are_described_too(capsys: Captured, tmp_path: Path) -> None:
    written(tmp_path / "old.zarr")
    facts = json.loads(info(capsys, tmp_path / "old.zarr", "--json"))
    assert (facts["uid"], facts["digest"], facts["created"], facts["settings"]) == (None, None, None, {})
    assert "digest" not in info(capsys, tmp_path / "old.zarr")
