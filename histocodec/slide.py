"""The one idea that holds the package together: a slide is anything that can `read(region, level)`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import UsageError
from histocodec.geometry import Level, Region

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB, C-contiguous
Colour = tuple[int, int, int]
Mpp = tuple[float, float]  # x, y of level 0, microns per pixel

WHITE: Colour = (255, 255, 255)
# What a microscope can have, with room to spare, and what a container can hold.
MPP_RANGE = (1e-6, 1e6)  # microns per pixel
POWER_RANGE = (1e-3, 1e6)  # of an objective

Image = TypeVar("Image")  # pixels, or what other programs call an image


@runtime_checkable
class Slide(Protocol):
    """A pyramid of RGB images of one specimen. Level 0 is the largest. All methods are thread-safe."""

    @property
    def name(self) -> str:
        """The slide's name in error messages: a path, or a short description."""
        ...

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels from the largest to the smallest; at least one."""
        ...

    @property
    def mpp(self) -> Mpp | None:
        """Microns per pixel of level 0, x and y; None where the source does not say. It is never a guess."""
        ...

    @property
    def objective_power(self) -> float | None:
        """The magnification of the objective, such as 40; None where the source does not say."""
        ...

    @property
    def properties(self) -> Mapping[str, str]:
        """The vendor's metadata, word for word."""
        ...

    @property
    def icc_profile(self) -> bytes | None:
        """The ICC profile of the pixels; None where there is none. `read` does not apply it."""
        ...

    @property
    def background(self) -> Colour | None:
        """The colour of the background (bare glass), where the source states it, else None."""
        ...

    @property
    def associated(self) -> Mapping[str, Pixels]:
        """The associated images by name (label, macro, thumbnail), where there are any. Each is decoded when it is
        looked up."""
        ...

    def read(self, region: Region, level: int) -> Pixels:
        """The pixels of `region`, which is in pixels of `level`, as a new array (H, W, 3) uint8.

        What lies beyond the level's edge has the declared background colour, or is white. Raises UsageError for a level
        that does not exist, and SourceError where a part cannot be read.
        """
        ...

    def close(self) -> None:
        """Release files and memory. Nothing can be read afterwards."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> bool | None: ...


class BaseSlide(ABC):
    """The base of every source: it holds the facts, checked once, and fills what lies beyond a level's edge. A subclass
    adds `_read_inside`."""

    read_whole = False  # whether opening the slide has read its one file to the end, as it does with ordinary images

    def __init__(
        self,
        *,
        name: str,
        levels: tuple[Level, ...],
        mpp: Mpp | None = None,
        objective_power: float | None = None,
        properties: Mapping[str, str] | None = None,
        icc_profile: bytes | None = None,
        background: Colour | None = None,
        associated: Mapping[str, Pixels] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.levels = levels
        self.mpp = known_mpp(mpp)
        self.objective_power = known_power(objective_power)
        self.properties: Mapping[str, str] = MappingProxyType(dict(properties or {}))
        self.icc_profile = icc_profile
        self.background = None if background is None else checked_colour(background)
        self.associated: Mapping[str, Pixels] = {} if associated is None else associated
        self.notes = (*notes, *disbelieved(mpp, objective_power))  # see `notes_of`

    @property
    def fill(self) -> Colour:
        """The colour of pixels that the source does not have: the declared background, or white."""
        return self.background or WHITE

    def read(self, region: Region, level: int) -> Pixels:
        """See `Slide.read`."""
        if not 0 <= level < len(self.levels):
            raise UsageError(f"{self.name}: level {level} does not exist; it has 0 to {len(self.levels) - 1}")
        inside = region.intersect(self.levels[level].region)
        if inside == region and not region.empty:
            return np.ascontiguousarray(self._read_inside(region, level))
        pixels = np.empty((region.height, region.width, 3), np.uint8)
        pixels[...] = self.fill
        if not inside.empty:
            pixels[inside.within(region)] = self._read_inside(inside, level)
        return pixels

    @abstractmethod
    def _read_inside(self, region: Region, level: int) -> Pixels:
        """The pixels of a region that is not empty and lies wholly inside an existing level."""

    def close(self) -> None:  # noqa: B027 - most sources hold nothing that must be closed
        """See `Slide.close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{level.width}x{level.height}" for level in self.levels)
        return f"<{type(self).__name__} {self.name!r}: {sizes}>"


class LazyImages(Mapping[str, Image]):
    """A mapping of images that are listed without being decoded, and decoded anew at each look-up."""

    def __init__(self, loaders: Mapping[str, Callable[[], Image]]) -> None:
        self._loaders = dict(loaders)

    def __getitem__(self, name: str) -> Image:
        return self._loaders[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._loaders  # Mapping's own would decode the image to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)


def notes_of(slide: Slide) -> tuple[str, ...]:
    """What a source did not take or did not believe of its file, a sentence each, such as focal planes that were left
    out. A reader of other pixels than expected should be told. Empty for slides that keep no notes."""
    return tuple(getattr(slide, "notes", ()))


def known_mpp(mpp: Mpp | None) -> Mpp | None:
    """Microns per pixel as a file states them; None where no microscope has such pixels: zero, negative, infinite."""
    low, high = MPP_RANGE
    return mpp if mpp is not None and all(low <= size <= high for size in mpp) else None


def known_power(power: float | None) -> float | None:
    """An objective's power as a file states it; None where no objective has it: zero, negative, infinite."""
    low, high = POWER_RANGE
    return power if power is not None and low <= power <= high else None


def disbelieved(mpp: Mpp | None, power: float | None = None) -> list[str]:
    """A note on each value that a file states and that counts as not known."""
    notes = []
    if mpp is not None and known_mpp(mpp) is None:
        notes.append(
            f"states {mpp[0]:g} x {mpp[1]:g} microns per pixel; {MPP_RANGE[0]:g} to {MPP_RANGE[1]:g} are believed, so "
            "the resolution counts as not known. --mpp gives it"
        )
    if power is not None and known_power(power) is None:
        notes.append(
            f"states an objective power of {power:g}; {POWER_RANGE[0]:g} to {POWER_RANGE[1]:g} are believed, so it "
            "counts as not known"
        )
    return notes


def checked_colour(colour: Colour) -> Colour:
    """The colour as three plain ints. Raises UsageError unless they are three values from 0 to 255."""
    values = tuple(int(value) for value in colour)
    if len(values) != 3 or not all(0 <= value <= 255 for value in values):
        raise UsageError(f"a colour is three values from 0 to 255, found {colour}")
    return values[0], values[1], values[2]


def mpp_at(mpp: Mpp | None, downsample: float) -> Mpp | None:
    """Microns per pixel, x and y, of a level with this downsample, from those of level 0; None where they are not
    known."""
    return None if mpp is None else (mpp[0] * downsample, mpp[1] * downsample)


def pyramid_levels(sizes: list[tuple[int, int]]) -> tuple[Level, ...]:
    """The levels of these (width, height), with the downsample that OpenSlide gives: the mean of both axes' ratios."""
    width, height = sizes[0]
    return tuple(Level(w, h, (width / w + height / h) / 2) for w, h in sizes)


def composited(rgba: NDArray[np.uint8], colour: Colour, *, premultiplied: bool = False) -> Pixels:
    """RGBA (H, W, 4) uint8 laid over a colour → RGB (H, W, 3) uint8, rounded half up."""
    alpha = rgba[..., 3:]
    if alpha.size and alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    weight = alpha.astype(np.uint32)
    front = rgba[..., :3].astype(np.uint32) * (255 if premultiplied else weight)
    mixed = front + np.array(colour, np.uint32) * (255 - weight)
    return np.asarray(np.minimum((mixed + 127) // 255, 255), np.uint8)
