"""The answer of a run on its borders beside that of a centred tile."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiling.predictors import Identity, Mixing
from tests.tiling.runs import image_of, run
from tests.tiling.strategies import grids
from tiling import Area, ArraySource, Box, Grid
from tiling.seams import (
    CHANGED,
    UNSEEN,
    block_borders,
    compare_place,
    ratio_interval,
    sample_places,
    seam_figures,
    tile_borders,
)
from tiling.window import tukey


@dataclass(frozen=True)
class Slanted(Identity):
    """Adds to its first channel how far a pixel lies along the first axis of its tile."""

    def __call__(self, batch: Any) -> Any:
        scores = batch.copy()
        scores[:, 0] += np.arange(self.tile[0], dtype=np.float32).reshape(-1, *(1,) * (self.ndim - 1))
        return scores


def look(source, grid, predict, count=24, area=None):
    area = area or Area(grid.area)
    return [compare_place(source, grid, predict, area, p) for p in sample_places(source, grid, area, count)]


@given(grids(), st.integers(1, 12))
def test_places_lie_on_the_borders_that_they_name(grid, count):
    source = ArraySource(np.zeros((1, *grid.shape), np.uint8))
    places = sample_places(source, grid, Area(grid.area), count)
    assert len({p.index for p in places}) == len(places) <= count
    stops = {(axis, n) for block in grid.blocks() for axis, n in enumerate(block.stop)}
    ranges = [
        sorted({(t.start[a], t.stop[a]) for t in grid.tiles(Box.whole(grid.shape))}) for a in range(len(grid.axes))
    ]
    for place in places:
        assert Box(place.index, tuple(i + 1 for i in place.index)) in grid.area
        assert place.on_block == any(found in stops for found in enumerate(place.index))
        # Two neighbours reach equally far past the border, to half a pixel; the edge of the area is no border.
        middle = [
            i > first and any(0 <= (b[0] + a[1]) - 2 * i <= 1 for a, b in pairwise(pairs))
            for i, first, pairs in zip(place.index, grid.area.start, ranges, strict=True)
        ]
        assert place.on_tile == any(middle)
        assert place.on_tile or place.on_block


def test_the_sample_is_the_same_each_time_and_of_every_kind():
    grid = Grid.regular((200, 180), 32, 0.25, 64)
    source = image_of(grid.shape)
    places = sample_places(source, grid, Area(grid.area), 60)
    assert places == sample_places(source, grid, Area(grid.area), 60)
    assert len(places) == 60
    assert {(p.on_tile, p.on_block) for p in places} == {(True, False), (False, True), (True, True)}
    for axis, borders in enumerate(map(tile_borders, grid.axes)):
        assert {p.index[axis] for p in places} & set(borders)
    assert block_borders(grid.axes[0]) == (64, 128, 192)


def test_one_tile_in_one_block_has_no_borders():
    grid = Grid.regular((32, 32), 32)
    assert sample_places(image_of((32, 32)), grid, Area(grid.area), 5) == []
    assert seam_figures([]) is None


def test_places_without_data_or_outside_polygons_are_left_out():
    values = np.random.default_rng(0).integers(1, 9, (1, 200, 200)).astype(np.uint8)
    values[:, :, 100:] = 0
    source = ArraySource(values, nodata=0)
    grid = Grid.regular((200, 200), 32, 0.25, 64)
    upper = '{"type": "Polygon", "coordinates": [[[0, 0], [200, 0], [200, 90], [0, 90], [0, 0]]]}'
    area = Area(grid.area, (upper,))
    seams = look(source, grid, Identity(1, (32, 32)), 20, area)
    assert len(seams) == 20
    for seam in seams:
        y, x = seam.place.index
        assert x < 100
        assert y < 90
        columns = np.arange(seam.box.start[1], seam.box.stop[1])
        assert (seam.seen[:, columns >= 100] == UNSEEN).all()
        assert (seam.labels[:, columns >= 100] == 255).all()
    empty = ArraySource(np.zeros((1, 200, 200), np.uint8), nodata=0)
    assert sample_places(empty, grid, Area(grid.area), 5) == []


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5])
@pytest.mark.parametrize("shape", [(150, 130), (40, 44, 38)])
def test_a_pointwise_model_has_no_seams_at_all(shape, overlap):
    grid = Grid.regular(shape, 32 if len(shape) == 2 else 16, overlap, 48 if len(shape) == 2 else 20)
    figures = seam_figures(look(image_of(shape), grid, Identity(2, grid.tile)))
    assert figures.places == 24
    assert (figures.changed.value, figures.changed.low, figures.changed.high) == (0, 0, 0)
    assert (figures.largest, figures.typical.value) == (0, 0)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.375])
def test_a_model_that_depends_on_the_place_in_its_tile_is_measured_as_whole_arrays_say(overlap):
    shape = (170, 150)
    source = image_of(shape)
    grid = Grid.regular(shape, (40, 32), overlap, 64)
    predict = Slanted(2, grid.tile)
    window = tukey(grid.tile, grid.overlap)
    total, weight = np.zeros((2, *shape)), np.zeros(shape)
    for tile in grid.tiles(Box.whole(shape)):
        here = (slice(None), *tile.slices)
        total[here] += predict(source.values[here][None].astype(np.float32))[0] * window
        weight[tile.slices] += window
    share = total / weight
    seams = look(source, grid, predict)
    differences = []
    for seam in seams:
        (y, x), (height, width) = seam.place.index, (10, 8)  # a quarter of a tile
        box = (slice(max(0, y - 5), y - 5 + height), slice(max(0, x - 4), x - 4 + width))
        assert seam.box.slices == tuple(slice(s.start, min(s.stop, n)) for s, n in zip(box, shape, strict=True))
        first = min(max(0, y - 20), shape[0] - 40)
        alone = source.values[(slice(None), *seam.box.slices)].astype(float)
        alone[0] += np.arange(seam.box.start[0], seam.box.stop[0])[:, None] - first
        expected = share[(slice(None), *seam.box.slices)]
        differs = np.abs(expected - alone).max(axis=0)
        np.testing.assert_array_equal(seam.labels, expected.argmax(axis=0))
        np.testing.assert_array_equal(seam.seen == CHANGED, expected.argmax(axis=0) != alone.argmax(axis=0))
        assert seam.largest == pytest.approx(differs.max(), abs=1e-4)
        assert seam.total == pytest.approx(differs.sum(), rel=1e-4)
        differences.append((seam.changed, seam.pixels, differs))
    figures = seam_figures(seams)
    assert figures.changed.value == sum(c for c, _, _ in differences) / sum(p for _, p, _ in differences) > 0
    assert figures.changed.low < figures.changed.value < figures.changed.high
    assert figures.typical.value == pytest.approx(np.concatenate([d.ravel() for _, _, d in differences]).mean())
    assert figures.largest == max(s.largest for s in seams)


@dataclass(frozen=True)
class Strided(Identity):
    """Answers every fourth pixel for its neighbours, counted from its tile's corner."""

    def __call__(self, batch: Any) -> Any:
        return batch[..., ::4, ::4].repeat(4, axis=-2).repeat(4, axis=-1)[..., : self.tile[0], : self.tile[1]]


