"""Whole runs: read, predict, blend, write."""

import json
import pickle
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import geometry_mask

import tiling
from tests.tiling.files import NORTH_UP, UTM, write_tiff, write_volume
from tests.tiling.predictors import Constant, Cropping, Identity, Mixing, Picture, Raising, Spoiling
from tests.tiling.refusals import refused
from tests.tiling.strategies import boxes, grids
from tiling import ArraySource, BlockError, Box, Grid
from tiling.engine import compute_block
from tiling.store import Store

EVERYTHING = ("probability", "uncertainty")


def one_hot(labels: np.ndarray, n: int) -> np.ndarray:
    return (labels == np.arange(n).reshape(-1, *(1,) * labels.ndim)).astype(np.uint8)


def image_of(shape, seed=0, bands=2) -> ArraySource:
    return ArraySource(np.random.default_rng(seed).integers(0, 256, (bands, *shape)).astype(np.uint8))


def run(source, grid, predict, folder, *, executor=None, name="run.zarr", **options) -> Store:
    store = tiling.create(f"{folder}/{name}", source, grid, predict, **options)
    tiling.segment(source, predict, store, executor=executor)
    assert store.pending() == []
    return store


def maps(store: Store) -> dict[str, np.ndarray]:
    whole = Box.whole(store.area.box.shape)
    return {name: store.read(whole, name) for name in ("labels", *store.outputs)}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def again(grid: Grid, block, area: Box | None = None) -> Grid:
    """The same tiles in other blocks, over another area."""
    area = area or grid.area
    return Grid(
        tuple(
            tiling.Axis(a.extent, a.tile, a.step, b, start, stop)
            for a, b, start, stop in zip(grid.axes, block, area.start, area.stop, strict=True)
        )
    )


# --- a model that returns its input ---


@settings(max_examples=20)
@given(grids(), st.integers(1, 4), st.integers(1, 4), st.integers(0, 999))
def test_a_model_that_returns_its_input_gives_the_input_back(grid, threads, batch, seed):
    n = 3
    labels = np.random.default_rng(seed).integers(0, n, grid.shape)
    source = ArraySource(one_hot(labels, n))
    with TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        store = run(source, grid, Identity(n, grid.tile, batch), folder, executor=pool, outputs=EVERYTHING)
        found = maps(store)
    expected = labels[grid.area.slices]
    assert found["labels"].dtype == np.uint8
    assert np.array_equal(found["labels"], expected)
    assert np.array_equal(found["probability"], 254 * one_hot(expected, n))
    assert (found["uncertainty"] == 0).all()


@pytest.mark.parametrize(
    ("shape", "tile", "overlap", "block"),
    [((97, 64), 16, 0.5, 25), ((60, 61), (7, 31), 0.25, (60, 11)), ((14, 9, 17), (5, 9, 4), 0.75, (7, 4, 17))],
)
def test_worker_processes_give_the_input_back(workers, tmp_path, shape, tile, overlap, block):
    labels = np.random.default_rng(1).integers(0, 3, shape)
    source = ArraySource(one_hot(labels, 3))
    grid = Grid.regular(shape, tile, overlap, block)
    store = run(source, grid, Identity(3, grid.tile), tmp_path, executor=workers, outputs=EVERYTHING)
    assert np.array_equal(maps(store)["labels"], labels)
    assert np.array_equal(maps(store)["probability"], 254 * one_hot(labels, 3))


def test_torch_tensors_give_the_input_back(tmp_path):
    torch = pytest.importorskip("torch")

    class Torch(Identity):
        def place(self, values, valid):
            return torch.from_numpy(values).float()

    labels = np.random.default_rng(1).integers(0, 3, (40, 50))
    grid = Grid.regular((40, 50), 16, 0.4, 21)
    store = run(ArraySource(one_hot(labels, 3)), grid, Torch(3, grid.tile), tmp_path, outputs=EVERYTHING)
    assert np.array_equal(maps(store)["labels"], labels)
    assert np.array_equal(maps(store)["probability"], 254 * one_hot(labels, 3))


# --- independence ---


