"""The command line: one line and the right exit code for whatever goes wrong, results on stdout alone."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from histocodec.cli import main
from histocodec.cli.main import COMMANDS, commands, run
from histocodec.cli.options import SectionedCommand, box, level_list, ratio
from histocodec.errors import FormatError, HistocodecError, UnsupportedError, UsageError
from histocodec.report import progress_bar
from histocodec.sources.synthetic import synthetic_slide, write_pyramidal_tiff
from histocodec.text import count_text, jsonable, ratio_text, size_text, speed_text, time_text

Captured = pytest.CaptureFixture[str]


def failure(capsys: Captured, *arguments: str) -> tuple[int, str]:
    """The exit code and the one line on stderr; nothing may be on stdout."""
    code = run(arguments)
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("histocodec: error: ")
    return code, lines[0]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "slide.tif"
    write_pyramidal_tiff(path, synthetic_slide(1100, 900, seed=1), mpp=0.5)
    return path


# Help and usage.


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(capsys: Captured, command: str) -> None:
    assert run([command, "--help"]) == 0
    printed = capsys.readouterr()
    assert f"histocodec {command}" in printed.out.split("Example", maxsplit=1)[1]
    assert printed.err == ""


def every_command() -> Iterator[tuple[str, click.Command]]:
    """Each command with its name, those of a group among them: `index build`."""
    context = click.Context(commands)
    for name in COMMANDS:
        command = commands.get_command(context, name)
        assert command is not None
        yield name, command
        for part, nested in getattr(command, "commands", {}).items():
            yield f"{name} {part}", nested


EVERY_COMMAND = dict(every_command())


@pytest.mark.parametrize("name", EVERY_COMMAND)
def test_the_examples_of_the_help_are_accepted(name: str) -> None:
    lines = [line.strip() for line in (EVERY_COMMAND[name].help or "").splitlines()]
    examples = [shlex.split(line)[1:] for line in lines if line.startswith("histocodec ")]
    assert examples
    for first, *rest in examples:
        if isinstance(EVERY_COMMAND[first], click.Group):
            first, rest = f"{first} {rest[0]}", rest[1:]
        with EVERY_COMMAND[first].make_context(first, rest):
            pass


@pytest.mark.parametrize("name", EVERY_COMMAND)
def test_every_option_has_a_help_text_and_a_section(name: str) -> None:
    command = EVERY_COMMAND[name]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.opts for option in options if not option.help] == []
    if isinstance(command, SectionedCommand):
        listed = [parameter for section in command.sections.values() for parameter in section]
        assert sorted(listed) == sorted(str(option.name) for option in options)


def test_help_lists_every_command(capsys: Captured) -> None:
    assert run(["-h"]) == 0
    listed = capsys.readouterr().out.split("Commands:")[1]
    assert [line.split()[0] for line in listed.splitlines() if line.strip()] == list(COMMANDS)


def test_the_version_is_printed(capsys: Captured) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("histocodec ")


def test_no_command_is_a_usage_error_that_shows_the_help(capsys: Captured) -> None:
    assert run([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Commands:" in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "nonsense"),
        (["encode"], "SRC"),
        (["encode", "a", "b", "--nonsense"], "--nonsense"),
        (["encode", "a", "b", "--quality", "101"], "101"),
        (["encode", "a", "b", "--quality", "-1"], "-1"),
        (["encode", "a", "b", "--quality", "100.5"], "100.5"),
        (["encode", "a", "b", "--quality", "nan"], "0 to 100"),
        (["encode", "a", "b", "--ratio", "half"], "1:32"),
        (["encode", "a", "b", "--levels", "0,x"], "0,2"),
        (["encode", "a", "b", "--background", "red"], "skip"),
        (["encode", "a", "b", "--mpp", "-1"], "above 0"),
        (["encode", "a", "b", "--mpp", "nan"], "above 0"),
        (["encode", "a", "b", "--workers", "0"], "--workers"),
        (["decode", "a", "b.png", "--region", "1,2,3"], "four integers"),
        (["decode", "a", "b.png", "--region", "1,2,3,-4"], "at least 1x1"),
        (["decode", "a", "b.png", "--region", "1,2,0,4"], "at least 1x1"),
        (["decode", "a", "b.png", "--level", "-1"], "--level"),
        (["decode", "a", "b.png", "--level", "1", "--mpp", "1"], "exclude each other"),
        (["decode", "a", "b.bmp"], ".png"),
        (["verify", "a", "--quick", "--against", "b"], "--quick"),
        (["train", "--out", "runs"], "DATA"),
        (["train", "slides"], "--out"),
        (["demo", "--size", "12"], "--size"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_line(capsys: Captured, arguments: list[str], words: str) -> None:
    code, line = failure(capsys, *arguments)
    assert code == 2
    assert words in line


# Files that are not what they should be.


@pytest.mark.parametrize("command", [["info"], ["info", "--json"], ["encode", "--json", "out.zarr"]])
def test_a_missing_source_is_wrong_usage(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *rest = command
    code, line = failure(capsys, name, "missing.svs", *rest)
    assert code == 2
    assert "missing.svs" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100, b"II*\0nonsense"])
def test_a_file_that_is_no_slide_is_unsupported(capsys: Captured, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.svs"
    path.write_bytes(content)
    code, line = failure(capsys, "info", str(path))
    assert code == 4
    assert "file.svs" in line


def test_a_folder_that_is_no_slide_is_unsupported(capsys: Captured, tmp_path: Path) -> None:
    code, line = failure(capsys, "info", str(tmp_path))
    assert code == 4
    assert str(tmp_path) in line


def test_a_broken_image_is_a_failure(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(synthetic_slide(300, 300)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    code, line = failure(capsys, "info", str(path), "--json")
    assert code == 1
    assert "image.png" in line


def test_an_output_in_the_way_is_refused(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(b"old")
    code, line = failure(capsys, "decode", str(tmp_path / "a.zarr"), str(tmp_path / "out.png"))
    assert code == 1
    assert "--overwrite" in line
    assert (tmp_path / "out.png").read_bytes() == b"old"


# What is raised, and what it turns into.


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("no such level"), 2, "no such level"),
        (FormatError("a flipped\nbit"), 3, "a flipped bit"),
        (UnsupportedError("later version"), 4, "later version"),
        (HistocodecError("plain"), 1, "plain"),
        (ModuleNotFoundError("No module named 'usearch'", name="usearch"), 4, "usearch"),
        (MemoryError(), 1, "not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("a mistake of ours"), 1, "HISTOCODEC_DEBUG"),
        (OSError(28, "No space left on device"), 1, "No space left"),
    ],
)
def test_every_error_is_one_line_and_its_exit_code(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    @click.command()
    def fails() -> None:
        raise error

    monkeypatch.setattr(type(commands), "get_command", lambda self, context, name: fails)
    assert run(["info"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.strip().splitlines()
    assert words in line


def test_debugging_shows_the_traceback(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(main.DEBUG_VARIABLE, "1")
    assert run(["info", "missing.svs"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.splitlines()[-1].startswith("histocodec: error: ")


def test_a_reader_that_goes_away_is_no_traceback(slide: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "histocodec", "info", str(slide)],
            stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == ""


WAITING = """
import sys, time, click
from histocodec.cli.main import commands, run

