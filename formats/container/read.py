"""The container on disk: written around the shards, and read.

    writing:    create_skeleton … shards … write_array … finish
    reading:    Container.open, then its methods; each reads its file anew and keeps nothing

What there is, and how large, is derived from the attributes alone: see `histocodec.formats.container.layout`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError, UnsupportedError, UsageError
from histocodec.formats.container.arrays import (
    METADATA,
    Form,
    check_metadata,
    chunk_path,
    group_metadata,
    pack_values,
    read_metadata,
    read_plain,
    read_plain_chunk,
    write_metadata,
    write_plain,
)
from histocodec.formats.container.attributes import KEY, Attributes
from histocodec.formats.container.fields import Node
from histocodec.formats.container.files import TEMPORARY_GLOB, write_atomically
from histocodec.formats.container.layout import (
    BACKGROUND,
    DIGEST_BYTES,
    GROUPS,
    LISTING,
    NO_SHARD,
    block_error_form,
    check_values,
    is_lossless,
    is_shard,
    latent_metadata,
    lossless_form,
    plain_arrays,
    shard_path,
)
from histocodec.formats.container.ngff import ome_attributes
from histocodec.formats.container.shard import read_index
from histocodec.geometry import ChunkKey, ShardKey
from histocodec.normalise import ChannelStats
from histocodec.slide import Pixels

if TYPE_CHECKING:
    import zarr

MAX_LISTING = 64 << 20  # bytes: a hundred for each of half a million files


@dataclass(frozen=True)
class Stats:
    """What undoes the normalisation, and what stands for a chunk that was skipped."""

    channels: ChannelStats
    background: NDArray[np.uint8]  # (3,)
    background_latent: NDArray[np.float32]  # (C,), gains undone: what g_s sees in place of an absent chunk


@dataclass(frozen=True)
class Sizes:
    """Bytes on disk: all files, and the shards of latents and the lossless chunks among them."""

    total: int
    latents: int
    lossless: int


# Writing. `root` is the folder that grows; every call leaves whole files only.


def create_skeleton(root: Path, attributes: Attributes) -> None:
    """Groups, attributes and the latents' metadata: from here on zarr opens `root`, and takes shards."""
    _write_root(root, attributes)
    for name in GROUPS:
        write_metadata(root / name, group_metadata())
    for level in range(len(attributes.levels)):
        write_metadata(root / "latents" / str(level), latent_metadata(attributes, level))


def write_array(root: Path, attributes: Attributes, name: str, values: NDArray[Any]) -> None:
    """One of `plain_arrays`. Values are held to what `Container` accepts. Raises UsageError, OutputError."""
    form = plain_arrays(attributes).get(name)
    if form is None:
        raise UsageError(f"{name}: is no array of a container with these attributes")
    if values.shape != form.shape or values.dtype != np.dtype(form.dtype):
        raise UsageError(f"{name}: {values.dtype} {values.shape}; {form.dtype} {form.shape} is needed")
    try:
        check_values(name, values, name)
    except FormatError as exc:
        raise UsageError(str(exc)) from exc
    _write_group_of(root, name, attributes)
    write_plain(root / name, form, values)


def write_stats(root: Path, attributes: Attributes, stats: Stats) -> None:
    """The four arrays of stats/."""
    write_array(root, attributes, "stats/mean", stats.channels.mean)
    write_array(root, attributes, "stats/std", stats.channels.std)
    write_array(root, attributes, "stats/background", stats.background)
    write_array(root, attributes, "stats/background_latent", stats.background_latent)


def write_block_error(root: Path, attributes: Attributes, level: int, values: NDArray[np.float32]) -> None:
    """The map of local errors, which old containers lack."""
    form = block_error_form(attributes, level)
    if values.shape != form.shape or (values < 0).any():
        raise UsageError(f"block_error/{level}: {values.shape}; {form.shape} without negative values is needed")
    write_plain(root / "block_error" / str(level), form, values)
    _write_group_of(root, f"block_error/{level}", attributes)


def write_lossless(root: Path, attributes: Attributes, key: ChunkKey, pixels: Pixels) -> None:
    """The pixels of one chunk, cut at the level's edge: (h, w, 3)."""
    form, region, name = lossless_form(attributes, key.level), attributes.chunk_region(key), f"lossless/{key.level}"
    if pixels.shape != (region.height, region.width, 3):
        raise UsageError(f"{name}: chunk ({key.row}, {key.column}) of shape {pixels.shape}")
    whole = np.zeros(form.chunk_shape, np.uint8)  # Zarr's chunks are whole at the edge, too
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    write_atomically(chunk_path(root / name, (key.row, key.column, 0)), pack_values(whole, form))
    _write_group_of(root, name, attributes)
    if not (root / name / METADATA).exists():
        write_metadata(root / name, form.metadata())


