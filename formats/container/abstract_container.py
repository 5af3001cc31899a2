"""What a container is to whoever decodes it, whatever its version."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import UnsupportedError, UsageError
from histocodec.formats.container.abstract_store import Store
from histocodec.formats.container.attributes import Attributes, Stats
from histocodec.formats.container.shard import IndexCache
from histocodec.formats.container.states import BACKGROUND
from histocodec.geometry import ChunkKey
from histocodec.slide import Pixels

if TYPE_CHECKING:
    import zarr


class ChunkSource(Protocol):
    """What reads the bytes of a container's chunks, and knows whether they are the right ones. Thread-safe. Methods
    raise FormatError where a chunk is missing, damaged, or not the one that was written there."""

    def chunk_bytes(self, keys: Sequence[ChunkKey]) -> list[bytes]:
        """The bytes of chunks that are not background, without their CRC, in the order of the keys."""
        ...

    def has_shard(self, key: ChunkKey) -> bool:
        """Whether a shard has to be looked into for a chunk of background that is there after all."""
        ...

    def check_absent(self, key: ChunkKey) -> None:
        """Raises FormatError where a chunk of background is there after all."""
        ...

    def check_latents(self, key: ChunkKey, quality: int, y: NDArray[np.signedinteger]) -> None:
        """Raises FormatError unless these are the latents (C, n, n), with the quality, that were encoded at this
        place."""
        ...

    def checks(self, keys: Sequence[ChunkKey]) -> NDArray[np.uint32] | None:
        """The checks that the latents of chunks must have, (n,) uint32; None where there are none."""
        ...


class DecodableContainer(Protocol):
    """What the decoders need of a container, finished or not."""

    @property
    def attributes(self) -> Attributes:
        """The container's attributes."""
        ...

    @property
    def name(self) -> str:
        """The container as errors name it: its path or URL."""
        ...

    def stats(self) -> Stats:
        """The normalisation's statistics and what stands for background."""
        ...

    def tiles(self, level: int) -> NDArray[np.uint8]:
        """The tile state of every chunk, (rows, columns) uint8: BACKGROUND, CODED or LOSSLESS."""
        ...

    def lossless(self, key: ChunkKey) -> Pixels:
        """The pixels of a chunk that is stored losslessly, cut at the level's edge: (h, w, 3) uint8."""
        ...

    def shard_reader(self, indices: IndexCache) -> ChunkSource:
        """What reads the bytes of chunks. It may keep the shards' indices in a cache."""
        ...


class Container(ABC):
    """A finished container in a store, its attributes checked. Thread-safe and picklable.

    Methods raise FormatError where a file is missing, damaged, or not what the attributes imply, and UsageError for a
    level that does not exist.
    """

    store: Store
    attributes: Attributes

    @property
    def name(self) -> str:
        """The container as errors name it: its path or URL."""
        return self.store.name

    @property
    def path(self) -> Path | None:
        """The local folder or file; None where the container lies elsewhere."""
        return self.store.path

    @property
    def folder(self) -> Path | None:
        """The local folder that the container lies in, where a model may lie beside it; None where it lies
        elsewhere."""
        return None if self.path is None else self.path.absolute().parent

    @abstractmethod
    def stats(self) -> Stats:
        """The normalisation's statistics and what stands for background."""

    @abstractmethod
    def tiles(self, level: int) -> NDArray[np.uint8]:
        """The tile state of every chunk, (rows, columns) uint8: BACKGROUND, CODED or LOSSLESS."""

    @abstractmethod
    def quality(self, level: int) -> NDArray[np.uint8]:
        """The quality of every chunk, (rows, columns) uint8, 0 to 100; 0 for background."""

    @abstractmethod
    def psnr(self, level: int) -> NDArray[np.float32]:
        """The PSNR of every chunk in dB, (rows, columns) float32, as measured by decoding; NaN for background, infinite
        where nothing was lost."""

    @abstractmethod
    def block_error(self, level: int) -> NDArray[np.float32] | None:
        """The largest RMS error of any block of 16×16 pixels of every chunk, in grey values, (rows, columns) float32;
        NaN for background. None where a container of version 1 lacks this map."""

    @abstractmethod
    def shard_reader(self, indices: IndexCache) -> ChunkSource:
        """What reads the bytes of chunks. It may keep the shards' indices in a cache."""

    @abstractmethod
    def lossless(self, key: ChunkKey) -> Pixels:
        """The pixels of a chunk that is stored losslessly, cut at the level's edge: (h, w, 3) uint8."""

    @abstractmethod
    def overview(self) -> Pixels | None:
        """The small image of the whole slide, (H, W, 3) uint8, or None where there is none."""

    @abstractmethod
    def associated(self, name: str) -> Pixels:
        """An associated image, (H, W, 3) uint8. Raises UsageError for a name that the container does not have."""

    @abstractmethod
    def icc_profile(self) -> bytes | None:
        """The source's ICC profile, or None where it has none."""

    @abstractmethod
    def model_bytes(self) -> bytes | None:
        """The embedded model file, its SHA-256 checked; None where no model is embedded."""

    @abstractmethod
    def latents(self, level: int) -> "zarr.Array[Any]":
        """The latents of a level as zarr sees them: int8 or int16 (C, rows, columns), decoded as they are indexed.
        Raises MissingModelError when they are indexed without the model."""

    @abstractmethod
    def latents_digest(self, level: int) -> str:
        """A SHA-256 that names the latents of a level, in hexadecimal."""

    @abstractmethod
    def level_bytes(self, level: int) -> tuple[int, int]:
        """The bytes of a level's shards of latents, and of its chunks that are stored losslessly."""

    def present_shards(self, level: int) -> NDArray[np.bool_]:
        """Whether each shard has to be there, (shard rows, shard columns) bool: some chunk of it is not background."""
        grid, side = self.attributes.grid(level), self.attributes.shard_side(level)
        stored = self.tiles(level) != BACKGROUND
        by_row = np.logical_or.reduceat(stored, np.arange(0, grid.chunk_rows, side), axis=0)
        return np.asarray(np.logical_or.reduceat(by_row, np.arange(0, grid.chunk_columns, side), axis=1))

    def _opened_by_zarr(self, name: str) -> "zarr.Array[Any]":
        """An array of latents as zarr sees it, with the model provided to zarr's codec where one is known. Raises
        UnsupportedError where zarr itself cannot read the way in which another program wrote the metadata."""
        import zarr  # here, as in zarr_codec: `info` and `--help` must answer at once

        from histocodec.formats.container.zarr_codec import provide_folder, provide_model, register
        from histocodec.models.weights import parse_model

        data = self.model_bytes()
        if data is not None:
            provide_model(parse_model(data, name=f"{self.name}: embedded model"))
        elif self.folder is not None:
            provide_folder(self.attributes.model.sha256, self.folder)
        register()
        try:  # zarr does not read every way to write the metadata
            return zarr.open_array(self.store.zarr(), path=name, mode="r")
        except (TypeError, ValueError, KeyError) as exc:
            where = self.store.where(name)
            raise UnsupportedError(f"{where}: zarr {zarr.__version__} cannot open it: {exc}") from exc

    def _checked(self, level: int) -> int:
        if not 0 <= level < len(self.attributes.levels):
            last = len(self.attributes.levels) - 1
            raise UsageError(f"{self.name}: level {level} does not exist; it has 0 to {last}")
        return level
