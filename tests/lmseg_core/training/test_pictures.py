"""What a training leaves for people to look at."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from lmseg_core.training.run import train
from lmseg_core.training.settings import Settings
from lmseg_core.training.windows import Example


@pytest.mark.parametrize("ndim", [2, 3])
def test_curves_and_validation_are_pictures(
    make_settings: Callable[..., Settings], make_examples: Callable[..., list[Example]], ndim: int
) -> None:
    settings = make_settings({"optimise.steps": 2, "watch.evaluate": 1}, ndim)
    train(settings, make_examples(1, 1, ndim, 24), make_examples(1, 2, ndim, 24))
    for name in ("curves.png", "validation.png"):
        picture = Image.open(settings.output / name)
        assert picture.size[0] > 50
        assert np.asarray(picture).std() > 5
