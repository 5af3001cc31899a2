"""Running a cohort: every slide is compressed once, whatever fails, and the ledger tells the truth about it."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from histocodec.errors import BusyError, StoreError, UnsupportedError, UsageError
from histocodec.formats.cohort import cluster as cluster_module
from histocodec.formats.cohort.cluster import Place, connected
from histocodec.formats.cohort.holder import holding
from histocodec.formats.cohort.ledger import Ledger
from histocodec.formats.cohort.run import Request, RunReport, run
from histocodec.formats.cohort.task import Task, perform
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.sources import open_slide
from tests.support.cohorts import CREATED, environment, make_slides, planned, rows

distributed = pytest.importorskip("distributed")
QUICK = Request(device="cpu", threads=1, delay=0.05)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A scheduler with two workers, in threads of this process."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield Place(scheduler=cluster.scheduler_address)


@pytest.fixture(autouse=True)
def installed(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model is installed, so that what it encoded can be decoded."""
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tiny_file.parent))


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    make_slides(tmp_path / "slides", 3)
    return tmp_path / "slides"


@pytest.fixture
def ledger(slides: Path, tmp_path: Path, tiny_file: Path) -> Path:
    return planned(slides, tmp_path / "out", tiny_file, tmp_path / "ledger")


def encoded_alone(source: Path, target: Path, tiny_file: Path, *, created: int = CREATED) -> Path:
    """What `histocodec encode --source-sha256` makes of a slide."""
    options = EncodeOptions(model=str(tiny_file), effort=0, device="cpu", workers=1, source_sha256=True)
    with open_slide(source) as slide:
        encode_slide(slide, target, options, created=created)
    return target


def test_a_run_makes_what_single_encodes_make_and_notes_it(
    slides: Path, ledger: Path, place: Place, tiny_file: Path, tmp_path: Path
) -> None:
    report = run(ledger, place, Request(device="cpu", threads=1, verify=True))
    assert (report.done, report.failed, report.left, report.adopted) == (3, 0, 0, 0), report.failures
    for row in rows(ledger, "done"):
        source = Path(row.source)
        alone = encoded_alone(source, tmp_path / "alone" / f"{source.stem}.hcz", tiny_file).read_bytes()
        assert Path(row.result).read_bytes() == alone
        assert (row.result_bytes, row.result_sha256) == (len(alone), sha256(alone).hexdigest())
        assert row.source_sha256 == sha256(source.read_bytes()).hexdigest()
        assert (row.attempts, row.error, row.verified, row.adopted) == (1, None, True, False)
        assert row.psnr is not None and row.worst_psnr is not None and row.psnr >= row.worst_psnr - 0.01
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"slide-00{n}.hcz" for n in range(3)]


def test_running_again_does_only_what_is_new(slides: Path, ledger: Path, place: Place, tiny_file: Path) -> None:
    run(ledger, place, QUICK)
    before = {row.result: row.finished for row in rows(ledger)}
    make_slides(slides, 1, start=3)
    planned(slides, slides.parent / "out", tiny_file, ledger)
    report = run(ledger, place, QUICK)
    assert (report.done, report.failed) == (1, 0)
    assert {row.result: row.finished for row in rows(ledger)}.items() >= before.items()
    assert run(ledger, Place(scheduler="tcp://127.0.0.1:9"), QUICK).done == 0  # nothing to do: nobody is asked
    with Ledger.open(ledger) as opened:
        assert [entry["ended"] for entry in opened.runs()] == ["done"] * 3


def test_a_slide_that_fails_is_tried_as_often_as_asked_and_the_others_go_on(
    slides: Path, ledger: Path, place: Place
) -> None:
    broken = slides / "slide-001.tif"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    report = run(ledger, place, Request(device="cpu", threads=1, delay=0.05, attempts=2))
    assert (report.done, report.failed) == (2, 1)
    (row,) = rows(ledger, "failed")
    assert row.source == str(broken)
    assert row.error is not None and str(broken) in row.error
    assert row.error_kind in ("SourceError", "UnsupportedError")
    assert row.attempts == (2 if row.error_kind == "SourceError" else 1)
    assert not Path(row.result).exists()
    broken.write_bytes(whole)
    assert run(ledger, place, Request(device="cpu", threads=1, attempts=1)).done == 0
    assert run(ledger, place, Request(device="cpu", threads=1, attempts=1, again=True)).done == 1
    assert [row.state for row in rows(ledger)] == ["done"] * 3


