"""Intensity statistics of a whole image, for models that normalise by them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tiling.box import Box
from tiling.errors import InputError
from tiling.sources import Source

_WINDOWS = 64
_SIDE = {2: 512, 3: 64}


class Statistics(NamedTuple):
    """Mean and standard deviation of the valid pixels, one number a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def statistics(source: Source, area: Box | None = None) -> Statistics:
    """Mean and standard deviation over `area`, from at most 64 windows spread evenly over it.

    The windows depend on the area alone, so every run and worker finds the same numbers. Sums are in float64.

    Raises:
        InputError: where the area holds no valid pixel.
    """
    area = area or Box.whole(source.space.shape)
    cells = list(area.split((_SIDE[area.ndim],) * area.ndim))
    chosen = sorted({round(i) for i in np.linspace(0, len(cells) - 1, min(_WINDOWS, len(cells)))})
    n = 0
    total = np.zeros(source.channels)
    squares = np.zeros(source.channels)
    for cell in (cells[i] for i in chosen):
        pixels = source.read(cell)
        values = pixels.values[:, pixels.valid].astype(np.float64)
        n += values.shape[1]
        total += values.sum(axis=1)
        squares += (values**2).sum(axis=1)
    if n == 0:
        raise InputError(f"{source.uri} has no valid pixels in the area; choose another area or check its nodata value")
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean**2, 0))
    return Statistics(tuple(map(float, mean)), tuple(map(float, std)))
