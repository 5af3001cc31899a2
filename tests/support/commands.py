"""Commands of the tests, and what they say."""

import json
from pathlib import Path

import pytest

from histocodec.cli.main import run

Captured = pytest.CaptureFixture[str]


def failure(capsys: Captured, *arguments: str | Path) -> tuple[int, str]:
    """The exit code, and the only line on stderr; a traceback would be more than one."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert lines, "nothing was said"
    assert "unexpected" not in lines[-1], lines
    return code, lines[-1]


def decoding(container: Path) -> tuple[str | Path, ...]:
    return "decode", container, container.parent / "out.png", "--device", "cpu"


def encoding(source: Path, target: Path, model: Path, *options: str) -> tuple[str | Path, ...]:
    return "encode", source, target, "--model", model, "--device", "cpu", *options


def all_files(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def problems(capsys: Captured, path: Path, *options: str) -> tuple[int, list[str]]:
    """What `verify` finds; a container that cannot even be opened is one problem."""
    capsys.readouterr()
    code = run(["verify", str(path), "--json", "--device", "cpu", *options])
    printed = capsys.readouterr()
    if not printed.out:
        return code, printed.err.splitlines()
    found: list[str] = json.loads(printed.out)["problems"]
    return code, found
