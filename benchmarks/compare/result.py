"""Everything that a benchmark found, and where and with what."""

from collections.abc import Mapping
from dataclasses import dataclass

from histocodec.benchmarks.compare.summary import Summary
from histocodec.benchmarks.measure.rows import Row
from histocodec.benchmarks.measure.runner import BenchOptions
from histocodec.benchmarks.provenance import Machine, Model
from histocodec.benchmarks.studies.speed import SpeedResult


@dataclass(frozen=True)
class BenchResult:
    machine: Machine
    versions: Mapping[str, str]
    model: Model
    options: BenchOptions
    summary: Summary
    speed: SpeedResult | None
    rows: tuple[Row, ...]
