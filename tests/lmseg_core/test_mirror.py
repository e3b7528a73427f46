"""Scores averaged over mirror images, of a function and of a model that says so."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lmseg_core import LMSegForSemanticSegmentation, LMSegImageProcessor, Predictor
from lmseg_core.mirror import mirrored


@pytest.mark.parametrize("axes", [(), ("x",), ("z",), ("x", "y"), ("x", "y", "z")])
def test_each_image_is_turned_back_and_counts_once(axes: tuple[str, ...]) -> None:
    windows = torch.randint(0, 100, (2, 3, 4, 5, 6)).float()
    gains = torch.randint(0, 100, (4, 5, 6)).float()
    numbers = [{"x": -1, "y": -2, "z": -3}[axis] for axis in axes]
    choices = itertools.product([False, True], repeat=len(numbers))
    images = [list(itertools.compress(numbers, choice)) for choice in choices]
    # What a place of the window adds, it adds in all places that it is turned to.
    expected = windows + torch.stack([gains.flip(image) for image in images]).mean(0)
    assert torch.equal(mirrored(lambda seen: seen + gains, windows, axes), expected)


def test_a_mirrored_window_gets_the_mirrored_answer(
    tmp_path: Path, make_network: Callable[..., LMSegForSemanticSegmentation]
) -> None:
    windows = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 2, 16, 32)).astype(np.uint8))
    models = {}
    for axes in ("", "x", "xy"):
        make_network(mirror=list(axes)).save_pretrained(tmp_path / f"of {axes}")
        processor = LMSegImageProcessor("fixed", image_mean=[99, 99], image_std=[50, 50])
        processor.save_pretrained(tmp_path / f"of {axes}")
        models[axes] = model = Predictor.from_pretrained(tmp_path / f"of {axes}", device="cpu")
        for name, axis in (("x", -1), ("y", -2)):
            turned = model(windows.flip(axis)).flip(axis)
            assert torch.allclose(turned, model(windows), rtol=0, atol=1e-6) == (name in axes)
    plain = models[""]
    assert torch.equal(models["x"](windows), (plain(windows) + plain(windows.flip(-1)).flip(-1)) / 2)
    assert len({model.digest for model in models.values()}) == 3
