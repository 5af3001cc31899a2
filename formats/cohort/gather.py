"""An index of the vectors of a whole cohort, built in batches, so that it needs memory for few slides at a time."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from histocodec.errors import UsageError
from histocodec.formats.cohort.ledger import Ledger, Row
from histocodec.formats.container.embeddings import read_embeddings
from histocodec.search.database import Entry
from histocodec.search.index import Index, build

FIRST = 256  # slides that the scale of the vectors is fitted to, spread evenly over the cohort
BATCH = 64  # slides that are added together


def gather_index(
    ledger: Path,
    folder: Path,
    *,
    approximate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Builds an index of all slides of a ledger that have vectors, or adds to one those that it lacks. Their labels are
    those of the manifest. What is interrupted is continued by the next call.

    Raises UsageError where no slide has vectors, and what reading vectors and changing an index raise.
    """
    with Ledger.open(ledger) as opened:
        rows = list(opened.rows("embed", ("done",)))
    if not rows:
        raise UsageError(f"{ledger}: no slide has vectors; `histocodec cohort embed {ledger}` adds them")
    index = Index(folder) if folder.exists() else None
    present = set() if index is None else {slide.path for slide in index.slides}
    missing = [row for row in rows if row.result not in present]
    done = len(rows) - len(missing)
    for batch in _batches(missing, first=index is None):
        entries = [Entry(row.result, read_embeddings(row.result), dict(row.labels)) for row in batch]
        if index is None:
            index = build(folder, entries, graph=approximate)
        else:
            index.add(entries)
        done += len(batch)
        if progress is not None:
            progress(done, len(rows))
    assert index is not None  # there is a row, or it was opened
    return index


def _batches(rows: Sequence[Row], *, first: bool) -> Iterator[list[Row]]:
    """All rows in batches; the first, for a new index, is spread over all of them."""
    rest = list(rows)
    if first and rest:
        chosen = set(range(0, len(rest), max(1, -(-len(rest) // FIRST))))
        yield [row for number, row in enumerate(rest) if number in chosen]
        rest = [row for number, row in enumerate(rest) if number not in chosen]
    for start in range(0, len(rest), BATCH):
        yield rest[start : start + BATCH]
