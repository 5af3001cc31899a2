"""What a container says about itself: the attribute "histocodec" of its root group, to JSON and back, strictly checked.

`SPEC.md` states the same rules in words, and `schema.json` for other programs.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeVar

from histocodec.errors import FormatError, UnsupportedError
from histocodec.formats.container.fields import Node, parse_json
from histocodec.geometry import ChunkKey, Grid, Region, ceil_div
from histocodec.models.config import MODEL_ID, MOST_LATENTS, PATCHES, QUALITIES, HyperConfig
from histocodec.slide import MPP_RANGE, POWER_RANGE, Colour, Mpp, mpp_at

VERSION = 1
KEY = "histocodec"  # of the root group's attributes

DType = Literal["int8", "int16"]
BackgroundMode = Literal["skip", "code"]

SHA256 = r"[0-9a-f]{64}"
IMAGE_NAME = r"(?!.*\.\.)(?!zarr\.json$)[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}"  # becomes the name of a folder
STRIDES = {"hyper": (HyperConfig.stride,), "vae": PATCHES}  # by the model's family
DTYPES: tuple[DType, ...] = ("int8", "int16")
MODES: tuple[BackgroundMode, ...] = ("skip", "code")

# Limits, so that a hostile container cannot make a reader allocate gigabytes. SPEC.md gives their reasons.
MAX_SIDE = 2**31 - 1
MAX_CHUNKS = 2**24  # of all levels together
MAX_SHARDS = 2**20  # likewise
MAX_CHUNK_SIDE = 1024  # pixels
MAX_LEVELS = 64
MAX_SIDE_OVERVIEW = 4096
MAX_SIDE_ASSOCIATED = 8192
MAX_ASSOCIATED = 64
MAX_ICC = 16 << 20
MAX_MODEL = 256 << 20
MAX_TEXT = 1024
MAX_DOWNSAMPLE = float(MAX_SIDE)

Value = TypeVar("Value")
Json = dict[str, object]


@dataclass(frozen=True)
class ModelReference:
    """The model that decodes the latents: its id, the SHA-256 of its file, C channels of latents, pixels per latent in
    each direction, its family, and the size of model/weights in bytes, None where the model is not embedded."""

    id: str
    sha256: str
    channels: int
    stride: int = HyperConfig.stride
    family: str = HyperConfig.family
    embedded: int | None = None


@dataclass(frozen=True)
class LevelAttributes:
    """One coded level: its size in pixels, its downsample against the source's level 0, the dtype of its latents, and
    the quality of its chunks, from which single ones may differ.

    `bytes` is the size of its shards, None until the level is finished. `psnr` is in dB over the pixels of all chunks
    but background, infinite where nothing was lost, None where it was not measured.
    """

    width: int
    height: int
    downsample: float
    dtype: DType
    quality: int
    bytes: int | None = None
    psnr: float | None = None

    @property
    def bpp(self) -> float | None:
        """Bits of latents per pixel of the whole level, background included."""
        return None if self.bytes is None else 8 * self.bytes / (self.width * self.height)


@dataclass(frozen=True)
class LevelGrid:
    """The size of a level in latents, chunks and shards."""

    latent_rows: int
    latent_columns: int
    chunk_rows: int
    chunk_columns: int
    shard_rows: int
    shard_columns: int

    @property
    def latents(self) -> Region:
        """The whole level, as a region in latents."""
        return Region(0, 0, self.latent_columns, self.latent_rows)

    @property
    def shards(self) -> int:
        """The number of shards, absent ones included."""
        return self.shard_rows * self.shard_columns


@dataclass(frozen=True)
class BackgroundAttributes:
    """The background: its colour, and whether its chunks are left out and decode to that colour (`skip`) or are coded
    like all others (`code`)."""

    mode: BackgroundMode
    colour: Colour


@dataclass(frozen=True)
class SourceAttributes:
    """Where the pixels came from: a name, the size of the file in bytes (None where it was no file), and the vendor as
    OpenSlide names it, or the kind of file."""

    name: str
    bytes: int | None
    vendor: str


@dataclass(frozen=True)
class Attributes:
    """All of them. Values are checked at the border: by `from_json` when they are read, by `checked` before they are
    written."""

    generator: str
    model: ModelReference
    levels: tuple[LevelAttributes, ...]
    background: BackgroundAttributes
    source: SourceAttributes
    mpp: Mpp | None = None
    objective_power: float | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    icc: int | None = None  # bytes of metadata/icc
    overview: tuple[int, int] | None = None  # width, height of overview/0
    associated: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # name to (width, height)
    dropped: tuple[str, ...] = ()  # names of images and properties that were left out, such as the label
    chunk: int = HyperConfig.chunk  # latents a side
    shard: int = 8  # chunks a side

    @property
    def chunk_side(self) -> int:
        """The side of a chunk in pixels."""
        return self.chunk * self.model.stride

    def grid(self, level: int) -> LevelGrid:
        """The size of a level in latents, chunks and shards."""
        size, stride = self.levels[level], self.model.stride
        latents = ceil_div(size.height, stride), ceil_div(size.width, stride)
        chunks = ceil_div(latents[0], self.chunk), ceil_div(latents[1], self.chunk)
        return LevelGrid(*latents, *chunks, ceil_div(chunks[0], self.shard), ceil_div(chunks[1], self.shard))

    def chunk_region(self, key: ChunkKey) -> Region:
        """The pixels of a chunk, cut at the level's edge. Raises UsageError for a chunk outside the level."""
        return self._chunk_grid(key.level).region(key.row, key.column)

    def chunks_in(self, level: int, region: Region) -> Iterator[ChunkKey]:
        """The chunks that share a pixel with a region of the level, row by row."""
        return (ChunkKey(level, row, column) for row, column in self._chunk_grid(level).squares_in(region))

    def _chunk_grid(self, level: int) -> Grid:
        return Grid(self.levels[level].height, self.levels[level].width, self.chunk_side)

    def mpp_at(self, level: int) -> Mpp | None:
        """Microns per pixel of a level, x and y; None where the source did not state them."""
        return mpp_at(self.mpp, self.levels[level].downsample)

    def to_json(self) -> Json:
        """The attribute's value, ready for JSON; the inverse of `from_json`."""
        return {
            "version": VERSION,
            "generator": self.generator,
            "model": {
                "id": self.model.id,
                "sha256": self.model.sha256,
                "family": self.model.family,
                "stride": self.model.stride,
                "channels": self.model.channels,
                "embedded": self.model.embedded,
            },
            "chunk": self.chunk,
            "shard": self.shard,
            "levels": [
                {
                    "width": level.width,
                    "height": level.height,
                    "downsample": level.downsample,
                    "dtype": level.dtype,
                    "quality": level.quality,
                    "bytes": level.bytes,
                    "psnr": "Infinity" if level.psnr == math.inf else level.psnr,  # as Zarr writes it in JSON
                }
                for level in self.levels
            ],
            "mpp": None if self.mpp is None else list(self.mpp),
            "objective_power": self.objective_power,
            "background": {"mode": self.background.mode, "colour": list(self.background.colour)},
            "source": {"name": self.source.name, "bytes": self.source.bytes, "vendor": self.source.vendor},
            "properties": dict(self.properties),
            "icc": self.icc,
            "overview": None if self.overview is None else list(self.overview),
            "associated": [{"name": name, "width": w, "height": h} for name, (w, h) in self.associated.items()],
            "dropped": list(self.dropped),
        }

    @classmethod
    def from_json(cls, node: Node) -> "Attributes":
        """The attributes in a JSON value. Raises UnsupportedError for a later version or an unknown family of models,
        and FormatError, naming the field, for everything else that is not allowed."""
        version = node.member("version").integer(1, MAX_SIDE)
        if version > VERSION:
            raise UnsupportedError(
                f"{node.where}: version {version}, written by a later version of histocodec; this one reads "
                f"version {VERSION}"
            )
        f = node.fields(
            "version", "generator", "model", "chunk", "shard", "levels", "mpp", "objective_power",
            "background", "source", "properties", "icc", "overview", "associated", "dropped",
        )  # fmt: skip
        chunk = f["chunk"].integer(4, 64)
        if chunk % 4:
            raise FormatError(f"{f['chunk'].where}: found {chunk}; allowed is a multiple of 4 from 4 to 64")
        model = _model(f["model"])
        if chunk * model.stride > MAX_CHUNK_SIDE:
            raise FormatError(
                f"{f['chunk'].where}: {chunk} latents of {model.stride} pixels; at most {MAX_CHUNK_SIDE} pixels a side "
                "are allowed"
            )
        attributes = cls(
            generator=f["generator"].text(MAX_TEXT),
            model=model,
            levels=tuple(_level(item) for item in f["levels"].items(1, MAX_LEVELS)),
            background=_background(f["background"]),
            source=_source(f["source"]),
            mpp=_optional(f["mpp"], _mpp),
            objective_power=_optional(f["objective_power"], lambda n: n.number(*POWER_RANGE)),
            properties=f["properties"].strings(),
            icc=_optional(f["icc"], lambda n: n.integer(1, MAX_ICC)),
            overview=_optional(f["overview"], _overview),
            associated=_associated(f["associated"]),
            dropped=tuple(item.text(MAX_TEXT) for item in f["dropped"].items(0, MAX_ASSOCIATED)),
            chunk=chunk,
            shard=f["shard"].integer(1, 32),
        )
        _check_order(attributes.levels, f["levels"].where)
        chunks = shards = 0
        for index in range(len(attributes.levels)):
            grid = attributes.grid(index)
            chunks, shards = chunks + grid.chunk_rows * grid.chunk_columns, shards + grid.shards
            if chunks > MAX_CHUNKS or shards > MAX_SHARDS:
                raise FormatError(
                    f"{f['levels'].where}[{index}]: has {grid.chunk_rows} x {grid.chunk_columns} chunks; "
                    f"at most {MAX_CHUNKS} and {MAX_SHARDS} shards are allowed in all levels together"
                )
        return attributes

    def checked(self, where: str) -> Json:
        """`to_json`, after making sure that `from_json` accepts it, so that nothing is written that cannot be read.
        Raises FormatError, which begins with `where`."""
        written = self.to_json()
        Attributes.from_json(parse_json(json.dumps(written).encode("ascii"), where))
        return written


