"""The curves that `tune` saw, as a page."""

from pathlib import Path

from histocodec.formats.cohort.page import STYLE, card, page
from histocodec.formats.cohort.plots import curves
from histocodec.formats.cohort.tune import TuneReport
from histocodec.formats.container.files import write_atomically
from histocodec.version import VERSION

MOST = 24  # curves that can be told apart


def write_curves(
    report: TuneReport, path: Path, *, wanted_psnr: float | None = None, wanted_worst: float | None = None
) -> None:
    """Writes a page with PSNR, worst chunk and bits per pixel over quality. Raises OutputError."""
    shown = report.curves[:MOST]
    names = [Path(curve.source).stem[:12] for curve in shown]

    def plot(label: str, name: str, level: float | None) -> str:
        lines = [
            (words, [(float(point.quality), float(getattr(point, name))) for point in curve.points])
            for words, curve in zip(names, shown, strict=True)
        ]
        return curves(
            lines, x_label="quality", y_label=label, x_text="{:g}".format, y_text="{:.3g}".format, level=level
        )

    cards = [
        card("Whole slide", plot("PSNR in dB", "psnr", wanted_psnr), "The wanted value is the broken line."),
        card("Worst chunk that was looked at", plot("PSNR in dB", "worst_psnr", wanted_worst)),
        card("Rate", plot("bits per pixel of tissue", "bpp", None)),
    ]
    title = f"Quality for {len(report.curves)} slides"
    about = f"an estimate, of a sample of each slide's tissue · histocodec {VERSION}"
    write_atomically(path, page(title, about, f'<div class="grid2">{"".join(cards)}</div>', STYLE).encode())
