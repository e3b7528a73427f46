"""Overlapping tiles become one field of scores, slab by slab.

Written against the array API standard, so that numpy arrays and torch tensors on a device run through the same lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from tiling.box import Box
from tiling.predict import Array


def blend(
    block: Box, predicted: Iterable[tuple[Box, Array]], window: NDArray[np.float32]
) -> Iterator[tuple[Box, Array, Array]]:
    """Weighted sums of tile scores over a block, given out as soon as no further tile touches them.

    Only one tile's height of the block is held, whatever the block's. Each pixel sums its tiles in the order they come,
    which is the grid's, so the sum is the same to the last bit in every block that holds the pixel.

    Args:
        block: what is wanted, in image indices.
        predicted: (tile box, scores (K, *tile)) in C order of the boxes.
        window: weights of a tile.

    Yields:
        (slab box, weighted sum (K, *slab), weights (*slab)), front to back; the arrays are reused after the next step.
    """
    total: Array = None
    weight: Array = None
    xp: Any = None
    weights: Array = None
    top = 0
    for tile, scores in predicted:
        if total is None:
            xp = array_namespace(scores)
            weights = xp.asarray(np.array(window), device=device(scores))
            # Half precision has no room for sums of weighted scores.
            dtype = xp.result_type(scores.dtype, weights.dtype)
            shape = (window.shape[0], *block.shape[1:])
            total = xp.zeros((scores.shape[0], *shape), dtype=dtype, device=device(scores))
            weight = xp.zeros(shape, dtype=dtype, device=device(scores))
            top = tile.start[0]
        elif tile.start[0] > top:
            yield from _finished(block, total, weight, top, tile.start[0])
            _advance(total, tile.start[0] - top, axis=1)
            _advance(weight, tile.start[0] - top, axis=0)
            top = tile.start[0]
        part = tile & block
        inside = part.relative(tile.start).slices
        here = part.relative((top, *block.start[1:])).slices
        total[(slice(None), *here)] += scores[(slice(None), *inside)] * weights[inside]
        weight[here] += weights[inside]
    if total is not None:
        yield from _finished(block, total, weight, top, block.stop[0])


def _finished(block: Box, total: Array, weight: Array, top: int, bottom: int) -> Iterator[tuple[Box, Array, Array]]:
    slab = Box((top, *block.start[1:]), (min(bottom, top + weight.shape[0]), *block.stop[1:])) & block
    if slab.size:
        rows = slice(slab.start[0] - top, slab.stop[0] - top)
        yield slab, total[:, rows], weight[rows]


def _advance(array: Array, step: int, axis: int) -> None:
    """Moves the array on by `step` along `axis`, in place, with zeros behind."""
    side = array.shape[axis]
    ahead = (slice(None),) * axis
    # The step may be shorter than what is kept: rows move in pieces that do not overlap themselves.
    for start in range(0, side - step, step):
        stop = min(start + step, side - step)
        array[(*ahead, slice(start, stop))] = array[(*ahead, slice(start + step, stop + step))]
    array[(*ahead, slice(max(0, side - step), side))] = 0