def finish(root: Path, attributes: Attributes) -> None:
    """The last step: metadata as the attributes now are, and the digests of all files that are no shards."""
    create_skeleton(root, attributes)
    missing = [name for name in plain_arrays(attributes) if not (root / name / METADATA).is_file()]
    if missing:
        raise UsageError(f"{root}: cannot be finished without {', '.join(missing)}")
    names = sorted(name for name in _files(root) if not is_shard(name) and not name.startswith(f"{LISTING}/"))
    lines = [f"{file_digest(root / name).hex()}  {name}\n" for name in names]
    listing = np.frombuffer("".join(lines).encode(), np.uint8)
    write_plain(root / LISTING, Form(listing.shape, "uint8"), listing)


def sizes(root: Path) -> Sizes:
    """What a container takes on disk."""
    found = {name: (root / name).stat().st_size for name in _files(root)}
    return Sizes(
        sum(found.values()),
        sum(size for name, size in found.items() if is_shard(name)),
        sum(size for name, size in found.items() if is_lossless(name)),
    )


def lossless_bytes(root: Path, level: int) -> int:
    """The bytes of the chunks of `level` that are stored losslessly."""
    chunks = root / "lossless" / str(level) / "c"
    return sum(file.stat().st_size for file in chunks.rglob("*") if file.is_file())


def _write_root(root: Path, attributes: Attributes) -> None:
    described: dict[str, object] = {KEY: attributes.checked(f"{root}: {KEY}")}
    write_metadata(root, group_metadata({**ome_attributes(attributes, "overview/0"), **described}))


def _write_group_of(root: Path, name: str, attributes: Attributes) -> None:
    group = name.split("/", maxsplit=1)[0]
    if group in GROUPS or (root / group / METADATA).exists():
        return
    write_metadata(root / group, group_metadata(ome_attributes(attributes, "0") if group == "overview" else None))


