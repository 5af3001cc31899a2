"""A manifest: a CSV, TSV or Parquet file with a line for each slide, which also says what is known of it (labels)."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from histocodec.errors import FormatError, UsageError
from histocodec.extras import requires_extra
from histocodec.formats.container.locations import is_url, local_path

SUFFIXES = (".csv", ".tsv", ".parquet")
SOURCE_COLUMNS = ("source", "path", "slide", "file", "filename", "filepath", "url", "uri")
SEPARATORS = ",;\t"


@dataclass(frozen=True)
class Line:
    """One slide of a manifest: where it is, its labels, and where the manifest says so, for messages."""

    source: str
    labels: Mapping[str, str]
    where: str


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest, by its suffix."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read_manifest(path: Path) -> Iterator[Line]:
    """The lines of a manifest. Relative paths count from its folder. Columns without a value are no labels.

    Raises FormatError where no column names the slides, a line has no name, or the file is damaged.
    """
    rows = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    column: str | None = None
    for number, row in enumerate(rows, 2):
        where = f"{path}: line {number}" if path.suffix.lower() != ".parquet" else f"{path}: row {number - 1}"
        if column is None:
            column = _source_column(row, path)
        source = row[column]
        if not source:
            raise FormatError(f"{where}: has nothing in the column {column}, which names the slide")
        labels = {name: value for name, value in row.items() if name != column and value}
        yield Line(source if is_url(source) else str(_absolute(path, source)), labels, where)


def _source_column(names: Iterable[str], path: Path) -> str:
    by_lower = {name.lower(): name for name in names}
    for name in SOURCE_COLUMNS:
        if name in by_lower:
            return by_lower[name]
    raise FormatError(
        f"{path}: has the columns {', '.join(by_lower.values()) or '(none)'}; one of {', '.join(SOURCE_COLUMNS)} must "
        "name the slides"
    )


def _absolute(manifest: Path, source: str) -> Path:
    return manifest.absolute().parent / local_path(source)


def _csv(path: Path) -> Iterator[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise FormatError(f"{path}: is no UTF-8 text: {exc}") from exc
    head = text.partition("\n")[0]
    separator = max(SEPARATORS, key=head.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or []]
        if len(set(names)) < len(names):
            raise FormatError(f"{path}: has a column twice; each needs a name of its own")
        reader.fieldnames = names
        if not names:
            raise FormatError(f"{path}: is empty; the first line names the columns")
        _source_column(names, path)
        for row in reader:
            if None in row or None in row.values():
                raise FormatError(f"{path}: line {reader.line_num}: has not the {len(names)} values of the first line")
            yield {name: (value or "").strip() for name, value in row.items()}
    except csv.Error as exc:
        raise FormatError(f"{path}: line {reader.line_num}: is no CSV: {exc}") from exc


def _parquet(path: Path) -> Iterator[dict[str, str]]:
    with requires_extra("cohort"):
        import pyarrow
        import pyarrow.parquet
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as exc:
        raise FormatError(f"{path}: is no Parquet: {exc}") from exc
    _source_column(table.column_names, path)
    for row in table.to_pylist():
        yield {name: "" if value is None else str(value).strip() for name, value in row.items()}
