"""A container of version 1, read. Each method reads its files anew and keeps nothing.

What a container has, and in which shape, follows from its attributes alone; see `layout.py`.
"""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError, UsageError
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.abstract_store import Store
from histocodec.formats.container.arrays import check_metadata, metadata_key, read_plain, read_plain_chunk
from histocodec.formats.container.attributes import Attributes, Stats
from histocodec.formats.container.layout import DIGEST_BYTES
from histocodec.formats.container.shard import IndexCache
from histocodec.formats.container.version1.layout import (
    block_error_form,
    check_values,
    latent_metadata,
    lossless_form,
    plain_arrays,
)
from histocodec.formats.container.version1.shards import ShardReader
from histocodec.geometry import ChunkKey
from histocodec.normalise import ChannelStats
from histocodec.slide import Pixels

if TYPE_CHECKING:
    import zarr


class ContainerV1(Container):
    """A container of version 1 in a store, its attributes checked. Nothing else is read until a method is called.

    Methods raise FormatError where a file is missing, damaged, or not what the attributes imply, and UsageError for a
    level that does not exist.
    """

    store: Store
    attributes: Attributes

    def __init__(self, store: Store, attributes: Attributes) -> None:
        self.store, self.attributes = store, attributes

    def tiles(self, level: int) -> NDArray[np.uint8]:
        """The tile state of every chunk, (rows, columns) uint8: BACKGROUND, CODED or LOSSLESS."""
        return self.array(f"tiles/{self._checked(level)}")

    def quality(self, level: int) -> NDArray[np.uint8]:
        """The quality of every chunk, (rows, columns) uint8, 0 to 100; 0 for background."""
        return self.array(f"quality/{self._checked(level)}")

    def psnr(self, level: int) -> NDArray[np.float32]:
        """The PSNR of every chunk in dB, (rows, columns) float32, as measured by decoding; NaN for background, infinite
        where nothing was lost."""
        return self.array(f"psnr/{self._checked(level)}")

    def block_error(self, level: int) -> NDArray[np.float32] | None:
        """The largest RMS error of any block of 16×16 pixels of every chunk, in grey values, (rows, columns) float32;
        NaN for background. None in a container of an earlier version, which lacks this map."""
        name = f"block_error/{self._checked(level)}"
        if self.store.size(metadata_key(name)) is None:
            return None
        values = read_plain(self.store, name, block_error_form(self.attributes, level))
        check_values(name, values, self.store.where(name))
        return values

    def integrity(self, level: int) -> NDArray[np.uint8]:
        """The SHA-256 of every shard, (shard rows, shard columns, 32) uint8; zeros where there is no shard."""
        grid = self.attributes.grid(self._checked(level))
        return self.array(f"integrity/{level}").reshape(grid.shard_rows, grid.shard_columns, DIGEST_BYTES)

    def stats(self) -> Stats:
        """The normalisation's statistics and what stands for background."""
        mean, std = self.array("stats/mean"), self.array("stats/std")
        return Stats(ChannelStats(mean, std), self.array("stats/background"), self.array("stats/background_latent"))

    def overview(self) -> Pixels | None:
        """The small image of the whole slide, (H, W, 3) uint8, or None where there is none."""
        if self.attributes.overview is None:
            return None
        return np.ascontiguousarray(self.array("overview/0").transpose(1, 2, 0))

    def associated(self, name: str) -> Pixels:
        """An associated image, (H, W, 3) uint8. Raises UsageError for a name that the container does not have."""
        return self.array(f"associated/{name}")

    def icc_profile(self) -> bytes | None:
        """The source's ICC profile, or None where it has none."""
        return None if self.attributes.icc is None else self.array("metadata/icc").tobytes()

    def model_bytes(self) -> bytes | None:
        """The embedded model file, its SHA-256 checked; None where no model is embedded."""
        if self.attributes.model.embedded is None:
            return None
        data = self.array("model/weights").tobytes()
        if hashlib.sha256(data).hexdigest() != self.attributes.model.sha256:
            where = self.store.where("model/weights")
            raise FormatError(f"{where}: is not the model that the attributes name by SHA-256")
        return data

    def array(self, name: str) -> NDArray[Any]:
        """One of the `plain_arrays`, by name: "tiles/0" say. Raises UsageError for a name that is none of them."""
        form = plain_arrays(self.attributes).get(name)
        if form is None:
            raise UsageError(f"{self.name}: has no array {name}")
        values = read_plain(self.store, name, form)
        check_values(name, values, self.store.where(name))
        return values

    def lossless(self, key: ChunkKey) -> Pixels:
        """The pixels of a chunk that `tiles` calls LOSSLESS, cut at the level's edge: (h, w, 3) uint8."""
        form = lossless_form(self.attributes, self._checked(key.level))
        name, region = f"lossless/{key.level}", self.attributes.chunk_region(key)
        check_metadata(self.store, name, form.metadata())
        pixels = read_plain_chunk(self.store, name, form, (key.row, key.column, 0))
        return np.ascontiguousarray(pixels[: region.height, : region.width])

    def shard_reader(self, indices: IndexCache) -> ShardReader:
        """What reads the bytes of chunks, and keeps the shards' indices in a cache."""
        return ShardReader(self.store, self.attributes, self.integrity, indices)

    def latents(self, level: int) -> "zarr.Array[Any]":
        """latents/<level> as zarr sees it: int8 or int16 (C, rows, columns), decoded as it is indexed. Raises
        MissingModelError when it is indexed without the model, and UnsupportedError where zarr itself cannot read the
        way in which another program wrote the metadata."""
        name = f"latents/{self._checked(level)}"
        check_metadata(self.store, name, latent_metadata(self.attributes, level))
        return self._opened_by_zarr(name)

    def check_latent_metadata(self, level: int) -> None:
        """Raises FormatError where the metadata of latents/<level> is not what the attributes imply."""
        check_metadata(self.store, f"latents/{self._checked(level)}", latent_metadata(self.attributes, level))

    def latents_digest(self, level: int) -> str:
        """The SHA-256 of `integrity/<level>`, which names the latents of the level."""
        return hashlib.sha256(self.integrity(level).tobytes()).hexdigest()

    def level_bytes(self, level: int) -> tuple[int, int]:
        """The bytes of a level's shards of latents, and of its chunks that are stored losslessly."""
        lossless = sum(size for name, size in self.store.entries() if name.startswith(f"lossless/{level}/c/"))
        return self.attributes.levels[level].bytes or 0, lossless
