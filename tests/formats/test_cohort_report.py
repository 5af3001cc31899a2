"""The report of a cohort: what the page and the table say, and that the page does no harm."""

import csv
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from histocodec.formats.cohort import plots
from histocodec.formats.cohort.ledger import Ledger, Row
from histocodec.formats.cohort.report import write_report
from histocodec.formats.cohort.summary import summarise
from histocodec.formats.cohort.task import Task, perform
from tests.support.cohorts import make_slides, planned, rows

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """What is in a page: its texts, tags, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def made_up(count: int) -> list[Row]:
    """Slides that are done, with figures that were never measured."""
    return [
        Row(
            0,
            f"/archive/{n:04}.svs",
            f"/out/{n:04}.hcz",
            {},
            0,
            state="done",
            attempts=1,
            width=1000,
            height=1000,
            source_bytes=10_000_000 + n,
            result_bytes=1_000_000,
            pixels=1_000_000,
            psnr=36 + n % 7 / 10,
            worst_psnr=27 + n % 90 / 10,
            worst_level=0,
            worst_row=0,
            worst_column=0,
            seconds=2.0,
            finished=1e9 + 10 * n,
        )
        for n in range(count)
    ]


def reported(tmp_path: Path, slides: list[Row], **choices: float) -> tuple[Page, list[dict[str, str]]]:
    """The page and the table of a ledger with these rows."""
    with Ledger.make(tmp_path / "ledger", {"out": "/out"}) as ledger:
        ledger.add(slides)
    report = write_report(tmp_path / "ledger", tmp_path / "report", **choices)  # type: ignore[arg-type]  # by the tests
    with report.table.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return Page(report.page.read_text(encoding="utf-8")), lines


def test_the_page_and_the_table_say_what_the_ledger_says(tmp_path: Path) -> None:
    slides = made_up(200)
    slides[7] = replace(slides[7], state="failed", error_kind="SourceError", error="/archive/0007.svs: is torn")
    slides[8] = replace(slides[8], state="planned", attempts=0)
    page, lines = reported(tmp_path, slides, threshold=30.0)
    assert "200 slides: 198 done, 1 failed, 1 left" in page.text
    assert "SourceError" in page.text and "/archive/0007.svs: is torn" in page.text
    below = sum(row.worst_psnr is not None and row.worst_psnr < 30 for row in slides if row.state == "done")
    assert f"{below} slides below 30 dB" in page.text
    assert "1.98 GB" in page.text and "198 MB" in page.text
    assert len(lines) == 200
    assert [line["state"] for line in lines].count("done") == 198
    assert lines[0]["ratio"] == "10.000"


def test_an_empty_and_an_unfinished_cohort_have_a_report(tmp_path: Path) -> None:
    page, lines = reported(tmp_path, [replace(made_up(1)[0], state="planned", psnr=None, worst_psnr=None)])
    assert "0 done, 0 failed, 1 left" in page.text
    assert len(lines) == 1


def test_the_page_loads_nothing_and_names_cannot_break_it(tmp_path: Path) -> None:
    name = "</title><script>alert(1)</script>\"'&.svs"
    slide = replace(made_up(1)[0], source=f"/a/{name}", labels={"<b>": "<i>"}, state="failed", error=f"{name}: =1+1")
    page, lines = reported(tmp_path, [slide, replace(made_up(2)[1], source="=cmd()", labels={"a": "<img src=x>"})])
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "link", "object", "i")]
    assert all((values.get("src") or "data:").startswith("data:") for _, values in page.tags)
    assert all(values.get("href") in (None, "slides.csv") for _, values in page.tags)
    assert lines[1]["source"] == "'=cmd()"


def test_a_large_cohort_makes_a_small_page(tmp_path: Path) -> None:
    page, _ = reported(tmp_path, made_up(5000), pictures=2)
    assert sum(tag == "circle" for tag, _ in page.tags) < 2 * 1700
    assert "of 5000 are shown" in page.text


def test_a_low_chunk_is_shown_beside_the_original(
    tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tiny_file.parent))
    make_slides(tmp_path / "slides", 1)
    ledger = planned(tmp_path / "slides", tmp_path / "out", tiny_file, tmp_path / "ledger")
    (row,) = rows(ledger)
    task = Task("encode", row.number, row.source, row.result, row.options, row.created, device="cpu", threads=1)
    result = perform(task.to_json())
    with Ledger.open(ledger) as opened:
        opened.finish("encode", [(1, {name: result[name] for name in result if name not in ("number", "lasting")})])
    page = Page(write_report(ledger, tmp_path / "report", threshold=90, device="cpu").page.read_text())
    pictures = [values["alt"] for tag, values in page.tags if tag == "img"]
    assert pictures == ["original", "decoded"]
    assert "level 0, row 0, column 0, at (0, 0)" in page.text
    (tmp_path / "slides" / "slide-000.tif").unlink()
    page = Page(write_report(ledger, tmp_path / "report", threshold=90, device="cpu").page.read_text())
    assert [values["alt"] for tag, values in page.tags if tag == "img"] == ["decoded"]


def test_bins_of_a_histogram_cover_every_value_once() -> None:
    for values in ([3.0], [1.0, 1.0], [0.1 * n for n in range(100)], [-5.0, 1e6], [30.0, 30.000001]):
        first, step, count = plots.bins_of(values)
        assert first <= min(values) and max(values) < first + step * count * (1 + 1e-9) + 1e-12
        assert 1 <= count <= 2 * plots.MOST_BINS


def test_plots_of_one_value_and_of_lossless_slides_are_drawn() -> None:
    inf = float("inf")
    assert "<rect" in plots.histogram([("", [5.0])], label="x", text=str)
    assert "<rect" in plots.histogram([("", [5.0, inf])], label="x", text=str)
    assert "nothing" in plots.histogram([("", [inf])], label="x", text=str)
    assert "<circle" in plots.scatter([(1, 1, "a")], x_label="", y_label="", x_text=str, y_text=str, log=True)
    assert "nothing" in plots.scatter([(inf, 1, "a")], x_label="", y_label="", x_text=str, y_text=str)


def test_speed_leaves_pauses_out(tmp_path: Path) -> None:
    slides = made_up(100)
    later = [replace(row, finished=(row.finished or 0) + 1e6 * (n >= 50)) for n, row in enumerate(slides)]
    with Ledger.make(tmp_path / "ledger", {}) as ledger:
        ledger.add(later)
        spans = summarise(ledger, threshold=30, pictures=0).spans()
    assert spans[-1][1] < 300_000
    assert sum((end - start) * speed for start, end, speed in spans) == pytest.approx(100, rel=0.01)
