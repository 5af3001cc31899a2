"""Keep the rows of a benchmark as they are finished, so that a later run continues where one was interrupted.

`rows.jsonl` has one flat JSON object a line and is only ever appended to. Of two lines about the same thing the later
counts; lines that the present run would not write (another model, version or image) are passed over.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from histocodec.benchmarks.measure.images import Subject
from histocodec.benchmarks.measure.result_rows import CURVE, CodecVersion, Point, Row, flat, from_flat, row_key
from histocodec.errors import FormatError, OutputError


class RowStore:
    """All rows so far, by key. With a path, those of earlier runs too; every new row is on the disk at once.

    Raises OutputError where the file cannot be read, FormatError where a line is not JSON.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._rows: dict[tuple[object, ...], Row] = {}
        for row in () if path is None else _stored(path):
            self._rows[row.key] = row

    def curve(self, subject: Subject, coded_by: CodecVersion) -> list[Row]:
        """The points of a curve, by setting."""
        rows = [
            row
            for row in self._rows.values()
            if row.point.kind == CURVE and row.subject == subject and row.coded_by == coded_by
        ]
        return sorted(rows, key=lambda row: row.point.setting)

    def at(self, subject: Subject, coded_by: CodecVersion, point: Point) -> Row | None:
        """The finished row of a point of the curve, by its setting, or of a ratio, whatever its setting."""
        return self._rows.get(row_key(subject, coded_by, point))

    def add(self, row: Row) -> None:
        """Add a row, or replace the one about the same thing. Raises OutputError where it cannot be written."""
        self._rows[row.key] = row
        if self._path is None:
            return
        line = json.dumps(flat(row), ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                file.write(line.encode())  # one write: a signal leaves the whole line, or none of it
                os.fsync(file.fileno())
        except OSError as exc:
            raise OutputError(f"{self._path}: cannot be written: {exc.strerror or exc}") from exc


def _stored(path: Path) -> Sequence[Row]:
    """The rows that an earlier run left. A last line that was cut short is removed; rows of another shape are passed
    over."""
    try:
        if not path.exists():
            return ()
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
    except OSError as exc:
        raise OutputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            rows.append(from_flat(json.loads(line)))
        except ValueError as exc:
            raise FormatError(f"{path}: line {number} is not JSON: {exc}; delete the line or the file") from exc
        except (KeyError, TypeError):
            continue
    return rows