def _optional(node: Node, read: Callable[[Node], Value]) -> Value | None:
    return None if node.is_null else read(node)


def _model(node: Node) -> ModelReference:
    f = node.fields("id", "sha256", "family", "stride", "channels", "embedded")
    family = f["family"].text(MAX_TEXT)
    if family not in STRIDES:
        raise UnsupportedError(f"{f['family'].where}: {family!r}; this version reads {', '.join(STRIDES)}")
    stride = f["stride"].integer(1, MAX_CHUNK_SIDE)
    if stride not in STRIDES[family]:
        allowed = ", ".join(map(str, STRIDES[family]))
        raise FormatError(f"{f['stride'].where}: found {stride}; {allowed} is allowed for the family {family}")
    channels = f["channels"].integer(4, MOST_LATENTS)
    if channels % 4:
        raise FormatError(
            f"{f['channels'].where}: found {channels}; allowed is a multiple of 4 from 4 to {MOST_LATENTS}"
        )
    return ModelReference(
        id=f["id"].text(64, MODEL_ID),
        sha256=f["sha256"].text(64, SHA256),
        family=family,
        stride=stride,
        channels=channels,
        embedded=_optional(f["embedded"], lambda n: n.integer(1, MAX_MODEL)),
    )


def _level(node: Node) -> LevelAttributes:
    f = node.fields("width", "height", "downsample", "dtype", "quality", "bytes", "psnr")
    return LevelAttributes(
        width=f["width"].integer(1, MAX_SIDE),
        height=f["height"].integer(1, MAX_SIDE),
        downsample=f["downsample"].number(1.0, MAX_DOWNSAMPLE),
        dtype=f["dtype"].choice(DTYPES),
        quality=f["quality"].integer(0, QUALITIES - 1),
        bytes=_optional(f["bytes"], lambda n: n.integer(0, 2**53)),
        psnr=_optional(f["psnr"], _psnr),
    )


