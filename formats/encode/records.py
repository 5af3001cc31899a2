"""What the journal notes: finished shards, rounds of changes to their chunks, and what could not be read; to JSON and
back."""

import hashlib
from dataclasses import dataclass

from histocodec.formats.container.attributes import MAX_CHUNKS, MAX_SIDE, SHA256
from histocodec.formats.container.fields import Node
from histocodec.formats.container.states import CODED, LOSSLESS
from histocodec.formats.encode.unreadable import Place
from histocodec.geometry import ChunkKey, ShardKey
from histocodec.models.config import QUALITIES

MAX_TILES = 32 * 32  # chunks in a shard, at most


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard: its file, and its part of the level's maps.

    `tiles` and `quality` have one byte for each chunk in C order, `sizes` and `checks` four (uint32), 0 for background
    and beyond the level's edge. `file_bytes` is 0 and `sha256` empty where all chunks are background and nothing is
    stored.
    """

    key: ShardKey
    file_bytes: int
    sha256: str
    tiles: bytes
    quality: bytes
    sizes: bytes
    checks: bytes

    @classmethod
    def of(cls, key: ShardKey, data: bytes, tiles: bytes, quality: bytes, sizes: bytes, checks: bytes) -> "ShardRecord":
        """The record of a shard whose file has the bytes `data`, empty where there is no file."""
        digest = hashlib.sha256(data).hexdigest() if data else ""
        return cls(key, len(data), digest, tiles, quality, sizes, checks)

    def to_json(self) -> dict[str, object]:
        """The record as a line of the journal."""
        return {
            "level": self.key.level,
            "row": self.key.row,
            "column": self.key.column,
            "file_bytes": self.file_bytes,
            "sha256": self.sha256,
            "tiles": self.tiles.hex(),
            "quality": self.quality.hex(),
            "sizes": self.sizes.hex(),
            "checks": self.checks.hex(),
        }

    @classmethod
    def from_json(cls, node: Node) -> "ShardRecord":
        """What `to_json` wrote. Raises FormatError."""
        names = ("tiles", "quality", "sizes", "checks")
        f = node.fields("level", "row", "column", "file_bytes", "sha256", *names)
        return cls(
            key=ShardKey(*(f[name].integer(0, MAX_SIDE) for name in ("level", "row", "column"))),
            file_bytes=f["file_bytes"].integer(0, 2**53),
            sha256=f["sha256"].text(64, f"|{SHA256}"),
            **{name: _from_hex(f[name]) for name in names},
        )


@dataclass(frozen=True)
class Change:
    """A chunk that will be stored in another way: its new tile state, and the quality of its latents."""

    key: ChunkKey
    state: int
    quality: int


@dataclass(frozen=True)
class Round:
    """Changes to a level that are made together. They are noted before the first is made, so that an encode which is
    stopped among them and resumed makes the others; what it then measures and decides is the same."""

    level: int
    changes: tuple[Change, ...]

    def to_json(self) -> dict[str, object]:
        """The round as a line of the journal."""
        changes = [[change.key.row, change.key.column, change.state, change.quality] for change in self.changes]
        return {"level": self.level, "changes": changes}

    @classmethod
    def from_json(cls, node: Node) -> "Round":
        """What `to_json` wrote. Raises FormatError."""
        f = node.fields("level", "changes")
        level = f["level"].integer(0, MAX_SIDE)
        rows = [item.items(4, 4) for item in f["changes"].items(1, MAX_CHUNKS)]
        changes = tuple(
            Change(
                ChunkKey(level, row.integer(0, MAX_SIDE), column.integer(0, MAX_SIDE)),
                state.integer(CODED, LOSSLESS),
                quality.integer(0, QUALITIES - 1),
            )
            for row, column, state, quality in rows
        )
        return cls(level, changes)


@dataclass(frozen=True)
class Losses:
    """Pieces of the source that could not be read, by the numbers of the source's levels. Noted before the shards that
    lack them, so that a resumed encode, which does not read these again, still names them."""

    places: tuple[Place, ...]

    def to_json(self) -> dict[str, object]:
        """The pieces as a line of the journal."""
        return {"unreadable": [[p.level, p.y, p.x, p.height, p.width] for p in self.places]}

    @classmethod
    def from_json(cls, node: Node) -> "Losses":
        """What `to_json` wrote. Raises FormatError."""
        rows = node.fields("unreadable")["unreadable"].items(1, MAX_CHUNKS)
        return cls(tuple(Place(*(item.integer(0, MAX_SIDE) for item in row.items(5, 5))) for row in rows))


def _from_hex(node: Node) -> bytes:
    return bytes.fromhex(node.text(8 * MAX_TILES, r"(?:[0-9a-f]{2})*"))
