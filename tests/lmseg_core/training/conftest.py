"""A small training: the class of a pixel is whether its first band is positive."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmseg_core.training.settings import Settings, parse_settings
from lmseg_core.training.windows import Example, InMemory


def _examples(count: int, seed: int, ndim: int = 2, size: int = 40) -> list[Example]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        image = rng.normal(size=(2, *(size,) * ndim)).astype(np.float32)
        labels = (image[0] > 0).astype(np.uint8)
        found.append(Example(f"image {i}", InMemory(image), InMemory(labels), (0.0, 0.0), (1.0, 1.0)))
    return found


@pytest.fixture(scope="session")
def make_examples() -> Callable[..., list[Example]]:
    """Return the maker of examples: make_examples(count, seed, ndim=2, size=40)."""
    return _examples


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Return the maker of settings for them: make_settings({"optimise.steps": 4}); output is `run` in tmp_path."""

    def make(changes: dict[str, Any] | None = None, ndim: int = 2) -> Settings:
        raw: dict[str, Any] = {
            "output": str(tmp_path / "run"),
            "model": {
                "ndim": ndim,
                "bands": ["a", "b"],
                "classes": [{"name": "below", "colour": "#000000"}, {"name": "above", "colour": "#ffffff"}],
                "config": {"widths": [8, 12]},
            },
            "data": {
                "train": [{"image": "unused", "label": "unused"}],
                "validation": [{"image": "unused", "label": "unused"}],
                "window": [16] * ndim,
                "workers": 0,
            },
            "optimise": {"steps": 8, "batch": 4, "rate": 1e-2, "ema": 0.9},
            "watch": {"evaluate": 4},
        }
        for key, value in (changes or {}).items():
            place = raw
            *path, last = key.split(".")
            for part in path:
                place = place.setdefault(part, {})
            place[last] = value
        return parse_settings(raw, "settings")

    return make
