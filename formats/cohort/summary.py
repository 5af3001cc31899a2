"""What came of a cohort so far, gathered in one pass over its ledger: a few numbers are kept of each slide."""

import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from histocodec.formats.cohort.ledger import STATES, Ledger, Row
from histocodec.text import decibel_text, ratio_text, size_text

MOST_POINTS = 1500  # of a plot with a point for each slide; of more slides, every so many are shown
MOST_FAILURES = 500  # that the page lists; the CSV has all
SPANS = 48  # of the time that the work took


@dataclass(frozen=True)
class Point:
    """A slide in plots: its name and figures."""

    name: str
    source_bytes: int
    result_bytes: int
    psnr: float
    worst_psnr: float
    words: str


@dataclass
class Summary:
    """Counts, sums and distributions of a cohort. Bytes, pixels and seconds are those of slides that are done, of which
    `ratios`, `psnr`, `worst` have a value each; `worst_slides` are those with the lowest chunk, the lowest first, and
    `below` counts those with a chunk below `threshold`."""

    threshold: float
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    adopted: int = 0
    verified: int = 0
    tried_again: int = 0
    below: int = 0
    source_bytes: int = 0
    result_bytes: int = 0
    pixels: int = 0
    seconds: float = 0
    ratios: "array[float]" = field(default_factory=lambda: array("d"))
    psnr: "array[float]" = field(default_factory=lambda: array("d"))
    worst: "array[float]" = field(default_factory=lambda: array("d"))
    finished: "array[float]" = field(default_factory=lambda: array("d"))  # with `work`, when how many pixels were done
    work: "array[float]" = field(default_factory=lambda: array("d"))
    points: list[Point] = field(default_factory=list)
    worst_slides: list[Row] = field(default_factory=list)
    failures: list[Row] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    labels: list[str] = field(default_factory=list)

    @property
    def slides(self) -> int:
        """All slides of the ledger."""
        return sum(self.counts.values())

    @property
    def ratio(self) -> float | None:
        """How many times smaller the containers are than the sources."""
        return self.source_bytes / self.result_bytes if self.result_bytes else None

    def spans(self) -> list[tuple[float, float, float]]:
        """Speed over time: (from, to, megapixels per second), in seconds since the first slide was finished, without
        the time between runs in which nothing was done."""
        moments = sorted(zip(self.finished, self.work, strict=True))
        if len(moments) < 2:
            return []
        longest = max(600.0, 20 * (moments[-1][0] - moments[0][0]) / len(moments))  # a longer pause is no work
        clock, previous, placed = 0.0, moments[0][0], []
        for moment, pixels in moments:
            clock += min(longest, moment - previous)
            previous = moment
            placed.append((clock, pixels))
        width = clock / SPANS or 1.0
        sums = [0.0] * SPANS
        for moment, pixels in placed:
            sums[min(SPANS - 1, int(moment / width))] += pixels
        return [(number * width, (number + 1) * width, total / width / 1e6) for number, total in enumerate(sums)]


def summarise(ledger: Ledger, *, threshold: float, pictures: int) -> Summary:
    """Gathers a cohort's figures; `threshold` is in dB, and `pictures` the number of slides in `worst_slides`."""
    summary = Summary(threshold)
    summary.counts.update(ledger.counts())
    every = max(1, summary.counts["done"] // MOST_POINTS)
    heap: list[tuple[float, int, Row]] = []
    names: set[str] = set()
    for index, row in enumerate(_done(summary, ledger.rows())):
        names.update(row.labels)
        if row.worst_psnr is not None:
            heapq.heappush(heap, (-row.worst_psnr, row.number, row))
            if len(heap) > pictures:
                heapq.heappop(heap)
        if index % every == 0:
            summary.points.append(_point(row))
    summary.worst_slides = [row for _, _, row in sorted(heap, key=lambda item: (-item[0], item[1]))]
    summary.labels = sorted(names)
    return summary


def _done(summary: Summary, rows: Iterable[Row]) -> Iterator[Row]:
    """Counts every row, and yields those that are done."""
    for row in rows:
        summary.tried_again += row.attempts > 1
        if row.state == "failed":
            summary.kinds[row.error_kind or "unknown"] += 1
            if len(summary.failures) < MOST_FAILURES:
                summary.failures.append(row)
        if row.state != "done":
            continue
        source, result, pixels = row.source_bytes or 0, row.result_bytes or 0, row.pixels or 0
        summary.adopted += bool(row.adopted)
        summary.verified += bool(row.verified)
        summary.source_bytes += source
        summary.result_bytes += result
        summary.pixels += pixels
        summary.seconds += row.seconds or 0
        if source and result:
            summary.ratios.append(source / result)
        if row.psnr is not None:
            summary.psnr.append(row.psnr)
        if row.worst_psnr is not None:
            summary.worst.append(row.worst_psnr)
            summary.below += row.worst_psnr < summary.threshold
        if row.finished is not None:
            summary.finished.append(row.finished)
            summary.work.append(pixels)
        yield row


def _point(row: Row) -> Point:
    name = Path(row.source).name
    ratio = row.source_bytes / row.result_bytes if row.source_bytes and row.result_bytes else None
    words = (
        f"{name}: {size_text(row.source_bytes or 0)} to {size_text(row.result_bytes or 0)} ({ratio_text(ratio)}), "
        f"PSNR {decibel_text(row.psnr)}, worst chunk {decibel_text(row.worst_psnr)}"
    )
    nan = float("nan")
    return Point(
        name,
        row.source_bytes or 0,
        row.result_bytes or 0,
        nan if row.psnr is None else row.psnr,
        nan if row.worst_psnr is None else row.worst_psnr,
        words,
    )
