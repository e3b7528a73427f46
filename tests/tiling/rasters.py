"""Pixels for tests to write as rasters."""

from __future__ import annotations

import numpy as np

from tiling.box import Box

SHAPE = (150, 170)
WHOLE = Box.whole(SHAPE)


def noise(bands: int = 3, dtype: str = "uint8", shape: tuple[int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 120, (bands, *shape)).astype(dtype)
