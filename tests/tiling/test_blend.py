"""Blending slab by slab against whole-array numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiling.strategies import boxes, grids
from tiling.blend import Field, blend
from tiling.box import Box
from tiling.grid import Grid
from tiling.window import tukey

K = 2


def blended(grid: Grid, block: Box, scores, as_array=lambda a: a, tiles=None):
    """Sums and weights over a block, put together from the slabs."""
    total = np.full((K, *block.shape), np.nan, np.float32)
    weight = np.zeros(block.shape, np.float32)
    seen = np.zeros(block.shape, int)
    tiles = grid.tiles(block) if tiles is None else tiles
    slabs = blend(block, ((t, as_array(scores(t))) for t in tiles), tukey(grid.tile, grid.overlap))
    for slab, part, parts_weight in slabs:
        here = slab.relative(block.start).slices
        seen[here] += 1
        total[(slice(None), *here)] = np.asarray(part)
        weight[here] = np.asarray(parts_weight)
    return total, weight, seen


def blended_slabs(grid: Grid):
    """The slabs of a whole image with arbitrary scores."""
    tiles = ((t, arbitrary(t)) for t in grid.tiles(grid.area))
    return blend(grid.area, tiles, tukey(grid.tile, grid.overlap))


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


@given(grids())
def test_any_scores_blend_to_the_bits_of_the_whole_image_in_any_block(grid):
    total, weight = whole(grid, arbitrary)
    for block in grid.blocks():
        got, got_weight, seen = blended(grid, block, arbitrary)
        assert (seen == 1).all()
        assert np.array_equal(got, total[(slice(None), *block.slices)])
        assert np.array_equal(got_weight, weight[block.slices])


@given(grids(), st.data())
def test_any_box_of_the_image_can_be_a_block(grid, data):
    total, _ = whole(grid, arbitrary)
    block = data.draw(boxes(grid.shape))
    assert np.array_equal(blended(grid, block, arbitrary)[0], total[(slice(None), *block.slices)])


@given(grids())
def test_torch_tensors_blend_to_the_same_bits_as_numpy(grid):
    torch = pytest.importorskip("torch")
    total, weight = whole(grid, arbitrary)
    for block in grid.blocks():
        got, got_weight, seen = blended(grid, block, arbitrary, torch.from_numpy)
        assert (seen == 1).all()
        assert np.array_equal(got, total[(slice(None), *block.slices)])
        assert np.array_equal(got_weight, weight[block.slices])


@given(grids(), st.data())
def test_pixels_whose_tiles_are_all_there_do_not_notice_that_others_are_left_out(grid, data):
    wanted = np.random.default_rng(data.draw(st.integers(0, 99))).random(grid.shape) < 0.1
    total, _ = whole(grid, arbitrary)
    for block in grid.blocks():
        tiles = [t for t in grid.tiles(block) if wanted[(t & block).slices].any()]
        got, _, seen = blended(grid, block, arbitrary, tiles=tiles)
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
    assert list(blend(Box((0, 0), (4, 4)), [], tukey((2, 2), (0, 0)))) == []


def test_sums_are_the_same_without_weights():
    grid = Grid.regular((40, 30), (8, 8), 0.5)
    window = tukey(grid.tile, grid.overlap)
    found = []
    for weighed in (True, False):
        field = Field(grid.area, window, weighed)
        total = np.zeros((K, *grid.shape), np.float32)
        for tile in [*grid.tiles(grid.area), None]:
            for slab, part, weight in field.upto(grid.shape[0] if tile is None else tile.start[0]):
                total[(slice(None), *slab.slices)] = part
                assert (weight is not None) == weighed
            if tile is not None:
                field.add(tile, arbitrary(tile))
        found.append(total)
    assert np.array_equal(found[0], found[1])
    assert found[0].any()


def test_slabs_are_of_few_pixels_and_one_row_at_least(monkeypatch):
    monkeypatch.setattr("tiling.blend.SLAB", 36)
    grid = Grid.regular((20, 12), (8, 8), 0.5)
    heights = [slab.shape[0] for slab, *_ in blended_slabs(grid)]
    assert heights == [3, 1, 3, 1, 3, 1, 3, 3, 2]
    wide = Grid.regular((20, 40), (8, 8), 0.5)
    assert [slab.shape[0] for slab, *_ in blended_slabs(wide)] == [1] * 20


def test_only_one_tile_s_height_is_held_whatever_the_block():
    grid = Grid.regular((400, 12), (8, 8), 0.5)
    heights = [total.shape[1] for _, total, _ in blended_slabs(grid)]
    assert max(heights) <= 8
    assert sum(heights) == 400
