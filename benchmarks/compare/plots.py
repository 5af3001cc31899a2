"""Rate–distortion plots: one figure per group and metric, one panel per image, one line per codec."""

import io
import math
from collections.abc import Iterator, Sequence

from histocodec.benchmarks.compare.image_groups import ALL, Group, grouped
from histocodec.benchmarks.compare.rate_comparison import METRICS, curves_of
from histocodec.benchmarks.measure.result_rows import Row
from histocodec.extras import requires_extra

COLUMNS = 3  # panels in a row
PANELS = 12  # of a figure; further images are in the rows
PANEL = (4.2, 3.2)  # inches
DPI = 110
OURS_COLOUR = "#c2185b"  # none of matplotlib's own ten, which are the peers'


def plots(rows: Sequence[Row]) -> Iterator[tuple[str, bytes]]:
    """Draw a PNG per group and metric; each with the name of its file. Raises UnsupportedError without matplotlib."""
    for group in grouped(rows):
        if group.name != ALL:
            for metric in METRICS:
                yield f"rd-{group.variant}-{group.name}-{metric.replace('_', '-')}.png", _figure(group, metric)


def _figure(group: Group, metric: str) -> bytes:
    with requires_extra("bench"):
        from matplotlib.figure import Figure
    subjects = group.subjects[:PANELS]
    columns = min(COLUMNS, len(subjects))
    lines = math.ceil(len(subjects) / columns)
    figure = Figure(figsize=(columns * PANEL[0], lines * PANEL[1] + 0.5), dpi=DPI, layout="constrained")
    names: list[str] = []
    for number, subject in enumerate(subjects, 1):
        axes = figure.add_subplot(lines, columns, number)
        for name, curve in curves_of(group.rows, subject).items():
            points = sorted((row.bpp, row.metric(metric)) for row in curve)
            points = [point for point in points if math.isfinite(point[1])]
            names += [] if name in names else [name]
            ours = curve[0].is_ours
            rates, qualities = [rate for rate, _ in points], [quality for _, quality in points]
            axes.plot(
                rates,
                qualities,
                marker=".",
                markersize=4,
                label=name,
                color=OURS_COLOUR if ours else f"C{names.index(name)}",
                linewidth=2.2 if ours else 1.1,
                zorder=3 if ours else 2,
            )
        axes.set_xscale("log")
        axes.set_title(subject.image, fontsize=9)
        axes.set_xlabel("bits per pixel", fontsize=8)
        axes.set_ylabel(METRICS[metric] + (", dB" if metric == "psnr" else ""), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3, which="both")
        if number == 1:
            axes.legend(fontsize=6)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
