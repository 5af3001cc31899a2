"""Rectangles, levels, margins, grids and the keys of chunks and shards: integer geometry that everything shares."""

from collections.abc import Iterator
from dataclasses import dataclass

from histocodec.errors import UsageError


def ceil_div(numerator: int, denominator: int) -> int:
    """The smallest integer that is at least numerator / denominator."""
    return -(-numerator // denominator)


@dataclass(frozen=True)
class Region:
    """A rectangle of pixels with integer corners, in the plane that the caller names: a level, its latents, an array.

    It may lie outside the image and may be empty. Raises UsageError for a negative size.
    """

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 0 or self.height < 0:
            raise UsageError(f"a region's size must not be negative, found {self.width}x{self.height}")

    @property
    def x_end(self) -> int:
        """The first column to the right of the region."""
        return self.x + self.width

    @property
    def y_end(self) -> int:
        """The first row below the region."""
        return self.y + self.height

    @property
    def area(self) -> int:
        """The number of pixels."""
        return self.width * self.height

    @property
    def empty(self) -> bool:
        """Whether the region has no pixels."""
        return self.width == 0 or self.height == 0

    def intersect(self, other: "Region") -> "Region":
        """The common part; where there is none, an empty region (size zero, at the nearer corner)."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        width = max(0, min(self.x_end, other.x_end) - x)
        height = max(0, min(self.y_end, other.y_end) - y)
        return Region(x, y, width, height)

    def contains(self, other: "Region") -> bool:
        """Whether every pixel of `other` lies in this region. An empty region lies in every other."""
        return other.empty or self.intersect(other) == other

    def shifted(self, dx: int, dy: int) -> "Region":
        """The region of the same size, `dx` to the right and `dy` down."""
        return Region(self.x + dx, self.y + dy, self.width, self.height)

    def expanded(self, by: int) -> "Region":
        """The region with `by` more pixels on each of four sides."""
        return Region(self.x - by, self.y - by, self.width + 2 * by, self.height + 2 * by)

    def within(self, outer: "Region") -> tuple[slice, slice]:
        """The (rows, columns) of this region in an array that holds the pixels of `outer`."""
        return (
            slice(self.y - outer.y, self.y_end - outer.y),
            slice(self.x - outer.x, self.x_end - outer.x),
        )

    def __str__(self) -> str:
        return f"{self.width}x{self.height}+{self.x}+{self.y}"


@dataclass(frozen=True)
class Level:
    """One resolution of a slide: its size in pixels, and `downsample`, the width of its pixels in level-0 pixels.

    Raises UsageError where a size is below 1 or the downsample is not above 0.
    """

    width: int
    height: int
    downsample: float

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise UsageError(f"a level needs at least one pixel, found {self.width}x{self.height}")
        if not self.downsample > 0:
            raise UsageError(f"a level's downsample must be above 0, found {self.downsample}")

    @property
    def region(self) -> Region:
        """The whole level, as a region of itself."""
        return Region(0, 0, self.width, self.height)


@dataclass(frozen=True)
class Margin:
    """By how much a window reaches beyond the part that is needed, on each of four sides. The unit is an element of
    the plane at hand: latents, or the finer and coarser elements within a network.

    On a side where the level ends, a window has no margin or a narrower one. Nothing is ever cut there, so that a
    network pads with zeros exactly where it would pad the whole level.
    """

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    def within(self, needed: int) -> "Margin":
        """This margin, limited to `needed` on each side."""
        return Margin(*(min(side, needed) for side in (self.top, self.left, self.bottom, self.right)))

    def beyond(self, needed: int) -> tuple[int, int, int, int]:
        """What this margin has more than `needed`: top, left, bottom, right."""
        limited = self.within(needed)
        return (
            self.top - limited.top,
            self.left - limited.left,
            self.bottom - limited.bottom,
            self.right - limited.right,
        )

    def scaled(self, factor: float) -> "Margin":
        """This margin in elements that are `factor` times as many to a side, rounded towards zero."""
        return Margin(*(int(side * factor) for side in (self.top, self.left, self.bottom, self.right)))


@dataclass(frozen=True)
class Grid:
    """A plane of `height` × `width` pixels (or latents) cut into squares of `side`; those of the last row and column
    may be smaller. Raises UsageError where a size is below 1."""

    height: int
    width: int
    side: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise UsageError(f"a grid needs at least one pixel, found {self.width}x{self.height}")
        if self.side < 1:
            raise UsageError(f"a grid's squares must be at least 1 pixel wide, found {self.side}")

    @property
    def rows(self) -> int:
        """The number of rows of squares."""
        return ceil_div(self.height, self.side)

    @property
    def columns(self) -> int:
        """The number of columns of squares."""
        return ceil_div(self.width, self.side)

    def region(self, row: int, column: int) -> Region:
        """The pixels of one square, cut at the plane's edge. Raises UsageError for a square outside the grid."""
        if not (0 <= row < self.rows and 0 <= column < self.columns):
            raise UsageError(f"square ({row}, {column}) is outside the grid of {self.rows}x{self.columns} squares")
        x, y = column * self.side, row * self.side
        return Region(x, y, min(self.side, self.width - x), min(self.side, self.height - y))

    def squares_in(self, region: Region) -> Iterator[tuple[int, int]]:
        """The (row, column) of every square that shares a pixel with `region`, row by row."""
        inside = region.intersect(Region(0, 0, self.width, self.height))
        if inside.empty:
            return
        for row in range(inside.y // self.side, ceil_div(inside.y_end, self.side)):
            for column in range(inside.x // self.side, ceil_div(inside.x_end, self.side)):
                yield row, column


@dataclass(frozen=True, order=True)
class ChunkKey:
    """The place of a chunk: its level, and its row and column in that level's grid of chunks."""

    level: int
    row: int
    column: int

    def shard(self, side: int) -> "ShardKey":
        """The shard that holds this chunk, where shards have `side` × `side` chunks."""
        return ShardKey(self.level, self.row // side, self.column // side)


@dataclass(frozen=True, order=True)
class ShardKey:
    """The place of a shard: its level, and its row and column in that level's grid of shards."""

    level: int
    row: int
    column: int

    def chunks(self, side: int) -> list[ChunkKey]:
        """The keys of its `side` × `side` chunks, row by row; some may lie beyond the level's edge."""
        top, left = self.row * side, self.column * side
        return [ChunkKey(self.level, top + i, left + j) for i in range(side) for j in range(side)]
