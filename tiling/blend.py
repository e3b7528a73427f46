"""Overlapping tiles become one field of scores, slab by slab.

Written against the array API standard, so that numpy arrays and torch tensors on a device run through the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from tiling.box import Box
from tiling.predict import Array

# (slab box, weighted sum (K, *slab), weights (*slab) or None)
Slab = tuple[Box, Array, Array]
SLAB = 2**19  # pixels at most, unless one row has more: what is made of them takes several times their memory


class Field:
    """Weighted sums of tile scores over a box, of which one tile's height is held, whatever the box's.

    Each pixel sums its tiles in the order they come, which is the grid's, so the sum is the same to the last bit in
    every box that holds the pixel.

    Args:
        box: what is wanted, in image indices.
        window: weights of a tile.
        weighed: whether the weights are summed, too. Which class has the largest sum can be told without.
    """

    def __init__(self, box: Box, window: NDArray[np.float32], weighed: bool = True) -> None:
        self._box = box
        self._window = window
        self._weighed = weighed
        self._weights: Array = None
        self._total: Array = None
        self._weight: Array = None
        self._top = 0  # the first row that is held
        self._done = box.start[0]  # rows before it were given out

    def add(self, tile: Box, scores: Array) -> None:
        """Adds the scores (K, *tile) of the next tile in C order; rows above it are no longer held."""
        if self._total is None:
            self._begin(tile.start[0], scores)
        elif tile.start[0] > self._top:
            _advance(self._total, tile.start[0] - self._top, axis=1)
            if self._weighed:
                _advance(self._weight, tile.start[0] - self._top, axis=0)
            self._top = tile.start[0]
        part = tile & self._box
        inside = part.relative(tile.start).slices
        here = part.relative((self._top, *self._box.start[1:])).slices
        self._total[(slice(None), *here)] += scores[(slice(None), *inside)] * self._weights[inside]
        if self._weighed:
            self._weight[here] += self._weights[inside]

    def upto(self, row: int) -> Iterator[Slab]:
        """Gives out the rows before `row` that were not yet; no tile to come may touch them.

        Their arrays are reused by the next `add`.
        """
        if self._total is None:
            return
        first = max(self._done, self._top)
        last = min(row, self._top + self._total.shape[1], self._box.stop[0])
        height = max(1, SLAB // math.prod(self._box.shape[1:]))
        for start in range(first, last, height):
            self._done = stop = min(start + height, last)
            rows = slice(start - self._top, stop - self._top)
            slab = Box((start, *self._box.start[1:]), (stop, *self._box.stop[1:]))
            yield slab, self._total[:, rows], self._weight[rows] if self._weighed else None

    def _begin(self, top: int, scores: Array) -> None:
        xp: Any = array_namespace(scores)
        self._weights = xp.asarray(np.array(self._window), device=device(scores))
        # Half precision has no room for sums of weighted scores.
        dtype = xp.result_type(scores.dtype, self._weights.dtype)
        shape = (self._window.shape[0], *self._box.shape[1:])
        self._total = xp.zeros((scores.shape[0], *shape), dtype=dtype, device=device(scores))
        if self._weighed:
            self._weight = xp.zeros(shape, dtype=dtype, device=device(scores))
        self._top = top


def blend(block: Box, predicted: Iterable[tuple[Box, Array]], window: NDArray[np.float32]) -> Iterator[Slab]:
    """The field of a block, given out as soon as no further tile touches it, front to back.

    Args:
        predicted: (tile box, scores (K, *tile)) in C order of the boxes.
        window: weights of a tile.
    """
    field = Field(block, window)
    for tile, scores in predicted:
        yield from field.upto(tile.start[0])
        field.add(tile, scores)
    yield from field.upto(block.stop[0])


def _advance(array: Array, step: int, axis: int) -> None:
    """Moves the array on by `step` along `axis`, in place, with zeros behind."""
    side = array.shape[axis]
    ahead = (slice(None),) * axis
    # The step may be shorter than what is kept: rows move in pieces that do not overlap themselves.
    for start in range(0, side - step, step):
        stop = min(start + step, side - step)
        array[(*ahead, slice(start, stop))] = array[(*ahead, slice(start + step, stop + step))]
    array[(*ahead, slice(max(0, side - step), side))] = 0
