"""`histocodec bench`: choose samples, measure them, sum up, and write everything into a folder.

rows.jsonl     every row as it is finished: what a later run continues from
rows.json/csv  the rows that count, in order
summary.json   what they come to, and where and with what they were made
rd-….png       rate–distortion plots
crops.png      the same tissue from every codec
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
from histocodec.benchmarks.measure.images import SMALLEST, Sample, choose
from histocodec.benchmarks.measure.measure_images import BenchOptions, measure
from histocodec.benchmarks.measure.provenance import Machine, Model, installed, versions
from histocodec.benchmarks.measure.result_rows import as_csv, flat
from histocodec.benchmarks.measure.row_store import RowStore
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
    """What is measured: the arguments of `images.choose`."""

    paths: tuple[Path, ...]
    variants: tuple[str, ...]
    regions: int
    side: int
    seed: int

    def samples(self) -> tuple[Sample, ...]:
        """Choose the samples. Raises UsageError as `images.choose` does."""
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
    """Measure everything. With `out`, write it into that folder, and continue from what is there.

    Whatever can be refused is refused before the first image: UsageError for bad samples, UnsupportedError for a model,
    a codec or an extra that is missing, OutputError where `out` cannot be written.
    """
    machine, samples = Machine.here(), subjects.samples()
    if speed_slide is not None:
        open_slide(speed_slide).close()
    if out is not None:
        _check(out)
    peers = [peer for name in options.against for peer in PEERS[name]]
    for peer in peers:  # this build of the libraries has it
        peer.encode(np.full((SMALLEST, SMALLEST, 3), 128, np.uint8), sum(peer.settings) // 2)
    with installed(options.model) as weights:
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
    """The result as one JSON object: everything under its name, and the rows flat."""
    return {**_summary_json(result), "rows": [flat(row) for row in result.rows]}


def _summary_json(result: BenchResult) -> dict[str, object]:
    return {field.name: jsonable(getattr(result, field.name)) for field in fields(result) if field.name != "rows"}


def _check(out: Path) -> None:
    with requires_extra("bench"):
        import matplotlib  # noqa: F401 - that it is there
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{out}: cannot be made: {exc.strerror or exc}") from exc


def _write(result: BenchResult, samples: Sequence[Sample], out: Path, *, crops: bool) -> None:
    """Write every file, the report last: what it shows is there."""
    rows = [json.dumps(flat(row), ensure_ascii=False, allow_nan=False) for row in result.rows]
    write_atomically(out / "rows.json", ("[\n" + ",\n".join(rows) + "\n]\n").encode())  # a row a line, as in a diff
    write_atomically(out / "rows.csv", as_csv(result.rows).encode())
    summary = json.dumps(_summary_json(result), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(out / "summary.json", f"{summary}\n".encode())
    names = []
    for name, image in plots(result.rows):
        write_atomically(out / name, image)
        names.append(name)
    if crops:
        write_atomically(out / CROPS, crop_sheet(samples, result.options))
    write_atomically(out / "report.md", report(result, plots=names, crops=crops).encode())
