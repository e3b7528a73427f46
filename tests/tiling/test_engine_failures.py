"""Whole runs that fail, and what runs tell of themselves."""

import logging
import os
import pickle
from itertools import islice
from uuid import uuid4

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy

import tiling
from tests.tiling.files import write_tiff
from tests.tiling.predictors import Cropping, Identity, Mixing, Raising, Small, Sparing, Spoiling, Unplaced
from tests.tiling.refusals import refused
from tests.tiling.runs import EVERYTHING, image_of, maps, run, same
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
    with pytest.raises(
        BlockError, match=r"block 11 at \(32, 48\)\.\.\(48, 64\) of array.*the device is on fire"
    ) as caught:
        tiling.segment(source, Raising(2, grid.tile, batch=1), store, executor=executor)
    # Whoever wrote the model finds the line that failed, in whatever process it did.
    notes = "".join(caught.value.__cause__.__notes__)
    assert "predictors.py" in notes
    assert "in __call__" in notes
    assert store.pending() == [11]
    computed = []
    tiling.segment(source, Identity(2, grid.tile), store, on_block=lambda r: computed.append(r.block))
    assert computed == [11]
    assert np.array_equal(maps(store)["labels"], source.values.argmax(axis=0))


def test_a_block_that_cannot_be_brought_to_the_device_is_named_and_the_others_are_finished(tmp_path):
    source, grid = spotted(), Grid.regular((64, 64), 16, 0, 16)
    predict = Unplaced(2, grid.tile)
    store = tiling.create(tmp_path / "a.zarr", source, grid, predict)
    with pytest.raises(BlockError, match=r"^block 11 at \(32, 48\)\.\.\(48, 64\) of array.*the device is full; the"):
        tiling.segment(source, predict, store)
    assert store.pending() == [11]


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


def test_of_several_blocks_that_fail_the_first_is_named_and_the_others_are_counted(tmp_path):
    values = np.zeros((2, 64, 64), np.uint8)
    values[0, [3, 20, 60], [3, 40, 10]] = 200
    source, grid = ArraySource(values), Grid.regular((64, 64), 16, 0, 16)
    store = tiling.create(tmp_path / "a.zarr", source, grid, Raising(2, grid.tile, batch=1))
    with pytest.raises(BlockError, match=r"^block 0 .*; and 2 more of 16 blocks; the others are done$"):
        tiling.segment(source, Raising(2, grid.tile, batch=1), store)
    assert store.pending() == [0, 6, 12]


# --- a device that is too small ---


class OutOfMemoryError(Exception):
    """By this name torch has one, on CUDA devices and others."""


