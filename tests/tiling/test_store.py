"""The record of a run."""

import json
import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

import tiling
from tests.tiling.files import NORTH_UP, TRANSFORMS, UTM
from tests.tiling.predictors import Identity, Mixing
from tests.tiling.refusals import refused
from tests.tiling.strategies import grids
from tiling import ArraySource, Box, Grid
from tiling.area import Area
from tiling.store import remove

SHAPE = (60, 50)
PREDICT = Identity(2, (16, 16))
GRID = Grid.regular(SHAPE, 16, 0.25, 20)


def source_of(transform=NORTH_UP, crs=UTM, shape=SHAPE, seed=0) -> ArraySource:
    rows = (tuple(transform[:3]), tuple(transform[3:6]))
    space = tiling.Space(shape, rows, CRS.from_user_input(crs).to_wkt() if crs else "")
    return ArraySource(np.random.default_rng(seed).integers(0, 99, (2, *shape)).astype(np.uint8), space)


def test_a_store_can_be_opened_again_and_sent_to_workers(tmp_path):
    store = tiling.create(tmp_path / "a.zarr", source_of(), GRID, PREDICT, outputs=("probability",))
    assert tiling.open_store(tmp_path / "a.zarr") == store
    sent = pickle.dumps(store)
    assert pickle.loads(sent) == store
    assert len(sent) < 10_000


def test_a_path_is_kept_whole_so_that_workers_elsewhere_find_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tiling.create("a.zarr", source_of(), GRID, PREDICT).path == str(tmp_path / "a.zarr")


def test_a_new_store_is_all_nodata_and_all_pending(tmp_path):
    store = tiling.create(tmp_path / "a.zarr", source_of(), GRID, PREDICT, outputs=("probability", "uncertainty"))
    whole = Box.whole(SHAPE)
    assert (store.read(whole) == 255).all()
    assert store.read(whole, "probability").shape == (2, *SHAPE)
    assert (store.read(whole, "uncertainty") == 255).all()
    assert store.pending() == list(range(GRID.n_blocks))
    assert store.counts().shape == (GRID.n_blocks, 2 + 3)


def test_a_store_of_another_version_is_refused_and_can_be_replaced(tmp_path):
    path = tmp_path / "a.zarr"
    tiling.create(path, source_of(), GRID, PREDICT)
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["lmseg"]["layout"] = 2
    (path / "zarr.json").write_text(json.dumps(root))
    (path / "record" / "sums.txt").unlink()  # which stores had not then
    for use in (tiling.open_store, lambda p: tiling.create(p, source_of(), GRID, PREDICT)):
        with refused(str(path), "another version of lmseg", "--fresh"):
            use(path)
    remove(path)
    assert tiling.create(path, source_of(), GRID, PREDICT).pending() == list(range(GRID.n_blocks))


def test_another_store_at_the_same_place_is_written_in_its_own_chunks(tmp_path):
    for block in (20, 30):
        grid = Grid.regular(SHAPE, 16, 0.25, block)
        store = tiling.create(tmp_path / "a.zarr", source_of(), grid, PREDICT)
        tiling.segment(source_of(), PREDICT, store)
        assert store.array("labels").chunks == (block, block)
        assert store.pending() == []
        assert store.counts()[:, :3].sum() == SHAPE[0] * SHAPE[1]
        shutil.rmtree(store.path)  # not by us, so that nothing here hears of it


