"""The digest can be signed with an ordinary tool: the commands of the format's page, as they stand there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import histocodec
from histocodec.formats.seal import Removals, seal
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.modules import REPOSITORY
from tests.support.pages import FENCE, pages

SECTION = pages()["formats/README.md"].partition("## Sign a container")[2].partition("\n## ")[0]
KEY, SIGN, CHECK = (match[2] for match in FENCE.finditer(SECTION))


def signs_ed25519() -> bool:
    """Whether there is an OpenSSL that signs a message with Ed25519: version 3."""
    if shutil.which("openssl") is None:
        return False
    version = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=False).stdout
    return version.startswith("OpenSSL 3")


@pytest.fixture
def folder(tmp_path: Path, tiny_file: Path) -> Path:
    """Holds a container, a key, and the container's signature."""
    slide = ArraySlide(synthetic_slide(200, 100), name="a.svs")
    options = {"model": str(tiny_file), "device": "cpu", "effort": 0, "quality": 40}
    histocodec.encode(slide, tmp_path / "slide.hc.zarr", **options)  # type: ignore[arg-type]  # of a dict of all types
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "histocodec"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m histocodec "$@"\n')
    command.chmod(0o755)
    for commands in (KEY, SIGN):
        assert shell(tmp_path, commands).returncode == 0
    return tmp_path


def shell(folder: Path, commands: str) -> subprocess.CompletedProcess[str]:
    """Run commands until one fails."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        ["sh", "-e", "-c", commands], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.skipif(not signs_ed25519(), reason="OpenSSL 3 is not installed")
def test_what_was_signed_is_checked_as_the_page_says(folder: Path) -> None:
    checked = shell(folder, CHECK)
    assert checked.returncode == 0, checked.stderr
    assert "Signature Verified Successfully" in checked.stdout
    seal(folder / "slide.hc.zarr", Removals(name=True))  # a sound container, but not the one that was signed
    assert shell(folder, CHECK).returncode == 1
    shell(folder, SIGN.splitlines()[0])  # somebody else, without the key, writes the digest anew
    assert shell(folder, CHECK).returncode == 1
    for commands in (SIGN, CHECK):
        assert shell(folder, commands).returncode == 0
