"""The size of the pixels that a network learned from is written into its configuration."""

import numpy as np
import pytest

from lmseg_core import LMSegConfig
from lmseg_core.training.scale import set_scale
from lmseg_core.training.windows import Example


class Nothing:
    shape = (1, 8, 8)

    def read(self, box: tuple[slice, ...]) -> np.ndarray:
        raise AssertionError


def examples(*scales: tuple[float, ...]) -> list[Example]:
    return [Example("a", Nothing(), Nothing(), (0.0,), (1.0,), scale=scale) for scale in scales]


@pytest.mark.parametrize(
    ("ndim", "scales", "given", "expected"),
    [
        (2, [(10.0, 10.0)] * 3, {}, (None, 10.0, [0.8, 1.25])),
        (2, [(10.0, 10.0), (10.0, 10.0), (20.0, 20.0)], {}, (None, 10.0, [0.8, 2.0])),
        (2, [(8.0, 2.0)], {}, (None, 4.0, [0.5, 2.0])),
        (2, [(10.0, 10.0), ()], {}, (None, None, None)),
        (2, [(10.0, 10.0)], {"resolution": 12.0}, (None, 30.0, [0.5, 1.5])),
        (2, [(10.0, 10.0)], {"tested_range": [0.9, 1.1]}, (None, 10.0, [0.9, 1.1])),
        (3, [(3.0, 1.0, 1.0), (4.0, 1.0, 1.0), (6.0, 1.0, 1.0)], {}, ([4.0, 1.0, 1.0], None, [0.75, 1.5])),
        (3, [()], {}, (None, None, None)),
    ],
)
def test_sizes_of_the_training_data_are_the_model_s(
    ndim: int, scales: list, given: dict, expected: tuple, tmp_path
) -> None:
    # What it started from was for other pixels.
    before = {"resolution": 30.0} if ndim == 2 else {"spacing": [1.0, 1.0, 1.0]}
    config = LMSegConfig(ndim=ndim, in_channels=1, **before, tested_range=[0.5, 1.5])
    set_scale(config, examples(*scales), given)
    assert (config.spacing, config.resolution, config.tested_range) == expected
    config.save_pretrained(tmp_path)
    assert LMSegConfig.from_pretrained(tmp_path).tested_range == expected[2]