@settings(max_examples=25)
@given(grids(), st.booleans())
def test_no_two_blocks_share_a_chunk_or_shard(tmp_path_factory, grid, more):
    source = ArraySource(np.zeros((2, *grid.shape), np.uint8))
    outputs = ("probability", "uncertainty") if more else ()
    path = tmp_path_factory.mktemp("s") / "a.zarr"
    store = tiling.create(path, source, grid, Identity(2, grid.tile), outputs=outputs)
    for name in ("labels", *outputs):
        array = store.array(name)
        unit = (array.shards or array.chunks)[-len(grid.axes) :]
        owners: dict[tuple, int] = {}
        for number, block in enumerate(grid.blocks()):
            here = block.relative(grid.area.start)
            low = [a // u for a, u in zip(here.start, unit, strict=True)]
            high = [-(-b // u) for b, u in zip(here.stop, unit, strict=True)]
            for unit_index in np.ndindex(*[h - w for h, w in zip(high, low, strict=True)]):
                key = tuple(w + i for w, i in zip(low, unit_index, strict=True))
                assert owners.setdefault(key, number) == number


def test_counts_add_up_to_the_area_and_to_the_labels(tmp_path):
    area = Area(Box((5, 7), (55, 48)))
    grid = Grid.regular(SHAPE, 16, 0.25, 20, area.box)
    store = tiling.create(tmp_path / "a.zarr", source_of(), grid, PREDICT, area=area)
    tiling.segment(source_of(), PREDICT, store)
    counts = store.counts()
    labels = store.read(Box.whole(area.box.shape))
    assert counts[:, :3].sum() == area.box.size
    assert counts[:, :2].sum(axis=0).tolist() == [(labels == k).sum() for k in range(2)]
    for number, block in enumerate(grid.blocks()):
        here = labels[block.relative(area.box.start).slices]
        assert counts[number, :2].tolist() == [(here == k).sum() for k in range(2)]
    assert counts[:, -1].sum() == grid.n_tiles


# --- resuming ---


def test_a_run_of_the_same_thing_gets_the_earlier_grid_and_blocks(tmp_path):
    store = tiling.create(tmp_path / "a.zarr", source_of(), GRID, PREDICT)
    tiling.run_blocks(source_of(), PREDICT, store, [0, 3])
    again = tiling.create(tmp_path / "a.zarr", source_of(), Grid.regular(SHAPE, 16, 0.25, 33), PREDICT)
    assert again == store
    assert again.grid == GRID
    assert 0 not in again.pending()
    assert 3 not in again.pending()
    assert len(again.pending()) == GRID.n_blocks - 2


AREA = Area(Box((0, 0), (30, 30)))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"source": source_of(seed=1)}, "another source"),
        ({"source": source_of(TRANSFORMS["south-up"])}, "another source"),
        ({"predict": replace(PREDICT, digest="other weights")}, "another model"),
        ({"grid": Grid.regular(SHAPE, 12, 0.25)}, "another tiles"),
        ({"grid": Grid.regular(SHAPE, 16, 0.5)}, "another tiles"),
        ({"grid": Grid.regular(SHAPE, 16, 0.25, area=AREA.box), "area": AREA}, "another area"),
        ({"area": Area(GRID.area, ('{"type": "Polygon", "coordinates": []}',))}, "another area"),
        ({"outputs": ("probability",)}, "another outputs"),
        ({"source": source_of(seed=1), "outputs": ("uncertainty",)}, "another source and outputs"),
    ],
)
def test_a_run_of_something_else_is_refused_with_what_differs(tmp_path, change, word):
    usual = {"source": source_of(), "grid": GRID, "predict": PREDICT}
    tiling.create(tmp_path / "a.zarr", **usual)
    with refused(tmp_path / "a.zarr", word, "--fresh"):
        tiling.create(tmp_path / "a.zarr", **(usual | change))


def test_outputs_may_be_named_in_any_order(tmp_path):
    a = tiling.create(tmp_path / "a.zarr", source_of(), GRID, PREDICT, outputs=("probability", "uncertainty"))
    assert tiling.create(tmp_path / "a.zarr", source_of(), GRID, PREDICT, outputs=("uncertainty", "probability")) == a


def test_blocks_made_under_other_conditions_are_pending(tmp_path):
    store = tiling.create(tmp_path / "a.zarr", source_of(), GRID, PREDICT)
    tiling.segment(source_of(), PREDICT, store)
    assert replace(store, identity="other").pending() == list(range(GRID.n_blocks))
    digests = {store.digest(b) for b in GRID.blocks()}
    assert len(digests) == GRID.n_blocks


# --- what is not ours ---


def test_a_folder_with_something_else_is_neither_used_nor_removed(tmp_path):
    (tmp_path / "holiday.jpg").write_text("me")
    with refused(tmp_path):
        tiling.create(tmp_path, source_of(), GRID, PREDICT)
    with refused(tmp_path, "left alone"):
        remove(tmp_path)
    with refused(tmp_path, "no store of a run"):
        tiling.open_store(tmp_path)
    assert (tmp_path / "holiday.jpg").read_text() == "me"


def test_somebody_s_zarr_is_neither_used_nor_removed(tmp_path):
    group = zarr.create_group(tmp_path / "theirs.zarr")
    group.create_array("labels", data=np.arange(5))
    group.attrs["mine"] = True
    with refused("theirs.zarr"):
        tiling.create(tmp_path / "theirs.zarr", source_of(), GRID, PREDICT)
    with refused("theirs.zarr", "left alone"):
        remove(tmp_path / "theirs.zarr")
    assert zarr.open_group(tmp_path / "theirs.zarr")["labels"][:].tolist() == [0, 1, 2, 3, 4]


def test_a_file_in_place_of_the_store_is_neither_used_nor_removed(tmp_path):
    file = tmp_path / "a.zarr"
    file.write_text("me")
    with refused(file):
        tiling.create(file, source_of(), GRID, PREDICT)
    with refused(file, "left alone"):
        remove(file)
    assert file.read_text() == "me"


def test_a_store_is_removed_and_can_be_made_again(tmp_path):
    path = tmp_path / "a.zarr"
    remove(path)
    tiling.segment(source_of(), PREDICT, tiling.create(path, source_of(), GRID, PREDICT))
    remove(path)
    assert not path.exists()
    other = Mixing(2, (16, 16))
    store = tiling.create(path, source_of(), GRID, other)
    assert store.pending() == list(range(GRID.n_blocks))
    tiling.segment(source_of(), other, store)
    assert store.pending() == []