def whole_array(source: ArraySource, grid: Grid, predict: Mixing) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probability by plain numpy over the whole image."""
    from tiling.window import tukey

    window = tukey(grid.tile, grid.overlap)
    total = np.zeros((predict.n_classes, *grid.shape), np.float32)
    weight = np.zeros(grid.shape, np.float32)
    for tile in grid.tiles(Box.whole(grid.shape)):
        values = source.values[(slice(None), *tile.slices)].astype(np.float32)
        total[(slice(None), *tile.slices)] += predict.one(values) * window
        weight[tile.slices] += window
    return total.argmax(axis=0).astype(np.uint8), np.rint(total / weight * 254).astype(np.uint8)


@settings(max_examples=15)
@given(grids(), st.data())
def test_results_are_those_of_the_whole_image_at_once_whatever_block_and_area(grid, data):
    source, predict = image_of(grid.shape), Mixing(2, grid.tile)
    labels, probability = whole_array(source, grid, predict)
    with TemporaryDirectory() as folder:
        found = maps(run(source, grid, predict, folder, outputs=EVERYTHING))
        other = again(grid, tuple(data.draw(st.integers(-(-n // 3), n)) for n in grid.area.shape))
        assert same(found, maps(run(source, other, predict, folder, name="other.zarr", outputs=EVERYTHING)))
    assert np.array_equal(found["labels"], labels[grid.area.slices])
    assert np.array_equal(found["probability"], probability[(slice(None), *grid.area.slices)])


@settings(max_examples=10)
@given(grids(whole=True), st.data())
def test_a_part_of_the_image_gets_the_labels_of_the_whole(grid, data):
    source, predict = image_of(grid.shape), Mixing(2, grid.tile)
    area = data.draw(boxes(grid.shape))
    part = again(grid, tuple(max(1, n // 2) for n in area.shape), area)
    with TemporaryDirectory() as folder:
        whole = maps(run(source, grid, predict, folder, outputs=EVERYTHING))
        cut = maps(run(source, part, predict, folder, name="part.zarr", outputs=EVERYTHING))
    for name in whole:
        assert np.array_equal(cut[name], whole[name][(..., *area.slices)])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run in one block on one thread, to compare others with."""
    source, grid = image_of((90, 70), bands=3), Grid.regular((90, 70), 16, 0.4)
    predict = Mixing(3, grid.tile)
    found = maps(run(source, grid, predict, tmp_path_factory.mktemp("reference"), outputs=EVERYTHING))
    assert len(np.unique(found["labels"])) == 3
    return source, grid, predict, found


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_do_not_depend_on_the_number_of_threads(reference, tmp_path, threads):
    source, grid, predict, expected = reference
    with ThreadPoolExecutor(threads) as pool:
        store = run(source, again(grid, (23, 19)), predict, tmp_path, executor=pool, outputs=EVERYTHING)
    assert same(maps(store), expected)


@pytest.mark.parametrize("block", [(90, 11), (17, 70), (40, 40)])
def test_results_do_not_depend_on_worker_processes(reference, workers, tmp_path, block):
    source, grid, predict, expected = reference
    store = run(source, again(grid, block), predict, tmp_path, executor=workers, outputs=EVERYTHING)
    assert same(maps(store), expected)


def test_computing_blocks_again_changes_nothing(reference, tmp_path):
    source, grid, predict, expected = reference
    store = run(source, again(grid, (23, 19)), predict, tmp_path, outputs=EVERYTHING)
    before = store.counts()
    for number in np.random.default_rng(0).integers(0, store.grid.n_blocks, 12).tolist():
        compute_block(source, predict, store, number)
    assert same(maps(store), expected)
    assert np.array_equal(store.counts(), before)


class Stop(Exception):
    pass


@settings(max_examples=6)
@given(st.integers(1, 19))
def test_a_run_that_was_stopped_goes_on_where_it_was(reference, after):
    source, grid, predict, expected = reference
    with TemporaryDirectory() as folder:
        store = tiling.create(f"{folder}/a.zarr", source, again(grid, (23, 19)), predict, outputs=EVERYTHING)
        n = store.grid.n_blocks
        seen = []

        def on_block(report):
            seen.append(report.block)
            if len(seen) == after and after < n:
                raise Stop

        if after < n:
            with pytest.raises(Stop):
                tiling.segment(source, predict, store, on_block=on_block)
        pending = tiling.open_store(f"{folder}/a.zarr").pending()
        assert not set(pending) & set(seen)
        assert len(pending) <= n - min(len(seen), n)
        rest = []
        store = tiling.create(f"{folder}/a.zarr", source, again(grid, (23, 19)), predict, outputs=EVERYTHING)
        tiling.segment(source, predict, store, on_block=lambda r: rest.append(r.block))
        assert sorted(rest) == pending
        assert same(maps(store), expected)


