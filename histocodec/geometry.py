"""Rectangles, levels and block grids: the integer arithmetic that everything above shares."""

from collections.abc import Iterator
from dataclasses import dataclass

from histocodec.errors import UsageError


def ceil_div(numerator: int, denominator: int) -> int:
    """The smallest integer that is at least numerator / denominator."""
    return -(-numerator // denominator)


@dataclass(frozen=True)
class Region:
    """A rectangle of whole pixels, in whichever plane the caller says. It may lie outside the image and may
    be empty, but never has a negative size."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 0 or self.height < 0:
            raise UsageError(f"a region's size must not be negative, found {self.width}x{self.height}")

    @property
    def x_end(self) -> int:
        return self.x + self.width

    @property
    def y_end(self) -> int:
        return self.y + self.height

    @property
    def area(self) -> int:
        return self.width * self.height

    @property
    def empty(self) -> bool:
        return self.width == 0 or self.height == 0

    def intersect(self, other: "Region") -> "Region":
        """The common part; empty (size zero, at the nearer corner) where there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        width = max(0, min(self.x_end, other.x_end) - x)
        height = max(0, min(self.y_end, other.y_end) - y)
        return Region(x, y, width, height)

    def contains(self, other: "Region") -> bool:
        """True where every pixel of `other` is in here, so an empty region is contained in all."""
        return other.empty or self.intersect(other) == other

    def shifted(self, dx: int, dy: int) -> "Region":
        return Region(self.x + dx, self.y + dy, self.width, self.height)

    def within(self, outer: "Region") -> tuple[slice, slice]:
        """Where this region's pixels lie in an array that holds `outer`: (rows, columns)."""
        return (
            slice(self.y - outer.y, self.y_end - outer.y),
            slice(self.x - outer.x, self.x_end - outer.x),
        )

    def __str__(self) -> str:
        return f"{self.width}x{self.height}+{self.x}+{self.y}"


@dataclass(frozen=True)
class Level:
    """One resolution of a slide. `downsample` is level-0 pixels per pixel of this level, at least 1."""

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
        """The whole level."""
        return Region(0, 0, self.width, self.height)


@dataclass(frozen=True)
class Grid:
    """A plane of height x width pixels cut into square blocks; those of the last row and column may be
    smaller."""

    height: int
    width: int
    block: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise UsageError(f"a grid needs at least one pixel, found {self.width}x{self.height}")
        if self.block < 1:
            raise UsageError(f"a grid's block must be at least 1 pixel, found {self.block}")

    @property
    def rows(self) -> int:
        return ceil_div(self.height, self.block)

    @property
    def cols(self) -> int:
        return ceil_div(self.width, self.block)

    def region(self, row: int, col: int) -> Region:
        """The block's pixels, cut at the plane's edge."""
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise UsageError(f"block ({row}, {col}) is outside the grid of {self.rows}x{self.cols} blocks")
        x, y = col * self.block, row * self.block
        return Region(x, y, min(self.block, self.width - x), min(self.block, self.height - y))

    def blocks_in(self, region: Region) -> Iterator[tuple[int, int]]:
        """(row, col) of every block that shares a pixel with `region`, row by row."""
        inside = region.intersect(Region(0, 0, self.width, self.height))
        if inside.empty:
            return
        for row in range(inside.y // self.block, ceil_div(inside.y_end, self.block)):
            for col in range(inside.x // self.block, ceil_div(inside.x_end, self.block)):
                yield row, col


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
