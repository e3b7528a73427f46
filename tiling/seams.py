"""What seams are left: places on tile and block borders, compared with one tile that has them in its middle.

A *tile border* lies in the middle of an overlap, where two tiles weigh the same and both see least; without overlap
that is their common edge. A *block border* is where one task's pixels end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, cycle, islice, pairwise, permutations
from statistics import NormalDist

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from tiling.area import Area
from tiling.batches import host, predicted
from tiling.blend import blend
from tiling.box import Box
from tiling.classes import ClassTable
from tiling.grid import Axis, Grid
from tiling.predict import Predict
from tiling.sources import Source

# What is compared reaches an eighth of a tile to either side of a border: all of the usual overlap, a quarter, lies in
# it, and each of its pixels has three eighths of the centred tile on every side. In the middle of an overlap of a half,
# the largest that is usual, the run's own tiles see a quarter: the answer that judges always sees further.
_REACH = 8
_SEED = 0
_TRIES = 20  # draws for every place that is wanted, in images that are mostly without data
_RESAMPLES = 2000
_NORMAL = NormalDist()
UNSEEN, EQUAL, CHANGED = 0, 1, 2

# Values along some of the axes; the others are free.
_Borders = dict[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Place:
    """The first pixel behind a border, in image indices, and on which borders it lies."""

    index: tuple[int, ...]
    on_tile: bool
    on_block: bool


@dataclass(frozen=True, slots=True)
class Seam:
    """A place, looked at.

    Attributes:
        box: what was compared, in image indices.
        labels: the blended answer (*box), as a run stores it.
        seen: uint8 (*box): UNSEEN where nothing is wanted or known, EQUAL or CHANGED in the centred tile's answer.
        largest, total: of the differences of a pixel's blended score from the centred tile's, of its worst class.
    """

    place: Place
    box: Box
    labels: NDArray[np.unsignedinteger]
    seen: NDArray[np.uint8]
    largest: float
    total: float

    @property
    def pixels(self) -> int:
        """Pixels that were compared."""
        return int(np.count_nonzero(self.seen))

    @property
    def changed(self) -> int:
        """Pixels whose class is another in the centred tile."""
        return int(np.count_nonzero(self.seen == CHANGED))


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SeamFigures:
    """What some places say together.

    Attributes:
        changed: share of pixels whose class changes.
        largest: difference of score that was seen anywhere.
        typical: difference of score of a pixel, on average.
    """

    places: int
    pixels: int
    changed: Interval
    largest: float
    typical: Interval


def sample_places(source: Source, grid: Grid, area: Area, count: int) -> list[Place]:
    """Distinct places on the borders inside the grid's area, the same each time; fewer where there are not so many.

    By turns on a tile border, on a block border and where both cross (two tile borders where there is one block), each
    evenly over all pixels of such borders. Places without data, and outside polygons, are left out.
    """
    recipes = _recipes(grid)
    rng = np.random.default_rng(_SEED)
    found: dict[tuple[int, ...], Place] = {}
    for recipe in islice(cycle(recipes), _TRIES * count):
        place = _draw(grid, recipe, rng)
        if place.index not in found and _is_wanted(source, area, place):
            found[place.index] = place
            if len(found) == count:
                break
    return list(found.values())


def tile_borders(axis: Axis) -> tuple[int, ...]:
    """The middles of the overlaps of neighbouring tiles that lie inside the area."""
    starts = (axis.tile_start(i) for i in range(axis.tiles))
    middles = ((before + axis.tile + start) // 2 for before, start in pairwise(starts))
    return tuple(m for m in middles if axis.start < m < axis.stop)


def block_borders(axis: Axis) -> tuple[int, ...]:
    """Where blocks meet."""
    return tuple(axis.block_range(i)[0] for i in range(1, axis.blocks))


def compare_place(source: Source, grid: Grid, predict: Predict, area: Area, place: Place, stride: int = 1) -> Seam:
    """The answer of a run round a place beside that of one tile centred on it, moved back at the image's edges.

    Args:
        stride: the coarsest step of the network. The centred tile begins whole strides from the grid's nearest one: a
            network answers otherwise where its strides fall elsewhere on the pixels, which no overlap changes.

    Raises:
        InputError: where the source cannot be read.
        ValueError: where scores have another shape.
    """
    box = around(grid, place) & area.box
    centred = centred_tile(grid, place, stride)
    tiles = [*grid.tiles(box), centred]
    reach = grid.reach(box) | centred
    pixels = source.read(reach)
    wanted = pixels.valid[box.relative(reach.start).slices]
    mask = area.mask(source.space, box)
    if mask is not None:
        wanted = wanted & mask
    table = ClassTable.of(predict.classes)
    placed = predict.place(pixels.values, pixels.valid)
    scores = predicted(predict, placed, reach, tiles, len(table))
    # The grid's own tiles go through the lines that the engine uses; the last one is left for the comparison.
    classes = np.empty(box.shape, np.intp)
    share = np.empty((len(table), *box.shape), np.float32)
    for slab, total, weight in blend(grid, box, islice(scores, len(tiles) - 1)):
        here = slab.relative(box.start).slices
        classes[here] = host(array_namespace(total).argmax(total, axis=0))
        share[(slice(None), *here)] = host(total) / host(weight)
    _, alone = next(scores)
    alone = host(alone)[(slice(None), *box.relative(centred.start).slices)]
    difference = np.abs(share - alone).max(axis=0)[wanted]
    seen = np.where(alone.argmax(axis=0) == classes, EQUAL, CHANGED)
    return Seam(
        place,
        box,
        np.where(wanted, np.array(table.values, table.dtype)[classes], table.nodata),
        np.where(wanted, seen, UNSEEN).astype(np.uint8),
        float(difference.max(initial=0)),
        float(difference.sum(dtype=np.float64)),
    )


def seam_figures(seams: Sequence[Seam]) -> SeamFigures | None:
    """The figures of some places; None of none."""
    if not seams:
        return None
    pixels = np.array([s.pixels for s in seams])
    return SeamFigures(
        len(seams),
        int(pixels.sum()),
        ratio_interval(np.array([s.changed for s in seams]), pixels),
        max(s.largest for s in seams),
        ratio_interval(np.array([s.total for s in seams]), pixels),
    )


def ratio_interval(parts: NDArray[np.number], wholes: NDArray[np.number]) -> Interval:
    """sum(parts) / sum(wholes) with the 95 % interval of a bootstrap over the pairs, bias-corrected and accelerated.

    Pairs are drawn and not pixels, for pixels of one place change together. The interval knows only what was drawn:
    where no part is above zero it is 0 to 0.

    Source: Efron, Better bootstrap confidence intervals, 1987.
    """
    a, b = parts.astype(np.float64), wholes.astype(np.float64)
    value = float(a.sum() / b.sum())
    draws = np.random.default_rng(_SEED).integers(0, len(a), (_RESAMPLES, len(a)))
    ratios = a[draws].sum(axis=1) / b[draws].sum(axis=1)
    below = float(np.mean(ratios < value) + np.mean(ratios == value) / 2)
    if not 0 < below < 1:  # no two pairs differ
        return Interval(value, value, value)
    bias = _NORMAL.inv_cdf(below)
    without = (a.sum() - a) / (b.sum() - b) if len(a) > 1 else np.array([value])
    spread = without.mean() - without
    scale = 6 * float((spread**2).sum()) ** 1.5
    speed = float((spread**3).sum()) / scale if scale else 0.0
    ends = []
    for end in (0.025, 0.975):
        z = bias + _NORMAL.inv_cdf(end)
        ends.append(float(np.quantile(ratios, _NORMAL.cdf(bias + z / (1 - speed * z)))))
    return Interval(value, *ends)


def _recipes(grid: Grid) -> list[list[_Borders]]:
    """The kinds of places that the grid has, and for each the axes on a border with where those lie."""
    tile, block = ([borders(a) for a in grid.axes] for borders in (tile_borders, block_borders))
    axes = range(len(grid.axes))
    both: list[_Borders] = [{i: tile[i], j: block[j]} for i, j in permutations(axes, 2) if tile[i] and block[j]]
    if not any(block):
        both = [{i: tile[i], j: tile[j]} for i, j in combinations(axes, 2) if tile[i] and tile[j]]
    kinds: list[list[_Borders]] = [[{i: found[i]} for i in axes if found[i]] for found in (tile, block)]
    return [kind for kind in (*kinds, both) if kind]


def _draw(grid: Grid, recipe: list[_Borders], rng: np.random.Generator) -> Place:
    # An axis with many borders on a short side has the most pixels on them.
    weights = np.array([math.prod(len(v) / grid.area.shape[i] for i, v in one.items()) for one in recipe])
    borders = recipe[rng.choice(len(recipe), p=weights / weights.sum())]
    index = tuple(
        int(rng.choice(borders[i]) if i in borders else rng.integers(axis.start, axis.stop))
        for i, axis in enumerate(grid.axes)
    )
    on_tile, on_block = (
        any(i in borders_of(axis) for i, axis in zip(index, grid.axes, strict=True))
        for borders_of in (tile_borders, block_borders)
    )
    return Place(index, on_tile, on_block)


def _is_wanted(source: Source, area: Area, place: Place) -> bool:
    pixel = Box(place.index, tuple(i + 1 for i in place.index))
    mask = area.mask(source.space, pixel)
    return (mask is None or bool(mask.all())) and bool(source.read(pixel).valid.all())


def around(grid: Grid, place: Place) -> Box:
    """What is compared round a place."""
    halves = [max(1, t // _REACH) for t in grid.tile]
    start = tuple(max(0, i - h) for i, h in zip(place.index, halves, strict=True))
    return Box(start, tuple(min(n, i + h) for i, h, n in zip(place.index, halves, grid.shape, strict=True)))


def centred_tile(grid: Grid, place: Place, stride: int) -> Box:
    """The tile that judges a place, whole strides from the grid's nearest one, moved back at the image's edges."""
    start = tuple(_centred_start(a, i, stride) for a, i in zip(grid.axes, place.index, strict=True))
    return Box(start, tuple(s + t for s, t in zip(start, grid.tile, strict=True)))


def _centred_start(axis: Axis, index: int, stride: int) -> int:
    wanted, last = index - axis.tile // 2, axis.extent - axis.tile
    own = (axis.tile_start(i) for i in axis.tiles_touching(index, index + 1))
    nearest = min(own, key=lambda start: abs(start - wanted))
    steps = round((wanted - nearest) / stride)
    return min(max(0, nearest + steps * stride), last)
