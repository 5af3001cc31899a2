"""However an encode is stopped, going on gives the container that an undisturbed one gives, byte for byte."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile

import histocodec
from histocodec.cli.main import run
from histocodec.formats.container.read import open_container
from histocodec.formats.encode.journal import Journal, journal_path, old_path, partial_path
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.slides import contents, encoded

Captured = pytest.CaptureFixture[str]
REPOSITORY = Path(histocodec.__file__).parents[1]
SHARDS = 8  # of 6144 pixels, but only 32 pixels high, so that each takes a moment only
PATIENCE = 120.0  # seconds


@dataclass(frozen=True)
class Stopped:
    """How an encode ended that was sent a signal, and how many shards it had finished by then."""

    code: int
    stderr: str
    shards: int
    names: list[str]
    opens: bool


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resume") / "slide.tif"
    pixels = np.tile(synthetic_slide(1024, 32, seed=2), (1, 6 * SHARDS, 1))
    tifffile.imwrite(path, pixels, tile=(32, 1024), photometric="rgb", compression="deflate", metadata=None)
    return path


@pytest.fixture(scope="module")
def undisturbed(source: Path, tiny_file: Path) -> Path:
    path = source.parent / "undisturbed.zarr"
    assert run(arguments(source, path, tiny_file)) == 0
    return path


@pytest.fixture(scope="module")
def stopped(source: Path, tiny_file: Path, undisturbed: Path) -> dict[str, Stopped]:
    """One encode that is killed, resumed and interrupted, resumed and terminated, and at last finished."""
    path, found = source.parent / "stopped.zarr", {}
    for number, name in enumerate(("SIGKILL", "SIGINT", "SIGTERM")):
        more = ("--resume",) if number else ()
        with encoding(arguments(source, path, tiny_file, *more)) as process:
            wait_for(process, lambda wanted=2 * number + 2: finished(path) >= wanted)  # type: ignore[misc]  # its default binds the loop's value
            found[name] = stop(process, path, getattr(signal, name))
    shutil.copytree(partial_path(path), source.parent / "other.zarr.partial")
    shutil.copy(journal_path(path), source.parent / "other.zarr.journal")
    assert run(arguments(source, path, tiny_file, "--resume")) == 0
    return found


def arguments(source: Path, target: Path, tiny_file: Path, *options: str) -> list[str]:
    given = ["encode", str(source), str(target), "--model", str(tiny_file), "--device", "cpu", "--levels", "0"]
    return [*given, "--effort", "0", "--workers", "1", *options]


def heed_interrupts() -> None:
    """In the child: a background job of a shell ignores SIGINT, and so would everything that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def encoding(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "histocodec", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert process.poll() is None, f"ended by itself: {process.communicate()[1]}"
        assert time.monotonic() < end
        time.sleep(0.002)


def finished(target: Path) -> int:
    """Shards that the journal has promised."""
    try:
        return journal_path(target).read_bytes().count(b'"tiles"')
    except FileNotFoundError:
        return 0


def stop(process: subprocess.Popen[str], target: Path, number: int) -> Stopped:
    process.send_signal(number)
    _, stderr = process.communicate(timeout=PATIENCE)
    names = sorted(path.name for path in target.parent.iterdir() if path.name.startswith(target.name))
    try:
        open_container(partial_path(target))
        opens = True
    except histocodec.HistocodecError:
        opens = False
    return Stopped(process.returncode, stderr, finished(target), names, opens)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_whatever_stops_an_encode_leaves_a_part_that_does_not_look_whole(
    stopped: dict[str, Stopped], name: str
) -> None:
    assert stopped[name].names == ["stopped.zarr.journal", "stopped.zarr.partial"]
    assert 0 < stopped[name].shards < SHARDS
    assert not stopped[name].opens


def test_each_run_goes_on_where_the_last_one_was_stopped(stopped: dict[str, Stopped]) -> None:
    shards = [stopped[name].shards for name in ("SIGKILL", "SIGINT", "SIGTERM")]
    assert shards == sorted(set(shards))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_is_exit_code_130_and_one_line(stopped: dict[str, Stopped], name: str) -> None:
    assert stopped[name].code == 130
    assert stopped[name].stderr.strip() == "histocodec: error: interrupted"


def test_a_resumed_container_is_byte_identical_to_an_undisturbed_one(
    stopped: dict[str, Stopped], source: Path, undisturbed: Path
) -> None:
    assert stopped["SIGKILL"].code == -signal.SIGKILL
    found, expected = contents(source.parent / "stopped.zarr"), contents(undisturbed)
    assert sum("/c/0/" in name and name.startswith("latents") for name in expected) == SHARDS
    assert found.keys() == expected.keys()
    for name, data in expected.items():
        assert found[name] == data, name
    assert not journal_path(source.parent / "stopped.zarr").exists()


def failure(capsys: Captured, arguments: list[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = run(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    return code, line


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--quality", "51"), "rate"),
        (("--background", "code"), "background was 'skip' and now is 'code'"),
        (("--mpp", "0.5"), "mpp was None"),
        (("--chunk", "256"), "chunk was 512 and now is 256"),
        (("--overview", "none"), "overview was 512 and now is None"),
    ],
)
def test_other_options_are_not_resumed_and_named(
    capsys: Captured, stopped: dict[str, Stopped], source: Path, tiny_file: Path,
    options: tuple[str, ...], named: str,
) -> None:  # fmt: skip
    target = source.parent / "other.zarr"
    before = journal_path(target).read_bytes()
    code, line = failure(capsys, arguments(source, target, tiny_file, "--resume", *options))
    assert code == 2
    assert "cannot be resumed" in line
    assert named in line
    assert journal_path(target).read_bytes() == before


def test_a_source_that_changed_is_not_resumed(
    capsys: Captured, stopped: dict[str, Stopped], source: Path, tiny_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(source.parent / "other.zarr.partial", tmp_path / "a.zarr.partial")
    shutil.copy(source.parent / "other.zarr.journal", tmp_path / "a.zarr.journal")
    shutil.copy(source, tmp_path / "slide.tif")  # equal, but written at another time
    code, line = failure(capsys, arguments(tmp_path / "slide.tif", tmp_path / "a.zarr", tiny_file, "--resume"))
    assert code == 2
    assert "source.mtime" in line


def test_an_interrupted_encode_is_neither_lost_nor_resumed_by_accident(
    capsys: Captured, stopped: dict[str, Stopped], source: Path, tiny_file: Path
) -> None:
    code, line = failure(capsys, arguments(source, source.parent / "other.zarr", tiny_file))
    assert code == 1
    assert "--resume continues it" in line
    assert partial_path(source.parent / "other.zarr").is_dir()


def test_a_shard_that_was_damaged_meanwhile_is_encoded_again(
    stopped: dict[str, Stopped], source: Path, tiny_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    target = tmp_path / "a.zarr"
    shutil.copytree(source.parent / "other.zarr.partial", partial_path(target))
    shutil.copy(source.parent / "other.zarr.journal", journal_path(target))
    shard = partial_path(target) / "latents/0/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run(arguments(source, target, tiny_file, "--resume")) == 0
    assert contents(target) == contents(undisturbed)


def test_overwriting_keeps_the_old_until_the_new_is_whole(
    capsys: Captured, source: Path, tiny_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Killed in the middle; and while it runs, another encode to the same place is refused."""
    target = tmp_path / "a.zarr"
    shutil.copytree(undisturbed, target)
    other = arguments(source, target, tiny_file, "--quality", "20", "--overwrite")
    with encoding(other) as process:
        wait_for(process, lambda: finished(target) >= 1)
        code, line = failure(capsys, other)
        assert code == 1
        assert "another encode is writing to this place" in line
        assert stop(process, target, signal.SIGKILL).shards < SHARDS
    assert contents(target) == contents(undisturbed)
    assert open_container(target).attributes.levels[0].quality == 50
    assert not old_path(target).exists()
    assert run(other) == 0
    assert open_container(target).attributes.levels[0].quality == 20
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_the_journal_holds_one_line_for_each_finished_shard(stopped: dict[str, Stopped], source: Path) -> None:
    lines = journal_path(source.parent / "other.zarr").read_text().splitlines()
    entries = [json.loads(line.rpartition("  ")[0]) for line in lines[1:]]
    places = [(entry["row"], entry["column"]) for entry in entries]
    assert places == [(0, column) for column in range(len(places))]


def test_the_old_output_or_the_new_one_is_whole_whenever_an_encode_is_killed() -> None:
    """A slice of `python -m tests.tools.kill`, in a process of its own since it forks."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.kill", "--moments", "1"],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("every next run finished") == 3


def test_created_is_when_the_encode_began_however_often_it_is_resumed(
    tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, path = ArraySlide(synthetic_slide(300, 200, seed=1)), tmp_path / "a.zarr"
    for epoch in ("1000", "2000"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setenv("SOURCE_DATE_EPOCH", epoch)
            patched.setattr(Journal, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            encoded(slide, path, tiny_file, resume=True)
    encoded(slide, path, tiny_file, resume=True)
    assert open_container(path).attributes.provenance.created == "1970-01-01T00:16:40Z"
