"""The container, read: `Container.open`, then its methods. Each reads its file anew and keeps nothing.

What a container has, and in which shape, follows from its attributes alone; see `layout.py`. Writing is in `write.py`,
digests are in `integrity.py`.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError, HistocodecError, UnsupportedError, UsageError
from histocodec.formats.container.arrays import (
    METADATA,
    check_metadata,
    metadata_key,
    read_metadata,
    read_plain,
    read_plain_chunk,
)
from histocodec.formats.container.attributes import KEY, Attributes
from histocodec.formats.container.fields import Node
from histocodec.formats.container.layout import (
    BACKGROUND,
    DIGEST_BYTES,
    block_error_form,
    check_values,
    is_lossless,
    is_shard,
    latent_metadata,
    lossless_form,
    plain_arrays,
)
from histocodec.formats.container.locations import is_url, local_path
from histocodec.formats.container.shards_v1 import IndexCache, ShardReader
from histocodec.formats.container.store import FolderStore, Location, Store, open_store
from histocodec.formats.container.zipped import SUFFIX, FileSource, ZipStore, claims_zarr, is_zip
from histocodec.geometry import ChunkKey
from histocodec.normalise import ChannelStats
from histocodec.slide import Pixels

if TYPE_CHECKING:
    import zarr


@dataclass(frozen=True)
class Stats:
    """What undoes the normalisation, and what stands for the chunks of background."""

    channels: ChannelStats
    background: NDArray[np.uint8]  # (3,), the colour of background
    background_latent: NDArray[np.float32]  # (C,), gains undone: what g_s sees in place of an absent chunk


@dataclass(frozen=True)
class Sizes:
    """Bytes: of all files, and among them of the shards of latents, of the lossless chunks, and of those of level 0."""

    total: int
    latents: int
    lossless: int
    lossless_level0: int


def described_by(root: Node) -> Node | None:
    """The attribute "histocodec" in the metadata of a Zarr group, unchecked; None where it has none."""
    node: object = root.value
    for key in ("attributes", KEY):
        node = node.get(key) if isinstance(node, dict) else None
    return None if node is None else Node(node, f"{root.where}: {KEY}")


def _check_group(root: Node) -> None:
    """Raises FormatError unless the metadata is that of a group of Zarr v3, which any reader of Zarr opens."""
    root.member("zarr_format").integer(3, 3)
    root.member("node_type").choice(("group",))


def is_container(location: str | bytes | os.PathLike[str]) -> bool:
    """Whether a folder, a ZIP archive or what lies at a URL says that it is a histocodec container; sound or not."""
    try:
        return names_container(location)
    except HistocodecError:
        return False


def names_container(location: str | bytes | os.PathLike[str]) -> bool:
    """`is_container` for whoever is going to open the location. Raises FormatError where it is a Zarr group whose
    metadata cannot be read: then nobody can tell what it is. True of every URL, since nothing else is read from one."""
    text = os.fsdecode(location)
    if is_url(text):
        return True
    path = local_path(text)
    if is_zip(path):
        if path.suffix.lower() != SUFFIX and not claims_zarr(path):  # anybody's archive
            return False
        store: Store = ZipStore(FileSource(path))
        return store.size(METADATA) is not None and described_by(read_metadata(store, "")) is not None
    return os.path.lexists(path / METADATA) and described_by(read_metadata(FolderStore(path), "")) is not None


def sizes(store: Store) -> Sizes:
    """The bytes of a container's files."""
    by_name = dict(store.entries())
    return Sizes(
        sum(by_name.values()),
        sum(size for name, size in by_name.items() if is_shard(name)),
        sum(size for name, size in by_name.items() if is_lossless(name)),
        sum(size for name, size in by_name.items() if is_lossless(name) and name.startswith("lossless/0/")),
    )


@dataclass(frozen=True)
class Container:
    """A container in a store, its attributes checked. Nothing else is read until a method is called.

    Methods raise FormatError where a file is missing, damaged, or not what the attributes imply, and UsageError for a
    level that does not exist.
    """

    store: Store
    attributes: Attributes

    @classmethod
    def open(cls, location: Location) -> "Container":
        """Opens a finished container at a path or URL, or in a store. Raises UsageError where a path does not exist,
        UnsupportedError where it is no container or one of a later version, and FormatError where its attributes are
        damaged or it was never finished."""
        store = open_store(location)
        if store.size(METADATA) is None:
            raise UnsupportedError(f"{store.name}: is no histocodec container (it has no {METADATA})")
        root = read_metadata(store, "")
        node = described_by(root)
        if node is None:
            raise UnsupportedError(f"{store.name}: is Zarr, but no histocodec container (no attribute {KEY!r})")
        _check_group(root)
        store.check()
        attributes = Attributes.from_json(node)
        if any(level.bytes is None for level in attributes.levels):
            raise FormatError(f"{store.name}: was never finished; `histocodec encode --resume` goes on with it")
        return cls(store, attributes)

    @property
    def name(self) -> str:
        """The container as errors name it: its path or URL."""
        return self.store.name

    @property
    def path(self) -> Path | None:
        """The local folder or file; None where the container lies elsewhere."""
        return self.store.path

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

    def present_shards(self, level: int) -> NDArray[np.bool_]:
        """Whether `tiles` demands each shard, (shard rows, shard columns) bool: some chunk of it is not background."""
        grid, side = self.attributes.grid(level), self.attributes.shard
        stored = self.tiles(level) != BACKGROUND
        by_row = np.logical_or.reduceat(stored, np.arange(0, grid.chunk_rows, side), axis=0)
        return np.asarray(np.logical_or.reduceat(by_row, np.arange(0, grid.chunk_columns, side), axis=1))

    def latents(self, level: int) -> "zarr.Array[Any]":
        """latents/<level> as zarr sees it: int8 or int16 (C, rows, columns), decoded as it is indexed. Raises
        MissingModelError when it is indexed without the model, and UnsupportedError where zarr itself cannot read the
        way in which another program wrote the metadata."""
        import zarr  # here, as in zarr_codec: `info` and `--help` must answer at once

        from histocodec.formats.container.zarr_codec import provide_model, register
        from histocodec.models.weights import parse_model

        name = f"latents/{self._checked(level)}"
        check_metadata(self.store, name, latent_metadata(self.attributes, level))
        data = self.model_bytes()
        if data is not None:
            provide_model(parse_model(data, name=self.store.where("model/weights")))
        register()
        try:  # zarr does not read every way to write the metadata
            return zarr.open_array(self.store.zarr(), path=name, mode="r")
        except (TypeError, ValueError, KeyError) as exc:
            where = self.store.where(name)
            raise UnsupportedError(f"{where}: zarr {zarr.__version__} cannot open it: {exc}") from exc

    def check_latent_metadata(self, level: int) -> None:
        """Raises FormatError where the metadata of latents/<level> is not what the attributes imply."""
        check_metadata(self.store, f"latents/{self._checked(level)}", latent_metadata(self.attributes, level))

    def _checked(self, level: int) -> int:
        if not 0 <= level < len(self.attributes.levels):
            raise UsageError(
                f"{self.name}: level {level} does not exist; it has 0 to {len(self.attributes.levels) - 1}"
            )
        return level