@click.command()
def waits() -> None:
    try:
        print("waiting", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)

type(commands).get_command = lambda self, context, name: waits
sys.exit(run(["info"]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_command_clean_up(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    printed, complaint = process.communicate(timeout=30)
    assert process.returncode == 130
    assert printed == "cleaned up\n"
    assert complaint.strip() == "histocodec: error: interrupted"


# Facts about a plain slide.


def test_info_says_what_a_slide_is(capsys: Captured, slide: Path) -> None:
    assert run(["info", str(slide), "--json"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert printed.err == ""
    assert (facts["width"], facts["height"]) == (1100, 900)
    assert [(level["width"], level["height"]) for level in facts["levels"]] == [(1100, 900), (275, 225)]
    assert facts["mpp"] == pytest.approx([0.5, 0.5])
    assert run(["info", str(slide)]) == 0
    text = capsys.readouterr().out
    assert "1100 x 900" in text
    assert "0.5 µm" in text


# Values.


@pytest.mark.parametrize(("text", "value"), [("32", 32.0), ("1:32", 32.0), ("1:12.5", 12.5)])
def test_a_ratio_is_a_number_or_one_to_a_number(text: str, value: float) -> None:
    assert ratio(text) == value


@pytest.mark.parametrize(("text", "value"), [("all", None), ("0", (0,)), ("2,0", (0, 2)), ("1,1", (1,))])
def test_levels_are_all_or_numbers(text: str, value: tuple[int, ...] | None) -> None:
    assert level_list(text) == value


def test_a_region_may_start_before_the_edge() -> None:
    assert box("-5,-6,10,20") == (-5, -6, 10, 20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (size_text(12), "12 B"), (size_text(1_234_567), "1.23 MB"), (size_text(999_600), "1 MB"),
        (time_text(12.34), "12.3 s"), (time_text(125), "2:05 min"), (time_text(3723), "1:02:03 h"),
        (speed_text(12.34), "12.3 MP/s"), (speed_text(0.0234), "0.023 MP/s"),
        (count_text(1, "level"), "1 level"), (count_text(3, "level"), "3 levels"),
        (ratio_text(43.21), "1:43.2"), (ratio_text(512.3), "1:512"), (ratio_text(None), "unknown"),
    ],
)  # fmt: skip
def test_figures_are_short(text: str, expected: str) -> None:
    assert text == expected


def test_json_has_no_infinities() -> None:
    assert jsonable({"psnr": float("inf"), "nested": (1.5, float("nan")), "path": Path("a")}) == {
        "psnr": None,
        "nested": [1.5, None],
        "path": "a",
    }


def test_json_of_numbers_from_numpy_is_json() -> None:
    assert json.dumps(jsonable({"a": np.float32(0.5), "b": np.int64(3)})) == '{"a": 0.5, "b": 3}'


# Progress.


def test_a_progress_bar_has_room_beside_a_long_name_with_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    with progress_bar("TCGA-AA-0000-01A-01-DX1[/bold].12345678-90ab-cdef-1234-567890abcdef.svs") as bar:
        bar(1, 2, "encoding, 12.3 MP/s, 10 s left")
    assert "TCGA-AA-0000-…" in terminal.getvalue()
    assert "━" in terminal.getvalue()


def test_there_is_no_progress_bar_without_a_terminal(capsys: Captured) -> None:
    with progress_bar("slide.svs") as bar:
        bar(1, 2)
    assert capsys.readouterr() == ("", "")
