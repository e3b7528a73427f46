"""Weights of a tile."""

import numpy as np
import pytest
from hypothesis import given

from tests.tiling.strategies import grids
from tiling.window import tukey


@given(grids())
def test_weights_are_whole_numbers_from_1_to_255_and_symmetric(grid):
    window = tukey(grid.tile, grid.overlap)
    assert window.shape == grid.tile
    assert window.dtype == np.float32
    assert np.array_equal(window, np.rint(window))
    assert window.min() >= 1
    assert window.max() <= 255
    for axis in range(window.ndim):
        assert np.array_equal(window, np.flip(window, axis))


def test_without_overlap_every_pixel_counts_alike():
    assert (tukey((5, 8), (0, 0)) == 255).all()


def test_the_window_is_flat_inside_and_falls_over_the_overlap():
    window = tukey((64,), (16,))
    assert (window[16:48] == 255).all()
    assert (np.diff(window[:16]) > 0).all()


def test_it_is_the_tapered_cosine_of_scipy_s_definition():
    n, overlap = 64, 16
    x = np.arange(overlap) + 0.5
    expected = np.rint(255 * 0.5 * (1 - np.cos(np.pi * x / overlap)))
    assert np.abs(tukey((n,), (overlap,))[:overlap] - np.maximum(expected, 1)).max() == 0


def test_a_shared_window_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        tukey((8, 8), (2, 2))[0, 0] = 3
