"""Run the command line in this process, and read what it prints."""

import json
from pathlib import Path

import pytest

from histocodec.cli.main import run

Captured = pytest.CaptureFixture[str]


def failure(capsys: Captured, *arguments: str | Path) -> tuple[int, str]:
    """Run a command that must fail. Returns the exit code and the last line on stderr, which is the error."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert lines, "nothing was said"
    assert "unexpected" not in lines[-1], lines
    return code, lines[-1]


def decoding(container: Path) -> tuple[str | Path, ...]:
    """Arguments that decode a container to out.png beside it."""
    return "decode", container, container.parent / "out.png", "--device", "cpu"


def encoding(source: Path, target: Path, model: Path, *options: str) -> tuple[str | Path, ...]:
    """Arguments that encode on the CPU."""
    return "encode", source, target, "--model", model, "--device", "cpu", *options


def all_files(path: Path) -> list[str]:
    """The paths of all files in a container, from its root."""
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def problems(capsys: Captured, path: Path, *options: str) -> tuple[int, list[str]]:
    """The exit code of `verify` and the problems it finds; a container that cannot be opened counts as one problem."""
    capsys.readouterr()
    code = run(["verify", str(path), "--json", "--device", "cpu", *options])
    printed = capsys.readouterr()
    if not printed.out:
        return code, printed.err.splitlines()
    found: list[str] = json.loads(printed.out)["problems"]
    return code, found
