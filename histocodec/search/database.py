"""The SQLite file of an index: its tables, and what goes into them and comes out, checked."""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histocodec.errors import FormatError, OutputError, UnsupportedError
from histocodec.search.embedding import Embeddings, Kind
from histocodec.search.whitening import Vectors, Whitening

APPLICATION = 0x48434958  # "HCIX", in SQLite's header: which program's file it is
VERSION = 1
SCHEMA = """
CREATE TABLE facts (
    model TEXT NOT NULL, sha256 TEXT NOT NULL, embedder TEXT NOT NULL, length INTEGER NOT NULL,
    mean BLOB NOT NULL, basis BLOB NOT NULL, rows INTEGER NOT NULL, generation INTEGER NOT NULL, graph INTEGER NOT NULL
);
CREATE TABLE slides (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, latents TEXT NOT NULL, first INTEGER NOT NULL,
    count INTEGER NOT NULL, level INTEGER NOT NULL, patch INTEGER NOT NULL, mpp_x REAL, mpp_y REAL,
    vectors TEXT NOT NULL
);
CREATE TABLE patches (
    slide INTEGER NOT NULL, number INTEGER NOT NULL, x INTEGER NOT NULL, y INTEGER NOT NULL,
    PRIMARY KEY (slide, number)
) WITHOUT ROWID;
CREATE TABLE labels (
    slide INTEGER NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (slide, key)
) WITHOUT ROWID;
"""

Labels = Mapping[str, str]
Mpp = tuple[float, float]


@dataclass(frozen=True)
class Entry:
    """A slide to be added."""

    path: str
    embeddings: Embeddings
    labels: Labels


@dataclass(frozen=True)
class IndexedSlide:
    """A slide in an index; its vectors are the rows from `first` on."""

    id: int
    path: str
    latents: str
    first: int
    count: int
    level: int
    patch: int
    mpp: Mpp | None  # microns per pixel of the level that was embedded
    vectors: str  # SHA-256 of its rows
    labels: Labels

    @property
    def end(self) -> int:
        return self.first + self.count


@dataclass(frozen=True, eq=False)
class Facts:
    """What all slides of an index share, and where its vectors are."""

    kind: Kind
    whitening: Whitening
    rows: int
    generation: int
    graph: bool


def create(path: Path, kind: Kind, whitening: Whitening, *, graph: bool) -> None:
    """An index's database without slides."""
    with foreign_errors(path), closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA)
        database.execute(f"PRAGMA application_id = {APPLICATION}")
        database.execute(f"PRAGMA user_version = {VERSION}")
        blobs = [part.astype("<f4").tobytes() for part in (whitening.mean, whitening.basis)]
        values = (kind.model, kind.sha256, kind.embedder, kind.length, *blobs, 0, 0, int(graph))
        database.execute("INSERT INTO facts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        database.commit()


def insert_slide(database: sqlite3.Connection, entry: Entry, first: int, digest: str) -> None:
    e = entry.embeddings
    mpp = e.mpp or (None, None)
    cursor = database.execute(
        "INSERT INTO slides (path, latents, first, count, level, patch, mpp_x, mpp_y, vectors) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (entry.path, e.latents, first, len(e.vectors), e.level, e.patch, *mpp, digest),
    )
    slide = cursor.lastrowid
    places = ((slide, number, int(x), int(y)) for number, (x, y) in enumerate(e.positions))
    database.executemany("INSERT INTO patches VALUES (?, ?, ?, ?)", places)
    database.executemany("INSERT INTO labels VALUES (?, ?, ?)", ((slide, *label) for label in entry.labels.items()))


def read_facts(database: sqlite3.Connection, path: Path) -> Facts:
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise UnsupportedError(f"{path}: is an SQLite file, but no histocodec index")
    if version > VERSION:
        raise UnsupportedError(f"{path}: an index of version {version}; up to {VERSION} can be read")
    found = database.execute("SELECT * FROM facts").fetchall()
    try:
        ((model, sha256, embedder, length, mean, basis, rows, generation, graph),) = found
        kind = Kind(str(model), str(sha256), str(embedder), int(length))
        whitening = Whitening(
            np.frombuffer(mean, "<f4").reshape(length), np.frombuffer(basis, "<f4").reshape(length, -1)
        )
        return Facts(kind, whitening, int(rows), int(generation), bool(graph))
    except (TypeError, ValueError) as exc:
        raise FormatError(f"{path}: its table of facts is not sound: {exc}. Build the index anew") from exc


def read_slides(database: sqlite3.Connection, path: Path) -> tuple[IndexedSlide, ...]:
    labels: dict[int, dict[str, str]] = {}
    for slide, key, value in database.execute("SELECT slide, key, value FROM labels ORDER BY key"):
        labels.setdefault(slide, {})[key] = value
    columns = "id, path, latents, first, count, level, patch, mpp_x, mpp_y, vectors"
    try:
        return tuple(
            IndexedSlide(
                int(id), str(slide), str(latents), int(first), int(count), int(level), int(patch),
                None if x is None or y is None else (float(x), float(y)), str(vectors), labels.get(id, {}),
            )
            for id, slide, latents, first, count, level, patch, x, y, vectors in database.execute(
                f"SELECT {columns} FROM slides ORDER BY first"
            )
        )  # fmt: skip
    except (TypeError, ValueError) as exc:
        raise FormatError(f"{path}: its table of slides is not sound: {exc}. Build the index anew") from exc


def digest_of(vectors: Vectors) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors, "<f4").tobytes()).hexdigest()


def connect(path: Path) -> sqlite3.Connection:
    """An existing file; transactions begin and end where we say so."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)


@contextmanager
def foreign_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as exc:
        if "no such" in str(exc):  # table or column
            raise FormatError(f"{path}: is not a sound index: {exc}. Build it anew") from exc
        raise OutputError(f"{path}: cannot be used: {exc}") from exc
    except (sqlite3.DatabaseError, OverflowError) as exc:
        raise FormatError(f"{path}: is damaged, or no SQLite file: {exc}. Build the index anew") from exc
