"""What is to be encoded: some levels of a slide, cut into chunks, and which of these are background.

Everything here follows from the slide and the options alone; `plan.py` settles what has to be tried out.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from histocodec.errors import SourceError, UsageError
from histocodec.formats.container.attributes import (
    Attributes,
    BackgroundAttributes,
    LevelAttributes,
    ModelReference,
    Provenance,
    SourceAttributes,
)
from histocodec.formats.decode.fidelity import Floor
from histocodec.formats.encode.options import EncodeOptions
from histocodec.formats.encode.privacy import kept_properties, source_kind, stored_name
from histocodec.geometry import ChunkKey, Level, Region, ceil_div
from histocodec.models.weights import ModelWeights
from histocodec.slide import Colour, Pixels, Slide, known_mpp, known_power
from histocodec.sources.files import slide_bytes, slide_files
from histocodec.strict_json import well_formed
from histocodec.tissue import is_background
from histocodec.version import VERSION

SHARD_PIXELS = 6144  # a side of a shard, at most: 144 chunks of 512 pixels, the work that a killed encode may lose


@dataclass(frozen=True)
class Scope:
    """Levels of a slide, numbered as in the container, and the chunks that they are cut into.

    `source_levels` are the numbers of these levels in the slide. `draft` holds the attributes as far as they are known
    before the plan: every level has quality 0 and int8. `floor` is the PSNR that every chunk must have, None without
    one. `exact_background` is the background colour if the statistics must decode it without error, else None.
    """

    slide: Slide
    source_levels: tuple[int, ...]
    draft: Attributes
    floor: Floor | None = None
    exact_background: Colour | None = None

    @property
    def background(self) -> Colour:
        """The colour of the chunks that are skipped."""
        return self.draft.background.colour

    def level(self, level: int) -> Level:
        """The size and downsample of a level."""
        return self.slide.levels[self.source_levels[level]]

    def region(self, key: ChunkKey) -> Region:
        """The pixels of a chunk in its level, cut at the level's edge."""
        return self.draft.chunk_region(key)

    def bounds(self, keys: Sequence[ChunkKey]) -> Region:
        """The pixels of a rectangle of chunks; `keys` starts with its upper left chunk and ends with its lower right
        one."""
        first, last = self.region(keys[0]), self.region(keys[-1])
        return Region(first.x, first.y, last.x_end - first.x, last.y_end - first.y)

    def read(self, region: Region, level: int) -> Pixels:
        """Pixels of a level, (H, W, 3) uint8. Raises SourceError."""
        return self.slide.read(region, self.source_levels[level])

    def skips(self, pixels: Pixels) -> bool:
        """Whether a chunk of these pixels is left out as background."""
        if self.draft.background.mode != "skip" or not is_background(pixels, self.background):
            return False
        return self.floor is None or self.floor.skips(pixels, self.background)


def selected_levels(slide: Slide, options: EncodeOptions) -> tuple[int, ...]:
    """The levels of the slide to encode, in rising order. Raises UsageError where one does not exist, or 0 is not
    among them."""
    existing = range(len(slide.levels))
    selected = tuple(existing) if options.levels is None else tuple(sorted(set(options.levels)))
    unknown = [level for level in selected if level not in existing]
    if unknown or not selected:
        found = f"level {unknown[0]} does not exist" if unknown else "--levels names none"
        raise UsageError(f"{slide.name}: {found}; the slide has levels 0 to {existing[-1]}")
    if slide.levels[0].downsample != 1:
        found = f"{slide.levels[0].downsample:g}"
        raise UsageError(f"{slide.name}: level 0 has the downsample {found}; 1 is needed, since positions refer to it")
    if 0 not in selected:
        raise UsageError(f"{slide.name}: --levels must include 0, which the positions on all other levels refer to")
    return selected


def draft_attributes(
    slide: Slide,
    source_levels: Sequence[int],
    background: Colour,
    options: EncodeOptions,
    weights: ModelWeights,
    stored_levels: int,
) -> Attributes:
    """The container's attributes before its plan is made; every level has quality 0 and int8. Of the slide's levels,
    the first `stored_levels` are the source's own."""
    file, config = Path(slide.name), weights.config
    vendor = slide.properties.get("openslide.vendor", source_kind(file))
    name = stored_name(well_formed(file.name), slide.properties, options)
    properties = kept_properties(slide.properties, options)
    return Attributes(
        generator=f"histocodec {VERSION}",
        model=ModelReference(weights.id, weights.decoder_sha256, config.latent_channels, config.stride, config.family),
        levels=tuple(
            LevelAttributes(
                level.width,
                level.height,
                level.downsample,
                "int8",
                0,
                derived=number >= stored_levels,
                shard=_shard_side(level, options.chunk),
            )
            for number, level in ((number, slide.levels[number]) for number in source_levels)
        ),
        background=BackgroundAttributes("code" if options.background == "code" else "skip", background),
        source=SourceAttributes(name, slide_bytes(file), well_formed(vendor)),
        mpp=known_mpp(slide.mpp),
        objective_power=known_power(slide.objective_power),
        properties={well_formed(key): well_formed(value) for key, value in properties.items()},
        chunk=options.chunk_latents(weights),
        provenance=Provenance(settings=options.settings()),
    )


def source_sha256(slide: Slide, options: EncodeOptions) -> str | None:
    """The SHA-256 of the source's file, if it was asked for; of several files, that of the text that `sha256sum` prints
    for them. None where the slide is no file. Raises SourceError where a file cannot be read."""
    files = slide_files(Path(slide.name)) if options.source_sha256 else []
    try:
        digests = {file: _file_sha256(file) for file in files}
    except OSError as exc:
        raise SourceError(f"{exc.filename}: cannot be read: {exc.strerror or exc}") from exc
    if len(digests) < 2:
        return next(iter(digests.values()), None)
    folder = Path(slide.name) if Path(slide.name).is_dir() else Path(slide.name).parent
    names = {os.path.relpath(file, folder).replace(os.sep, "/"): digest for file, digest in digests.items()}
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(names.items()))
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shard_side(level: Level, chunk: int) -> int:
    """The side of a level's shards in chunks: all of them where it has few, else what leaves few places empty."""
    chunks = ceil_div(max(level.width, level.height), chunk)
    return ceil_div(chunks, ceil_div(chunks, SHARD_PIXELS // chunk))
