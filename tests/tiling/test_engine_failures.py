"""Whole runs that fail, and what runs tell of themselves."""

import pickle
from itertools import islice

import numpy as np
import pytest

import tiling
from tests.tiling.files import write_tiff
from tests.tiling.predictors import Cropping, Identity, Raising, Spoiling
from tests.tiling.refusals import refused
from tests.tiling.runs import maps
from tiling import ArraySource, BlockError, Grid


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
