"""Arrays as sources."""

import numpy as np
import pytest
from hypothesis import given

from tests.tiling.refusals import refused
from tests.tiling.strategies import boxes
from tiling import ArraySource, Box, Space

VALUES = np.random.default_rng(0).integers(0, 99, (2, 20, 30)).astype(np.uint8)


@given(boxes((20, 30)))
def test_reading_a_box_is_a_copy_of_the_slice(box):
    pixels = ArraySource(VALUES).read(box)
    assert np.array_equal(pixels.values, VALUES[(slice(None), *box.slices)])
    assert not np.shares_memory(pixels.values, VALUES)
    assert pixels.valid.all()


def test_index_is_world_unless_told_otherwise():
    assert ArraySource(VALUES).space == Space((20, 30), ((1, 0, 0), (0, 1, 0)))
    assert ArraySource(VALUES[:, None]).space.shape == (1, 20, 30)


def test_a_pixel_is_missing_where_every_band_holds_nodata():
    values = VALUES.copy()
    values[:, 3:5, 4:9] = values[0, 11] = 100
    assert np.array_equal(ArraySource(values, nodata=100).read(Box.whole((20, 30))).valid, (values != 100).any(axis=0))


def test_the_fingerprint_is_of_values_nodata_and_placement():
    fingerprint = ArraySource(VALUES).fingerprint
    assert ArraySource(VALUES.copy()).fingerprint == fingerprint
    other = VALUES.copy()
    other[1, 3, 4] += 1
    moved = Space((20, 30), ((1, 0, 5), (0, 1, 0)))
    others = [ArraySource(other), ArraySource(VALUES, nodata=3), ArraySource(VALUES, moved), ArraySource(VALUES[:1])]
    assert len({fingerprint, *(s.fingerprint for s in others)}) == 5


@pytest.mark.parametrize("shape", [(20, 30), (3, 0, 5), (0, 5, 5), (1, 2, 3, 4, 5)])
def test_an_array_that_is_no_picture_is_refused(shape):
    with refused(shape, "(C, y, x) or (C, z, y, x)"):
        ArraySource(np.zeros(shape))
