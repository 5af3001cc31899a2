"""The SQLite file of an index: its tables, how rows are written, and how they are read and checked."""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histocodec.errors import FormatError, OutputError, UnsupportedError
from histocodec.search.embedding import Embeddings, VectorKind
from histocodec.search.whitening import Vectors, Whitening
from histocodec.slide import Mpp

APPLICATION = 0x48434958  # "HCIX", in SQLite's header: which program the file belongs to
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


@dataclass(frozen=True)
class Entry:
    """A slide to add to an index. `path` is its name there, and must be unique."""

    path: str
    embeddings: Embeddings
    labels: Labels


@dataclass(frozen=True)
class IndexedSlide:
    """A slide in an index. Its vectors are the rows from `first_row` up to, but without, `end_row`."""

    id: int
    path: str
    latents_sha256: str  # as in Embeddings
    first_row: int
    patch_count: int
    level: int
    patch_side: int  # pixels of that level
    mpp: Mpp | None  # microns per pixel of that level
    vectors_sha256: str  # of its rows; see `sha256_of`
    labels: Labels

    @property
    def end_row(self) -> int:
        """The row after its last vector."""
        return self.first_row + self.patch_count


@dataclass(frozen=True, eq=False)
class Facts:
    """What all slides of an index share, and which files hold its vectors."""

    kind: VectorKind
    whitening: Whitening
    rows: int  # vectors that count; the file may hold more after an interrupted run
    generation: int  # number in the names of the current files
    graph: bool  # whether a graph is kept for approximate search


def create(path: Path, kind: VectorKind, whitening: Whitening, *, graph: bool) -> None:
    """Create the database of an index without slides."""
    with sqlite_errors(path), closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA)
        database.execute(f"PRAGMA application_id = {APPLICATION}")
        database.execute(f"PRAGMA user_version = {VERSION}")
        blobs = [part.astype("<f4").tobytes() for part in (whitening.mean, whitening.basis)]
        values = (kind.model, kind.sha256, kind.embedder, kind.length, *blobs, 0, 0, int(graph))
        database.execute("INSERT INTO facts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        database.commit()


def insert_slide(database: sqlite3.Connection, entry: Entry, first_row: int, vectors_sha256: str) -> None:
    """Insert a slide, the positions of its patches and its labels, within the caller's transaction."""
    e = entry.embeddings
    mpp = e.mpp or (None, None)
    cursor = database.execute(
        "INSERT INTO slides (path, latents, first, count, level, patch, mpp_x, mpp_y, vectors) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (entry.path, e.latents_sha256, first_row, len(e.vectors), e.level, e.patch_side, *mpp, vectors_sha256),
    )
    slide = cursor.lastrowid
    positions = ((slide, number, int(x), int(y)) for number, (x, y) in enumerate(e.positions))
    database.executemany("INSERT INTO patches VALUES (?, ?, ?, ?)", positions)
    database.executemany("INSERT INTO labels VALUES (?, ?, ?)", ((slide, *label) for label in entry.labels.items()))


def read_facts(database: sqlite3.Connection, path: Path) -> Facts:
    """Read and check what the slides share; `path` is for messages.

    Raises UnsupportedError where the file belongs to another program or a later version, FormatError where it is
    damaged.
    """
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise UnsupportedError(f"{path}: is an SQLite file, but not a histocodec index")
    if version > VERSION:
        raise UnsupportedError(f"{path}: is an index of version {version}; this histocodec reads up to {VERSION}")
    records = database.execute("SELECT * FROM facts").fetchall()
    try:
        ((model, sha256, embedder, length, mean, basis, rows, generation, graph),) = records
        kind = VectorKind(str(model), str(sha256), str(embedder), int(length))
        whitening = Whitening(
            np.frombuffer(mean, "<f4").reshape(length), np.frombuffer(basis, "<f4").reshape(length, -1)
        )
        return Facts(kind, whitening, int(rows), int(generation), bool(graph))
    except (TypeError, ValueError) as exc:
        raise FormatError(f"{path}: its table of facts is damaged: {exc}. Build the index again") from exc


def read_slides(database: sqlite3.Connection, path: Path) -> tuple[IndexedSlide, ...]:
    """Read all slides in the order of their rows; `path` is for messages. Raises FormatError where one is damaged."""
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
        raise FormatError(f"{path}: its table of slides is damaged: {exc}. Build the index again") from exc


def sha256_of(vectors: Vectors) -> str:
    """Return the SHA-256 of vectors as they are stored: float32, little endian, row by row."""
    return hashlib.sha256(np.ascontiguousarray(vectors, "<f4").tobytes()).hexdigest()


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing database; transactions begin and end only where the caller says so."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into FormatError, where the file is damaged, or OutputError, where it cannot be used."""
    try:
        yield
    except sqlite3.OperationalError as exc:
        if "no such" in str(exc):  # table or column
            raise FormatError(f"{path}: is not a sound index: {exc}. Build it again") from exc
        raise OutputError(f"{path}: cannot be used: {exc}") from exc
    except (sqlite3.DatabaseError, OverflowError) as exc:
        raise FormatError(f"{path}: is damaged, or not an SQLite file: {exc}. Build the index again") from exc
