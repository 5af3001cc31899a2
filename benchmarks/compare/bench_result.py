"""Everything that a benchmark found, and where and with what."""

from collections.abc import Mapping
from dataclasses import dataclass

from histocodec.benchmarks.compare.summary import Summary
from histocodec.benchmarks.measure.measure_images import BenchOptions
from histocodec.benchmarks.measure.provenance import Machine, Model
from histocodec.benchmarks.measure.result_rows import Row
from histocodec.benchmarks.studies.speed import SpeedResult


@dataclass(frozen=True)
class BenchResult:
    """The result of `histocodec bench`. Its JSON has these fields, with the rows flat."""

    machine: Machine
    versions: Mapping[str, str]
    model: Model
    options: BenchOptions
    summary: Summary
    speed: SpeedResult | None
    rows: tuple[Row, ...]
