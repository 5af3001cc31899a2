"""What the rows come to: rate differences, the paper's ratios, every metric at a few rates, and speed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from histocodec.benchmarks.compare.fixed_ratios import AtRatio, at_ratios
from histocodec.benchmarks.compare.image_groups import Group, grouped
from histocodec.benchmarks.compare.rate_comparison import (
    Comparison,
    GroupComparison,
    Loss,
    comparisons,
    curves_of,
    losses,
    not_monotone,
    of_group,
)
from histocodec.benchmarks.measure.result_rows import CURVE, Row
from histocodec.benchmarks.measure.timing import TIMED_BPP

RATES = TIMED_BPP  # bits per pixel at which all metrics are shown, and near which times are taken
SHOWN = {
    "psnr": "PSNR, dB",
    "ms_ssim_db": "MS-SSIM, dB",
    "ssim": "SSIM",
    "delta_e": "ΔE2000",
    "hematoxylin_od": "hematoxylin, OD",
    "eosin_od": "eosin, OD",
    "nuclei_f1": "nuclei, F1",
    "nuclei_count_error": "nuclei, count",
}


@dataclass(frozen=True)
class AtRate:
    """A codec at one rate: means over the images on which its curve has that rate, interpolated in log bpp."""

    variant: str
    group: str
    bpp: float
    codec: str
    images: int
    of: int
    values: Mapping[str, float]  # by the names of SHOWN


@dataclass(frozen=True)
class Speeds:
    """Medians over all timed rows of a codec in a variant, in megapixels a second. Memory is the most of any."""

    variant: str
    codec: str
    rows: int
    encode_mps_1: float
    decode_mps_1: float
    encode_mps_all: float
    decode_mps_all: float
    encode_peak_bytes: int | None
    decode_peak_bytes: int | None


@dataclass(frozen=True)
class Summary:
    """Everything that the report shows, apart from plots and the speed on a slide."""

    groups: tuple[GroupComparison, ...]
    losses: tuple[Loss, ...]
    not_monotone: tuple[str, ...]
    ratios: tuple[AtRatio, ...]
    at_rates: tuple[AtRate, ...]
    speeds: tuple[Speeds, ...]
    images: tuple[Comparison, ...]


def summarise(rows: Sequence[Row]) -> Summary:
    """Compute the summary of a benchmark's rows."""
    groups, compared = grouped(rows), comparisons(rows)
    return Summary(
        groups=tuple(comparison for group in groups for comparison in of_group(group, compared)),
        losses=losses(compared),
        not_monotone=not_monotone(rows),
        ratios=tuple(at_ratio for group in groups for at_ratio in at_ratios(group)),
        at_rates=tuple(at_rate for group in groups for at_rate in at_rates(group)),
        speeds=speeds(rows),
        images=compared,
    )


def at_rates(group: Group) -> tuple[AtRate, ...]:
    """Every codec of a group at each of RATES that its curves reach."""
    curves = [curves_of(group.rows, subject) for subject in group.subjects]
    rates = []
    for bpp in RATES:
        for codec in dict.fromkeys(name for by_codec in curves for name in by_codec):
            values = [
                metrics for by_codec in curves if codec in by_codec and (metrics := _interpolated(by_codec[codec], bpp))
            ]
            if values:
                means = {name: fmean(metrics[name] for metrics in values) for name in SHOWN}
                rates.append(AtRate(group.variant, group.name, bpp, codec, len(values), len(curves), means))
    return tuple(rates)


def _interpolated(curve: Sequence[Row], bpp: float) -> dict[str, float]:
    """Every metric at a rate; empty where the curve does not reach it."""
    finite = sorted((row for row in curve if np.isfinite(row.fidelity.psnr)), key=lambda row: row.bpp)
    if not finite or not finite[0].bpp <= bpp <= finite[-1].bpp:
        return {}
    log_bpp = np.log([row.bpp for row in finite])
    return {name: float(np.interp(np.log(bpp), log_bpp, [row.metric(name) for row in finite])) for name in SHOWN}


def speeds(rows: Sequence[Row]) -> tuple[Speeds, ...]:
    """The speeds of every codec that was timed."""
    medians = []
    for variant, codec in dict.fromkeys((row.subject.variant, row.coded_by.name) for row in rows):
        timed = [
            row.speed
            for row in rows
            if (row.subject.variant, row.coded_by.name) == (variant, codec) and row.speed and row.point.kind == CURVE
        ]
        if timed:
            encode_peaks = [speed.encode_peak_bytes for speed in timed if speed.encode_peak_bytes is not None]
            decode_peaks = [speed.decode_peak_bytes for speed in timed if speed.decode_peak_bytes is not None]
            medians.append(
                Speeds(
                    variant,
                    codec,
                    len(timed),
                    median(speed.encode_mps_1 for speed in timed),
                    median(speed.decode_mps_1 for speed in timed),
                    median(speed.encode_mps_all for speed in timed),
                    median(speed.decode_mps_all for speed in timed),
                    max(encode_peaks, default=None),
                    max(decode_peaks, default=None),
                )
            )
    return tuple(medians)
