"""The report of a cohort: a page that needs no server, and a CSV file with a line for each slide."""

import base64
import csv
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from statistics import fmean, median

from histocodec.errors import HistocodecError, OutputError
from histocodec.formats.cohort import plots
from histocodec.formats.cohort.ledger import Ledger, Row
from histocodec.formats.cohort.page import STYLE, card, page, table, tile
from histocodec.formats.cohort.summary import Summary, summarise
from histocodec.formats.container.files import whole_file, write_atomically
from histocodec.formats.container.locations import is_url
from histocodec.geometry import ChunkKey
from histocodec.slide import Pixels
from histocodec.text import count_text, decibel_text, ratio_text, size_text, speed_text, time_text
from histocodec.version import VERSION

PAGE, TABLE = "index.html", "slides.csv"
THRESHOLD = 30.0  # dB
PICTURES = 12
PICTURE_QUALITY = 90  # of WebP
ROUND_RATIOS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
UNITS = ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
CHECKED = ("verify", "embed")


@dataclass(frozen=True)
class CohortReport:
    """Where a report was written, and its main figures, as in `Summary`."""

    page: Path
    table: Path
    slides: int
    done: int
    failed: int
    left: int
    below: int
    source_bytes: int
    result_bytes: int
    ratio: float | None


def write_report(
    ledger: Path,
    out: Path,
    *,
    threshold: float = THRESHOLD,
    pictures: int = PICTURES,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> CohortReport:
    """Writes `index.html` and `slides.csv` into the folder `out`, in place of earlier ones. A run may go on meanwhile.

    Slides with a chunk below `threshold` dB are listed; the `pictures` with the lowest chunk show it beside the
    original, where both can be read here. Raises UsageError where there is no ledger, OutputError.
    """
    with Ledger.open(ledger) as opened:
        summary = summarise(opened, threshold=threshold, pictures=pictures)
        facts, runs = opened.facts(), opened.runs()
        work = {kind: opened.counts(kind) for kind in CHECKED}  # type: ignore[arg-type]  # both are kinds of work
        _make_folder(out)
        _write_table(out / TABLE, opened)
    cards = []
    for done, row in enumerate(summary.worst_slides, 1):
        cards.append(_card(row, summary, device))
        if progress is not None:
            progress(done, len(summary.worst_slides))
    text = _page(summary, facts, runs, work, cards)
    write_atomically(out / PAGE, text.encode("utf-8", "backslashreplace"))
    return CohortReport(
        out / PAGE, out / TABLE, summary.slides, summary.counts["done"], summary.counts["failed"],
        summary.counts["planned"] + summary.counts["running"], summary.below, summary.source_bytes,
        summary.result_bytes, summary.ratio,
    )  # fmt: skip


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{out}: cannot be made: {exc.strerror or exc}") from exc


def _write_table(path: Path, ledger: Ledger) -> None:
    """Every column of the ledger, labels and options as JSON, and the ratio."""
    names = [item.name for item in fields(Row) if item.name != "detail"]
    with whole_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
        writer = csv.writer(text)
        writer.writerow([*names, "ratio"])
        for row in ledger.rows():
            ratio = row.source_bytes / row.result_bytes if row.source_bytes and row.result_bytes else None
            writer.writerow([*(_cell(getattr(row, name)) for name in names), "" if ratio is None else f"{ratio:.3f}"])
        text.detach()


def _cell(value: object) -> object:
    if isinstance(value, Mapping | tuple):
        return json.dumps(dict(value) if isinstance(value, Mapping) else list(value), ensure_ascii=False)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"  # a spreadsheet would take it for a formula
    return "" if value is None else value


def _page(
    summary: Summary,
    facts: Mapping[str, str],
    runs: Sequence[Mapping[str, object]],
    work: Mapping[str, Mapping[str, int]],
    cards: Sequence[str],
) -> str:
    done, failed = summary.counts["done"], summary.counts["failed"]
    left = summary.counts["planned"] + summary.counts["running"]
    spans = summary.spans()
    unit, words = next((unit, words) for unit, words in UNITS if not spans or spans[-1][1] >= 2 * unit or unit == 1)
    sections = [
        _tiles(summary),
        _bar(summary),
        '<div class="grid2">',
        card(
            "Bytes before and after",
            plots.scatter(
                [(point.source_bytes, point.result_bytes, point.words) for point in summary.points],
                x_label="source file",
                y_label="container",
                x_text=_bytes,
                y_text=_bytes,
                log=True,
                lines=[(ratio, f"1:{ratio}") for ratio in _round_ratios(summary.ratios)],
            ),
            _sampled(summary),
        ),
        card(
            "Compression ratio",
            plots.histogram(
                [("", summary.ratios)],
                label="times smaller than the source file",
                text=lambda value: f"1:{value:g}",
                marks=[(median(summary.ratios), f"median 1:{median(summary.ratios):.1f}")] if summary.ratios else [],
            ),
        ),
        card(
            "Fidelity",
            plots.histogram(
                [("whole slide (level 0)", summary.psnr), ("worst chunk (any level)", summary.worst)],
                label="PSNR in dB, as measured by decoding",
                text=lambda value: f"{value:g}",
                limit=(summary.threshold, f"{summary.threshold:g} dB"),
                least_step=0.25,
            ),
        ),
        card(
            "Worst chunk beside the whole slide",
            plots.scatter(
                [(point.psnr, point.worst_psnr, point.words) for point in summary.points],
                x_label="PSNR of the whole slide in dB",
                y_label="worst chunk",
                x_text=lambda value: f"{value:.3g}",
                y_text=lambda value: f"{value:.3g}",
                level=(summary.threshold, f"{summary.threshold:g} dB"),
            ),
            f"Below the line: {count_text(summary.below, 'slide')} of {done}. {_sampled(summary)}",
        ),
        card(
            "Speed while it ran",
            plots.columns(
                [(start / unit, end / unit, speed) for start, end, speed in spans],
                label=f"{words} since the first slide was done, without pauses",
                x_text=lambda value: f"{value:.3g}",
                y_text=lambda value: f"{value:.3g}",
                y_label="MP/s",
            ),
        ),
        card(
            "Failures by kind",
            plots.bars(summary.kinds.most_common(), label="failures by kind")
            if failed
            else plots.nothing("no slide failed"),
            f"{count_text(summary.tried_again, 'slide')} needed more than one attempt.",
        ),
        "</div>",
    ]
    if cards:
        what = f"Slides with a chunk below {summary.threshold:g} dB: {summary.below}. " if done else ""
        sections.append(
            f'<h2>The lowest chunks</h2><p class="lead">{what}Each picture is the chunk that lost most, the original '
            'on the left. <a href="slides.csv">slides.csv</a> names that of every slide.</p>'
            f'<div class="cards">{"".join(cards)}</div>'
        )
    if summary.failures:
        rows = [
            (escape(Path(row.source).name), escape(row.error_kind or ""), str(row.attempts), escape(row.error or ""))
            for row in summary.failures
        ]
        more = failed - len(rows)
        sections.append("<h2>Slides that failed</h2>" + table(("slide", "kind", "attempts", "error"), rows))
        sections.append(f'<p class="lead">and {more} more, in slides.csv</p>' if more > 0 else "")
    for kind, counts in work.items():
        if sum(counts.values()):
            states = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
            sections.append(f'<p class="lead">cohort {kind}: {states}</p>')
    if runs:
        sections.append("<h2>Runs</h2>" + table(("work", "where", "began", "took", "ended", "by"), map(_run, runs)))
    title = f"{count_text(summary.slides, 'slide')}: {done} done, {failed} failed, {left} left"
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    about = f"containers in {facts.get('out', '')} · histocodec {VERSION} · {made}"
    return page(title, about, "".join(sections), STYLE)


def _tiles(summary: Summary) -> str:
    done = summary.counts["done"]
    saved = summary.source_bytes - summary.result_bytes
    tiles = [
        tile("slides done", f"{done}", f"of {summary.slides}"),
        tile("failed", f"{summary.counts['failed']}", "", bad=summary.counts["failed"] > 0),
        tile("bytes", size_text(summary.result_bytes), f"from {size_text(summary.source_bytes)}"),
        tile("ratio", ratio_text(summary.ratio), f"{size_text(abs(saved))} {'saved' if saved >= 0 else 'more'}"),
        tile("PSNR", decibel_text(_mean(summary.psnr)), "mean of the slides"),
        tile(
            "lowest chunk",
            decibel_text(min(summary.worst, default=None)),
            f"{count_text(summary.below, 'slide')} below {summary.threshold:g} dB",
            bad=summary.below > 0,
        ),
        tile("work", _hours(summary.seconds), speed_text(summary.pixels / 1e6 / summary.seconds) if done else ""),
        tile("read back", f"{summary.verified}", f"{summary.adopted} adopted"),
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _bar(summary: Summary) -> str:
    """One bar for all slides, by state."""
    parts = []
    for state, words in (("done", "done"), ("failed", "failed"), ("running", "running"), ("planned", "planned")):
        number = summary.counts[state]
        if number:
            share = 100 * number / summary.slides
            parts.append(f'<span class="{state}" style="width:{share:.3f}%" title="{number} {words}"></span>')
    return f'<div class="states">{"".join(parts)}</div>'


def _card(row: Row, summary: Summary, device: str) -> str:
    """A slide with its worst chunk, as the original and as decoded."""
    name = escape(Path(row.source).name)
    place = f"level {row.worst_level}, row {row.worst_row}, column {row.worst_column}"
    bad = " bad" if row.worst_psnr is not None and row.worst_psnr < summary.threshold else ""
    try:
        (x, y), original, decoded = worst_chunk(row, device=device)
        place += f", at ({x}, {y})"
        images = "".join(
            f'<img alt="{words}" title="{words}" src="{_image(pixels)}">'
            for words, pixels in (("original", original), ("decoded", decoded))
            if pixels is not None
        )
    except HistocodecError as exc:
        images = f'<p class="nothing">{escape(str(exc))}</p>'
    labels = ", ".join(f"{key} {value}" for key, value in row.labels.items())
    return (
        f'<figure class="chunk">{images}<figcaption><b>{name}</b>'
        f'<span class="value{bad}">{decibel_text(row.worst_psnr)}</span>'
        f"<small>{place}<br>whole slide {decibel_text(row.psnr)}, {escape(labels)}</small></figcaption></figure>"
    )


def worst_chunk(row: Row, *, device: str = "auto") -> tuple[tuple[int, int], Pixels | None, Pixels]:
    """The worst chunk of a slide: its corner in pixels of level 0, its pixels in the source, None where that cannot be
    read here, and its pixels as they are decoded. Raises what opening the container raises."""
    from histocodec.formats.decode.slide import open_compressed
    from histocodec.sources import open_slide, with_pyramid

    level, chunk_row, column = row.worst_level, row.worst_row, row.worst_column
    if level is None or chunk_row is None or column is None:
        raise HistocodecError(f"{row.result}: has no chunk that was measured")
    with open_compressed(row.result, device=device) as slide:
        attributes = slide.container.attributes
        region = attributes.chunk_region(ChunkKey(level, chunk_row, column))
        decoded, size = slide.read(region, level), attributes.levels[level]
    original: Pixels | None = None
    if not is_url(row.source):
        with suppress(HistocodecError), open_slide(row.source) as source:
            levels = with_pyramid(source)
            same = [n for n, own in enumerate(levels.levels) if (own.width, own.height) == (size.width, size.height)]
            original = levels.read(region, same[0]) if same else None
    return (round(region.x * size.downsample), round(region.y * size.downsample)), original, decoded


def _image(pixels: Pixels) -> str:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "WEBP", quality=PICTURE_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def _run(run: Mapping[str, object]) -> tuple[str, ...]:
    began, finished = run["started"], run["finished"]
    assert isinstance(began, float)
    took = time_text(finished - began) if isinstance(finished, float) else ""
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(began))
    words = (run["kind"], run["cluster"], moment, took, run["ended"] or "goes on", run["holder"])
    return tuple(escape(str(word)) for word in words)


def _sampled(summary: Summary) -> str:
    done = summary.counts["done"]
    return f"Each point is a slide; {len(summary.points)} of {done} are shown." if len(summary.points) < done else ""


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if value < float("inf")]
    return fmean(finite) if finite else (float("inf") if values else None)


def _bytes(value: float) -> str:
    return size_text(round(value))


def _hours(seconds: float) -> str:
    return time_text(seconds) if seconds < 36_000 else f"{seconds / 3600:,.0f} h"


def _round_ratios(ratios: Sequence[float]) -> list[int]:
    """Those ratios that help the eye among these."""
    return [ratio for ratio in ROUND_RATIOS if ratios and min(ratios) / 1.6 <= ratio <= max(ratios) * 1.6]
