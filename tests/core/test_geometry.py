"""Regions, levels and grids."""

import pytest

from histocodec.errors import UsageError
from histocodec.geometry import ChunkKey, Grid, Level, Region, ShardKey, ceil_div


def test_division_rounds_up() -> None:
    assert [ceil_div(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_the_intersection_is_the_common_part() -> None:
    assert Region(0, 0, 10, 8).intersect(Region(5, -3, 20, 5)) == Region(5, 0, 5, 2)


def test_regions_apart_share_nothing() -> None:
    assert Region(0, 0, 4, 4).intersect(Region(9, 9, 4, 4)).empty


def test_a_region_contains_what_lies_inside_it() -> None:
    outer = Region(0, 0, 10, 10)
    assert outer.contains(Region(2, 3, 8, 7))
    assert not outer.contains(Region(2, 3, 9, 7))
    assert outer.contains(Region(50, 50, 0, 0))


def test_shifting_keeps_the_size() -> None:
    assert Region(1, 2, 3, 4).shifted(-5, 6) == Region(-4, 8, 3, 4)


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(UsageError, match="negative"):
        Region(0, 0, -1, 5)


@pytest.mark.parametrize("wrong", [(0, 5, 1.0), (5, 0, 1.0), (5, 5, 0.0), (5, 5, float("nan"))])
def test_a_level_without_pixels_or_scale_is_refused(wrong: tuple[int, int, float]) -> None:
    with pytest.raises(UsageError):
        Level(*wrong)


def test_the_last_squares_are_cut_at_the_edge() -> None:
    grid = Grid(height=10, width=17, side=8)
    assert (grid.rows, grid.columns) == (2, 3)
    assert grid.region(1, 2) == Region(16, 8, 1, 2)


def test_squares_cover_the_plane_once() -> None:
    grid = Grid(height=21, width=13, side=4)
    seen = [
        (y, x)
        for row, column in grid.squares_in(Region(0, 0, 13, 21))
        for region in [grid.region(row, column)]
        for y in range(region.y, region.y_end)
        for x in range(region.x, region.x_end)
    ]
    assert sorted(seen) == [(y, x) for y in range(21) for x in range(13)]


def test_only_squares_that_share_a_pixel_are_listed() -> None:
    grid = Grid(height=16, width=16, side=4)
    assert list(grid.squares_in(Region(3, 4, 2, 4))) == [(1, 0), (1, 1)]
    assert list(grid.squares_in(Region(-9, -9, 9, 9))) == []
    assert list(grid.squares_in(Region(12, 12, 99, 99))) == [(3, 3)]


def test_squares_outside_the_grid_are_refused() -> None:
    with pytest.raises(UsageError, match="outside"):
        Grid(8, 8, 4).region(2, 0)
    with pytest.raises(UsageError, match="squares"):
        Grid(8, 8, 0)


def test_a_shard_holds_the_chunks_that_name_it() -> None:
    chunks = ShardKey(1, 2, 3).chunks(4)
    assert chunks[:2] == [ChunkKey(1, 8, 12), ChunkKey(1, 8, 13)]
    assert len(chunks) == 16
    assert {chunk.shard(4) for chunk in chunks} == {ShardKey(1, 2, 3)}
