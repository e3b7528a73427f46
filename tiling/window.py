"""How much each pixel of a tile counts where tiles overlap."""

from functools import cache, reduce

import numpy as np
from numpy.typing import NDArray


@cache
def tukey(tile: tuple[int, ...], overlap: tuple[int, ...]) -> NDArray[np.float32]:
    """The N-D tapered cosine (Tukey) window: flat inside, falling over the overlap.

    Weights are whole numbers from 1 to 255, so that sums of them, and of uint8 values times them, are exact in float32:
    a constant stays that constant, in whatever order tiles are added.

    Returns:
        float32 of shape `tile`, read-only.

    Source: Harris, On the use of windows for harmonic analysis, 1978.
    """
    sides = (_taper(n, o) for n, o in zip(tile, overlap, strict=True))
    window = np.maximum(np.rint(255 * reduce(np.multiply.outer, sides)), 1).astype(np.float32)
    window.flags.writeable = False
    return window


def _taper(n: int, overlap: int) -> NDArray[np.float64]:
    to_edge = np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.5
    ramp = min(overlap, (n + 1) // 2)
    if ramp == 0:
        return np.ones(n)
    return np.sin(0.5 * np.pi * np.minimum(to_edge / ramp, 1)) ** 2
