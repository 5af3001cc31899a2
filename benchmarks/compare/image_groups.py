"""Rows put together by where their images come from, so that means are over like and like."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from histocodec.benchmarks.measure.images import Subject
from histocodec.benchmarks.measure.result_rows import Row

ALL = "all"  # images of a variant, whatever their source: as many of each as happened to be at hand


@dataclass(frozen=True)
class Group:
    """All rows of a source's images in one variant."""

    variant: str
    name: str
    rows: tuple[Row, ...]

    @property
    def subjects(self) -> tuple[Subject, ...]:
        return tuple(dict.fromkeys(row.subject for row in self.rows))

    @property
    def title(self) -> str:
        return self.name if self.variant == "native" else f"{self.name}, {self.variant}"


@dataclass(frozen=True)
class Mean:
    """Over so many images: those where there is a value."""

    value: float
    images: int


def grouped(rows: Sequence[Row]) -> tuple[Group, ...]:
    """Each variant's sources by name, and all of them together where there are several."""
    found = []
    for variant in dict.fromkeys(row.subject.variant for row in rows):
        own = tuple(row for row in rows if row.subject.variant == variant)
        names = sorted({row.subject.group for row in own})
        found += [Group(variant, name, tuple(row for row in own if row.subject.group == name)) for name in names]
        if len(names) > 1:
            found.append(Group(variant, ALL, own))
    return tuple(found)


def mean(values: Iterable[float | None]) -> Mean | None:
    """None where there is no value at all."""
    found = [value for value in values if value is not None]
    return Mean(fmean(found), len(found)) if found else None
