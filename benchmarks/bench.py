"""A whole benchmark: chosen, measured, summed up, and written into a folder.

rows.jsonl     every row as it is finished: what a later run goes on from
rows.json/csv  the rows that count, in order
summary.json   what they come to, and where and with what they were made
rd-….png       rate-distortion plots
crops.png      the same tissue out of every codec
report.md      one page of it all
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from histocodec.benchmarks.compare.bench_result import BenchResult
from histocodec.benchmarks.compare.crop_sheet import crop_sheet
from histocodec.benchmarks.compare.plots import plots
from histocodec.benchmarks.compare.report import CROPS, report
from histocodec.benchmarks.compare.summary import summarise
from histocodec.benchmarks.measure.images import LEAST, Sample, choose
from histocodec.benchmarks.measure.measure_images import BenchOptions, measure
from histocodec.benchmarks.measure.provenance import Machine, Model, at_hand, versions
from histocodec.benchmarks.measure.result_rows import RowStore, as_csv, flat
from histocodec.benchmarks.peers.codecs import PEERS
from histocodec.benchmarks.studies.speed import speed_of_slide
from histocodec.errors import OutputError
from histocodec.extras import requires_extra
from histocodec.formats.container.files import write_atomically
from histocodec.formats.decode.open import open_slide
from histocodec.report import Progress
from histocodec.text import jsonable

JOURNAL = "rows.jsonl"


@dataclass(frozen=True)
class Subjects:
    """What is measured: `images.choose`'s arguments."""

    paths: tuple[Path, ...]
    variants: tuple[str, ...]
    regions: int
    side: int
    seed: int

    def samples(self) -> tuple[Sample, ...]:
        return choose(self.paths, variants=self.variants, regions=self.regions, side=self.side, seed=self.seed)


def run_bench(
    subjects: Subjects,
    options: BenchOptions,
    *,
    out: Path | None,
    speed_slide: Path | None = None,
    crops: bool = True,
    progress: Progress,
) -> BenchResult:
    """Everything; with `out` written there, and gone on from what is there. Whatever can be refused is refused
    before the first image."""
    machine, samples = Machine.here(), subjects.samples()
    if speed_slide is not None:
        open_slide(speed_slide).close()
    if out is not None:
        _check(out)
    peers = [peer for name in options.against for peer in PEERS[name]]
    for peer in peers:
        peer.encode(np.full((LEAST, LEAST, 3), 128, np.uint8), sum(peer.settings) // 2)  # that this build has it
    with at_hand(options.model) as weights:
        store = RowStore(None if out is None else out / JOURNAL)
        rows = measure(samples, options, weights, store, progress)
        model = Model.of(weights)
        speed = None
        if speed_slide is not None:
            progress(1, 1, f"timing {speed_slide.name}")
            speed = speed_of_slide(
                speed_slide, model=model, threads=options.threads, device=options.device, effort=options.effort
            )
        result = BenchResult(machine, versions(peers), model, options, summarise(rows), speed, tuple(rows))
        if out is not None:
            progress(1, 1, "report")
            _write(result, samples, out, crops=crops)
    return result


def as_json(result: BenchResult) -> dict[str, object]:
    """One object: everything but the rows under its name, and the rows flat."""
    found = {field.name: jsonable(getattr(result, field.name)) for field in fields(result) if field.name != "rows"}
    return {**found, "rows": [flat(row) for row in result.rows]}


def _check(out: Path) -> None:
    with requires_extra("bench"):
        import matplotlib  # noqa: F401 - that it is there
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{out}: cannot be made: {exc.strerror or exc}") from exc


def _write(result: BenchResult, samples: Sequence[Sample], out: Path, *, crops: bool) -> None:
    """The report last: what it shows is there."""
    found = as_json(result)
    rows = [json.dumps(flat(row), ensure_ascii=False, allow_nan=False) for row in result.rows]
    write_atomically(out / "rows.json", ("[\n" + ",\n".join(rows) + "\n]\n").encode())  # a row a line, as in a diff
    write_atomically(out / "rows.csv", as_csv(result.rows).encode())
    summary = {name: value for name, value in found.items() if name != "rows"}
    text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(out / "summary.json", f"{text}\n".encode())
    names = []
    for name, image in plots(result.rows):
        write_atomically(out / name, image)
        names.append(name)
    if crops:
        write_atomically(out / CROPS, crop_sheet(samples, result.options))
    write_atomically(out / "report.md", report(result, plots=names, crops=crops).encode())
