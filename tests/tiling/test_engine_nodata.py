"""What a pixel is labelled in whole runs: 255 where data is missing or not asked for, else a class of the model."""

import json
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import geometry_mask

import tiling
from tests.tiling.files import NORTH_UP, UTM, write_tiff, write_volume
from tests.tiling.predictors import Constant, Identity, Mixing, Picture
from tests.tiling.runs import EVERYTHING, image_of, maps, one_hot, run
from tiling import ArraySource, Grid


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