def test_only_blocks_whose_record_is_gone_are_computed_again(reference, tmp_path):
    source, grid, predict, expected = reference
    store = run(source, again(grid, (23, 19)), predict, tmp_path, outputs=EVERYTHING)
    lost = [1, 7, 8]
    for number in lost:
        store.array("manifest")[number] = 0
        here = store.grid.block_box(number).slices
        store.array("labels")[here] = 9
        store.array("probability")[(slice(None), *here)] = 9
    assert store.pending() == lost
    computed = []
    tiling.segment(source, predict, store, on_block=lambda r: computed.append(r.block))
    assert sorted(computed) == lost
    assert same(maps(store), expected)


def test_some_blocks_may_be_computed_on_their_own(reference, tmp_path):
    source, grid, predict, expected = reference
    store = tiling.create(tmp_path / "a.zarr", source, again(grid, (23, 19)), predict, outputs=EVERYTHING)
    numbers = list(range(store.grid.n_blocks))
    tiling.run_blocks(source, predict, store, numbers[1::2])
    assert store.pending() == numbers[::2]
    tiling.run_blocks(source, predict, store, numbers[::2])
    assert same(maps(store), expected)


def test_many_blocks_are_never_all_in_flight(tmp_path):
    source = image_of((90, 4))
    store = tiling.create(tmp_path / "a.zarr", source, Grid.regular((90, 4), 4, 0, (1, 4)), Identity(2, (4, 4)))
    lock, flying, most = threading.Lock(), Counter(), []

    class Watching(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            with lock:
                flying["now"] += 1
                most.append(flying["now"])
            future = super().submit(*args, **kwargs)
            future.add_done_callback(lambda _: flying.subtract({"now": 1}))
            return future

    with Watching(2) as pool:
        tiling.segment(source, Identity(2, (4, 4)), store, executor=pool)
    assert store.grid.n_blocks == len(most) == 90
    assert max(most) <= 64


# --- no data ---


def test_pixels_without_data_get_255_whatever_the_model_says(tmp_path):
    values = np.random.default_rng(0).integers(1, 200, (3, 70, 80)).astype(np.uint8)
    values[:, 10:30, 20:50] = 0
    values[:, 60:] = 0
    file = write_tiff(tmp_path / "a.tif", values, nodata=0)
    source, grid = tiling.open(file), Grid.regular((70, 80), 16, 0.25, 32)
    store = run(source, grid, Constant(3, grid.tile), tmp_path, outputs=EVERYTHING)
    missing = (values == 0).all(axis=0)
    found = maps(store)
    assert np.array_equal(found["labels"], np.where(missing, 255, 1))
    assert np.array_equal(found["probability"][1], np.where(missing, 255, 254))
    assert np.array_equal(found["uncertainty"], np.where(missing, 255, 0))
    assert store.counts().sum(axis=0)[:4].tolist() == [0, int((~missing).sum()), int(missing.sum()), 0]


@pytest.mark.parametrize("kind", ["nan tag", "mask", "alpha"])
def test_every_way_to_say_no_data_is_heard(tmp_path, kind):
    mask = np.random.default_rng(3).random((70, 80)) < 0.6
    values = np.random.default_rng(0).integers(1, 200, (3, 70, 80)).astype(np.uint8)
    file = tmp_path / "a.tif"
    if kind == "nan tag":
        write_tiff(file, np.where(mask, values, np.nan).astype(np.float32), nodata=np.nan)
    elif kind == "mask":
        write_tiff(file, values, mask=mask)
    else:
        write_tiff(file, np.concatenate([values, 255 * mask[None]]).astype(np.uint8), photometric="RGB", alpha="YES")
    source, grid = tiling.open(file), Grid.regular((70, 80), 16, 0.25, 32)
    store = run(source, grid, Constant(3, grid.tile), tmp_path)
    assert np.array_equal(maps(store)["labels"], np.where(mask, 1, 255))
    assert store.counts().sum(axis=0)[:4].tolist() == [0, int(mask.sum()), int((~mask).sum()), 0]


@pytest.mark.parametrize("block", [(70, 80), (16, 16), (33, 7)])
def test_nan_and_infinity_are_masked_and_counted_once_though_many_tiles_and_blocks_see_them(tmp_path, block):
    values = np.random.default_rng(0).normal(size=(2, 70, 80)).astype(np.float32)
    spoilt = np.random.default_rng(1).random((70, 80)) < 0.05
    values[0][spoilt] = np.nan
    values[1, 3, 4], spoilt[3, 4] = -np.inf, True
    source, grid = ArraySource(values), Grid.regular((70, 80), 16, 0.5, block)
    reports = []
    store = tiling.create(tmp_path / "a.zarr", source, grid, Constant(2, grid.tile))
    tiling.segment(source, Constant(2, grid.tile), store, on_block=reports.append)
    assert np.array_equal(maps(store)["labels"], np.where(spoilt, 255, 1))
    assert sum(r.nonfinite for r in reports) == store.counts()[:, -2].sum() == spoilt.sum()


def test_spoilt_voxels_of_a_volume_are_masked(tmp_path):
    values = np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32)
    values[2:5, 3, 4] = np.inf
    source = tiling.open(write_volume(tmp_path / "a.nii.gz", values))
    grid = Grid.regular(source.space.shape, 4, 0.25, 5)
    store = run(source, grid, Constant(1, grid.tile), tmp_path)
    assert np.array_equal(maps(store)["labels"], np.where(np.isfinite(values).T, 1, 255))