def _check_order(levels: Sequence[LevelAttributes], where: str) -> None:
    """Levels go from the largest to the smallest, and positions count in pixels of level 0."""
    if levels[0].downsample != 1:
        raise FormatError(f"{where}[0].downsample: found {levels[0].downsample:g}; allowed is 1, since it is level 0")
    for number, (level, following) in enumerate(pairwise(levels), 1):
        if following.width > level.width or following.height > level.height:
            raise FormatError(
                f"{where}[{number}]: has {following.width} x {following.height} pixels, more than the "
                f"{level.width} x {level.height} of the level before it; allowed are levels from the largest to the "
                "smallest"
            )


def _psnr(node: Node) -> float:
    return math.inf if node.value == "Infinity" else node.number(0, 200)


def _background(node: Node) -> BackgroundAttributes:
    f = node.fields("mode", "colour")
    red, green, blue = (item.integer(0, 255) for item in f["colour"].items(3, 3))
    return BackgroundAttributes(f["mode"].choice(MODES), (red, green, blue))


def _source(node: Node) -> SourceAttributes:
    f = node.fields("name", "bytes", "vendor")
    size = _optional(f["bytes"], lambda n: n.integer(0, 2**53))
    return SourceAttributes(f["name"].text(MAX_TEXT), size, f["vendor"].text(MAX_TEXT))


def _mpp(node: Node) -> Mpp:
    x, y = (item.number(*MPP_RANGE) for item in node.items(2, 2))
    return x, y


def _overview(node: Node) -> tuple[int, int]:
    width, height = (item.integer(1, MAX_SIDE_OVERVIEW) for item in node.items(2, 2))
    return width, height


def _associated(node: Node) -> dict[str, tuple[int, int]]:
    images: dict[str, tuple[int, int]] = {}
    for item in node.items(0, MAX_ASSOCIATED):
        f = item.fields("name", "width", "height")
        name = f["name"].text(64, IMAGE_NAME)
        if name.casefold() in {other.casefold() for other in images}:  # folders, and disks may ignore case
            raise FormatError(f"{item.where}: the name {name!r} occurs twice")
        images[name] = (
            f["width"].integer(1, MAX_SIDE_ASSOCIATED),
            f["height"].integer(1, MAX_SIDE_ASSOCIATED),
        )
    return images
