"""Plots as SVG within a page: histograms, bars, points. Colours are the page's, so that they follow light and dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560.0, 240.0  # of a plot, in the page's pixels
LEFT, RIGHT, TOP, BOTTOM = 52.0, 16.0, 12.0, 40.0  # margins, where labels are
TICKS = 5
MOST_BINS = 40

Format = Callable[[float], str]


@dataclass(frozen=True)
class Axis:
    """One axis: its range in values and in pixels, whether it is logarithmic, and how values are written."""

    low: float
    high: float
    start: float
    end: float
    text: Format
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value, in pixels; that of the nearer end, where it lies beyond."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(value) - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the range."""
        if self.log:
            low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if high - low <= 2 else (1,)
            return [s * 10.0**e for e in range(low, high + 1) for s in steps if self.low <= s * 10.0**e <= self.high]
        step = nice_step((self.high - self.low) / TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least this."""
    if least <= 0 or not math.isfinite(least):
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-9))


def bins_of(values: Sequence[float], *, least_step: float = 0.0) -> tuple[float, float, int]:
    """The first edge, the width and the number of bins that suit values."""
    low, high = min(values), max(values)
    wanted = min(MOST_BINS, max(6, round(1.5 * math.sqrt(len(values)))))
    step = nice_step(max(least_step, (high - low) / wanted, 1e-9 * max(abs(high), 1)))
    first = math.floor(low / step) * step
    return first, step, max(1, math.floor((high - first) / step) + 1)


def histogram(
    series: Sequence[tuple[str, Sequence[float]]],
    *,
    label: str,
    text: Format,
    marks: Sequence[tuple[float, str]] = (),
    limit: tuple[float, str] | None = None,
    least_step: float = 0.0,
) -> str:
    """Histograms on one axis, each series (name, values) a row of its own; `marks` are upright lines with words, and
    `limit` is one that stands out."""
    series = [(name, [value for value in values if math.isfinite(value)]) for name, values in series]
    everything = [value for _, values in series for value in values]
    if not everything:
        return nothing("nothing was measured yet")
    first, step, count = bins_of(everything, least_step=least_step)
    height = HEIGHT if len(series) == 1 else 150.0 * len(series) + BOTTOM
    x = Axis(first, first + step * count, LEFT, WIDTH - RIGHT, text)
    row_height = (height - BOTTOM - TOP) / len(series)
    parts = []
    for index, (name, values) in enumerate(series):
        bottom = TOP + row_height * (index + 1)
        counts = [0] * count
        for value in values:
            counts[min(count - 1, max(0, math.floor((value - first) / step + 1e-9)))] += 1
        y = Axis(0, max(*counts, 1), bottom, bottom - row_height + (36 if len(series) > 1 else 20), _count)
        parts.append(_levels(y, whole=True))
        for number, size in enumerate(counts):
            left, right = x.at(first + number * step), x.at(first + (number + 1) * step)
            if size:
                words = f"{text(first + number * step)} to {text(first + (number + 1) * step)}: {size}"
                top = y.at(size)
                parts.append(
                    f'<rect class="fill s{index}" x="{left + 0.75:.1f}" y="{top:.1f}" '
                    f'width="{max(1.0, right - left - 1.5):.1f}" height="{bottom - top:.1f}">'
                    f"<title>{escape(words)}</title></rect>"
                )
        if len(series) > 1:
            parts.append(f'<text class="name" x="{LEFT}" y="{bottom - row_height + 24:.1f}">{escape(name)}</text>')
    for value, words in marks:
        if x.low <= value <= x.high:
            parts.append(_mark(x.at(value), height - BOTTOM, words, "guide"))
    if limit is not None and x.low <= limit[0] <= x.high:
        parts.append(_mark(x.at(limit[0]), height - BOTTOM, limit[1], "mark"))
    return _plot("".join(parts) + _across(x, height, label), height, label)


def scatter(
    points: Sequence[tuple[float, float, str]],
    *,
    x_label: str,
    y_label: str,
    x_text: Format,
    y_text: Format,
    log: bool = False,
    lines: Sequence[tuple[float, str]] = (),
    level: tuple[float, str] | None = None,
) -> str:
    """Points (x, y, words that are shown when one points at it). `lines` are y = x / ratio, with their words; `level`
    is a height with its words."""
    points = [point for point in points if all(math.isfinite(v) and (v > 0 or not log) for v in point[:2])]
    if not points:
        return nothing("nothing was measured yet")
    x_values, y_values = [point[0] for point in points], [point[1] for point in points]
    if level is not None:
        y_values.append(level[0])
    x = Axis(*_range(x_values, log=log), LEFT + 12, WIDTH - RIGHT, x_text, log)
    y = Axis(*_range(y_values, log=log), HEIGHT + 40 - BOTTOM, TOP + 16, y_text, log)
    parts = [_levels(y)]
    for ratio, words in lines:
        ends = [max(x.low, y.low * ratio), min(x.high, y.high * ratio)]
        if ends[0] < ends[1]:
            (x1, y1), (x2, y2) = ((x.at(end), y.at(end / ratio)) for end in ends)
            parts.append(f'<line class="guide" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
            parts.append(
                f'<text class="guide-name" x="{x2 - 4:.1f}" y="{y2 - 5:.1f}" text-anchor="end">{escape(words)}</text>'
            )
    if level is not None:
        place = y.at(level[0])
        parts.append(
            f'<line class="mark" x1="{LEFT + 12}" y1="{place:.1f}" x2="{WIDTH - RIGHT}" y2="{place:.1f}"/>'
            f'<text class="mark-name" x="{WIDTH - RIGHT - 4}" y="{place - 5:.1f}" text-anchor="end">'
            f"{escape(level[1])}</text>"
        )
    for px, py, words in points:
        parts.append(
            f'<circle class="point s{int(level is not None and py < level[0])}" cx="{x.at(px):.1f}" '
            f'cy="{y.at(py):.1f}" r="3.5"><title>{escape(words)}</title></circle>'
        )
    name = f'<text class="label" x="{LEFT - 44}" y="{TOP + 2}">{escape(y_label)}</text>'
    return _plot("".join(parts) + name + _across(x, HEIGHT + 40, x_label), HEIGHT + 40, f"{y_label} over {x_label}")


def columns(
    values: Sequence[tuple[float, float, float]], *, label: str, x_text: Format, y_text: Format, y_label: str
) -> str:
    """Bars (from, to, height) side by side, such as speeds over time."""
    if not values:
        return nothing("nothing was done yet")
    x = Axis(values[0][0], values[-1][1], LEFT, WIDTH - RIGHT, x_text)
    y = Axis(0, max(height for _, _, height in values) or 1, HEIGHT - BOTTOM, TOP + 16, y_text)
    parts = [_levels(y)]
    for start, end, height in values:
        left, right, top = x.at(start), x.at(end), y.at(height)
        words = f"{x_text(start)} to {x_text(end)}: {y_text(height)}"
        parts.append(
            f'<rect class="fill s0" x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(1.0, right - left - 1):.1f}" '
            f'height="{HEIGHT - BOTTOM - top:.1f}"><title>{escape(words)}</title></rect>'
        )
    name = f'<text class="label" x="{LEFT - 44}" y="{TOP + 2}">{escape(y_label)}</text>'
    return _plot("".join(parts) + name + _across(x, HEIGHT, label), HEIGHT, label)


def bars(values: Sequence[tuple[str, int]], *, label: str) -> str:
    """Lying bars with a name and a number each."""
    if not values:
        return nothing("none")
    row, left = 30.0, 170.0
    height = row * len(values) + 8
    most = max(value for _, value in values)
    parts = []
    for index, (name, value) in enumerate(values):
        top = index * row + 6
        width = max(2.0, value / most * (WIDTH - left - 60))
        parts.append(
            f'<text class="name" x="{left - 10}" y="{top + 15:.1f}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="fill bad" x="{left}" y="{top:.1f}" width="{width:.1f}" height="20" rx="2"/>'
            f'<text class="name" x="{left + width + 8:.1f}" y="{top + 15:.1f}">{value}</text>'
        )
    return _plot("".join(parts), height, label)


def curves(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    x_label: str,
    y_label: str,
    x_text: Format,
    y_text: Format,
    level: float | None = None,
) -> str:
    """Lines through points (x, y), with the name of each at its end."""
    points = [point for _, line in series for point in line if math.isfinite(point[1])]
    if not points:
        return nothing("nothing was measured")
    heights = [point[1] for point in points] + ([] if level is None else [level])
    x = Axis(*_range([point[0] for point in points]), LEFT, WIDTH - 90, x_text)
    y = Axis(*_range(heights), HEIGHT + 40 - BOTTOM, TOP + 16, y_text)
    parts = [_levels(y)]
    if level is not None:
        place = y.at(level)
        parts.append(f'<line class="mark" x1="{LEFT}" y1="{place:.1f}" x2="{WIDTH - 90}" y2="{place:.1f}"/>')
    for index, (name, line) in enumerate(series):
        places = [(x.at(px), y.at(py)) for px, py in line if math.isfinite(py)]
        if places:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
            parts.append(f'<polyline class="line s{index % 4}" points="{path}"/>')
            parts.append(
                f'<text class="name" x="{places[-1][0] + 6:.1f}" y="{places[-1][1] + 4:.1f}">{escape(name)}</text>'
            )
    label = f'<text class="label" x="{LEFT - 44}" y="{TOP + 2}">{escape(y_label)}</text>'
    return _plot("".join(parts) + label + _across(x, HEIGHT + 40, x_label), HEIGHT + 40, f"{y_label} over {x_label}")


def nothing(words: str) -> str:
    """What stands where there is no plot."""
    return f'<p class="nothing">{escape(words)}</p>'


def _range(values: Sequence[float], *, log: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        room = max(1.15, (high / low) ** 0.06)
        return low / room, high * room
    room = (high - low) * 0.06 or abs(high) * 0.06 or 1.0
    return low - room, high + room


def _count(value: float) -> str:
    return f"{value:g}"


def _levels(axis: Axis, *, whole: bool = False) -> str:
    """Lines across a plot at the ticks of its upright axis."""
    ticks = [tick for tick in axis.ticks() if not whole or tick == int(tick)]
    if whole and len(ticks) > 3:
        ticks = ticks[:: math.ceil(len(ticks) / 3)]
    return "".join(
        f'<line class="grid" x1="{LEFT}" y1="{axis.at(tick):.1f}" x2="{WIDTH - RIGHT}" y2="{axis.at(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 7}" y="{axis.at(tick) + 4:.1f}" text-anchor="end">'
        f"{escape(axis.text(tick))}</text>"
        for tick in ticks
    )


def _across(axis: Axis, height: float, label: str) -> str:
    """The lying axis: its line, ticks and label."""
    base = height - BOTTOM
    ticks = "".join(
        f'<text class="tick" x="{axis.at(tick):.1f}" y="{base + 16:.1f}" text-anchor="middle">'
        f"{escape(axis.text(tick))}</text>"
        for tick in axis.ticks()
    )
    return (
        f'<line class="base" x1="{axis.start}" y1="{base}" x2="{axis.end}" y2="{base}"/>{ticks}'
        f'<text class="label" x="{(axis.start + axis.end) / 2:.1f}" y="{height - 6:.1f}" text-anchor="middle">'
        f"{escape(label)}</text>"
    )


def _mark(place: float, bottom: float, words: str, kind: str) -> str:
    return (
        f'<line class="{kind}" x1="{place:.1f}" y1="{TOP}" x2="{place:.1f}" y2="{bottom}"/>'
        f'<text class="{kind}-name" x="{place + 5:.1f}" y="{TOP + 10}">{escape(words)}</text>'
    )


def _plot(content: str, height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(label)}">{content}</svg>'