def test_tiles_without_a_wanted_pixel_are_not_predicted(tmp_path):
    values = np.zeros((1, 64, 64), np.uint8)
    values[0, 40:44, 8:12] = 5
    source = ArraySource(values, nodata=0)
    grid = Grid.regular((64, 64), 16, 0, 32)
    reports = []
    store = tiling.create(tmp_path / "a.zarr", source, grid, Constant(1, grid.tile))
    tiling.segment(source, Constant(1, grid.tile), store, on_block=reports.append)
    assert sum(r.tiles for r in reports) == store.counts()[:, -1].sum() == 1
    assert np.count_nonzero(maps(store)["labels"] == 1) == 16


@settings(max_examples=8)
@given(st.integers(0, 999), st.integers(20, 70), st.integers(20, 80))
def test_only_pixels_inside_polygons_are_answered_and_as_without_them(seed, height, width):
    points = np.random.default_rng(seed).uniform((2, 2), (78, 68), (5, 2))
    ring = [NORTH_UP @ tuple(p) for p in points]
    polygon = {"type": "Polygon", "coordinates": [[*ring, ring[0]]], "crs": {"properties": {"name": UTM}}}
    expected = geometry_mask([polygon], (70, 80), NORTH_UP, invert=True)
    space = tiling.Space((70, 80), (tuple(NORTH_UP[:3]), tuple(NORTH_UP[3:6])), _wkt())
    source = ArraySource(image_of((70, 80)).values, space)
    area = tiling.area_of_geojson(space, json.dumps(polygon))
    predict = Mixing(2, (16, 16))
    grid = Grid.regular((70, 80), 16, 0.25, (height, width), area.box)
    with TemporaryDirectory() as folder:
        whole = maps(run(source, Grid.regular((70, 80), 16, 0.25), predict, folder, name="whole.zarr"))["labels"]
        labels = maps(run(source, grid, predict, folder, area=area))["labels"]
    assert np.array_equal(labels, np.where(expected, whole, 255)[area.box.slices])


def _wkt() -> str:
    from rasterio.crs import CRS

    return CRS.from_user_input(UTM).to_wkt()


def test_more_classes_than_a_byte_holds(tmp_path):
    labels = np.random.default_rng(0).integers(0, 300, (40, 50)).astype(np.uint16)
    source, grid = ArraySource(labels[None]), Grid.regular((40, 50), 8, 0.25, 20)
    store = run(source, grid, Picture(1, grid.tile, n_classes=300), tmp_path)
    assert maps(store)["labels"].dtype == np.uint16
    assert np.array_equal(maps(store)["labels"], labels)
    assert np.array_equal(store.counts()[:, :300].sum(axis=0), np.bincount(labels.ravel(), minlength=300))


