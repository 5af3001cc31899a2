"""An index: a folder with the vectors of many slides, whitened, and one SQLite file that says whose they are.

    INDEX/index.sqlite      the model, the whitening, slides, labels, positions; it decides what counts
    INDEX/vectors-G.f32     float32, little endian, row by row: slide after slide; read through a memory map
    INDEX/graph-G.usearch   only with --approximate: see `histocodec.search.graph`

Adding appends rows, and then counts them in one transaction: rows that an interrupted run left are not counted and
are overwritten by the next. Removing writes a file of the next generation G and changes over in one transaction.
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
    digest_of,
    foreign_errors,
    insert_slide,
    read_facts,
    read_slides,
)
from histocodec.search.embedding import Kind
from histocodec.search.whitening import Vectors, Whitening

DATABASE = "index.sqlite"


class Index:
    """An index on disk, as it was when it was opened; `add` and `remove` leave it as it is then."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError where there is none, UnsupportedError where it is of another program or a later version,
        FormatError where it is damaged."""
        self.folder = folder
        if not (folder / DATABASE).is_file():
            raise UsageError(f"{folder}: is no index (it has no {DATABASE}); `histocodec index build` makes one")
        self._load()

    def _load(self) -> None:
        with self._connected() as database:
            self.facts, self.slides = read_facts(database, self.database), read_slides(database, self.database)
        path, wanted = self.vectors_path, self.facts.rows * self.facts.whitening.dimensions * 4
        found = path.stat().st_size if path.is_file() else None
        if found is None or found < wanted:
            raise FormatError(f"{path}: has {found or 0} bytes; {wanted} are needed. Build the index anew")
        firsts, ends = [slide.first for slide in self.slides], [slide.end for slide in self.slides]
        if [*firsts, self.facts.rows] != [0, *ends]:
            raise FormatError(f"{self.database}: its slides do not fit its {self.facts.rows} rows. Build it anew")

    @property
    def database(self) -> Path:
        return self.folder / DATABASE

    @property
    def vectors_path(self) -> Path:
        return self.folder / f"vectors-{self.facts.generation}.f32"

    @property
    def graph_path(self) -> Path:
        return self.folder / f"graph-{self.facts.generation}.usearch"

    def vectors(self) -> Vectors:
        """(rows, d) float32, each of length 1, through a memory map."""
        shape = (self.facts.rows, self.facts.whitening.dimensions)
        if not self.facts.rows:
            return np.empty(shape, np.float32)
        return np.memmap(self.vectors_path, np.dtype("<f4"), "r", shape=shape)

    def prepared(self, kind: Kind, vectors: Vectors, where: str) -> Vectors:
        """Vectors of a query, as those of the index are. UsageError where they are of another kind."""
        self._check_kind(kind, where)
        if not len(vectors):
            raise UsageError(f"{where}: has no patch of tissue there; a query needs at least one")
        return self.facts.whitening.apply(vectors)

    def chosen(self, filters: Labels) -> tuple[IndexedSlide, ...]:
        """The slides with all of these labels. UsageError where there are none."""
        found = tuple(s for s in self.slides if all(s.labels.get(key) == value for key, value in filters.items()))
        if not found:
            wanted = ", ".join(f"{key}={value}" for key, value in filters.items())
            known = sorted({f"{key}={value}" for slide in self.slides for key, value in slide.labels.items()})
            raise UsageError(
                f"{self.folder}: no slide has {wanted}; there are {', '.join(known[:20]) or 'no labels'}"
                if filters
                else f"{self.folder}: has no slides"
            )
        return found

    def slide_of(self, row: int) -> IndexedSlide:
        firsts = [slide.first for slide in self.slides]
        return self.slides[int(np.searchsorted(firsts, row, side="right")) - 1]

    def position(self, slide: IndexedSlide, row: int) -> tuple[int, int]:
        """x, y of a patch, in pixels of level 0."""
        with self._connected() as database:
            found = database.execute(
                "SELECT x, y FROM patches WHERE slide = ? AND number = ?", (slide.id, row - slide.first)
            ).fetchone()
        if found is None:
            raise FormatError(f"{self.database}: has no position for patch {row - slide.first} of {slide.path}")
        return int(found[0]), int(found[1])

    def positions(self) -> NDArray[np.int64]:
        """(rows, 2): x, y of all patches."""
        with self._connected() as database:
            order = "SELECT x, y FROM patches JOIN slides ON slide = id ORDER BY first, number"
            found = np.array(database.execute(order).fetchall(), np.int64).reshape(-1, 2)
        if len(found) != self.facts.rows:
            raise FormatError(f"{self.database}: has {len(found)} positions for {self.facts.rows} vectors")
        return found

    def problems(self) -> Iterator[str]:
        """What is not as it was written; reads everything."""
        with self._connected() as database:
            for (line,) in database.execute("PRAGMA integrity_check(10)"):
                if line != "ok":
                    yield f"{self.database}: {line}"
        vectors = self.vectors()
        for slide in self.slides:
            if digest_of(vectors[slide.first : slide.end]) != slide.vectors:
                yield f"{self.vectors_path}: the vectors of {slide.path} were altered"

    def add(self, entries: Sequence[Entry]) -> None:
        """All of them or none. Raises UsageError for a slide of another model, or one that is in the index."""
        known = {slide.path for slide in self.slides}
        contents = {slide.latents: slide.path for slide in self.slides}
        for entry in entries:
            self._check_kind(entry.embeddings.kind, entry.path)
            if entry.path in known:
                raise UsageError(f"{entry.path}: is in {self.folder} already; `histocodec index remove` takes it out")
            if entry.embeddings.latents in contents:
                raise UsageError(f"{entry.path}: is in {self.folder} already, as {contents[entry.embeddings.latents]}")
            known.add(entry.path)
            contents[entry.embeddings.latents] = entry.path
        with self._changing() as database:
            facts = read_facts(database, self.database)
            rows, width = facts.rows, facts.whitening.dimensions * 4
            with self.vectors_path.open("r+b") as file:
                file.truncate(rows * width)
                file.seek(rows * width)
                for entry in entries:
                    white = facts.whitening.apply(entry.embeddings.vectors)
                    file.write(white.astype("<f4").tobytes())
                    insert_slide(database, entry, rows, digest_of(white))
                    rows += len(white)
                file.flush()
                os.fsync(file.fileno())
            database.execute("UPDATE facts SET rows = ?", (rows,))
        self._load()

    def remove(self, paths: Sequence[str]) -> None:
        """Raises UsageError where one of them is not in the index."""
        missing = sorted(set(paths) - {slide.path for slide in self.slides})
        if missing:
            raise UsageError(f"{missing[0]}: is not in {self.folder}; `histocodec index info` lists what is")
        old_files, vectors = (self.vectors_path, self.graph_path), self.vectors()
        kept = [slide for slide in self.slides if slide.path not in set(paths)]
        with self._changing() as database:
            generation, first = self.facts.generation + 1, 0
            with (self.folder / f"vectors-{generation}.f32").open("wb") as file:
                for slide in kept:
                    file.write(vectors[slide.first : slide.end].tobytes())
                    database.execute("UPDATE slides SET first = ? WHERE id = ?", (first, slide.id))
                    first += slide.count
                file.flush()
                os.fsync(file.fileno())
            for slide in self.slides:
                if slide not in kept:
                    database.execute("DELETE FROM patches WHERE slide = ?", (slide.id,))
                    database.execute("DELETE FROM labels WHERE slide = ?", (slide.id,))
                    database.execute("DELETE FROM slides WHERE id = ?", (slide.id,))
            database.execute("UPDATE facts SET rows = ?, generation = ?", (first, generation))
        for file_path in old_files:
            with suppress(OSError):
                file_path.unlink()
        self._load()

    def _check_kind(self, kind: Kind, where: str) -> None:
        if kind != self.facts.kind:
            raise UsageError(f"{where}: its vectors are {kind}; {self.folder} holds {self.facts.kind}")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with foreign_errors(self.database), closing(connect(self.database)) as database:
            yield database

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which no other process's change can come between since this index was loaded."""
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
    """A new index of these slides, whose vectors the whitening is fitted to; complete or absent. Raises OutputError
    where `folder` exists, and what `Index.add` raises."""
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
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be written: {exc.strerror or exc}") from exc
    try:
        create(made / DATABASE, kind, whitening, graph=graph)
        (made / "vectors-0.f32").touch()
        Index(made).add(entries)
        made.chmod(0o755)  # mkdtemp lets nobody else in
        made.rename(folder)
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be written: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return Index(folder)


def _state(facts: Facts) -> tuple[int, int]:
    return facts.generation, facts.rows
