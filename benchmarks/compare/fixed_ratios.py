"""The paper's ratios: what is left of an image in a 32nd to a 512th of its bytes, ours beside JPEG 2000.

Neither codec may use more than the bytes of raw RGB over the ratio. Nasr et al. 2023, arXiv 2303.13332.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from histocodec.benchmarks.compare.image_groups import Group
from histocodec.benchmarks.measure.byte_budget import raw_bytes_over
from histocodec.benchmarks.measure.images import Subject
from histocodec.benchmarks.measure.result_rows import CURVE, Row

SHOWN = ("psnr", "ms_ssim_db", "nuclei_f1")


@dataclass(frozen=True)
class AtRatio:
    """A group at one ratio: means over the images on which both codecs stay within the budget."""

    variant: str
    group: str
    ratio: int
    bpp: float
    images: int
    of: int
    ours: Mapping[str, float]  # by metric; empty where there are no such images
    theirs: Mapping[str, float]


def at_ratios(group: Group) -> tuple[AtRatio, ...]:
    """A group at each ratio that was measured, from 1:32 on."""
    ratios = []
    for ratio in sorted({_ratio(row) for row in group.rows} - {0}):
        pairs = [_pair(group, subject, ratio) for subject in group.subjects]
        fitting = [pair for pair in pairs if pair is not None]
        ratios.append(
            AtRatio(
                group.variant,
                group.name,
                ratio,
                24 / ratio,
                len(fitting),
                len(pairs),
                _means([ours for ours, _ in fitting]),
                _means([theirs for _, theirs in fitting]),
            )
        )
    return tuple(ratios)


def _pair(group: Group, subject: Subject, ratio: int) -> tuple[Row, Row] | None:
    """Ours and JPEG 2000's on one image, where both stay within the budget."""
    rows = [row for row in group.rows if row.subject == subject and _ratio(row) == ratio and _fits(row)]
    ours = [row for row in rows if row.is_ours]
    theirs = [row for row in rows if not row.is_ours]
    return (ours[0], theirs[0]) if ours and theirs else None


def _means(rows: Sequence[Row]) -> dict[str, float]:
    return {name: fmean(row.metric(name) for row in rows) for name in SHOWN} if rows else {}


def _ratio(row: Row) -> int:
    """The ratio that a row is for; 0 for a point of the curve."""
    return 0 if row.point.kind == CURVE else int(row.point.kind.removeprefix("1:"))


def _fits(row: Row) -> bool:
    pixels = row.subject.width * row.subject.height
    return row.sizes.in_slide_bytes <= raw_bytes_over(_ratio(row), pixels)