def test_class_values_need_not_be_numbered_from_zero(tmp_path):
    class Named(Identity):
        @property
        def classes(self):
            return [(7, "water", "#0000ff", None), (3, "ice", "#ffffff", None), (250, "rock", "#888888", None)]

    labels = np.random.default_rng(1).integers(0, 3, (40, 50))
    grid = Grid.regular((40, 50), 16, 0.4, 21)
    store = run(ArraySource(one_hot(labels, 3)), grid, Named(3, grid.tile), tmp_path)
    assert np.array_equal(maps(store)["labels"], np.array([7, 3, 250])[labels])
    assert np.array_equal(store.counts().sum(axis=0)[:3], np.bincount(labels.ravel()))


# --- failure ---


def spotted() -> ArraySource:
    """A picture that `Raising` fails on in one corner."""
    values = np.random.default_rng(0).integers(0, 100, (2, 64, 64)).astype(np.uint8)
    values[0, 40, 50] = 200
    return ArraySource(values)


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_a_model_that_fails_names_the_block_and_the_others_are_finished(tmp_path, workers, where):
    source, grid = spotted(), Grid.regular((64, 64), 16, 0, 16)
    store = tiling.create(tmp_path / "a.zarr", source, grid, Raising(2, grid.tile, batch=1))
    executor = workers if where == "processes" else None
    with pytest.raises(BlockError, match=r"block 11 at \(32, 48\)\.\.\(48, 64\) of array.*the device is on fire"):
        tiling.segment(source, Raising(2, grid.tile, batch=1), store, executor=executor)
    assert store.pending() == [11]
    computed = []
    tiling.segment(source, Identity(2, grid.tile), store, on_block=lambda r: computed.append(r.block))
    assert computed == [11]
    assert np.array_equal(maps(store)["labels"], source.values.argmax(axis=0))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Cropping, "shape (3, 2, 16, 15) instead of (3, 2, 16, 16)"),
        (Spoiling, "not finite"),
        (lambda *a: Spoiling(*a, value=float("inf")), "not finite"),
        (lambda *a: Spoiling(*a, value=float("-inf")), "not finite"),
    ],
)
def test_scores_that_cannot_be_used_fail_the_block(tmp_path, model, words):
    source, grid = spotted(), Grid.regular((64, 64), 16, 0.25, 64)
    predict = model(2, grid.tile)
    store = tiling.create(tmp_path / "a.zarr", source, grid, predict)
    with pytest.raises(BlockError) as caught:
        tiling.segment(source, predict, store)
    assert words in str(caught.value)
    assert "block 0" in str(caught.value)
    assert store.pending() == [0]


def test_an_error_survives_the_way_back_from_a_worker():
    error = pickle.loads(pickle.dumps(BlockError("block 3 failed")))
    assert str(error) == "block 3 failed"


def test_a_file_that_becomes_unreadable_stops_the_run_with_one_line(tmp_path):
    file = write_tiff(tmp_path / "a.tif", np.ones((2, 64, 64), np.uint8))
    source, grid = tiling.open(file), Grid.regular((64, 64), 16, 0, 16)
    store = tiling.create(tmp_path / "a.zarr", source, grid, Identity(2, grid.tile))
    tiling.run_blocks(source, Identity(2, grid.tile), store, [0])
    file.write_bytes(file.read_bytes()[:600])
    with refused(file, "cannot be read at rows", "again"):
        tiling.segment(source, Identity(2, grid.tile), store)
    assert store.pending()


def test_tasks_are_small_enough_to_send(tmp_path):
    file = write_tiff(tmp_path / "a.tif", np.ones((2, 64, 64), np.uint8))
    source, grid = tiling.open(file), Grid.regular((64, 64), 16, 0, 16)
    store = tiling.create(tmp_path / "a.zarr", source, grid, Identity(2, grid.tile))
    assert len(pickle.dumps((source, Identity(2, grid.tile), store))) < 10_000


def test_reports_tell_what_was_done(tmp_path):
    source, grid = spotted(), Grid.regular((64, 64), 16, 0.25, 32)
    reports = []
    store = tiling.create(tmp_path / "a.zarr", source, grid, Identity(2, grid.tile))
    tiling.segment(source, Identity(2, grid.tile), store, on_block=reports.append)
    assert sorted(r.block for r in reports) == list(range(grid.n_blocks))
    assert sum(r.tiles for r in reports) == grid.n_tiles
    for report in islice(reports, 3):
        assert set(report.seconds) == {"read", "wait", "predict", "write"}
        assert all(s >= 0 for s in report.seconds.values())
    for step, total in store.seconds().items():
        assert np.isclose(total, sum(r.seconds[step] for r in reports))
