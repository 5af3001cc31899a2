"""What a container says about itself: the attribute "histocodec" of its root group.

`attributes_json.py` turns it into JSON and back, `version1/attributes.py` reads what version 1 wrote. `SPEC.md` states
the rules in words, and `schema.json` for other programs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError
from histocodec.geometry import ChunkKey, Grid, Region, ceil_div
from histocodec.models.config import PATCHES, HyperConfig
from histocodec.normalise import ChannelStats
from histocodec.slide import Colour, Mpp, mpp_at

VERSION = 2  # that is written; `attributes_json.py` reads and writes its JSON
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
MAX_MAPPED_CHUNKS = 2**22  # likewise in version 2, whose maps take 24 bytes for each
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

Json = dict[str, object]


# Properties that OpenSlide derives from the levels, images and resolution of a slide. A container has its own, so a
# writer leaves the source's out, and a reader gives those of the container.
DERIVED_PROPERTIES = ("openslide.level", "openslide.associated.", "openslide.mpp-", "openslide.icc-size")


@dataclass(frozen=True)
class ModelReference:
    """The model that decodes the latents: its id, the SHA-256 of its file (version 1) or of its decoder's file (version
    2), C channels of latents, pixels per latent in each direction, its family, and the size of the embedded model file
    in bytes, None where none is embedded."""

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
    but background, infinite where nothing was lost, None where it was not measured. `derived` says that the encoder
    made the level, which the source did not have. `maps` is the SHA-256 of the level's maps where they are an array.
    """

    width: int
    height: int
    downsample: float
    dtype: DType
    quality: int
    bytes: int | None = None
    psnr: float | None = None
    derived: bool = False
    maps: str | None = None
    shard: int | None = None  # chunks a side; None: that of all levels, as in version 1

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
    """Where the pixels came from: a name (empty where it was dropped), the size of the file in bytes (None where it was
    no file), the vendor as OpenSlide names it, or the kind of file, and the SHA-256 of the file, where it was
    computed."""

    name: str
    bytes: int | None
    vendor: str
    sha256: str | None = None


@dataclass(frozen=True, eq=False)
class Stats:
    """What undoes the normalisation, and what stands for the chunks of background."""

    channels: ChannelStats
    background: NDArray[np.uint8]  # (3,), the colour of background
    background_latent: NDArray[np.float32]  # (C,), gains undone: what g_s sees in place of an absent chunk

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stats) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def _values(self) -> tuple[ChannelStats, bytes, bytes]:
        return self.channels, self.background.tobytes(), self.background_latent.tobytes()


@dataclass(frozen=True)
class Provenance:
    """Who made a container of version 2, and what it needs.

    `uid` names the pixels and `created` the moment (RFC 3339, UTC). `settings` are the encoder's. `features` maps the
    names of what was added to the version to "critical" or "ancillary". `extensions` are other programs' data. `digest`
    is the SHA-256 of the attributes that were read or written; others have none.
    """

    uid: str = ""
    created: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)
    extensions: Mapping[str, object] = field(default_factory=dict)
    digest: str = field(default="", compare=False)  # follows from all else


@dataclass(frozen=True)
class Maps:
    """Where the maps of version 2 are: within the attributes (`inline`, packed), or in arrays of their own, with
    `digests`, the SHA-256 of the array of the shards' digests. `more` are names and bytes of the maps after the six."""

    inline: bytes | None = None
    digests: str | None = None
    more: tuple[tuple[str, int], ...] = ()


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
    shard: int = 8  # chunks a side, of levels that have none of their own
    version: int = VERSION
    stats: Stats | None = None  # version 2; in version 1 they are arrays
    provenance: Provenance = Provenance()
    maps: Maps = Maps()
    sha256: Mapping[str, str] = field(default_factory=dict)  # of the images and the profile, by array

    @property
    def chunk_side(self) -> int:
        """The side of a chunk in pixels."""
        return self.chunk * self.model.stride

    def shard_side(self, level: int) -> int:
        """The side of a level's shards in chunks."""
        return self.levels[level].shard or self.shard

    def grid(self, level: int) -> LevelGrid:
        """The size of a level in latents, chunks and shards."""
        size, stride = self.levels[level], self.model.stride
        latents = ceil_div(size.height, stride), ceil_div(size.width, stride)
        chunks = ceil_div(latents[0], self.chunk), ceil_div(latents[1], self.chunk)
        return LevelGrid(
            *latents, *chunks, ceil_div(chunks[0], self.shard_side(level)), ceil_div(chunks[1], self.shard_side(level))
        )

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

    def check_levels(self, where: str, most_chunks: int) -> None:
        """Raises FormatError, which begins with `where`, unless the levels go from the largest to the smallest, count
        in pixels of level 0, and have at most `most_chunks` chunks and MAX_SHARDS shards together."""
        if self.levels[0].downsample != 1:
            found = f"{self.levels[0].downsample:g}"
            raise FormatError(f"{where}[0].downsample: found {found}; allowed is 1, since it is level 0")
        for number, (level, following) in enumerate(pairwise(self.levels), 1):
            if following.width > level.width or following.height > level.height:
                raise FormatError(
                    f"{where}[{number}]: has {following.width} x {following.height} pixels, more than the "
                    f"{level.width} x {level.height} of the level before it; allowed are levels from the largest to "
                    "the smallest"
                )
        chunks = shards = 0
        for index in range(len(self.levels)):
            grid = self.grid(index)
            chunks, shards = chunks + grid.chunk_rows * grid.chunk_columns, shards + grid.shards
            if chunks > most_chunks or shards > MAX_SHARDS:
                raise FormatError(
                    f"{where}[{index}]: has {grid.chunk_rows} x {grid.chunk_columns} chunks; at most {most_chunks} and "
                    f"{MAX_SHARDS} shards are allowed in all levels together"
                )
