"""Statistics of a whole image."""

import numpy as np
import pytest

from tests.tiling.refusals import refused
from tiling import ArraySource, Box, statistics


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_mean_and_deviation_are_numpy_s(dtype):
    values = (1000 * np.random.default_rng(0).random((3, 90, 70))).astype(dtype)
    found = statistics(ArraySource(values))
    assert np.allclose(found.mean, values.mean(axis=(1, 2), dtype=np.float64), rtol=1e-12)
    assert np.allclose(found.std, values.std(axis=(1, 2), dtype=np.float64), rtol=1e-9)


def test_several_windows_of_a_volume_add_up():
    values = np.random.default_rng(0).normal(size=(1, 70, 130, 65)).astype(np.float32)
    found = statistics(ArraySource(values))
    assert np.allclose(found.mean, values.mean(dtype=np.float64), rtol=1e-9)
    assert np.allclose(found.std, values.std(dtype=np.float64), rtol=1e-9)


def test_only_the_area_and_only_valid_pixels_count():
    values = np.random.default_rng(0).normal(size=(2, 40, 50)).astype(np.float32)
    values[0, 10] = np.nan
    values[:, 20] = -9
    part = values[:, 5:30, 7:40]
    kept = part[:, np.isfinite(part).all(axis=0) & ~(part == -9).all(axis=0)]
    found = statistics(ArraySource(values, nodata=-9), Box((5, 7), (30, 40)))
    assert np.allclose(found.mean, kept.mean(axis=1, dtype=np.float64))
    assert np.allclose(found.std, kept.std(axis=1, dtype=np.float64))


def test_a_large_image_is_sampled_evenly_and_always_alike():
    ramp = np.broadcast_to(np.arange(6000, dtype=np.float32), (1, 5200, 6000))
    source = ArraySource(ramp)
    found = statistics(source)
    assert found == statistics(source)
    assert abs(found.mean[0] - 2999.5) < 150
    assert abs(found.std[0] - ramp[0, 0].std()) < 150


def test_an_area_without_a_valid_pixel_is_refused():
    with refused("array has no valid pixels", "nodata"):
        statistics(ArraySource(np.zeros((1, 20, 20), np.uint8), nodata=0))
