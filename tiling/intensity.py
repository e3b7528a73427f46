"""Intensity statistics of a whole image, for models that normalise by them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiling.box import Box
from tiling.errors import InputError
from tiling.sources import Source

_WINDOWS = 64
_SIDE = {2: 512, 3: 64}
_GLANCE = {2: 128, 3: 32}
_SCALED = 10  # times a training's largest values, or that share of them, that other units explain and no scene does
_FAR = 6  # standard deviations of the training


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


def unlikely_values(source: Source, area: Box, trained: Statistics) -> str | None:
    """Return, in one line, how an image's values differ from those a model was trained on; None where they may do.

    From three small windows an axis, spread over the area.

    Args:
        trained: of the training images, one number a channel.
    """
    pixels = [source.read(window) for window in _glances(area)]
    values = np.concatenate([p.values[:, p.valid].astype(np.float64) for p in pixels], axis=1)
    if not values.shape[1]:
        return None
    mean, std = np.array(trained.mean), np.maximum(trained.std, 1e-12)
    usual = float(np.max(np.abs(mean) + 2 * std))
    here = float(np.max(np.percentile(np.abs(values), 95, axis=1)))
    median = np.median(values, axis=1)
    if here * _SCALED < usual:
        likely = "reflectance from 0 to 1" if here <= 2 else "8-bit values" if here <= 255 < usual else "other units"
    elif here > usual * _SCALED:
        likely = "digital numbers of more bits, or other units"
    elif float(np.median(np.abs(median - mean) / std)) > _FAR:
        likely = "values with another offset or scale"
    else:
        return None
    return (
        f"the values of {source.uri} lie around {_list(median)}, those the model learned from around {_list(mean)}; "
        f"they look like {likely}: scale them as the model's, or expect wrong labels"
    )


def _glances(area: Box) -> Iterator[Box]:
    """The windows that tell in what units an image is."""
    side = _GLANCE[area.ndim]
    corners = [
        sorted({start + (n - min(side, n)) * part // 2 for part in range(3)})
        for start, n in zip(area.start, area.shape, strict=True)
    ]
    for corner in product(*corners):
        yield Box(corner, tuple(c + min(side, n) for c, n in zip(corner, area.shape, strict=True)))


def _list(values: NDArray[np.float64]) -> str:
    shown = [f"{value:.3g}" for value in values[:6]]
    return ", ".join(shown) + (" ..." if len(values) > 6 else "")
