"""Normalisation by fixed or whole-image statistics, and its file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor

from lmseg_core import LMSegImageProcessor, ModelError
from lmseg_core.processor import normalise


def test_fixed_statistics_are_after_the_scale(tmp_path: Path) -> None:
    LMSegImageProcessor(mode="fixed", scale=0.01, image_mean=[1, 2], image_std=[0.5, 4]).save_pretrained(tmp_path)
    processor = LMSegImageProcessor.from_pretrained(tmp_path)
    image = np.arange(24, dtype=np.uint16).reshape(2, 3, 4) * 50
    expected = (image * 0.01 - np.array([1, 2])[:, None, None]) / np.array([0.5, 4])[:, None, None]
    np.testing.assert_allclose(processor(image)["pixel_values"][0], expected, rtol=1e-5, atol=1e-6)
    assert processor.raw_statistics() == ([100.0, 200.0], [50.0, 400.0])


def test_image_statistics_come_from_outside(tmp_path: Path) -> None:
    LMSegImageProcessor(mode="image").save_pretrained(tmp_path)
    processor = LMSegImageProcessor.from_pretrained(tmp_path)
    window = np.full((1, 4, 4, 4), 30.0)
    assert torch.all(processor([window, window], mean=[10], std=[5])["pixel_values"] == 4.0)
    with pytest.raises(ModelError, match=r'mode "image"; pass mean= and std='):
        processor(window)


def test_auto_image_processor_knows_it(fixed_folder: Path) -> None:
    assert isinstance(AutoImageProcessor.from_pretrained(fixed_folder), LMSegImageProcessor)


def test_a_constant_band_becomes_zero() -> None:
    assert torch.equal(normalise(torch.full((1, 1, 2, 2), 7), [7.0], [0.0]), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "tile"}, 'mode "tile"; use "fixed" or "image"'),
        ({"mode": "fixed", "image_mean": [1.0]}, "image_std None; give both, one value a band"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LMSegImageProcessor(**settings)
