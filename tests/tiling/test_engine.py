"""Whole runs: read, predict, blend, write."""

import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiling
from tests.tiling.files import write_tiff
from tests.tiling.predictors import Identity, Mixing
from tests.tiling.runs import EVERYTHING, again, image_of, maps, one_hot, run, same
from tests.tiling.strategies import boxes, grids
from tiling import ArraySource, Box, Grid
from tiling.strip import compute_strip

ROOT = Path(__file__).parents[2]

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
        store.forget([number])
        compute_strip(source, predict, store, [number])
        assert compute_strip(source, predict, store, [number]).blocks == []  # done already
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
        store.forget([number])
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
    source = image_of((4, 300))
    store = tiling.create(tmp_path / "a.zarr", source, Grid.regular((4, 300), 4, 0, (4, 1)), Identity(2, (4, 4)))
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
    assert store.grid.n_blocks == len(most) == 300
    assert max(most) <= 256


def test_the_block_below_comes_to_the_device_while_one_is_predicted(tmp_path):
    below = threading.Event()

    class Waiting(Identity):
        def place(self, values, valid):
            if (values == 1).any():
                below.set()
            return super().place(values, valid)

        def __call__(self, batch):
            assert below.wait(60)
            return batch

    values = np.zeros((2, 64, 32), np.uint8)
    values[1, 32:] = 1  # the second block
    source, grid = ArraySource(values), Grid.regular((64, 32), 16, 0, 32)
    store = run(source, grid, Waiting(2, grid.tile), tmp_path)
    assert np.array_equal(maps(store)["labels"], values[1])


def test_the_way_to_the_device_is_told_where_it_held_the_device_up(tmp_path):
    class Slow(Identity):
        def place(self, values, valid):
            time.sleep(0.2)
            return super().place(values, valid)

    source, grid = image_of((32, 32)), Grid.regular((32, 32), 16, 0, 32)
    seconds = run(source, grid, Slow(2, grid.tile), tmp_path).seconds()
    assert seconds["move"] >= 0.2  # of one block, for which there is nothing else to do


def test_tasks_are_small_enough_to_send(tmp_path):
    file = write_tiff(tmp_path / "a.tif", np.ones((2, 64, 64), np.uint8))
    source, grid = tiling.open(file), Grid.regular((64, 64), 16, 0, 16)
    store = tiling.create(tmp_path / "a.zarr", source, grid, Identity(2, grid.tile))
    assert len(pickle.dumps((source, Identity(2, grid.tile), store))) < 10_000


# In an interpreter of its own: what other tests leave in this process is not for a child of it to inherit.
FORK = """
import multiprocessing, sys
from tests.tiling.predictors import Mixing
from tests.tiling.runs import image_of, maps, run, same
from tiling import Grid, open_store

folder, grid = sys.argv[1], Grid.regular((40, 30), 16, 0.25, 20)
source, predict = image_of(grid.shape), Mixing(2, grid.tile)
expected = maps(run(source, grid, predict, folder))
child = multiprocessing.get_context("fork").Process(
    target=run, args=(source, grid, predict, folder), kwargs={"name": "child.zarr"}
)
child.start()
child.join()
print(child.exitcode, same(maps(open_store(f"{folder}/child.zarr")), expected))
"""


def test_a_child_process_goes_on_where_its_parent_has_predicted(tmp_path):
    command = [sys.executable, "-c", FORK, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("0 True\n", "")
