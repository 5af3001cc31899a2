"""`histocodec cohort`: what the commands print, and their exit codes."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from histocodec.cli.main import run
from tests.support.cohorts import make_slides
from tests.support.commands import Captured, failure

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a scheduler with one worker, in threads of this process."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def slides(tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tiny_file.parent))
    make_slides(tmp_path / "slides", 2)
    return tmp_path / "slides"


def said(capsys: Captured, *arguments: str | Path) -> dict[str, object]:
    """What a command that succeeds prints with --json."""
    capsys.readouterr()
    assert run([*map(str, arguments), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert isinstance(result, dict)
    return result


def plan(slides: Path, model: Path, *options: str) -> tuple[str | Path, ...]:
    """The command that plans the slides, at effort 0."""
    return "cohort", "plan", slides, "--out", slides.parent / "out", "--model", model, "--effort", "0", *options


def test_a_cohort_from_plan_to_containers(slides: Path, tiny_file: Path, scheduler: str, capsys: Captured) -> None:
    planned = said(capsys, *plan(slides, tiny_file))
    assert (planned["added"], planned["known"]) == (2, 0)
    ledger = str(planned["ledger"])
    report = said(capsys, "cohort", "run", ledger, "--scheduler", scheduler, "--device", "cpu", "--threads", "1")
    assert (report["done"], report["failed"], report["left"]) == (2, 0, 0)
    assert said(capsys, *plan(slides, tiny_file))["known"] == 2
    place = ("--scheduler", scheduler)
    assert said(capsys, "cohort", "verify", ledger, *place, "--quick")["done"] == 2
    assert said(capsys, "cohort", "embed", ledger, *place)["done"] == 2
    assert said(capsys, "cohort", "index", ledger, slides.parent / "index")["slides"] == 2
    written = said(capsys, "cohort", "report", ledger, "--out", slides.parent / "report", "--below", "99")
    assert (written["done"], written["below"]) == (2, 2)
    assert Path(str(written["page"])).is_file()


def test_a_quality_is_proposed_as_lines_of_a_policy(slides: Path, tiny_file: Path, capsys: Captured) -> None:
    arguments = ["cohort", "tune", str(slides), "--psnr", "25", "--model", str(tiny_file), "--device", "cpu"]
    assert run(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("[encode]\nquality = ")
    assert "2 slides looked at" in printed.err
    code, line = failure(capsys, *arguments[:3])
    assert code == 2 and "--psnr" in line


def test_the_exit_code_tells_of_slides_that_failed(
    slides: Path, tiny_file: Path, scheduler: str, capsys: Captured
) -> None:
    (slides / "broken.svs").write_bytes(b"no slide")
    assert run([str(argument) for argument in plan(slides, tiny_file)]) == 1
    printed = capsys.readouterr()
    assert "2 planned" in printed.out
    assert "broken.svs" in printed.err and "1 slide cannot be opened" in printed.err
    (slides / "slide-000.tif").unlink()
    ledger = slides.parent / "out" / "cohort.sqlite"
    assert run(["cohort", "run", str(ledger), "--scheduler", scheduler, "--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert "1 done, 1 failed" in printed.out
    assert "slide-000.tif" in printed.err and "1 slide failed" in printed.err


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["plan", "nowhere", "--out", "out"], 2, "does not exist"),
        (["plan", ".", "--out", "s3://bucket/x"], 2, "give --ledger"),
        (["plan", ".", "--out", "out", "--quality", "300"], 2, "0 to 100"),
        (["run", "nowhere"], 2, "is no ledger"),
        (["run", "x", "--resource", "GPU"], 2, "write NAME=N"),
        (["run", "x", "--cluster", "moon"], 2, "slurm, pbs"),
        (["run", "x", "--workers", "2", "--scheduler", "tcp://a:1"], 2, "exclude each other"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    found, line = failure(capsys, "cohort", *arguments)
    assert (found, words in line) == (code, True), line


def test_without_dask_the_error_says_what_to_install(
    slides: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    ledger = said(capsys, *plan(slides, tiny_file))["ledger"]
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, line = failure(capsys, "cohort", "run", str(ledger))
    assert code == 4 and "pip install 'histocodec[cohort]'" in line
