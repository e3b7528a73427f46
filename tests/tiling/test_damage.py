"""Stores that lose or change some of their bytes."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio

import tiling
from tests.tiling.predictors import Mixing
from tests.tiling.refusals import refused
from tests.tiling.runs import EVERYTHING, image_of, maps, run, same
from tiling import ArraySource, Box, Grid, InputError, OutputError
from tiling.damage import Damage, check_finished, damaged, unchanged
from tiling.store import remove

GRIDS = {2: Grid.regular((90, 70), 16, 0.4, (30, 40)), 3: Grid.regular((20, 18, 22), 8, 0.25, (10, 9, 22))}
BLOCK = {2: 3, 3: 2}  # the last of its row: its chunks reach over the image's edge


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of each dimension, to be copied and harmed."""
    made = {}
    for ndim, grid in GRIDS.items():
        source, predict = image_of(grid.shape), Mixing(2, grid.tile)
        made[ndim] = source, predict, run(source, grid, predict, tmp_path_factory.mktemp("run"), outputs=EVERYTHING)
    return made


def row_file(store, number):
    return Path(store.path) / "record" / "c" / f"{number}" / "0"


def harm(file, how) -> None:
    content = bytearray(file.read_bytes())
    if how == "deleted":
        file.unlink()
        return
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "emptied":
        content.clear()
    elif how == "a bit flipped":
        content[len(content) // 2] ^= 16
    else:
        content = bytearray(b"\0" * len(content))
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["deleted", "truncated", "emptied", "a bit flipped", "zeroed"])
@pytest.mark.parametrize("name", ["labels", "probability", "uncertainty", "record"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_damage_is_named_and_only_its_block_computed_again(finished, tmp_path, ndim, name, how):
    source, predict, whole = finished[ndim]
    shutil.copytree(whole.path, tmp_path / "a.zarr")
    store, number = tiling.open_store(tmp_path / "a.zarr"), BLOCK[ndim]
    files = [*store.files(name, number)] if name in store.maps else [row_file(store, number)]
    harm(files[-1], how)
    checks = {c.name: c for c in tiling.verify(store, source)}
    if name == "record" and how != "a bit flipped":
        assert f"the first missing one is {number}" in checks["complete"].detail
        assert [*damaged(store)] == []
    else:
        assert [*damaged(store)] == [Damage(number, (name,))]
        assert f"block {number} is damaged in {name}; run lmseg segment" in checks["intact"].detail
    assert not all(c.passed for c in checks.values())
    computed = []
    tiling.segment(source, predict, store, on_block=lambda r: computed.append(r.block))
    assert computed == [number]
    assert same(maps(store), maps(whole))
    assert np.array_equal(store.counts(), whole.counts())
    assert all(c.passed for c in tiling.verify(store, source))


def test_a_block_without_an_answer_has_no_file_and_is_not_damaged(tmp_path):
    values = image_of((40, 40)).values
    values[:, :20] = 7
    source, grid = ArraySource(values, nodata=7), Grid.regular((40, 40), 8, 0.25, 20)
    store = run(source, grid, Mixing(2, (8, 8)), tmp_path)
    files = [*store.files("labels", 0)]
    assert not any(file.exists() for file in files)
    assert [*damaged(store)] == []
    shutil.copytree(files[0].parents[1] / "1", files[0].parent)
    assert [*damaged(store)] == [Damage(0, ("labels",)), Damage(1, ("labels",))]
    tiling.segment(source, Mixing(2, (8, 8)), store)
    assert (store.read(Box((0, 0), (20, 40))) == 255).all()
    assert [*damaged(store)] == []


def test_several_arrays_and_blocks_are_all_named(finished, tmp_path):
    source, _, whole = finished[2]
    shutil.copytree(whole.path, tmp_path / "a.zarr")
    store = tiling.open_store(tmp_path / "a.zarr")
    for name in ("labels", "probability"):
        shutil.rmtree(tmp_path / "a.zarr" / name / "c")
    found = [*damaged(store)]
    assert found == [Damage(n, ("labels", "probability")) for n in range(store.grid.n_blocks)]
    (intact,) = (c for c in tiling.verify(store, source) if c.name == "intact")
    assert "block 0 is damaged in labels and probability; block 1" in intact.detail
    assert f"and {store.grid.n_blocks - 5} more" in intact.detail


def test_any_bit_of_a_row_is_seen(finished, tmp_path):
    *_, whole = finished[2]
    shutil.copytree(whole.path, tmp_path / "a.zarr")
    store = tiling.open_store(tmp_path / "a.zarr")
    file = row_file(store, 1)
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert store.pending() == [1] or [*damaged(store)] == [Damage(1, ("record",))]


def test_reading_what_is_damaged_is_one_line(finished, tmp_path):
    shutil.copytree(finished[2][2].path, tmp_path / "a.zarr")
    store = tiling.open_store(tmp_path / "a.zarr")
    harm(next(store.files("labels", 0)), "truncated")
    with refused(store.path, "labels", "run lmseg segment again"):
        store.read(Box.whole((90, 70)))


# --- stores that are written while they are read ---


def replaced(store, source, predict) -> None:
    remove(store.path)


def replaced_by_a_new_one(store, source, predict) -> None:
    remove(store.path)
    tiling.create(store.path, source, store.grid, predict, outputs=EVERYTHING)


def replaced_by_an_equal_one(store, source, predict) -> None:
    replaced_by_a_new_one(store, source, predict)
    tiling.segment(source, predict, tiling.open_store(store.path))


def computed_again(store, source, predict) -> None:
    store.forget([1])
    tiling.segment(source, predict, store)


CHANGES = [replaced, replaced_by_a_new_one, replaced_by_an_equal_one, computed_again]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_store_that_is_written_while_it_is_read_is_given_up(finished, tmp_path, ndim, change):
    source, predict, whole = finished[ndim]
    shutil.copytree(whole.path, tmp_path / "a.zarr")
    store = tiling.open_store(tmp_path / "a.zarr")
    ledger = check_finished(store, store.maps)
    with unchanged(store, ledger):
        maps(store)

    def read_meanwhile() -> None:
        with unchanged(store, ledger):
            change(store, source, predict)
            maps(store)

    with pytest.raises(OutputError, match=r"a\.zarr was written or replaced while it was read"):
        read_meanwhile()


def test_an_export_beside_fresh_runs_is_whole_or_nothing(tmp_path):
    """Runs replace a store again and again, while it is exported again and again."""
    source, predict = image_of((256, 256)), Mixing(2, (16, 16))
    grid = Grid.regular((256, 256), 16, 0.25, 64)
    good = maps(run(source, grid, predict, tmp_path))["labels"]
    ended, path, out = threading.Event(), tmp_path / "run.zarr", tmp_path / "a.tif"

    def replace() -> None:
        for _ in range(4):
            remove(path)
            run(source, grid, predict, tmp_path)
        ended.set()

    writer = threading.Thread(target=replace)
    writer.start()
    while not ended.is_set():
        try:
            tiling.export(tiling.open_store(path), out)
        except (InputError, OutputError):
            assert not out.exists()
        else:
            with rasterio.open(out) as image:
                assert np.array_equal(image.read(1), good)
            out.unlink()
    writer.join()
    tiling.export(tiling.open_store(path), out)
