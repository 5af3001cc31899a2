"""Everything that a benchmark found, and where and with what."""

from collections.abc import Mapping
from dataclasses import dataclass

from histocodec.benchmarks.provenance import Machine, Model
from histocodec.benchmarks.rows import Row
from histocodec.benchmarks.runner import BenchOptions
from histocodec.benchmarks.speed import SpeedResult
from histocodec.benchmarks.summary import Summary


@dataclass(frozen=True)
class BenchResult:
    machine: Machine
    versions: Mapping[str, str]
    model: Model
    options: BenchOptions
    summary: Summary
    speed: SpeedResult | None
    rows: tuple[Row, ...]