def test_where_strides_fall_is_no_seam_where_tiles_agree_on_it():
    """Tiles of 32 every 24 pixels, of an image that they fill: all on one grid of 4."""
    grid = Grid.regular((32 + 5 * 24, 32 + 4 * 24), 32, 0.25)
    source, predict = image_of(grid.shape), Strided(2, grid.tile)
    area = Area(grid.area)
    places = sample_places(source, grid, area, 20)
    aligned = seam_figures([compare_place(source, grid, predict, area, p, stride=4) for p in places])
    assert (aligned.changed.value, aligned.largest) == (0, 0)
    assert seam_figures([compare_place(source, grid, predict, area, p) for p in places]).changed.value > 0.1
    # Every 23 pixels they are not, and neighbours do differ.
    uneven = Grid.regular(grid.shape, 32, 9 / 32)
    seams = [compare_place(source, uneven, predict, area, p, stride=4) for p in sample_places(source, uneven, area, 20)]
    assert seam_figures(seams).changed.value > 0.1


@pytest.mark.parametrize("overlap", [0, 0.3, 0.7])
@pytest.mark.parametrize(
    ("shape", "part"), [((90, 75), None), ((90, 75), Box((9, 20), (80, 75))), ((20, 24, 18), None)]
)
def test_the_labels_are_those_of_the_run_to_the_last_bit(tmp_path, shape, part, overlap):
    source = image_of(shape)
    grid = Grid.regular(shape, 16 if len(shape) == 2 else 8, overlap, 30 if len(shape) == 2 else 10, part)
    predict = Mixing(2, grid.tile)
    store = run(source, grid, predict, tmp_path)
    seams = look(source, grid, predict)
    assert seams
    for seam in seams:
        np.testing.assert_array_equal(seam.labels, store.read(seam.box.relative(store.area.box.start)))
    assert store.is_made_from("model", predict.digest)
    assert not store.is_made_from("model", "another")
    assert store.is_made_from("source", source.fingerprint)


def test_torch_tensors_are_compared_to_the_same_figures():
    torch = pytest.importorskip("torch")

    @dataclass(frozen=True)
    class Tensors(Slanted):
        def place(self, values, valid):
            return torch.from_numpy(values.astype(np.float32))

        def __call__(self, batch):
            return torch.from_numpy(super().__call__(batch.numpy()))

    grid = Grid.regular((90, 90), 32, 0.25, 40)
    source = image_of(grid.shape)
    assert seam_figures(look(source, grid, Tensors(2, grid.tile))) == seam_figures(
        look(source, grid, Slanted(2, grid.tile))
    )


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Places of unequal size, most of which have no change: what a seam looks like."""
    rng = np.random.default_rng(1)

    def draw(n):
        wholes = rng.integers(2000, 4097, n)
        shares = np.where(rng.random(n) < 0.6, rng.beta(1, 20, n), 0)
        return rng.binomial(wholes, shares), wholes

    parts, wholes = draw(1_000_000)
    truth = parts.sum() / wholes.sum()
    intervals = [ratio_interval(*draw(48)) for _ in range(400)]
    held = np.mean([i.low <= truth <= i.high for i in intervals])
    # Binomial noise of 400 trials is 0.011; the bootstrap of so skew a figure is known to hold a little less.
    assert 0.90 <= held <= 0.98


def test_intervals_at_the_edges():
    none = ratio_interval(np.zeros(9), np.full(9, 100))
    assert (none.value, none.low, none.high) == (0, 0, 0)
    one = ratio_interval(np.array([3]), np.array([10]))
    assert (one.value, one.low, one.high) == (0.3, 0.3, 0.3)
    alike = ratio_interval(np.full(9, 5), np.full(9, 100))
    assert (alike.low, alike.high) == (0.05, 0.05)
    single = ratio_interval(np.array([0] * 8 + [9]), np.full(9, 100))
    assert 0 <= single.low < single.value < single.high < 0.09
