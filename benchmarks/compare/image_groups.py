"""Group rows by where their images come from, so that means are over like and like."""

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
        """The images, each once."""
        return tuple(dict.fromkeys(row.subject for row in self.rows))


@dataclass(frozen=True)
class Mean:
    """A mean over so many images: those that have a value."""

    value: float
    images: int


def grouped(rows: Sequence[Row]) -> tuple[Group, ...]:
    """Each variant's sources by name, and all of them together where there are several."""
    groups = []
    for variant in dict.fromkeys(row.subject.variant for row in rows):
        of_variant = tuple(row for row in rows if row.subject.variant == variant)
        for name in sorted({row.subject.group for row in of_variant}):
            groups.append(Group(variant, name, tuple(row for row in of_variant if row.subject.group == name)))
        if len({row.subject.group for row in of_variant}) > 1:
            groups.append(Group(variant, ALL, of_variant))
    return tuple(groups)


def mean(values: Iterable[float | None]) -> Mean | None:
    """The mean of the values that there are; None where there is none."""
    present = [value for value in values if value is not None]
    return Mean(fmean(present), len(present)) if present else None