def test_a_slide_that_is_gone_is_not_tried_in_vain(slides: Path, ledger: Path, place: Place) -> None:
    (slides / "slide-000.tif").unlink()
    report = run(ledger, place, QUICK)
    assert [failure.kind for failure in report.failures] == ["UsageError"]
    assert rows(ledger, "failed")[0].attempts == 1


def test_a_container_of_a_lost_worker_is_adopted(slides: Path, ledger: Path, place: Place, tiny_file: Path) -> None:
    row = rows(ledger)[0]
    made = encoded_alone(Path(row.source), Path(row.result), tiny_file, created=CREATED - 100)
    before = made.stat()
    with Ledger.open(ledger) as opened:
        opened.start("encode", [row.number])  # as the client left it that was killed with the worker
    report = run(ledger, place, QUICK)
    assert (report.done, report.adopted) == (3, 1)
    assert (made.stat().st_ino, made.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    row = rows(ledger)[0]
    assert (row.result_sha256, row.created) == (sha256(made.read_bytes()).hexdigest(), CREATED - 100)


@pytest.mark.parametrize("what", ["another slide", "other options", "no container", "no provenance"])
def test_what_is_not_ours_is_not_replaced_unless_asked(
    what: str, slides: Path, ledger: Path, place: Place, tiny_file: Path
) -> None:
    row = rows(ledger)[0]
    target = Path(row.result)
    target.parent.mkdir()
    options = EncodeOptions(model=str(tiny_file), effort=0, device="cpu", source_sha256=what != "no provenance")
    if what == "no container":
        target.write_bytes(b"something else")
    else:
        source = slides / ("slide-001.tif" if what == "another slide" else "slide-000.tif")
        with open_slide(source) as slide:
            changed = EncodeOptions(**{**vars(options), "quality": 20}) if what == "other options" else options
            encode_slide(slide, target, changed, created=CREATED)
    before = target.read_bytes()
    (failure,) = run(ledger, place, QUICK).failures
    assert "exists" in failure.error and "--overwrite" in failure.error
    assert target.read_bytes() == before
    replacing = Request(device="cpu", threads=1, overwrite=True, delay=0.05)
    if what == "no container":  # which is left alone, as `encode --overwrite` leaves it
        assert "remove it yourself" in run(ledger, place, replacing).failures[0].error
        return
    assert run(ledger, place, replacing).done == 1
    assert rows(ledger)[0].adopted is False
    assert run(ledger, place, replacing).done == 0


def test_a_damaged_container_of_the_same_encode_is_made_again(ledger: Path, place: Place, tiny_file: Path) -> None:
    row = rows(ledger)[0]
    made = encoded_alone(Path(row.source), Path(row.result), tiny_file)
    whole = made.read_bytes()
    middle = whole.index(b"latents/0/c") + 200  # in a shard
    made.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert run(ledger, place, QUICK).done == 3
    assert made.read_bytes() == whole


def test_what_an_encode_with_other_options_left_is_not_resumed(
    slides: Path, ledger: Path, place: Place, tiny_file: Path
) -> None:
    row = rows(ledger)[0]
    partial = Path(row.result + ".partial")
    partial.mkdir(parents=True)
    text = json.dumps({"journal": 3, "created": "2025-01-01T00:00:00Z", "fingerprint": {"generator": "another"}})
    Path(row.result + ".journal").write_text(text + "\n")
    assert run(ledger, place, QUICK).done == 3
    assert not partial.exists()


def test_a_second_run_refuses_and_names_the_first(ledger: Path, place: Place) -> None:
    with holding(ledger, "run") as words:
        with pytest.raises(BusyError, match="is being worked on") as caught:
            run(ledger, place, QUICK)
        assert words in str(caught.value)
    assert run(ledger, place, QUICK).done == 3


def test_a_dead_holder_is_recognised(ledger: Path, place: Place) -> None:
    program = (
        "import sys, time; from pathlib import Path; from histocodec.formats.cohort.holder import holding\n"
        "with holding(Path(sys.argv[1]), 'run'): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(ledger)], stdout=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"held\n"
        with Ledger.open(ledger) as opened:
            opened.open_run("encode", "somebody", "somewhere", "0")
            opened.start("encode", [1, 2])
        with pytest.raises(BusyError, match=f"process {process.pid}"):
            run(ledger, place, QUICK)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run(ledger, place, QUICK).done == 3
    with Ledger.open(ledger) as opened:
        assert [entry["ended"] for entry in opened.runs()] == ["killed", "done"]


def test_an_interrupt_leaves_nothing_running_in_the_ledger(ledger: Path, place: Place) -> None:
    def interrupt(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ledger, place, QUICK, progress=interrupt)
    assert {row.state for row in rows(ledger)} <= {"planned", "done"}
    assert run(ledger, place, QUICK).left == 0
    assert {row.state for row in rows(ledger)} == {"done"}


def test_a_worker_of_another_version_says_so(ledger: Path, tiny_file: Path) -> None:
    row = rows(ledger)[0]
    task = Task("encode", row.number, row.source, row.result, row.options, row.created, version="0.0.1")
    result = perform(task.to_json())
    assert (result["state"], result["lasting"]) == ("failed", False)
    assert "install the same" in str(result["error"])


def test_an_unexpected_error_is_a_result(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("histocodec.formats.cohort.task.WORK", {"encode": broken})
    row = rows(ledger)[0]
    result = perform(Task("encode", row.number, row.source, row.result, row.options, row.created).to_json())
    assert (result["state"], result["error_kind"]) == ("failed", "ZeroDivisionError")


def test_a_scheduler_that_is_not_there_is_one_clear_error(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 1.0)
    with pytest.raises(StoreError, match="no Dask scheduler can be reached"):
        run(ledger, Place(scheduler="tcp://127.0.0.1:9"), QUICK)
    assert {row.state for row in rows(ledger)} == {"planned"}


@pytest.mark.parametrize("kind, package", [("slurm", "dask-jobqueue"), ("kubernetes", "dask-kubernetes")])
def test_a_cluster_whose_package_is_missing_says_what_to_install(kind: str, package: str) -> None:
    with pytest.raises(UnsupportedError, match=f"pip install {package}"), connected(Place(cluster=kind)):
        pass


@pytest.mark.parametrize(
    "choices", [{"scheduler": "a", "cluster": "slurm"}, {"scheduler": "a", "workers": 2}, {"cluster": "moon"}]
)
def test_a_place_is_one_place(choices: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Place(**choices)  # type: ignore[arg-type]  # the parameters above


def test_folders_of_slides_keep_their_place_and_other_work_starts_with_what_is_done(
    slides: Path, place: Place, tiny_file: Path, tmp_path: Path
) -> None:
    shutil.move(slides / "slide-001.tif", slides / "deep.tif")
    ledger = planned(slides, tmp_path / "out", tiny_file, tmp_path / "ledger")
    report: RunReport = run(ledger, place, QUICK)
    assert (report.done, report.kind) == (3, "encode")
    checked = run(ledger, place, Request("verify", device="cpu", threads=1))
    assert (checked.done, checked.failed) == (3, 0)
    assert run(ledger, place, Request("verify", device="cpu", threads=1)).done == 0
    damaged = Path(rows(ledger)[0].result)
    data = damaged.read_bytes()
    middle = data.index(b"latents/0/c") + 200
    damaged.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    checked = run(ledger, place, Request("verify", device="cpu", threads=1, again=True))
    assert (checked.done, [failure.number for failure in checked.failures]) == (2, [rows(ledger)[0].number])
