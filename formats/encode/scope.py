"""What is to be encoded: some levels of a slide, cut into chunks, and which of these are background.

Everything here follows from the slide and the options alone; `plan.py` settles what has to be tried out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from histocodec.errors import UsageError
from histocodec.formats.container.attributes import (
    Attributes,
    BackgroundAttributes,
    LevelAttributes,
    ModelReference,
    SourceAttributes,
)
from histocodec.formats.decode.fidelity import Floor
from histocodec.formats.encode.options import EncodeOptions
from histocodec.formats.encode.privacy import without_private
from histocodec.geometry import ChunkKey, Level, Region, ceil_div
from histocodec.models.config import CHUNK_PIXELS
from histocodec.models.weights import ModelWeights
from histocodec.slide import Colour, Pixels, Slide, known_mpp, known_power
from histocodec.sources.files import slide_bytes
from histocodec.strict_json import well_formed
from histocodec.tissue import is_background
from histocodec.version import VERSION

SHARD = 8  # chunks a side of a shard, at most; its index has 16 bytes for each, so a small slide has smaller shards


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
    slide: Slide, source_levels: Sequence[int], background: Colour, options: EncodeOptions, weights: ModelWeights
) -> Attributes:
    """The container's attributes before its plan is made; every level has quality 0 and int8."""
    file, config = Path(slide.name), weights.config
    vendor = slide.properties.get("openslide.vendor", file.suffix[1:] or "array")
    properties = dict(slide.properties) if options.keep_private else without_private(slide.properties)[0]
    return Attributes(
        generator=f"histocodec {VERSION}",
        model=ModelReference(weights.id, weights.sha256, config.latent_channels, config.stride, config.family),
        levels=tuple(
            LevelAttributes(level.width, level.height, level.downsample, "int8", 0)
            for level in (slide.levels[number] for number in source_levels)
        ),
        background=BackgroundAttributes("code" if options.background == "code" else "skip", background),
        source=SourceAttributes(well_formed(file.name), slide_bytes(file), well_formed(vendor)),
        mpp=known_mpp(slide.mpp),
        objective_power=known_power(slide.objective_power),
        properties={well_formed(key): well_formed(value) for key, value in properties.items()},
        chunk=config.chunk,
        shard=_shard_side(slide.levels[0]),
    )


def _shard_side(level: Level) -> int:
    """The smallest power of two that holds the level in one shard, SHARD at most."""
    chunks = ceil_div(max(level.width, level.height), CHUNK_PIXELS)
    return min(SHARD, 1 << (chunks - 1).bit_length())