def test_an_empty_folder_may_be_used_or_removed(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    tiling.create(tmp_path / "a.zarr", source_of(), GRID, PREDICT)
    (tmp_path / "b.zarr").mkdir()
    remove(tmp_path / "b.zarr")
    assert not (tmp_path / "b.zarr").exists()


def test_a_folder_that_cannot_be_made_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with refused(tmp_path / "file" / "a.zarr", "cannot be written", "another output folder"):
        tiling.create(tmp_path / "file" / "a.zarr", source_of(), GRID, PREDICT)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"attributes": {}}', '{"attributes": {"lmseg": null}}'])
def test_a_damaged_root_is_refused(tmp_path, content):
    tiling.create(tmp_path / "a.zarr", source_of(), GRID, PREDICT)
    (tmp_path / "a.zarr" / "zarr.json").write_text(content)
    with refused("a.zarr", "is damaged: zarr.json is not what was written", "--fresh"):
        tiling.open_store(tmp_path / "a.zarr")


def test_attributes_are_plain_json(tmp_path):
    tiling.create(tmp_path / "a.zarr", source_of(), GRID, PREDICT)
    attributes = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"]["lmseg"]
    assert {"uri", "space", "area", "grid", "classes", "outputs", "made_from"} <= attributes.keys()


# --- GDAL ---


@pytest.mark.parametrize("name", ["north-up", "unround", "south-up"])
@pytest.mark.parametrize("part", [None, Box((7, 11), (49, 40))])
def test_coordinates_beside_the_labels_are_pixel_centres_and_name_the_crs(tmp_path, name, part):
    source = source_of(TRANSFORMS[name])
    grid = Grid.regular(SHAPE, 16, 0.25, 20, part)
    store = tiling.create(tmp_path / "a.zarr", source, grid, PREDICT)
    x, y = (np.asarray(store.array(n)[:]) for n in "xy")
    (row, column), (height, width) = grid.area.start, grid.area.shape
    assert np.allclose(x, [(TRANSFORMS[name] @ (column + i + 0.5, 0))[0] for i in range(width)], rtol=1e-14)
    assert np.allclose(y, [(TRANSFORMS[name] @ (0, row + i + 0.5))[1] for i in range(height)], rtol=1e-14)
    labels = store.array("labels")
    assert labels.metadata.dimension_names == ("y", "x")
    assert CRS.from_wkt(labels.attrs["_CRS"]["wkt"]) == CRS.from_user_input(UTM)


def test_a_rotated_image_has_no_coordinates_of_rows_and_columns(tmp_path):
    store = tiling.create(tmp_path / "a.zarr", source_of(TRANSFORMS["rotated"], crs=None), GRID, PREDICT)
    assert not (tmp_path / "a.zarr" / "x").exists()
    assert "_CRS" not in store.array("labels").attrs


@pytest.mark.parametrize("name", ["north-up", "unround", "south-up"])
@pytest.mark.parametrize("part", [None, Box((7, 11), (49, 40))])
def test_gdal_opens_the_labels_where_the_image_lies(tmp_path, name, part):
    with rasterio.Env() as environment:
        if "Zarr" not in environment.drivers():
            pytest.skip("this GDAL has no Zarr driver")
    source = source_of(TRANSFORMS[name])
    grid = Grid.regular(SHAPE, 16, 0.25, 20, part)
    store = tiling.create(tmp_path / "a.zarr", source, grid, PREDICT)
    tiling.segment(source, PREDICT, store)
    try:
        image = rasterio.open(f'ZARR:"{store.path}":/labels')
    except rasterio.errors.RasterioIOError as error:
        if "Unsupported codec" not in str(error):
            raise
        pytest.skip(f"GDAL {rasterio.__gdal_version__} reads no Zarr 3 of today: {error}")
    with image:
        assert image.crs == CRS.from_user_input(UTM)
        expected = np.array(store.out_space.affine).ravel()
        assert np.allclose(image.transform[:6], expected, rtol=1e-9, atol=1e-9)
        assert image.nodata == 255
        assert np.array_equal(image.read(1), store.read(Box.whole(store.area.box.shape)))


@pytest.mark.skipif(shutil.which("gdalinfo") is None, reason="gdalinfo is not installed")
def test_the_command_line_of_gdal_opens_it_too(tmp_path):
    import subprocess

    store = tiling.create(tmp_path / "a.zarr", source_of(), GRID, PREDICT)
    done = subprocess.run(
        ["gdalinfo", "-json", f'ZARR:"{store.path}":/labels'], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this gdalinfo reads no Zarr 3: {done.stderr.strip()[:80]}")
    said = json.loads(done.stdout)
    assert said["size"] == [50, 60]
    assert np.allclose(said["geoTransform"], NORTH_UP.to_gdal())
