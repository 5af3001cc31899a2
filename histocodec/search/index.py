"""An index: a folder with the whitened vectors of many slides, and an SQLite file that says whose they are.

    INDEX/index.sqlite      the model, the whitening, slides, labels and positions; it decides which vectors count
    INDEX/vectors-G.f32     float32, little endian, row by row and slide by slide; read through a memory map
    INDEX/graph-G.usearch   only with --approximate: see `histocodec.search.graph`

Adding slides appends rows, and then counts them in one transaction: rows that an interrupted run left behind do not
count, and the next run overwrites them. Removing slides writes files of the next generation G, and switches to them in
one transaction.
"""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError, OutputError, UsageError
from histocodec.search.database import (
    Entry,
    Facts,
    IndexedSlide,
    Labels,
    connect,
    create,
    insert_slide,
    read_facts,
    read_slides,
    sha256_of,
    sqlite_errors,
)
from histocodec.search.embedding import VectorKind
from histocodec.search.whitening import Vectors, Whitening

DATABASE = "index.sqlite"
MAX_LISTED = 20  # labels in a message


class Index:
    """An index on disk, as it was when it was opened or last changed through this object.

    `facts` are what its slides share; `slides` are the slides, in the order of their rows.
    """

    facts: Facts
    slides: tuple[IndexedSlide, ...]

    def __init__(self, folder: Path) -> None:
        """Open the index in `folder`.

        Raises UsageError where there is none, UnsupportedError where it belongs to another program or a later version,
        and FormatError where it is damaged.
        """
        self.folder = folder
        if not (folder / DATABASE).is_file():
            raise UsageError(f"{folder}: is not an index (it has no {DATABASE}); `histocodec index build` makes one")
        self._load()

    def _load(self) -> None:
        with self._connected() as database:
            self.facts, self.slides = read_facts(database, self.database), read_slides(database, self.database)
        path, needed = self.vectors_path, self.facts.rows * self.facts.whitening.dimensions * 4
        size = path.stat().st_size if path.is_file() else 0
        if not path.is_file() or size < needed:
            raise FormatError(f"{path}: has {size} bytes; {needed} are needed. Build the index again")
        firsts, ends = [slide.first_row for slide in self.slides], [slide.end_row for slide in self.slides]
        if [*firsts, self.facts.rows] != [0, *ends]:
            raise FormatError(f"{self.database}: its slides do not fit its {self.facts.rows} rows. Build it again")

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / DATABASE

    @property
    def vectors_path(self) -> Path:
        """The file of vectors."""
        return self.folder / f"vectors-{self.facts.generation}.f32"

    @property
    def graph_path(self) -> Path:
        """The file of the graph, whether it exists or not."""
        return self.folder / f"graph-{self.facts.generation}.usearch"

    def vectors(self) -> Vectors:
        """Map all vectors into memory: (rows, d) float32, each of length 1."""
        shape = (self.facts.rows, self.facts.whitening.dimensions)
        if not self.facts.rows:
            return np.empty(shape, np.float32)
        return np.memmap(self.vectors_path, np.dtype("<f4"), "r", shape=shape)

    def whitened(self, kind: VectorKind, vectors: Vectors, source: str) -> Vectors:
        """Whiten the vectors (n, D) of a query as those of the index were: (n, d), each of length 1.

        `source` names the query in messages. Raises UsageError where the vectors are of another kind, or where there
        are none.
        """
        self._check_kind(kind, source)
        if not len(vectors):
            raise UsageError(f"{source}: has no patch of tissue there; a query needs at least one")
        return self.facts.whitening.apply(vectors)

    def slides_with(self, labels: Labels) -> tuple[IndexedSlide, ...]:
        """Return the slides that have all these labels; raises UsageError where there is none."""
        slides = tuple(s for s in self.slides if all(s.labels.get(key) == value for key, value in labels.items()))
        if not slides:
            if not labels:
                raise UsageError(f"{self.folder}: has no slides")
            wanted = ", ".join(f"{key}={value}" for key, value in labels.items())
            present = sorted({f"{key}={value}" for slide in self.slides for key, value in slide.labels.items()})
            raise UsageError(
                f"{self.folder}: no slide has {wanted}; there are {', '.join(present[:MAX_LISTED]) or 'no labels'}"
            )
        return slides

    def slide_of(self, row: int) -> IndexedSlide:
        """Return the slide that the vector in `row` belongs to."""
        firsts = [slide.first_row for slide in self.slides]
        return self.slides[int(np.searchsorted(firsts, row, side="right")) - 1]

    def position(self, slide: IndexedSlide, row: int) -> tuple[int, int]:
        """Return x, y of the upper left corner of a slide's patch, in pixels of level 0.

        Raises FormatError where the database does not have it.
        """
        number = row - slide.first_row
        with self._connected() as database:
            record = database.execute(
                "SELECT x, y FROM patches WHERE slide = ? AND number = ?", (slide.id, number)
            ).fetchone()
        if record is None:
            raise FormatError(f"{self.database}: has no position for patch {number} of {slide.path}")
        return int(record[0]), int(record[1])

    def positions(self) -> NDArray[np.int64]:
        """Return the positions of all patches, (rows, 2), as `position` does of one."""
        with self._connected() as database:
            query = "SELECT x, y FROM patches JOIN slides ON slide = id ORDER BY first, number"
            positions = np.array(database.execute(query).fetchall(), np.int64).reshape(-1, 2)
        if len(positions) != self.facts.rows:
            raise FormatError(f"{self.database}: has {len(positions)} positions for {self.facts.rows} vectors")
        return positions

    def problems(self) -> Iterator[str]:
        """Read everything, and yield a message for each thing that is not as it was written."""
        with self._connected() as database:
            for (line,) in database.execute("PRAGMA integrity_check(10)"):
                if line != "ok":
                    yield f"{self.database}: {line}"
        vectors = self.vectors()
        for slide in self.slides:
            if sha256_of(vectors[slide.first_row : slide.end_row]) != slide.vectors_sha256:
                yield f"{self.vectors_path}: the vectors of {slide.path} were altered"

    def add(self, entries: Sequence[Entry]) -> None:
        """Add slides: all of them, or none.

        Raises UsageError for a slide whose vectors are of another kind, or that is in the index already, under its
        path or another; OutputError where the index cannot be written, or where another process has changed it.
        """
        paths = {slide.path for slide in self.slides}
        path_of_latents = {slide.latents_sha256: slide.path for slide in self.slides}
        for entry in entries:
            latents = entry.embeddings.latents_sha256
            self._check_kind(entry.embeddings.kind, entry.path)
            if entry.path in paths:
                raise UsageError(f"{entry.path}: is in {self.folder} already; `histocodec index remove` takes it out")
            if latents in path_of_latents:
                raise UsageError(f"{entry.path}: is in {self.folder} already, as {path_of_latents[latents]}")
            paths.add(entry.path)
            path_of_latents[latents] = entry.path
        with self._transaction() as database:
            facts = read_facts(database, self.database)
            rows, width = facts.rows, facts.whitening.dimensions * 4
            with self.vectors_path.open("r+b") as file:
                file.truncate(rows * width)
                file.seek(rows * width)
                for entry in entries:
                    white = facts.whitening.apply(entry.embeddings.vectors)
                    file.write(white.astype("<f4").tobytes())
                    insert_slide(database, entry, rows, sha256_of(white))
                    rows += len(white)
                file.flush()
                os.fsync(file.fileno())
            database.execute("UPDATE facts SET rows = ?", (rows,))
        self._load()

    def remove(self, paths: Sequence[str]) -> None:
        """Remove the slides with these paths: all of them, or none.

        Raises UsageError for a path that is not in the index, and OutputError as `add` does.
        """
        missing = sorted(set(paths) - {slide.path for slide in self.slides})
        if missing:
            raise UsageError(f"{missing[0]}: is not in {self.folder}; `histocodec index info` lists what is")
        old_files, vectors = (self.vectors_path, self.graph_path), self.vectors()
        with self._transaction() as database:
            generation, rows = self.facts.generation + 1, 0
            with (self.folder / f"vectors-{generation}.f32").open("wb") as file:
                for slide in self.slides:
                    if slide.path in paths:
                        database.execute("DELETE FROM patches WHERE slide = ?", (slide.id,))
                        database.execute("DELETE FROM labels WHERE slide = ?", (slide.id,))
                        database.execute("DELETE FROM slides WHERE id = ?", (slide.id,))
                    else:
                        file.write(vectors[slide.first_row : slide.end_row].tobytes())
                        database.execute("UPDATE slides SET first = ? WHERE id = ?", (rows, slide.id))
                        rows += slide.patch_count
                file.flush()
                os.fsync(file.fileno())
            database.execute("UPDATE facts SET rows = ?, generation = ?", (rows, generation))
        for path in old_files:
            with suppress(OSError):
                path.unlink()
        self._load()

    def _check_kind(self, kind: VectorKind, source: str) -> None:
        if kind != self.facts.kind:
            raise UsageError(f"{source}: its vectors are {kind}; {self.folder} holds {self.facts.kind}")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with sqlite_errors(self.database), closing(connect(self.database)) as database:
            yield database

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction, refused where another process has changed the index since it was loaded."""
        try:
            with self._connected() as database:
                database.execute("BEGIN IMMEDIATE")
                if _state(read_facts(database, self.database)) != _state(self.facts):
                    raise OutputError(f"{self.folder}: was changed by another process meanwhile; try again")
                yield database
                database.execute("COMMIT")
        except OSError as exc:
            raise OutputError(f"{self.folder}: cannot be written: {exc.strerror or exc}") from exc


def build(folder: Path, entries: Sequence[Entry], *, graph: bool = False) -> Index:
    """Build an index of these slides in a new folder, which is complete or absent. The whitening is fitted to them.

    With `graph`, the index says that it keeps a graph; `histocodec.search.graph.updated_graph` makes it. Raises
    OutputError where `folder` exists or cannot be written, UsageError where there is no slide or where their vectors
    are of different kinds, and what `Index.add` raises.
    """
    if folder.exists():
        raise OutputError(f"{folder}: exists already; `histocodec index add` adds to it")
    if not entries:
        raise UsageError(f"{folder}: an index needs at least one slide to be built from")
    kind = entries[0].embeddings.kind
    for entry in entries:
        if entry.embeddings.kind != kind:
            raise UsageError(
                f"{entry.path}: its vectors are {entry.embeddings.kind}; those of {entries[0].path} are {kind}"
            )
    whitening = Whitening.fit(np.concatenate([entry.embeddings.vectors for entry in entries]))
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be written: {exc.strerror or exc}") from exc
    try:
        create(temporary / DATABASE, kind, whitening, graph=graph)
        (temporary / "vectors-0.f32").touch()
        Index(temporary).add(entries)
        temporary.chmod(0o755)  # mkdtemp lets nobody else in
        temporary.rename(folder)
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be written: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Index(folder)


def _state(facts: Facts) -> tuple[int, int]:
    """What every change changes."""
    return facts.generation, facts.rows
