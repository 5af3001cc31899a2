"""The latents of a level as an ordinary Zarr array, each chunk held to its check as it is read.

    zarr.json        (C, rows, columns) int8 or int16, in chunks of (C, n, n), without compression
    c/0/ROW/COLUMN   a chunk's latents; absent where it is background, so that Zarr reads zeros

Zarr's codecs do not know which chunk they decode, so the container's own array cannot tell a chunk of another place
from the right one. This one reads as pixels are read, through `ChunkReader`.
"""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from histocodec.formats.container.arrays import METADATA, array_metadata
from histocodec.formats.container.layout import LATENT_NAMES, LITTLE
from histocodec.formats.container.made_store import MadeStore
from histocodec.formats.container.states import BACKGROUND
from histocodec.geometry import ChunkKey

if TYPE_CHECKING:
    from histocodec.formats.container.abstract_container import Container
    from histocodec.formats.decode.chunks import ChunkReader

CHUNK = re.compile(r"c/0/(0|[1-9]\d{0,9})/(0|[1-9]\d{0,9})")


class LatentSource(Protocol):
    """What the view needs of a compressed slide."""

    name: str
    container: "Container"

    @property
    def chunk_reader(self) -> "ChunkReader":
        """What reads the slide's chunks."""
        ...


class LatentsView(MadeStore):
    """The objects of a Zarr array with the latents of a level, decoded as they are read. Picklable, as the slide is."""

    def __init__(self, slide: "LatentSource", level: int) -> None:
        attributes = slide.container.attributes
        self.name = f"{slide.name}: latents of level {level}"
        self._slide, self._level = slide, level
        grid, side = attributes.grid(level), attributes.chunk
        self._rows, self._columns = grid.chunk_rows, grid.chunk_columns
        self._dtype = np.dtype(attributes.levels[level].dtype).newbyteorder("<")
        shape = (attributes.model.channels, side, side)
        self._bytes = int(np.prod(shape)) * self._dtype.itemsize
        plane = (attributes.model.channels, grid.latent_rows, grid.latent_columns)
        metadata = array_metadata(plane, self._dtype.name, shape, [LITTLE], LATENT_NAMES)
        self._metadata = json.dumps(metadata).encode()

    def make(self, key: str) -> bytes:
        """See `MadeStore`."""
        if key == METADATA:
            return self._metadata
        chunk = self._slide.chunk_reader.latents(self._key(key))
        assert chunk is not None, "no background has a size"
        return np.ascontiguousarray(chunk.y, self._dtype).tobytes()

    def size(self, key: str) -> int | None:
        """See `Store`."""
        if key == METADATA:
            return len(self._metadata)
        if CHUNK.fullmatch(key) is None:
            return None
        chunk = self._key(key)
        if chunk.row >= self._rows or chunk.column >= self._columns:
            return None
        reader = self._slide.chunk_reader
        if reader.state(chunk) == BACKGROUND:
            reader.check_absent(chunk)
            return None
        return self._bytes

    def entries(self) -> Iterator[tuple[str, int]]:
        """See `Store`."""
        yield METADATA, len(self._metadata)
        states = self._slide.chunk_reader.tiles(self._level)
        for row, column in np.argwhere(states != BACKGROUND):
            yield f"c/0/{row}/{column}", self._bytes

    def _key(self, key: str) -> ChunkKey:
        match = CHUNK.fullmatch(key)
        assert match is not None, "its size was asked for"
        return ChunkKey(self._level, int(match[1]), int(match[2]))

    def __repr__(self) -> str:
        return f"LatentsView({self._slide!r}, {self._level})"