ERRORS = [
    (RuntimeError, "CUDA out of memory. Tried to allocate 20.00 MiB"),
    (RuntimeError, "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    (OutOfMemoryError, ""),
    (MemoryError, "Unable to allocate 1 GiB"),
]


@pytest.mark.parametrize(("error", "words"), ERRORS)
def test_a_batch_that_is_too_large_is_halved_and_said_once(tmp_path, caplog, error, words):
    source, grid = ArraySource(image_of((60, 50)).values, uri=str(tmp_path)), Grid.regular((60, 50), 16, 0.4, 30)
    expected = maps(run(source, grid, Mixing(2, grid.tile), tmp_path, outputs=EVERYTHING))
    log = tmp_path / "log"
    small = Small(2, grid.tile, 8, digest=uuid4().hex, room=2, log=str(log), error=error, words=words)
    reports = []
    with caplog.at_level(logging.WARNING, "tiling"):
        store = tiling.create(tmp_path / "small.zarr", source, grid, small, outputs=EVERYTHING)
        tiling.segment(source, small, store, on_block=reports.append)
    assert same(maps(store), expected)
    # Once each on the way down, and never again.
    assert log.read_text().split()[:2] == ["8", "4"]
    assert set(log.read_text().split()[2:]) == {"2"}
    assert {r.batch for r in reports} == {2}
    said = [r.getMessage() for r in caplog.records if r.name.startswith("tiling")]
    assert said == [f"{source.uri}: no device memory for 8 tiles at a time; going on with 2"]


def test_workers_that_ask_for_fewer_tiles_have_not_run_out_of_memory(tmp_path, caplog, workers):
    source, grid = ArraySource(image_of((60, 50)).values, uri=str(tmp_path)), Grid.regular((60, 50), 16, 0.4, 30)
    predict = Sparing(2, grid.tile, 2, digest=uuid4().hex)
    store = tiling.create(tmp_path / "a.zarr", source, grid, predict)
    reports = []
    with caplog.at_level(logging.WARNING, "tiling"):
        tiling.segment(source, predict, store, executor=workers, on_block=reports.append)
    assert {(r.asked, r.batch) for r in reports} == {(1, 1)}
    assert "device memory" not in caplog.text


def test_a_device_without_room_for_one_tile_fails_with_the_fix(tmp_path):
    source, grid = image_of((32, 32)), Grid.regular((32, 32), 16, 0, 16)
    small = Small(2, grid.tile, 8, digest=uuid4().hex, room=0)
    store = tiling.create(tmp_path / "a.zarr", source, grid, small)
    with pytest.raises(BlockError, match=r"block \d .*out of memory.*; pass --device cpu, a smaller --tile"):
        tiling.segment(source, small, store)


def test_another_error_does_not_halve_the_batch(tmp_path):
    source, grid = image_of((32, 32)), Grid.regular((32, 32), 16, 0, 32)
    log = tmp_path / "log"
    small = Small(2, grid.tile, 4, digest=uuid4().hex, room=2, log=str(log), words="device-side assert triggered")
    store = tiling.create(tmp_path / "a.zarr", source, grid, small)
    with pytest.raises(BlockError, match="device-side assert"):
        tiling.segment(source, small, store)
    assert log.read_text().split() == ["4"]


# --- a source that changes ---


@pytest.mark.parametrize("how", ["rewritten", "replaced by an older one"])
@pytest.mark.parametrize("where", ["threads", "processes"])
def test_a_file_that_changes_meanwhile_stops_the_run_before_a_block_of_the_new_one(tmp_path, workers, where, how):
    old, new = (image_of((64, 64), seed).values for seed in (0, 1))
    file = write_tiff(tmp_path / "a.tif", old)
    source, grid = tiling.open(file), Grid.regular((64, 64), 16, 0, 16)
    predict = Identity(2, grid.tile)
    store = tiling.create(tmp_path / "a.zarr", source, grid, predict)

    def change(report):
        if file.stat().st_mtime_ns > 10**18:
            write_tiff(tmp_path / "b.tif", new)
            if how == "rewritten":
                file.write_bytes((tmp_path / "b.tif").read_bytes())
            else:
                os.utime(tmp_path / "b.tif", (10**9, 10**9))
                os.replace(tmp_path / "b.tif", file)

    executor = workers if where == "processes" else None
    with refused(file, "changed while it was segmented", "--fresh"):
        tiling.segment(source, predict, store, executor=executor, on_block=change)
    pending = store.pending()
    assert 0 < len(pending) < 16
    for number in set(range(16)) - set(pending):
        here = grid.block_box(number)
        assert np.array_equal(store.read(here), old[(slice(None), *here.slices)].argmax(axis=0))
    with refused("another source"):
        tiling.create(tmp_path / "a.zarr", tiling.open(file), grid, predict)


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_a_file_that_is_only_touched_meanwhile_stops_nothing(tmp_path, workers, where):
    file = write_tiff(tmp_path / "a.tif", image_of((64, 64)).values)
    source, grid = tiling.open(file), Grid.regular((64, 64), 16, 0, 16)
    store = tiling.create(tmp_path / "a.zarr", source, grid, Identity(2, grid.tile))
    executor = workers if where == "processes" else None
    tiling.segment(source, Identity(2, grid.tile), store, executor=executor, on_block=lambda _: os.utime(file))
    assert store.pending() == []
    tiling.create(tmp_path / "a.zarr", tiling.open(file), grid, Identity(2, grid.tile))


def test_a_store_is_filled_from_its_own_source_only(tmp_path):
    file = write_tiff(tmp_path / "a.tif", image_of((64, 64)).values)
    grid = Grid.regular((64, 64), 16, 0, 16)
    store = tiling.create(tmp_path / "a.zarr", tiling.open(file), grid, Identity(2, grid.tile))
    status = file.stat()
    write_tiff(file, image_of((64, 64), 1).values)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with refused(file, "changed", "--fresh"):
        tiling.run_blocks(tiling.open(file), Identity(2, grid.tile), store, [0])
    assert len(store.pending()) == 16


def test_a_run_goes_on_with_the_file_that_it_began_with(tmp_path):
    file = write_tiff(tmp_path / "a.tif", image_of((64, 64)).values)
    grid = Grid.regular((64, 64), 16, 0, 16)
    predict = Identity(2, grid.tile)
    store = tiling.create(tmp_path / "a.zarr", tiling.open(file), grid, predict)
    tiling.run_blocks(tiling.open(file), predict, store, [0, 1])
    moved = tmp_path / "elsewhere" / "a.tif"
    moved.parent.mkdir()
    file.rename(moved)
    again = tiling.create(tmp_path / "a.zarr", tiling.open(moved), grid, predict)
    tiling.segment(tiling.open(moved), predict, again)
    assert again.pending() == []


def test_an_error_survives_the_way_back_from_a_worker():
    error = pickle.loads(pickle.dumps(BlockError("block 3 failed")))
    assert str(error) == "block 3 failed"


def test_a_file_that_becomes_unreadable_stops_the_run_with_one_line(tmp_path):
    file = write_tiff(tmp_path / "a.tif", np.ones((2, 64, 64), np.uint8))
    source, grid = tiling.open(file), Grid.regular((64, 64), 16, 0, 16)
    store = tiling.create(tmp_path / "a.zarr", source, grid, Identity(2, grid.tile))
    tiling.run_blocks(source, Identity(2, grid.tile), store, [0])
    file.write_bytes(file.read_bytes()[:600])
    with refused(file, "changed while it was segmented", "again"):
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
        assert set(report.seconds) == {"read", "wait", "move", "network", "blend", "hold", "write"}
        assert all(s >= 0 for s in report.seconds.values())
    for step, total in store.seconds().items():
        assert np.isclose(total, sum(r.seconds[step] for r in reports))


@pytest.mark.parametrize("scale", [1.2, 30.0, -1.0])
@pytest.mark.parametrize("outputs", [("probability",), ("uncertainty",)])
def test_scores_that_are_no_probabilities_name_the_block(tmp_path, scale, outputs):
    values = np.random.default_rng(0).random((3, 32, 32)).astype(np.float32)
    values[:, 20, 5] *= scale
    values[0, 20, 5] = scale
    source, grid = ArraySource(values), Grid.regular((32, 32), 16, 0, 16)
    predict = Identity(3, grid.tile, batch=1)
    store = tiling.create(tmp_path / "a.zarr", source, grid, predict, outputs=outputs)
    with pytest.raises(BlockError, match=r"^block 2 at \(16, 0\)\.\.\(32, 16\) of .*no probabilities; let it say that"):
        tiling.segment(source, predict, store)
    assert store.pending() == [2]
    # Which class has the largest score needs no probabilities.
    plain = tiling.create(tmp_path / "b.zarr", source, grid, predict)
    tiling.segment(source, predict, plain)
    assert np.array_equal(maps(plain)["labels"], values.argmax(axis=0))


@pytest.mark.parametrize("kind", ["arrays", "tensors"])
def test_logits_become_probabilities(tmp_path, kind):
    torch = pytest.importorskip("torch")

    class Tensors(Identity):
        def place(self, values, valid):
            return torch.from_numpy(values).float()

    values = np.random.default_rng(0).normal(0, 4, (3, 40, 40)).astype(np.float32)
    grid = Grid.regular((40, 40), 16, 0.5, 24)
    model = (Tensors if kind == "tensors" else Identity)(3, grid.tile, logits=True)
    found = maps(run(ArraySource(values), grid, model, tmp_path, outputs=EVERYTHING))
    expected = softmax(values.astype(np.float64), axis=0)
    assert np.array_equal(found["labels"], values.argmax(axis=0))
    assert np.abs(found["probability"] - 254 * expected).max() <= 0.501
    entropy = scipy_entropy(expected, axis=0) / np.log(3)
    assert np.abs(found["uncertainty"] - 254 * entropy).max() <= 0.51
