"""What of a source cannot be read: an error, or with `--on-error background` background that is named.

`AdvisingSlide` stands between the encoder and the source where this is an error, and adds to it what to do.
`TolerantSlide` stands between the encoder and the source. A region that cannot be read is read again in pieces of a
fixed grid, so that which pieces are lost depends neither on the regions that were read nor on the number of workers.
`Unreadable` collects them. The journal notes them before the shard that they belong to.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from histocodec.errors import FormatError, SourceError
from histocodec.geometry import Grid, Region
from histocodec.slide import BaseSlide, Colour, Pixels, Slide, notes_of
from histocodec.sources import with_pyramid
from histocodec.tissue import background_of, coarse_view

PIECE = 256  # pixels of the level: the tiles of most scanners; chunks are made of whole pieces
BLACK: Colour = (0, 0, 0)  # never taken for background


@dataclass(frozen=True, order=True)
class Place:
    """A rectangle of pixels of a level that could not be read."""

    level: int
    y: int
    x: int
    height: int
    width: int

    @classmethod
    def of(cls, level: int, region: Region) -> "Place":
        """The place of a region of a level."""
        return cls(level, region.y, region.x, region.height, region.width)

    @property
    def region(self) -> Region:
        """Its pixels in the level."""
        return Region(self.x, self.y, self.width, self.height)

    def __str__(self) -> str:
        return f"{self.level}:{self.x},{self.y},{self.width}x{self.height}"


class Unreadable:
    """The pieces of a source that could not be read, by the numbers of the source's levels. Thread-safe."""

    def __init__(self, noted: Iterable[Place] = ()) -> None:
        self._noted, self._fresh, self._lock = set(noted), set[Place](), threading.Lock()

    def add(self, piece: Place) -> None:
        """Adds a piece, as often as it is met."""
        with self._lock:
            if piece not in self._noted:
                self._fresh.add(piece)

    def __contains__(self, piece: Place) -> bool:
        with self._lock:
            return piece in self._noted or piece in self._fresh

    def take_fresh(self) -> list[Place]:
        """The pieces that were added since the last call, in order."""
        with self._lock:
            fresh, self._fresh = sorted(self._fresh), set()
            self._noted.update(fresh)
        return fresh

    def places(self, source_levels: Sequence[int]) -> tuple[Place, ...]:
        """All pieces in these levels of the source, joined to rectangles where they touch; their levels count the
        entries of `source_levels`."""
        with self._lock:
            pieces = sorted(self._noted | self._fresh)
        rows: list[Place] = []
        for piece in pieces:
            if piece.level not in source_levels:
                continue
            level, last = source_levels.index(piece.level), rows[-1] if rows else None
            if last and (last.level, last.y, last.x + last.width) == (level, piece.y, piece.x):
                rows[-1] = Place(level, last.y, last.x, last.height, last.width + piece.width)
            else:
                rows.append(Place(level, piece.y, piece.x, piece.height, piece.width))
        joined: list[Place] = []
        for row in sorted(rows, key=lambda row: (row.level, row.x, row.width, row.y)):
            above = joined[-1] if joined else None
            if above and (above.level, above.x, above.width, above.y + above.height) == (
                row.level, row.x, row.width, row.y,
            ):  # fmt: skip
                joined[-1] = Place(row.level, above.y, above.x, above.height + row.height, above.width)
            else:
                joined.append(row)
        return tuple(sorted(joined))


class _Standin(BaseSlide):
    """A slide with everything of another, and another background colour."""

    def __init__(self, slide: Slide, colour: Colour | None) -> None:
        super().__init__(
            name=slide.name,
            levels=slide.levels,
            mpp=slide.mpp,
            objective_power=slide.objective_power,
            properties=slide.properties,
            icc_profile=slide.icc_profile,
            background=colour,
            associated=slide.associated,
            notes=notes_of(slide),
        )
        self._slide = slide


class AdvisingSlide(_Standin):
    """A slide whose errors of pixels that cannot be read say that the encoder can go on without them."""

    def __init__(self, slide: Slide) -> None:
        super().__init__(slide, slide.background)

    def _read_inside(self, region: Region, level: int) -> Pixels:
        try:
            return self._slide.read(region, level)
        except (SourceError, FormatError) as exc:
            kind = SourceError if isinstance(exc, SourceError) else FormatError
            raise kind(f"{exc}; --on-error background stores background there, and goes on") from exc


class TolerantSlide(_Standin):
    """A slide whose pieces that cannot be read have the background colour, and are added to `unreadable`."""

    def __init__(self, slide: Slide, unreadable: Unreadable, colour: Colour) -> None:
        super().__init__(slide, colour)
        self._unreadable, self._colour = unreadable, colour

    def _read_inside(self, region: Region, level: int) -> Pixels:
        try:
            return self._slide.read(region, level)
        except (SourceError, FormatError):
            pixels = np.empty((region.height, region.width, 3), np.uint8)
            pixels[...] = self._colour
            grid = Grid(self.levels[level].height, self.levels[level].width, PIECE)
            for row, column in grid.squares_in(region):
                piece = grid.region(row, column)
                part = piece.intersect(region)
                found = self._read_piece(piece, level)
                if found is not None:
                    pixels[part.within(region)] = found[part.within(piece)]
            return pixels

    def _read_piece(self, piece: Region, level: int) -> Pixels | None:
        place = Place.of(level, piece)
        if place in self._unreadable:
            return None
        try:
            return self._slide.read(piece, level)
        except (SourceError, FormatError):
            self._unreadable.add(place)
            return None


def tolerant(slide: Slide, unreadable: Unreadable, *, derive: bool) -> Slide:
    """The slide as a `TolerantSlide`, in its background colour; with derived levels where `derive` is true and it has
    none."""

    def filled(colour: Colour) -> Slide:
        filled_slide = TolerantSlide(slide, unreadable, colour)
        return with_pyramid(filled_slide) if derive else filled_slide

    # Gaps are black while the colour is estimated, so that they are not taken for bare glass.
    return filled(slide.background or background_of(coarse_view(filled(BLACK))))


def advising(slide: Slide, *, derive: bool) -> Slide:
    """The slide as an `AdvisingSlide`; with derived levels where `derive` is true and it has none."""
    return with_pyramid(AdvisingSlide(slide)) if derive else AdvisingSlide(slide)


def check_readable(slide: Slide, places: Iterable[Place]) -> None:
    """Raises SourceError where nothing of level 0 could be read."""
    lost = sum(place.region.area for place in places if place.level == 0)
    if lost >= slide.levels[0].region.area:
        raise SourceError(f"{slide.name}: nothing of level 0 can be read; is the file damaged or cut short?")
