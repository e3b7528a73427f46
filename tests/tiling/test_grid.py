"""The grid against brute force."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiling.refusals import refused
from tests.tiling.strategies import OVERLAPS, boxes, grids
from tiling.box import Box
from tiling.grid import Axis, Grid


@st.composite
def axes(draw):
    extent = draw(st.integers(1, 60))
    tile = draw(st.integers(1, extent))
    start = draw(st.integers(0, extent - 1))
    stop = draw(st.integers(start + 1, extent))
    return Axis(extent, tile, draw(st.integers(1, tile)), draw(st.integers(1, extent)), start, stop)


def every_tile(grid: Grid) -> list[Box]:
    """All tiles of the image, by walking the rule: on by a step, the last nine or fewer evenly, rounded up."""
    starts = []
    for axis in grid.axes:
        spare, unit, along = axis.extent - axis.tile, math.gcd(axis.step, 32), [0]
        while along[-1] < spare:
            along.append(along[-1] + axis.step)
        tail = min(8, len(along) - 1)
        first = along[-1 - tail]
        for i in range(1, tail):
            along[i - 1 - tail] = first + math.ceil(Fraction(i * (spare - first), tail) / unit) * unit
        starts.append([*along[:-1], spare])
    corners = np.stack([g.ravel() for g in np.meshgrid(*starts, indexing="ij")], axis=1).tolist()
    return [Box(tuple(c), tuple(a + t for a, t in zip(c, grid.tile, strict=True))) for c in corners]


@given(axes())
def test_tiles_of_an_axis_cover_it_stay_inside_and_never_repeat(axis):
    starts = [axis.tile_start(i) for i in range(axis.tiles)]
    covered = np.zeros(axis.extent, bool)
    for start in starts:
        assert 0 <= start <= axis.extent - axis.tile
        covered[start : start + axis.tile] = True
    assert covered.all()
    assert len(set(starts)) == len(starts)
    assert starts == sorted(starts)


@given(axes())
def test_neighbouring_tiles_of_an_axis_share_the_overlap_or_a_little_more(axis):
    starts = [axis.tile_start(i) for i in range(axis.tiles)]
    steps = [after - before for before, after in pairwise(starts)]
    assert all(0 < step <= axis.step for step in steps)
    unit = math.gcd(axis.step, 32)
    assert all(start % unit == 0 for start in starts[:-1])
    assert all(step == axis.step for step in steps[:-8])
    # Of even distances, rounded; but the last tile ends with the image.
    tail = steps[-8:]
    assert all(abs(step * len(tail) - sum(tail)) < unit * len(tail) for step in tail)
    assert axis.shared == (axis.tile - min(steps) if steps else 0)


def test_the_last_tile_shares_no_more_than_the_others_where_that_can_be():
    axis = Axis(608, 64, 48, 608, 0, 608)
    starts = [axis.tile_start(i) for i in range(axis.tiles)]
    assert starts == [0, 48, 96, 144, 192, 240, 288, 336, 368, 416, 464, 512, 544]
    assert axis.shared == 32


@given(axes(), st.data())
def test_tiles_touching_a_range_are_those_that_share_an_index_with_it(axis, data):
    start = data.draw(st.integers(0, axis.extent - 1))
    stop = data.draw(st.integers(start + 1, axis.extent))
    starts = [axis.tile_start(i) for i in range(axis.tiles)]
    assert list(axis.tiles_touching(start, stop)) == [
        i for i, s in enumerate(starts) if s < stop and s + axis.tile > start
    ]


@given(grids())
def test_blocks_part_the_area(grid):
    count = np.zeros(grid.shape, int)
    for block in grid.blocks():
        count[block.slices] += 1
    expected = np.zeros(grid.shape, int)
    expected[grid.area.slices] = 1
    assert np.array_equal(count, expected)


@given(grids())
def test_blocks_are_numbered_in_c_order(grid):
    blocks = [grid.block_box(i) for i in range(grid.n_blocks)]
    assert blocks == list(grid.blocks()) == list(grid.area.split(grid.block))
    for number in (-1, grid.n_blocks):
        with pytest.raises(IndexError):
            grid.block_box(number)


@given(grids())
def test_tiles_of_a_block_are_those_of_the_image_that_meet_it(grid):
    everything = every_tile(grid)
    for block in grid.blocks():
        assert list(grid.tiles(block)) == [t for t in everything if (t & block).size]


@given(grids())
def test_reach_is_the_box_around_the_tiles_of_a_block(grid):
    for block in grid.blocks():
        tiles = list(grid.tiles(block))
        around = tiles[0]
        for tile in tiles:
            around |= tile
        assert grid.reach(block) == around
        assert block in around
        assert around in Box.whole(grid.shape)


@given(grids())
def test_the_number_of_tiles_counts_each_once_for_every_strip_it_touches(grid):
    strips = grid.strips(range(grid.n_blocks), grid.n_blocks)
    assert len(strips) * grid.axes[0].blocks == grid.n_blocks
    boxes = [[grid.block_box(number) for number in strip] for strip in strips]
    assert grid.n_tiles == sum(len({tile for block in strip for tile in grid.tiles(block)}) for strip in boxes)


@given(grids(), st.data())
def test_strips_part_blocks_into_those_one_below_another(grid, data):
    numbers = data.draw(st.lists(st.integers(0, grid.n_blocks - 1), unique=True))
    longest = data.draw(st.integers(1, 4))
    strips = grid.strips(numbers, longest)
    assert sorted(number for strip in strips for number in strip) == sorted(numbers)
    for strip in strips:
        assert 1 <= len(strip) <= longest
        for above, below in pairwise(map(grid.block_box, strip)):
            assert above.stop[0] == below.start[0]
            assert above.start[1:] == below.start[1:]
    # None could go on with another but for its length.
    ends = {grid.block_box(strip[-1]) for strip in strips if len(strip) < longest}
    begins = [grid.block_box(strip[0]) for strip in strips]
    assert not any(a.stop[0] == b.start[0] and a.start[1:] == b.start[1:] for a in ends for b in begins)


@given(grids(), st.data())
def test_tiles_depend_on_the_image_and_not_on_area_or_block(grid, data):
    area = data.draw(boxes(grid.shape))
    other = Grid(
        tuple(
            Axis(a.extent, a.tile, a.step, data.draw(st.integers(1, a.extent)), start, stop)
            for a, start, stop in zip(grid.axes, area.start, area.stop, strict=True)
        )
    )
    known = set(every_tile(grid))
    assert all(t in known for block in other.blocks() for t in other.tiles(block))


@given(st.integers(1, 400), st.sampled_from(OVERLAPS))
def test_overlap_is_the_share_of_a_tile_that_is_seen_again(tile, overlap):
    (pixels,) = Grid.regular((400,), tile, overlap).overlap
    assert pixels == min(tile - 1, round(tile * overlap))


def test_one_number_stands_for_every_axis():
    assert Grid.regular((50, 60, 70), 8, 0.5, 16) == Grid.regular((50, 60, 70), (8, 8, 8), 0.5, (16, 16, 16))


@pytest.mark.parametrize("overlap", [1, 1.5, -0.1, float("nan")])
def test_an_overlap_outside_0_to_1_is_refused(overlap):
    with refused(overlap, "0 <= overlap < 1"):
        Grid.regular((50, 50), 8, overlap)


def test_a_tile_larger_than_the_image_is_refused():
    with refused(64, 50, "--tile 50 or less"):
        Grid.regular((50, 90), 64)


def test_a_tile_or_block_of_nothing_is_refused():
    with refused("tile of 0"):
        Grid.regular((50, 50), 0)
    with refused("block of 0"):
        Axis(50, 8, 4, 0, 0, 50)


def test_an_area_outside_the_image_is_refused():
    with refused("40..60", "0..50"):
        Grid.regular((50, 50), 8, area=Box((40, 0), (60, 50)))
    with refused("10..10"):
        Grid.regular((50, 50), 8, area=Box((10, 0), (10, 50)))