def _files(root: Path) -> Iterator[str]:
    """All files below `root`, as relative names with slashes."""
    for path in root.rglob("*"):
        if path.is_file() and not path.match(TEMPORARY_GLOB):
            yield path.relative_to(root).as_posix()


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file. Raises FormatError where it is missing or cannot be read."""
    try:
        if not path.is_file():
            raise FormatError(f"{path}: is missing")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as exc:
        raise FormatError(f"{path}: cannot be read: {exc.strerror or exc}") from exc


def _check_digest(path: Path, expected: str) -> None:
    if file_digest(path).hex() != expected:
        raise FormatError(f"{path}: was altered (its SHA-256 is not the one that was written)")


# Reading.


def described_by(root: Path) -> Node | None:
    """The attribute "histocodec" of a Zarr group, unchecked; None where it has none."""
    node: object = read_metadata(root).value
    for key in ("attributes", KEY):
        node = node.get(key) if isinstance(node, dict) else None
    return None if node is None else Node(node, f"{root / METADATA}: {KEY}")


def is_container(path: str | Path) -> bool:
    """Whether `path` is meant to be a histocodec container, sound or not."""
    try:
        return described_by(Path(path)) is not None
    except FormatError:
        return False


@dataclass(frozen=True)
class Container:
    """A container on disk, its attributes checked. Nothing else is read until it is asked for."""

    path: Path
    attributes: Attributes

    @classmethod
    def open(cls, path: str | Path) -> "Container":
        """Raises UnsupportedError where there is no histocodec container or one of a later version,
        FormatError where it is broken or was never finished."""
        root = Path(path)
        if not root.exists():
            raise UsageError(f"{root}: does not exist")
        if not (root / METADATA).is_file():
            raise UnsupportedError(f"{root}: is no histocodec container (it has no {METADATA})")
        node = described_by(root)
        if node is None:
            raise UnsupportedError(f"{root}: is Zarr, but no histocodec container (no attribute {KEY!r})")
        attributes = Attributes.from_json(node)
        if any(level.bytes is None for level in attributes.levels):
            raise FormatError(f"{root}: was never finished; only its encoder can go on with it")
        return cls(root, attributes)

    def tiles(self, level: int) -> NDArray[np.uint8]:
        """(rows, columns) BACKGROUND, CODED or LOSSLESS for every chunk."""
        return self.array(f"tiles/{self._checked(level)}")

    def quality(self, level: int) -> NDArray[np.uint8]:
        """(rows, columns) the gain index of every chunk; 0 for background."""
        return self.array(f"quality/{self._checked(level)}")

    def psnr(self, level: int) -> NDArray[np.float32]:
        """(rows, columns) dB, as measured by decoding; NaN: background; infinite: nothing was lost."""
        return self.array(f"psnr/{self._checked(level)}")

    def block_error(self, level: int) -> NDArray[np.float32] | None:
        """(rows, columns) the largest RMS error of any 16×16 pixels of each chunk, in grey values; NaN: background.
        None in a container that was made without this map."""
        folder = self.path / "block_error" / str(self._checked(level))
        if not folder.exists():
            return None
        values = read_plain(folder, block_error_form(self.attributes, level))
        if not (np.isnan(values) | ((values >= 0) & (values <= 255))).all():
            raise FormatError(f"{folder}: has values that are not allowed there; 0 to 255 and NaN are")
        return values

    def integrity(self, level: int) -> NDArray[np.uint8]:
        """(shard rows, shard columns, 32) SHA-256 of every shard; zeros where there is none."""
        grid = self.attributes.grid(self._checked(level))
        return self.array(f"integrity/{level}").reshape(grid.shard_rows, grid.shard_columns, DIGEST_BYTES)

    def stats(self) -> Stats:
        mean, std = self.array("stats/mean"), self.array("stats/std")
        return Stats(ChannelStats(mean, std), self.array("stats/background"), self.array("stats/background_latent"))

    def overview(self) -> Pixels | None:
        """(H, W, 3), or None where there is none."""
        if self.attributes.overview is None:
            return None
        return np.ascontiguousarray(self.array("overview/0").transpose(1, 2, 0))

    def associated(self, name: str) -> Pixels:
        return self.array(f"associated/{name}")

    def icc_profile(self) -> bytes | None:
        return None if self.attributes.icc is None else self.array("metadata/icc").tobytes()

    def model_bytes(self) -> bytes | None:
        """The bytes of the embedded model file, which the attributes' SHA-256 fits; None without one."""
        if self.attributes.model.embedded is None:
            return None
        data = self.array("model/weights").tobytes()
        if hashlib.sha256(data).hexdigest() != self.attributes.model.sha256:
            raise FormatError(f"{self.path / 'model/weights'}: is not the model that the attributes name by SHA-256")
        return data

    def array(self, name: str) -> NDArray[Any]:
        """One of `plain_arrays`, by its name. FormatError where it is not what the attributes imply."""
        form = plain_arrays(self.attributes).get(name)
        if form is None:
            raise UsageError(f"{self.path}: has no array {name}")
        values = read_plain(self.path / name, form)
        check_values(name, values, str(self.path / name))
        return values

    def lossless(self, key: ChunkKey) -> Pixels:
        """The pixels of a chunk that `tiles` calls LOSSLESS, cut at the level's edge: (h, w, 3) uint8."""
        form = lossless_form(self.attributes, self._checked(key.level))
        folder, region = self.path / "lossless" / str(key.level), self.attributes.chunk_region(key)
        check_metadata(folder, form.metadata())
        pixels = read_plain_chunk(folder, form, (key.row, key.column, 0))
        return np.ascontiguousarray(pixels[: region.height, : region.width])

    def shard_path(self, shard: ShardKey) -> Path:
        """The file of a shard of latents, which need not exist."""
        return shard_path(self.path, shard)

    def present_shards(self, level: int) -> NDArray[np.bool_]:
        """(shard rows, shard columns): True where `tiles` says that a shard must be there."""
        grid, side = self.attributes.grid(level), self.attributes.shard
        stored = self.tiles(level) != BACKGROUND
        by_row = np.logical_or.reduceat(stored, np.arange(0, grid.chunk_rows, side), axis=0)
        return np.asarray(np.logical_or.reduceat(by_row, np.arange(0, grid.chunk_columns, side), axis=1))

    def latents(self, level: int) -> "zarr.Array[Any]":
        """latents/<level> as zarr sees it: int8 or int16 (C, rows, columns), decoded as it is indexed."""
        import zarr  # here, as in zarr_codec: `info` and `--help` must answer at once

        from histocodec.formats.container.zarr_codec import provide_model, register
        from histocodec.models.weights import parse_model

        folder = self.path / "latents" / str(self._checked(level))
        check_metadata(folder, latent_metadata(self.attributes, level))
        data = self.model_bytes()
        if data is not None:
            provide_model(parse_model(data, name=str(self.path / "model/weights")))
        register()
        return zarr.open_array(folder, mode="r")

    def check_latent_metadata(self, level: int) -> None:
        """FormatError where latents/<level> does not say what the attributes imply."""
        check_metadata(self.path / "latents" / str(self._checked(level)), latent_metadata(self.attributes, level))

    def problems(self) -> Iterator[FormatError]:
        """Everything in the container that is not as it was written, file by file. Nothing is decoded."""
        for level in range(len(self.attributes.levels)):
            yield from self._shard_problems(level)
        try:
            listed = self._listing()
        except FormatError as exc:
            yield exc
            return
        arrays = plain_arrays(self.attributes).items()
        needed = {METADATA, *(f"{name}/{METADATA}" for name, _ in arrays)}
        needed |= {chunk_path(Path(name), (0,) * len(form.shape)).as_posix() for name, form in arrays}
        for name in sorted(needed - listed.keys()):
            yield FormatError(f"{self.path / LISTING}: does not list {name}")
        for name, digest in listed.items():
            try:
                _check_digest(self.path / name, digest)
            except FormatError as exc:
                yield exc

    def check_shard(self, level: int, row: int, column: int, digest: bytes) -> None:
        """Compares a shard with its digest in `integrity`. FormatError where they differ."""
        path = self.shard_path(ShardKey(level, row, column))
        if digest == NO_SHARD:
            if path.exists():
                raise FormatError(f"{path}: is there, although all its chunks are background")
            return
        _check_digest(path, digest.hex())

    def _shard_problems(self, level: int) -> Iterator[FormatError]:
        try:
            self.check_latent_metadata(level)
            digests, present, tiles = self.integrity(level), self.present_shards(level), self.tiles(level)
        except FormatError as exc:
            yield exc
            return
        for row, column in np.ndindex(*present.shape):
            digest = digests[row, column].tobytes()
            path = self.shard_path(ShardKey(level, row, column))
            try:
                if present[row, column] == (digest == NO_SHARD):
                    raise FormatError(
                        f"{path}: tiles/{level} and integrity/{level} disagree whether it has to be there"
                    )
                self.check_shard(level, row, column, digest)
                if digest != NO_SHARD:
                    self._check_presence(level, row, column, tiles)
            except FormatError as exc:
                yield exc

    def _check_presence(self, level: int, row: int, column: int, tiles: NDArray[np.uint8]) -> None:
        """FormatError unless a shard holds the chunks that `tiles`, the level's, does not call background."""
        path, side = self.shard_path(ShardKey(level, row, column)), self.attributes.shard
        expected = np.zeros((side, side), np.bool_)
        part = tiles[row * side : (row + 1) * side, column * side : (column + 1) * side] != BACKGROUND
        expected[: part.shape[0], : part.shape[1]] = part
        found = np.reshape(read_index(path, side * side).present, (side, side))
        for i, j in np.argwhere(found != expected)[:1]:
            where = f"{path}: level {level} chunk ({row * side + i}, {column * side + j})"
            raise FormatError(f"{where} is {'here' if found[i, j] else 'missing'}, against what tiles/{level} says")

    def _listing(self) -> dict[str, str]:
        """File name -> SHA-256 in hexadecimal, of `integrity/files`."""
        folder = self.path / LISTING
        size = read_metadata(folder).member("shape").items(1, 1)[0].integer(1, MAX_LISTING)
        text = BytesIO(read_plain(folder, Form((size,), "uint8")).tobytes())
        listed: dict[str, str] = {}
        for number, line in enumerate(text, 1):
            digest, separator, name = line.decode("utf-8", "replace").rstrip("\n").partition("  ")
            if not separator or len(digest) != 64 or ".." in name.split("/") or name.startswith("/"):
                raise FormatError(f"{folder}: line {number} is not a SHA-256, two spaces and a file's name")
            listed[name] = digest
        return listed

    def _checked(self, level: int) -> int:
        if not 0 <= level < len(self.attributes.levels):
            raise UsageError(
                f"{self.path}: level {level} does not exist; it has 0 to {len(self.attributes.levels) - 1}"
            )
        return level
