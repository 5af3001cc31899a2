"""Ours against each peer: how many per cent more or fewer bytes for the same quality, and where it is more.

Rate differences are computed per image over the range that both codecs reach, for PSNR and for MS-SSIM in dB, for each
way of counting our bytes; then averaged over the images of a group. A band is a range of the peer's bits per pixel;
`all` is everything that both reach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from histocodec.benchmarks.compare.bjontegaard import BdRate, Curve, bd_rate
from histocodec.benchmarks.compare.image_groups import Group, Mean, mean
from histocodec.benchmarks.measure.images import Subject
from histocodec.benchmarks.measure.result_rows import COUNTS, CURVE, HEADLINE, Count, Row

EVERYTHING = "all"
BANDS = {
    "0.05-0.25": (0.05, 0.25),
    "0.25-0.75": (0.25, 0.75),
    "0.75-1.5": (0.75, 1.5),
    "0.05-1.5": (0.05, 1.5),
}
ALL_BANDS = (*BANDS, EVERYTHING)
METRICS = {"psnr": "PSNR", "ms_ssim_db": "MS-SSIM in dB"}

BdRates = Mapping[str, Mapping[Count, Mapping[str, BdRate | None]]]  # by metric, count and band


@dataclass(frozen=True)
class Comparison:
    """Ours against one peer on one image; negative percentages are fewer bytes."""

    image: str
    variant: str
    group: str
    peer: str
    bd_rate: BdRates


@dataclass(frozen=True)
class GroupComparison:
    """Means of the percentages over a group's images, with the number of images in each band."""

    variant: str
    group: str
    images: int
    peer: str
    bd_rate: Mapping[str, Mapping[Count, Mapping[str, Mean | None]]]


@dataclass(frozen=True)
class Loss:
    """An image on which we need more bytes than the peer, by the headline's count: per cent in each such band."""

    image: str
    variant: str
    peer: str
    metric: str
    percent: Mapping[str, float]


def curves_of(rows: Sequence[Row], subject: Subject) -> dict[str, list[Row]]:
    """The points of each codec's curve on one image, by the codec's full name, ours first."""
    curves: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: not row.is_ours):
        if row.subject == subject and row.point.kind == CURVE:
            curves.setdefault(row.coded_by.name, []).append(row)
    return curves


def comparisons(rows: Sequence[Row]) -> tuple[Comparison, ...]:
    """Compare ours on every image with every peer that was measured on it."""
    compared = []
    for subject in dict.fromkeys(row.subject for row in rows):
        curves = list(curves_of(rows, subject).values())
        ours = next((curve for curve in curves if curve[0].is_ours), [])
        compared += [compare(ours, theirs) for theirs in curves if not theirs[0].is_ours]
    return tuple(compared)


def compare(ours: Sequence[Row], theirs: Sequence[Row]) -> Comparison:
    """Compare two curves of the same image."""
    subject = theirs[0].subject
    rates = {
        metric: {count: _in_bands(ours, theirs, metric, count, subject.width * subject.height) for count in COUNTS}
        for metric in METRICS
    }
    return Comparison(subject.image, subject.variant, subject.group, theirs[0].coded_by.name, rates)


def of_group(group: Group, compared: Sequence[Comparison]) -> tuple[GroupComparison, ...]:
    """Average over a group's images, against each peer. `compared` holds the comparisons of all images."""
    images = {subject.image for subject in group.subjects}
    of_images = [pair for pair in compared if pair.image in images and pair.variant == group.variant]
    groups = []
    for peer in dict.fromkeys(comparison.peer for comparison in of_images):
        peer_rates = [comparison.bd_rate for comparison in of_images if comparison.peer == peer]
        means = {
            metric: {
                count: {band: mean(_percent(rates[metric][count][band]) for rates in peer_rates) for band in ALL_BANDS}
                for count in COUNTS
            }
            for metric in METRICS
        }
        groups.append(GroupComparison(group.variant, group.name, len(images), peer, means))
    return tuple(groups)


def losses(compared: Sequence[Comparison]) -> tuple[Loss, ...]:
    """Every image and peer with a band in which ours is the larger."""
    worse = []
    for comparison in compared:
        for metric in METRICS:
            rates = comparison.bd_rate[metric][HEADLINE]
            percent = {band: rate.percent for band, rate in rates.items() if rate is not None and rate.percent > 0}
            if percent:
                worse.append(Loss(comparison.image, comparison.variant, comparison.peer, metric, percent))
    return tuple(worse)


def not_monotone(rows: Sequence[Row]) -> tuple[str, ...]:
    """Images on which a higher quality of ours has no more bytes, or no higher PSNR."""
    images = []
    for subject in dict.fromkeys(row.subject for row in rows):
        ours = [row for row in rows if row.subject == subject and row.is_ours and row.point.kind == CURVE]
        ours.sort(key=lambda row: row.point.setting)
        steps = pairwise((row.sizes.in_slide_bytes, row.fidelity.psnr) for row in ours)
        if not all(a < b for before, after in steps for a, b in zip(before, after, strict=True)):
            images.append(f"{subject.image}, {subject.variant}")
    return tuple(images)


def _in_bands(
    ours: Sequence[Row], theirs: Sequence[Row], metric: str, count: Count, pixels: int
) -> dict[str, BdRate | None]:
    test = Curve.of((getattr(row.sizes, count), row.metric(metric)) for row in ours)
    anchor = Curve.of((getattr(row.sizes, count), row.metric(metric)) for row in theirs)
    if anchor is None or test is None:
        return dict.fromkeys(ALL_BANDS)
    limits = {band: (low * pixels / 8, high * pixels / 8) for band, (low, high) in BANDS.items()}
    return {band: bd_rate(anchor, test, anchor_bytes=limits.get(band)) for band in ALL_BANDS}


def _percent(rate: BdRate | None) -> float | None:
    return None if rate is None else rate.percent
