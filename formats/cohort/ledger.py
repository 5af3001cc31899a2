"""The ledger of a cohort: a SQLite file with a row for each slide, which says what became of it.

    slides   where each slide is, what its container is called, how it is encoded, and what came of it
    work     the same of other work on its container: `verify` and `embed`
    runs     who worked on the cohort, when, and how that ended
    facts    what holds for the whole cohort: where the containers go, and which version planned it

Only the process that plans or runs a cohort writes it, so it may lie on a share; workers never see it. A change is a
transaction that is on the disk when the method returns.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, Self

from histocodec.errors import FormatError, OutputError, UnsupportedError, UsageError

APPLICATION_ID = 0x68636C67  # "hclg", in the header of the file
LEDGER_VERSION = 1
LIKELY_SIDE = 20_000  # pixels of a slide whose size is not known yet
BUSY_SECONDS = 30.0  # to wait for a reader that holds the file

Kind = Literal["encode", "verify", "embed"]
State = Literal["planned", "running", "done", "failed"]

KINDS: tuple[Kind, ...] = ("encode", "verify", "embed")
STATES: tuple[State, ...] = ("planned", "running", "done", "failed")

WORK = """
    state TEXT NOT NULL CHECK (state IN ('planned', 'running', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    error_kind TEXT, error TEXT,
    worker TEXT, started REAL, finished REAL, seconds REAL"""
SCHEMA = f"""
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE slides (
    number INTEGER PRIMARY KEY,
    source TEXT NOT NULL UNIQUE, parts TEXT, result TEXT NOT NULL UNIQUE,
    labels TEXT NOT NULL, options TEXT NOT NULL, created INTEGER NOT NULL,
    vendor TEXT, width INTEGER, height INTEGER, levels INTEGER, mpp_x REAL, mpp_y REAL, source_bytes INTEGER, {WORK},
    result_bytes INTEGER, pixels INTEGER, psnr REAL, worst_psnr REAL,
    worst_level INTEGER, worst_row INTEGER, worst_column INTEGER, worst_block_error REAL,
    quality INTEGER, model TEXT, version TEXT, source_sha256 TEXT, result_sha256 TEXT, digest TEXT,
    adopted INTEGER, verified INTEGER);
CREATE INDEX slides_by_state ON slides (state);
CREATE TABLE work (
    number INTEGER NOT NULL REFERENCES slides (number), kind TEXT NOT NULL, {WORK}, detail TEXT,
    PRIMARY KEY (number, kind)) WITHOUT ROWID;
CREATE TABLE runs (
    run INTEGER PRIMARY KEY, kind TEXT NOT NULL, holder TEXT NOT NULL, cluster TEXT NOT NULL, version TEXT NOT NULL,
    started REAL NOT NULL, finished REAL, ended TEXT);
"""


@dataclass(frozen=True)
class Row:
    """One slide of a cohort, as the ledger has it. Times are seconds since 1970, PSNR is in dB.

    `parts` are the URLs of its files where they are several on another machine. `labels` are the manifest's columns,
    `options` the fields of `EncodeOptions` that are not the default's. `attempts` counts those of the work that was
    asked for, and so do `state`, `error_kind`, `error`, `worker`, `started`, `finished` and `seconds`. `worst_*` name
    the chunk with the lowest PSNR. `adopted` says that the container was found whole, from a worker that was lost.
    """

    number: int
    source: str
    result: str
    options: Mapping[str, object]
    created: int
    labels: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    vendor: str | None = None
    width: int | None = None
    height: int | None = None
    levels: int | None = None
    mpp_x: float | None = None
    mpp_y: float | None = None
    source_bytes: int | None = None
    state: State = "planned"
    attempts: int = 0
    error_kind: str | None = None
    error: str | None = None
    worker: str | None = None
    started: float | None = None
    finished: float | None = None
    seconds: float | None = None
    result_bytes: int | None = None
    pixels: int | None = None  # of all stored levels
    psnr: float | None = None
    worst_psnr: float | None = None
    worst_level: int | None = None
    worst_row: int | None = None
    worst_column: int | None = None
    worst_block_error: float | None = None
    quality: int | None = None
    model: str | None = None
    version: str | None = None
    source_sha256: str | None = None
    result_sha256: str | None = None
    digest: str | None = None
    adopted: bool | None = None
    verified: bool | None = None
    detail: Mapping[str, object] = field(default_factory=dict)  # of other work than encoding

    @property
    def area(self) -> int:
        """The pixels of level 0; a guess where the plan could not read them, so that progress counts the slide."""
        return (self.width or LIKELY_SIDE) * (self.height or LIKELY_SIDE)


JSON_COLUMNS = {"parts": list, "labels": dict, "options": dict, "detail": dict}
COLUMNS = tuple(item.name for item in fields(Row) if item.name != "detail")
OF_RESULT = ("result_bytes", "result_sha256")
WORK_COLUMNS = ("state", "attempts", "error_kind", "error", "worker", "started", "finished", "seconds")


class Ledger:
    """An open ledger. Use it as a context manager."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._connection = path, connection

    @classmethod
    def make(cls, path: Path, facts: Mapping[str, str]) -> Self:
        """Makes a ledger without slides. Raises OutputError where there is a file already or none can be made."""
        if path.exists():
            raise OutputError(f"{path}: exists; a ledger is not replaced")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _as_our_errors(path):
                connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
                connection.executescript(
                    f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {LEDGER_VERSION}; "
                    f"BEGIN; {SCHEMA} COMMIT;"
                )
        except OSError as exc:
            raise OutputError(f"{path}: cannot be made: {exc.strerror or exc}") from exc
        ledger = cls(path, connection)
        with ledger._changing():
            connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
        return ledger

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a ledger. Raises UsageError where there is none, UnsupportedError where the file is something else."""
        if not path.is_file():
            raise UsageError(f"{path}: is no ledger (no such file); `histocodec cohort plan` makes one")
        with _as_our_errors(path):
            connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
            try:
                (application,) = connection.execute("PRAGMA application_id").fetchone()
                (version,) = connection.execute("PRAGMA user_version").fetchone()
            except sqlite3.DatabaseError as exc:
                connection.close()
                raise UnsupportedError(f"{path}: is no ledger of a cohort ({exc})") from exc
        if application != APPLICATION_ID or version != LEDGER_VERSION:
            connection.close()
            what = "is no ledger of a cohort" if application != APPLICATION_ID else f"is a ledger of version {version}"
            raise UnsupportedError(f"{path}: {what}; ledgers of version {LEDGER_VERSION} can be read")
        return cls(path, connection)

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Reading.

    def facts(self) -> dict[str, str]:
        """What holds for the whole cohort."""
        with _as_our_errors(self.path):
            return dict(self._connection.execute("SELECT name, value FROM facts").fetchall())

    def sources(self) -> dict[str, str]:
        """The result of every source."""
        with _as_our_errors(self.path):
            return dict(self._connection.execute("SELECT source, result FROM slides").fetchall())

    def rows(
        self, kind: Kind = "encode", states: Sequence[State] = STATES, *, number: int | None = None
    ) -> Iterator[Row]:
        """The slides in one of these states of a kind of work, by number; with `number`, this one alone. Of other work
        than encoding, only slides whose work was begun by `begin` are there."""
        names = [name for name in COLUMNS if kind == "encode" or name not in WORK_COLUMNS]
        columns, tables = [f"slides.{name}" for name in names], "slides"
        if kind != "encode":
            columns += [f"work.{name}" for name in (*WORK_COLUMNS, "detail")]
            names += [*WORK_COLUMNS, "detail"]
            tables = f"slides JOIN work ON work.number = slides.number AND work.kind = '{kind}'"
        table = "slides" if kind == "encode" else "work"
        marks = ", ".join("?" * len(states))
        query = f"SELECT {', '.join(columns)} FROM {tables} WHERE {table}.state IN ({marks}) "
        query += "ORDER BY slides.number" if number is None else f"AND slides.number = {number:d}"
        with _as_our_errors(self.path):
            for values in self._connection.execute(query, tuple(states)):
                yield _row(dict(zip(names, values, strict=True)), self.path)

    def pending(self, kind: Kind = "encode") -> tuple[list[int], int]:
        """The numbers of the slides that are planned, and their pixels of level 0 together, as `Row.area` has them."""
        state = "slides.state" if kind == "encode" else "work.state"
        joined = "" if kind == "encode" else f" JOIN work ON work.number = slides.number AND work.kind = '{kind}'"
        area = f"COALESCE(NULLIF(width, 0), {LIKELY_SIDE}) * COALESCE(NULLIF(height, 0), {LIKELY_SIDE})"
        query = f"SELECT slides.number, {area} FROM slides{joined} WHERE {state} = 'planned' ORDER BY slides.number"
        numbers, total = [], 0
        with _as_our_errors(self.path):
            for number, pixels in self._connection.execute(query):
                numbers.append(number)
                total += pixels
        return numbers, total

    def counts(self, kind: Kind = "encode") -> dict[str, int]:
        """How many slides are in each state of a kind of work."""
        table, where = ("slides", "") if kind == "encode" else ("work", f"WHERE kind = '{kind}'")
        with _as_our_errors(self.path):
            rows = self._connection.execute(f"SELECT state, COUNT(*) FROM {table} {where} GROUP BY state").fetchall()
        return {state: dict(rows).get(state, 0) for state in STATES}

    def runs(self) -> list[dict[str, object]]:
        """Every run so far: kind, holder, cluster, version, started, finished and how it ended."""
        names = ("kind", "holder", "cluster", "version", "started", "finished", "ended")
        with _as_our_errors(self.path):
            rows = self._connection.execute(f"SELECT {', '.join(names)} FROM runs ORDER BY run").fetchall()
        return [dict(zip(names, row, strict=True)) for row in rows]

    # Writing.

    def add(self, rows: Iterable[Row]) -> None:
        """Adds slides, all or none. Their numbers are given anew. Raises OutputError where a source or result is there
        already."""
        names = [name for name in COLUMNS if name != "number"]
        query = f"INSERT INTO slides ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        with self._changing():
            self._connection.executemany(query, ([_stored(getattr(row, name)) for name in names] for row in rows))

    def forget(self, numbers: Iterable[int]) -> None:
        """Removes slides that were never tried, so that they are planned anew."""
        with self._changing():
            self._connection.executemany(
                "DELETE FROM slides WHERE number = ? AND attempts = 0", ((number,) for number in numbers)
            )

    def begin(self, kind: Kind, *, again: bool, attempts: int) -> None:
        """Makes ready for a run: what was running, whose run has ended, is planned again; so is what failed fewer than
        `attempts` times. With `again`, all is: what failed, and, of other work than encoding, what is done."""
        with self._changing():
            if kind != "encode":
                self._connection.execute(
                    "INSERT OR IGNORE INTO work (number, kind, state) "
                    "SELECT number, ?, 'planned' FROM slides WHERE state = 'done'",
                    (kind,),
                )
            table, where = self._where(kind)
            execute = self._connection.execute
            execute(f"UPDATE {table} SET state = 'planned' WHERE state = 'running'{where}")
            execute(
                f"UPDATE {table} SET state = 'planned' WHERE state = 'failed' AND attempts > 0 AND attempts < ?{where}",
                (attempts,),
            )
            if again:
                states = "('failed')" if kind == "encode" else "('failed', 'done')"
                execute(f"UPDATE {table} SET state = 'planned', attempts = 0 WHERE state IN {states}{where}")

    def start(self, kind: Kind, numbers: Iterable[int]) -> None:
        """Notes that slides are being worked on."""
        table, where = self._where(kind)
        now = time.time()
        with self._changing():
            self._connection.executemany(
                f"UPDATE {table} SET state = 'running', started = ? WHERE number = ?{where}",
                ((now, number) for number in numbers),
            )

    def finish(self, kind: Kind, changes: Iterable[tuple[int, Mapping[str, object]]]) -> None:
        """Notes what became of slides: for each number, the columns that change."""
        table, where = self._where(kind)
        with self._changing():
            for number, change in changes:
                if kind != "encode":
                    self._note_result(number, change)
                    change = {name: value for name, value in change.items() if name not in OF_RESULT}
                names = ", ".join(f"{name} = ?" for name in change)
                values = [_stored(value) for value in change.values()]
                self._connection.execute(f"UPDATE {table} SET {names} WHERE number = ?{where}", (*values, number))
                if kind == "encode" and change.get("state") == "done" and not change.get("adopted"):
                    self._connection.execute("DELETE FROM work WHERE number = ?", (number,))  # that of an older file

    def _note_result(self, number: int, change: Mapping[str, object]) -> None:
        """Adding vectors to a container that is one file makes another file of it."""
        for name in OF_RESULT:
            if name in change:
                self._connection.execute(f"UPDATE slides SET {name} = ? WHERE number = ?", (change[name], number))

    def open_run(self, kind: Kind, holder: str, cluster: str, version: str) -> int:
        """Notes that a run begins, and that earlier ones that did not end were killed; returns its number."""
        with self._changing():
            self._connection.execute("UPDATE runs SET ended = 'killed' WHERE ended IS NULL")
            cursor = self._connection.execute(
                "INSERT INTO runs (kind, holder, cluster, version, started) VALUES (?, ?, ?, ?, ?)",
                (kind, holder, cluster, version, time.time()),
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def close_run(self, run: int, ended: str) -> None:
        """Notes how a run ended, and that nothing is being worked on."""
        with self._changing():
            for table in ("slides", "work"):
                self._connection.execute(f"UPDATE {table} SET state = 'planned' WHERE state = 'running'")
            self._connection.execute("UPDATE runs SET finished = ?, ended = ? WHERE run = ?", (time.time(), ended, run))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with _as_our_errors(self.path), self._connection:
            yield

    def _where(self, kind: Kind) -> tuple[str, str]:
        assert kind in KINDS
        return ("slides", "") if kind == "encode" else ("work", f" AND kind = '{kind}'")


def _stored(value: object) -> object:
    """A value as SQLite takes it."""
    if isinstance(value, Mapping | tuple | list):
        plain = dict(value) if isinstance(value, Mapping) else list(value)
        return json.dumps(plain, ensure_ascii=False) if plain else ("{}" if isinstance(plain, dict) else None)
    return int(value) if isinstance(value, bool) else value


def _row(values: dict[str, object], path: Path) -> Row:
    for name, kind in JSON_COLUMNS.items():
        if values.get(name) is None:
            values.pop(name, None)
            continue
        try:
            values[name] = json.loads(str(values[name]))
        except ValueError as exc:
            raise FormatError(f"{path}: slide {values['number']}: {name}: is no JSON ({exc})") from exc
        if not isinstance(values[name], kind):
            raise FormatError(f"{path}: slide {values['number']}: {name}: found {str(values[name])[:60]!r}")
    if "parts" in values:
        values["parts"] = tuple(values["parts"])  # type: ignore[arg-type]  # a list, as was just seen
    for name in ("adopted", "verified"):
        values[name] = None if values[name] is None else bool(values[name])
    return Row(**values)  # type: ignore[arg-type]  # the columns have the fields' types, as this module wrote them


@contextmanager
def _as_our_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as exc:
        raise OutputError(f"{path}: the ledger cannot be used: {exc}") from exc
    except sqlite3.IntegrityError as exc:
        raise OutputError(f"{path}: the ledger refuses a row: {exc}") from exc
    except sqlite3.DatabaseError as exc:
        raise FormatError(f"{path}: the ledger is damaged: {exc}") from exc
