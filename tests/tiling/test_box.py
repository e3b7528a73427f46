"""Boxes against sets of indices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiling.strategies import boxes
from tiling.box import Box

SHAPE = (7, 9)
pairs = st.tuples(boxes(SHAPE), boxes(SHAPE))


def mask(box: Box) -> np.ndarray:
    array = np.zeros(SHAPE, bool)
    array[box.slices] = True
    return array


@given(pairs)
def test_the_intersection_holds_the_indices_in_both(pair):
    a, b = pair
    assert np.array_equal(mask(a & b), mask(a) & mask(b))
    assert (a & b).size == np.count_nonzero(mask(a) & mask(b))


@given(pairs)
def test_the_union_is_the_smallest_box_around_both(pair):
    a, b = pair
    both = np.argwhere(mask(a) | mask(b))
    assert (a | b) == Box(tuple(both.min(axis=0)), tuple(both.max(axis=0) + 1))
    assert a in (a | b)
    assert b in (a | b)


@given(pairs)
def test_a_box_contains_another_when_it_has_all_its_indices(pair):
    a, b = pair
    assert (b in a) == bool((mask(a) | ~mask(b)).all())


@given(boxes(SHAPE), st.integers(-4, 4), st.integers(-4, 4))
def test_shifting_and_seeing_from_an_origin_undo_each_other(box, dy, dx):
    moved = box.shift((dy, dx))
    assert moved.relative((dy, dx)) == box
    assert moved.shape == box.shape


@given(boxes(SHAPE), st.integers(0, 3))
def test_growing_adds_as_much_on_every_side(box, by):
    grown = box.grow(by)
    assert grown.shape == tuple(n + 2 * by for n in box.shape)
    assert box.relative(grown.start).start == (by, by)


@given(boxes(SHAPE), st.tuples(st.integers(1, 10), st.integers(1, 10)))
def test_splitting_covers_every_index_once_in_c_order(box, step):
    parts = list(box.split(step))
    count = np.zeros(SHAPE, int)
    for part in parts:
        count[part.slices] += 1
        assert all(side <= most for side, most in zip(part.shape, step, strict=True))
    assert np.array_equal(count, mask(box).astype(int))
    assert parts == sorted(parts, key=lambda p: p.start)


def test_a_box_that_ends_before_it_starts_is_refused():
    with pytest.raises(ValueError, match="before its start"):
        Box((3, 0), (2, 5))
    with pytest.raises(ValueError, match="differ in dimensions"):
        Box((3,), (2, 5))
