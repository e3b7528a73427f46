"""Blending slab by slab against whole-array numpy."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiling.strategies import boxes, grids
from tiling.blend import Field, blend, held_pixels
from tiling.box import Box
from tiling.grid import Grid
from tiling.window import tukey

K = 2


def blended(grid: Grid, block: Box, scores, as_array=lambda a: a, tiles=None, slab=2**18):
    """Sums and weights over a block, put together from the slabs, of `slab` pixels at most."""
    total = np.full((K, *block.shape), np.nan, np.float32)
    weight = np.zeros(block.shape, np.float32)
    seen = np.zeros(block.shape, int)
    tiles = grid.tiles(block) if tiles is None else tiles
    with patch("tiling.blend.SLAB", slab):
        for box, part, parts_weight in blend(grid, block, ((t, as_array(scores(t))) for t in tiles)):
            here = box.relative(block.start).slices
            seen[here] += 1
            total[(slice(None), *here)] = np.asarray(part)
            weight[here] = np.asarray(parts_weight)
    return total, weight, seen


# From a part of each layer for every tile, over a few, to one.
slabs = st.sampled_from((1, 10, 40, 2**18))


def blended_slabs(grid: Grid):
    """The slabs of a whole image with arbitrary scores."""
    tiles = ((t, arbitrary(t)) for t in grid.tiles(grid.area))
    return blend(grid, grid.area, tiles)


def whole(grid: Grid, scores):
    """The same over the whole image at once, in plain numpy."""
    window = tukey(grid.tile, grid.overlap)
    total = np.zeros((K, *grid.shape), np.float32)
    weight = np.zeros(grid.shape, np.float32)
    for tile in grid.tiles(Box.whole(grid.shape)):
        total[(slice(None), *tile.slices)] += scores(tile) * window
        weight[tile.slices] += window
    return total, weight


def arbitrary(tile: Box) -> np.ndarray:
    """Scores that have nothing to do with those of neighbouring tiles."""
    return np.random.default_rng(tile.start).normal(size=(K, *tile.shape)).astype(np.float32)


@given(grids(), st.integers(0, 2**32 - 1))
def test_blending_copies_of_an_image_gives_the_image_to_the_last_bit(grid, seed):
    image = np.random.default_rng(seed).integers(0, 256, (K, *grid.shape)).astype(np.float32)
    for block in grid.blocks():
        total, weight, seen = blended(grid, block, lambda t: image[(slice(None), *t.slices)])
        assert (seen == 1).all()
        assert np.array_equal(total / weight, image[(slice(None), *block.slices)])


@given(grids(), slabs)
def test_any_scores_blend_to_the_bits_of_the_whole_image_in_any_block(grid, slab):
    total, weight = whole(grid, arbitrary)
    for block in grid.blocks():
        got, got_weight, seen = blended(grid, block, arbitrary, slab=slab)
        assert (seen == 1).all()
        assert np.array_equal(got, total[(slice(None), *block.slices)])
        assert np.array_equal(got_weight, weight[block.slices])


@given(grids(), slabs, st.data())
def test_any_box_of_the_image_can_be_a_block(grid, slab, data):
    total, _ = whole(grid, arbitrary)
    block = data.draw(boxes(grid.shape))
    assert np.array_equal(blended(grid, block, arbitrary, slab=slab)[0], total[(slice(None), *block.slices)])


@given(grids(), slabs)
def test_torch_tensors_blend_to_the_same_bits_as_numpy(grid, slab):
    torch = pytest.importorskip("torch")
    total, weight = whole(grid, arbitrary)
    for block in grid.blocks():
        got, got_weight, seen = blended(grid, block, arbitrary, torch.from_numpy, slab=slab)
        assert (seen == 1).all()
        assert np.array_equal(got, total[(slice(None), *block.slices)])
        assert np.array_equal(got_weight, weight[block.slices])


@given(grids(), slabs, st.data())
def test_pixels_whose_tiles_are_all_there_do_not_notice_that_others_are_left_out(grid, slab, data):
    wanted = np.random.default_rng(data.draw(st.integers(0, 99))).random(grid.shape) < 0.1
    total, _ = whole(grid, arbitrary)
    for block in grid.blocks():
        tiles = [t for t in grid.tiles(block) if wanted[(t & block).slices].any()]
        got, _, seen = blended(grid, block, arbitrary, tiles=tiles, slab=slab)
        keep = wanted[block.slices]
        assert (seen <= 1).all()
        assert (seen[keep] == 1).all()
        assert np.array_equal(got[:, keep], total[(slice(None), *block.slices)][:, keep])


@given(grids(), st.sampled_from(("float16", "uint8", "float64")))
def test_scores_of_any_type_are_summed_without_losing_digits(grid, dtype):
    image = np.random.default_rng(0).integers(0, 200, (K, *grid.shape)).astype(dtype)
    for block in grid.blocks():
        total, weight, _ = blended(grid, block, lambda t: image[(slice(None), *t.slices)])
        assert np.array_equal(total / weight, image[(slice(None), *block.slices)])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torch_s_half_precision_is_summed_in_single(dtype):
    torch = pytest.importorskip("torch")
    grid = Grid.regular((40, 50), 16, 0.5, 20)
    image = np.random.default_rng(0).integers(0, 200, (K, 40, 50)).astype(np.float32)
    for block in grid.blocks():
        total, weight, _ = blended(
            grid,
            block,
            lambda t: image[(slice(None), *t.slices)],
            lambda a: torch.from_numpy(a).to(getattr(torch, dtype)),
        )
        assert np.array_equal(total / weight, image[(slice(None), *block.slices)])


def test_no_tiles_give_no_slabs():
    grid = Grid.regular((4, 4), 2, 0)
    assert list(blend(grid, grid.area, [])) == []


def test_sums_are_the_same_without_weights():
    grid = Grid.regular((40, 30), (8, 8), 0.5)
    found = []
    for weighed in (True, False):
        field = Field(grid, grid.area, weighed)
        total = np.zeros((K, *grid.shape), np.float32)
        for tile in [*grid.tiles(grid.area), None]:
            for slab, part, weight in field.upto(*(grid.shape[:1] if tile is None else tile.start)):
                total[(slice(None), *slab.slices)] = part
                assert (weight is not None) == weighed
            if tile is not None:
                field.add(tile, arbitrary(tile))
        found.append(total)
    assert np.array_equal(found[0], found[1])
    assert found[0].any()


@given(grids(), slabs, st.data())
def test_upto_a_row_gives_out_all_before_the_next_layer_of_tiles(grid, slab, data):
    row = data.draw(st.integers(grid.area.start[0] + 1, grid.area.stop[0]))
    above, below = ([t for t in grid.tiles(grid.area) if (t.start[0] < row) == first] for first in (True, False))
    seen = np.zeros(grid.shape, int)
    with patch("tiling.blend.SLAB", slab):
        field = Field(grid, grid.area)
        for tile in above:
            for box, *_ in field.upto(*tile.start[:2]):
                seen[box.slices] += 1
            field.add(tile, arbitrary(tile))
        for box, *_ in field.upto(row):
            seen[box.slices] += 1
    complete = field.complete(row)
    assert complete == min([t.start[0] for t in below], default=grid.area.stop[0])
    assert (seen[grid.area.slices][: complete - grid.area.start[0]] == 1).all()
    assert seen.sum() == (complete - grid.area.start[0]) * np.prod(grid.area.shape[1:])


def test_slabs_are_of_few_pixels_and_one_row_at_least(monkeypatch):
    monkeypatch.setattr("tiling.blend.SLAB", 36)
    grid = Grid.regular((20, 12), (8, 8), 0.5)
    assert [slab.shape for slab, *_ in blended_slabs(grid)] == [(3, 12), (1, 12)] * 3 + [(3, 12), (3, 12), (2, 12)]
    volume = Grid.regular((8, 8, 40), (8, 8, 8), 0.5)
    assert {slab.shape for slab, *_ in blended_slabs(volume)} == {(1, 8, 40)}


def test_only_what_tiles_to_come_add_to_is_held_whatever_the_box(monkeypatch):
    monkeypatch.setattr("tiling.blend.SLAB", 1)
    side, tile, shared = 64, 8, 4
    for height in (8, 80, 800):
        grid = Grid.regular((height, side, 16), tile, 0.5)
        kept = min(shared, height - tile) * side * 16
        assert held_pixels(grid, grid.area) == tile * tile * 16 + kept
        largest = max(np.prod(slab.shape) for slab, *_ in blended_slabs(grid))
        assert largest <= tile * tile * 16
