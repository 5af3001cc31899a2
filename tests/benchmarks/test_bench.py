"""`histocodec bench` from end to end on synthetic images with the tiny model: what it writes and what it measures only
once."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histocodec.benchmarks.bench import Subjects, run_bench
from histocodec.benchmarks.measure import measure_images, our_codec
from histocodec.benchmarks.measure.measure_images import BenchOptions
from histocodec.benchmarks.measure.result_rows import COLUMNS
from histocodec.benchmarks.peers.codecs import PEERS
from histocodec.cli.main import run
from histocodec.slide import Pixels
from histocodec.sources.synthetic import synthetic_slide

Captured = pytest.CaptureFixture[str]
QUALITIES, POINTS = (20, 80), 4
ROWS = len(QUALITIES) + POINTS + 2  # of an image: ours, JPEG 2000's, and both at one ratio


def with_image(folder: Path) -> Path:
    Image.fromarray(synthetic_slide(96, 96, seed=3)).save(folder / "liver-1.png")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an image in it."""
    return with_image(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """A folder with an image and, in out/, the results of a whole benchmark."""
    folder = with_image(tmp_path_factory.mktemp("bench"))
    assert run(arguments(folder, tiny_file, "--out", str(folder / "out"))) == 0
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often we encoded something, measured a peer's curve, and compared nuclei."""
    counted: Counter[str] = Counter()
    for name, module in (("encode_slide", our_codec), ("code_curve", measure_images), ("agreement", measure_images)):
        own = getattr(module, name)

        def counting(*args: object, name: str = name, own: object = own, **options: object) -> object:
            counted[name] += 1
            assert callable(own)
            return own(*args, **options)

        monkeypatch.setattr(module, name, counting)
    yield counted


def arguments(folder: Path, model: Path, *more: str) -> list[str]:
    given = ["bench", str(folder / "liver-1.png"), "--against", "jpeg2000", "--ratios", "48"]
    given += ["--qualities", ",".join(map(str, QUALITIES)), "--points", str(POINTS), "--model", str(model)]
    return [*given, "--device", "cpu", "--threads", "1", *more]


@pytest.mark.slow
def test_everything_is_written_and_says_the_same(finished: Path, tiny_file: Path, capsys: Captured) -> None:
    out = finished / "out"
    assert run(arguments(finished, tiny_file, "--out", str(out), "--json")) == 0
    printed = json.loads(capsys.readouterr().out)
    rows = json.loads((out / "rows.json").read_text())
    assert printed["rows"] == rows
    assert len(rows) == ROWS
    with (out / "rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [{name: "" if one[name] is None else str(one[name]) for name in COLUMNS} for one in rows] == lines
    summary = json.loads((out / "summary.json").read_text())
    assert {name: value for name, value in printed.items() if name != "rows"} == summary
    assert summary["model"]["id"] == "tiny-0"
    assert "openjpeg" in summary["versions"]["JPEG 2000"].lower()
    assert summary["machine"]["cores"] >= 1
    report = (out / "report.md").read_text()
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {"crops.png", "rd-native-liver-psnr.png", "rd-native-liver-ms-ssim-db.png"}
    assert all(f"({name})" in report for name in pictures)
    assert not list(out.glob(".*"))
    for one in rows:
        if one["codec"] == "histocodec":
            assert one["in_slide_bytes"] < one["bytes"] < one["container_bytes"]
        assert one["bpp"] == pytest.approx(8 * one["in_slide_bytes"] / 96**2)
    timed = [one for one in rows if one["timed_on"] is not None]
    assert {one["name"] for one in timed} == {"histocodec", "JPEG 2000"}
    assert all(one["decode_mps_1"] > 0 and one["encode_mps_all"] > 0 for one in timed)


@pytest.mark.slow
def test_the_paper_ratio_is_in_bytes_of_the_file(folder: Path, tiny_file: Path, capsys: Captured) -> None:
    assert run(arguments(folder, tiny_file, "--no-timing", "--json")) == 0
    found = {one["codec"]: one for one in json.loads(capsys.readouterr().out)["rows"] if one["kind"] == "1:48"}
    assert set(found) == {"histocodec", "jpeg2000"}
    assert all(one["in_slide_bytes"] <= 3 * 96 * 96 // 48 for one in found.values())
    assert found["histocodec"]["setting"] not in QUALITIES
    assert not list(folder.glob("*.jsonl"))


def test_a_second_run_measures_and_times_nothing_again(finished: Path, tiny_file: Path, calls: Counter[str]) -> None:
    out = finished / "out"
    lines, rows = (out / "rows.jsonl").read_bytes(), (out / "rows.json").read_bytes()
    assert run(arguments(finished, tiny_file, "--out", str(out), "--no-crops")) == 0
    assert not calls
    assert (out / "rows.jsonl").read_bytes() == lines
    assert (out / "rows.json").read_bytes() == rows


def test_another_model_costs_only_our_own_rows(
    folder: Path, tiny_file: Path, calls: Counter[str], capsys: Captured
) -> None:
    out = ("--out", str(folder / "out"), "--no-crops", "--no-timing")
    assert run(arguments(folder, tiny_file, *out)) == 0
    other = folder / "other.safetensors"
    other.write_bytes(tiny_file.read_bytes().replace(b"tiny-0", b"tiny-9", 1))
    calls.clear()
    assert run(arguments(folder, other, *out)) == 0
    assert calls["code_curve"] == 0
    assert calls["agreement"] == len(QUALITIES) + 1
    rows = json.loads((folder / "out" / "rows.json").read_text())
    assert len(rows) == ROWS
    assert {one["version"] for one in rows if one["codec"] == "histocodec"} == {"tiny-9"}


@pytest.mark.slow
def test_a_changed_image_is_measured_again(
    folder: Path, tiny_file: Path, calls: Counter[str], capsys: Captured
) -> None:
    given = arguments(folder, tiny_file, "--out", str(folder / "out"), "--no-crops", "--no-timing")
    assert run(given) == 0
    pixels = np.array(Image.open(folder / "liver-1.png"))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(folder / "liver-1.png")
    calls.clear()
    assert run(given) == 0
    assert calls["agreement"] == ROWS
    assert len(json.loads((folder / "out" / "rows.json").read_text())) == ROWS


def test_an_interrupted_run_continues(
    folder: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    out = folder / "out"
    given = arguments(folder, tiny_file, "--out", str(out), "--no-crops", "--no-timing")
    own, measured = measure_images.agreement, []

    def interrupted(*args: object, **options: object) -> object:
        measured.append(1)
        if len(measured) == 5:
            raise KeyboardInterrupt
        return own(*args, **options)  # type: ignore[arg-type]  # what measure_images gives it

    monkeypatch.setattr(measure_images, "agreement", interrupted)
    assert run(given) == 130
    assert [path.name for path in out.iterdir()] == ["rows.jsonl"]
    assert len((out / "rows.jsonl").read_text().splitlines()) == 4
    measured.clear()
    monkeypatch.setattr(
        measure_images, "agreement", lambda *args, **options: measured.append(1) or own(*args, **options)
    )
    assert run(given) == 0
    assert len(measured) == ROWS - 4
    assert len((out / "rows.jsonl").read_text().splitlines()) == ROWS


def test_variants_are_recorded_and_not_mixed(folder: Path, tiny_file: Path, capsys: Captured) -> None:
    more = ("--variant", "native,enlarged", "--variant", "blurred", "--no-timing", "--json", "--ratios", "none")
    assert run(arguments(folder, tiny_file, *more)) == 0
    found = json.loads(capsys.readouterr().out)
    sizes = {one["variant"]: (one["width"], one["height"]) for one in found["rows"]}
    assert sizes == {"native": (96, 96), "enlarged": (192, 192), "blurred": (96, 96)}
    assert {one["variant"] for one in found["summary"]["groups"]} == set(sizes)
    at_80 = {one["variant"]: one["psnr"] for one in found["rows"] if one["setting"] == 80}
    assert at_80["blurred"] > at_80["native"]


def test_progress_rises_from_nothing_to_all(tmp_path: Path, tiny_file: Path) -> None:
    for name in ("a-1.png", "a-2.png"):
        Image.fromarray(synthetic_slide(64, 64, seed=6)).save(tmp_path / name)
    subjects = Subjects((tmp_path / "a-1.png", tmp_path / "a-2.png"), ("native",), 1, 64, 0)
    options = BenchOptions(("webp",), QUALITIES, (), 2, str(tiny_file), "cpu", 1, timing=False)
    told: list[tuple[int, int, str]] = []
    run_bench(subjects, options, out=None, progress=lambda done, total, note="": told.append((done, total, note)))
    shares = [done / total for done, total, _ in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert {note.partition(":")[0] for _, _, note in told[:-1]} == {"a-1.png", "a-2.png"}


@pytest.mark.slow
def test_tiles_are_a_peer_of_their_own_where_an_image_is_larger_than_one(
    folder: Path, tiny_file: Path, capsys: Captured
) -> None:
    Image.fromarray(synthetic_slide(530, 40, seed=5)).save(folder / "liver-1.png")
    assert run(arguments(folder, tiny_file, "--no-timing", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    names = {one["name"] for one in found["rows"]}
    assert names == {"histocodec", "JPEG 2000", "JPEG 2000, 512-px tiles"}
    assert {one["peer"] for one in found["summary"]["groups"]} == names - {"histocodec"}
    assert {one["name"] for one in found["rows"] if one["kind"] != "curve"} == {"histocodec", "JPEG 2000"}


def test_a_missing_codec_is_reported_before_anything_is_measured(
    folder: Path, tiny_file: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def absent(pixels: Pixels, setting: float, threads: int) -> bytes:
        raise RuntimeError("not in this build")

    (peer,) = PEERS["webp"]
    monkeypatch.setitem(PEERS, "webp", (replace(peer, _encode=absent),))
    assert run(arguments(folder, tiny_file, "--against", "jpeg2000,webp")) == 4
    assert "WebP" in capsys.readouterr().err
    assert not calls


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--against", "jpeg2001"], 2, "jpeg2001"),
        (["--variant", "sharpened"], 2, "sharpened"),
        (["--qualities", "50"], 2, "two or more"),
        (["--qualities", "50,101"], 2, "0 to 100"),
        (["--ratios", "half"], 2, "not a list of integers"),
        (["--speed", "gone.svs"], 2, "gone.svs"),
        (["--model", "nothing"], 4, "nothing"),
        (["gone.png"], 2, "gone.png"),
        (["notes.txt"], 4, "notes.txt"),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(
    folder: Path,
    tiny_file: Path,
    calls: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    more: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(folder)
    (folder / "notes.txt").write_text("no slide")
    assert run(arguments(folder, tiny_file, "--out", str(folder / "out"), *more)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not calls
    assert not (folder / "out" / "rows.jsonl").exists()


def test_a_folder_that_cannot_be_written_is_named(folder: Path, tiny_file: Path, capsys: Captured) -> None:
    (folder / "file").write_text("in the way")
    assert run(arguments(folder, tiny_file, "--out", str(folder / "file" / "out"))) == 1
    assert str(folder / "file" / "out") in capsys.readouterr().err


def test_an_effort_is_part_of_the_name(folder: Path, tiny_file: Path, capsys: Captured) -> None:
    assert run(arguments(folder, tiny_file, "--effort", "0.5", "--no-timing", "--ratios", "none", "--json")) == 0
    names = {one["name"] for one in json.loads(capsys.readouterr().out)["rows"]}
    assert names == {"histocodec effort 0.5", "JPEG 2000"}


@pytest.mark.slow
def test_a_pipe_gets_a_table_and_no_progress(folder: Path, tiny_file: Path, capsys: Captured) -> None:
    assert run(arguments(folder, tiny_file, "--no-timing", "--ratios", "none")) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "JPEG 2000" in printed.out
    assert "we lose on" in printed.out
