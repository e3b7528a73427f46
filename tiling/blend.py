"""Overlapping tiles become one field of scores, piece by piece.

Written against the array API standard, so that numpy arrays and torch tensors on a device run through the same lines.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from array_api_compat import array_namespace, device

from tiling.box import Box
from tiling.grid import Axis, Grid
from tiling.predict import Array
from tiling.window import tukey

# (box, weighted sums (K, *box), weights (*box) or None)
Slab = tuple[Box, Array, Array]
SLAB = 2**18  # pixels at most, unless one row has more: what is made of them takes several times their memory


class Field:
    """Weighted sums of tile scores over a box, of which only what later tiles add to is held, whatever the box's size.

    Tiles that start in one row are a *layer*, which is summed part by part along the next axis. Of a part that no tile
    of the layer will touch any more, rows that the next layer does not touch either are given out; the others are kept
    until it comes by.

    Each pixel sums its tiles in the order they come, which is the grid's, so the sum is the same to the last bit in
    every box that holds the pixel.

    Args:
        grid: whose tiles come, in C order; some may be left out.
        box: what is wanted, in image indices.
        weighed: whether the weights are summed, too. Which class has the largest sum can be told without.
    """

    def __init__(self, grid: Grid, box: Box, weighed: bool = True) -> None:
        self._box = box
        self._window = tukey(grid.tile, grid.overlap)
        self._weighed = weighed
        self._layers, self._parts = [*_starts(grid.axes[0], box, 0), box.stop[0]], _parts(grid, box)
        self._shapes = _shapes(grid, box, self._parts)
        self._at = 0, 0  # layer and part that are summed
        self._recalled = 0  # rows of the layer that the one before has added to
        self._weights: Array = None
        self._sums: Array = None  # (K, *part), and weights as one channel more
        self._kept: Array = None  # (K, shared rows, *box), likewise

    def complete(self, row: int) -> int:
        """The row before which `upto(row)` gives out all: that where the next layer starts."""
        return self._layers[bisect_left(self._layers, row)]

    def upto(self, row: int, column: int | None = None) -> Iterator[Slab]:
        """Gives out all that no tile touches from the first that starts at `row`, and there at `column`, on.

        The arrays are reused by the next `add`.
        """
        part = 0 if column is None else bisect_right(self._parts, column) - 1
        last = bisect_left(self._layers, row), part
        while self._at < last:
            if self._sums is not None:
                yield from self._leave()
            layer, part = self._at
            self._at = (layer, part + 1) if part + 2 < len(self._parts) else (layer + 1, 0)

    def add(self, tile: Box, scores: Array) -> None:
        """Adds the scores (K, *tile) of the next tile, after `upto` its start."""
        if self._sums is None:
            self._begin(scores)
        part = tile & self._box
        inside = part.relative(tile.start).slices
        here = part.relative(self._corner(*self._at)).slices
        weights = self._weights[inside]
        self._sums[(slice(scores.shape[0]), *here)] += scores[(slice(None), *inside)] * weights
        if self._weighed:
            self._sums[(-1, *here)] += weights

    def _begin(self, scores: Array) -> None:
        xp: Any = array_namespace(scores)
        self._weights = xp.asarray(self._window.copy(), device=device(scores))
        # Half precision has no room for sums of weighted scores.
        dtype = xp.result_type(scores.dtype, self._weights.dtype)
        channels = scores.shape[0] + self._weighed
        self._sums, self._kept = (
            xp.zeros((channels, *shape), dtype=dtype, device=device(scores)) for shape in self._shapes
        )

    def _leave(self) -> Iterator[Slab]:
        """Gives out and keeps what a part holds, and makes it the next one."""
        layer, part = self._at
        box, corner = self._box, self._corner(layer, part)
        (top, left), (below, right) = corner[:2], self._corner(layer + 1, part + 1)[:2]
        stop = min(self._layers[layer] + self._window.shape[0], box.stop[0])
        yield from self._slabs(Box(corner, (below, right, *box.stop[2:])))
        self._kept[:, : stop - below, left - box.start[1] : right - box.start[1]] = self._sums[
            :, below - top : stop - top, : right - left
        ]
        width = self._sums.shape[2]
        if right < box.stop[1]:
            _advance(self._sums, right - left)
            self._recall(left + width, right + width, right)
        else:
            self._sums[...] = 0
            self._recalled = stop - below
            self._recall(box.start[1], box.start[1] + width, box.start[1])

    def _recall(self, first: int, last: int, left: int) -> None:
        """Puts what the layer before kept of these columns into the part that begins at the column `left`."""
        start, rows = self._box.start[1], slice(self._recalled)
        columns = self._kept[:, rows, first - start : last - start]
        self._sums[:, rows, first - left : first - left + columns.shape[2]] = columns

    def _slabs(self, box: Box) -> Iterator[Slab]:
        height = max(1, SLAB // math.prod(box.shape[1:]))
        for start in range(box.start[0], box.stop[0], height):
            slab = Box((start, *box.start[1:]), (min(start + height, box.stop[0]), *box.stop[1:]))
            sums = self._sums[(slice(None), *slab.relative(box.start).slices)]
            yield (slab, sums[:-1], sums[-1]) if self._weighed else (slab, sums, None)

    def _corner(self, layer: int, part: int) -> tuple[int, ...]:
        """Where a part begins in the box."""
        start = self._box.start
        return max(self._layers[layer], start[0]), max(self._parts[part], start[1]), *start[2:]


def held_pixels(grid: Grid, box: Box) -> int:
    """Pixels of which a field over `box` holds sums."""
    return sum(map(math.prod, _shapes(grid, box, _parts(grid, box))))


def blend(grid: Grid, box: Box, predicted: Iterable[tuple[Box, Array]]) -> Iterator[Slab]:
    """The field of a box, given out as soon as no further tile touches it.

    Args:
        predicted: (tile box, scores (K, *tile)) of the grid's tiles, in C order.
    """
    field = Field(grid, box)
    for tile, scores in predicted:
        yield from field.upto(*tile.start[:2])
        field.add(tile, scores)
    yield from field.upto(box.stop[0])


def _starts(axis: Axis, box: Box, number: int) -> list[int]:
    """Where the tiles that touch a box start along an axis."""
    return [axis.tile_start(i) for i in axis.tiles_touching(box.start[number], box.stop[number])]


def _parts(grid: Grid, box: Box) -> list[int]:
    """Where the parts of a layer start, each of a slab's pixels or more, and the box's end."""
    least = max(1, SLAB // (grid.axes[0].step * math.prod(box.shape[2:])))
    first, *more = _starts(grid.axes[1], box, 1)
    parts = [first]
    for start in more:
        if start - max(parts[-1], box.start[1]) >= least:
            parts.append(start)
    return [*parts, box.stop[1]]


def _shapes(grid: Grid, box: Box, parts: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the largest part and of what two layers share."""
    (height, width, *rest), (down, across) = box.shape, grid.axes[:2]
    *widths, last = (right - max(left, box.start[1]) for left, right in pairwise(parts))
    widest = max([last, *(min(n + across.shared, width) for n in widths)])
    return (min(down.tile, height), widest, *rest), (min(down.shared, height), width, *rest)


def _advance(sums: Array, step: int) -> None:
    """Moves (K, rows, columns, ...) on by `step` columns, in place, with zeros behind."""
    width = sums.shape[2]
    # The step may be shorter than what stays: columns move in pieces that do not overlap themselves.
    for start in range(0, width - step, step):
        stop = min(start + step, width - step)
        sums[:, :, start:stop] = sums[:, :, start + step : stop + step]
    sums[:, :, max(0, width - step) :] = 0
