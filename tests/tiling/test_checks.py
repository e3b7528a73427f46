"""Looking at a finished run."""

import nibabel
import numpy as np
import pytest
import rasterio

import tiling
from tests.tiling.files import AFFINES, NORTH_UP, TRANSFORMS, write_tiff, write_volume
from tests.tiling.predictors import Identity
from tiling import Box, Grid


def finished(folder, source, part=None):
    grid = Grid.regular(source.space.shape, 8, 0.25, 30, part)
    predict = Identity(source.channels, grid.tile)
    store = tiling.create(folder / "run.zarr", source, grid, predict)
    tiling.segment(source, predict, store)
    return store


def raster(folder, transform=NORTH_UP, crs="EPSG:32633"):
    values = np.random.default_rng(0).integers(0, 99, (2, 60, 50)).astype(np.uint8)
    return tiling.open(write_tiff(folder / "a.tif", values, transform=transform, crs=crs))


def outcome(store, source, *files):
    return {c.name: c.passed for c in tiling.verify(store, source, files)}


PARTS = [None, Box((9, 0), (33, 30)), Box((0, 0), (20, 20))]


LAEA = "+proj=laea +lat_0=47 +lon_0=12.5 +ellps=GRS80 +units=m"


@pytest.mark.parametrize(
    ("name", "part", "crs"),
    [*((n, p, "EPSG:32633") for n in TRANSFORMS for p in PARTS), ("north-up", PARTS[1], None), ("sheared", None, LAEA)],
)
def test_a_finished_raster_passes(tmp_path, name, part, crs):
    source = raster(tmp_path, TRANSFORMS[name], crs)
    store = finished(tmp_path, source, part)
    files = tiling.export(store, tmp_path / "labels.tif")
    assert outcome(store, source, files[0]) == {
        "complete": True,
        "intact": True,
        "source geometry": True,
        "export labels.tif": True,
    }


@pytest.mark.parametrize("units", ["mm", "meter", "micron"])
@pytest.mark.parametrize(
    ("forms", "part"),
    [
        ("both", None),
        ("both", Box((2, 3, 1), (9, 8, 7))),
        ("sform", Box((2, 3, 1), (9, 8, 7))),
        ("qform", Box((2, 3, 1), (9, 8, 7))),
        ("neither", None),
        ("neither", Box((0, 0, 0), (9, 9, 9))),
    ],
)
def test_a_finished_volume_passes(tmp_path, forms, part, units):
    values = np.random.default_rng(0).integers(0, 9, (9, 10, 11)).astype(np.uint8)
    source = tiling.open(write_volume(tmp_path / "a.nii", values, AFFINES["oblique"], forms=forms, units=units))
    store = finished(tmp_path, source, part)
    files = tiling.export(store, tmp_path / "seg.nii.gz")
    assert [c for c in tiling.verify(store, source, [files[0]]) if not c.passed] == []


@pytest.mark.parametrize("form", ["qform", "sform"])
@pytest.mark.parametrize("part", [None, Box((2, 3, 1), (9, 8, 7))])
def test_a_volume_whose_forms_disagree_passes_by_the_chosen_one(tmp_path, form, part):
    values = np.random.default_rng(0).integers(0, 9, (9, 10, 11)).astype(np.uint8)
    image = nibabel.Nifti1Image(values, None)
    image.header.set_qform(AFFINES["oblique"], code=1)
    image.header.set_sform(AFFINES["LPS"], code=2)
    nibabel.save(nibabel.Nifti1Image(values, None, image.header), tmp_path / "a.nii")
    source = tiling.open(tmp_path / "a.nii", form=form)
    store = finished(tmp_path, source, part)
    files = tiling.export(store, tmp_path / "seg.nii.gz")
    assert [c for c in tiling.verify(store, source, [files[0]]) if not c.passed] == []


def test_missing_blocks_are_told(tmp_path):
    source = raster(tmp_path)
    store = finished(tmp_path, source)
    store.forget([2])
    complete = tiling.verify(store, source)[0]
    assert not complete.passed
    assert complete.detail == "3 of 4 blocks done; the first missing one is 2"


def test_a_source_that_is_gone_or_moved_is_told(tmp_path):
    source = raster(tmp_path)
    store = finished(tmp_path, source)
    assert not outcome(store, None)["source geometry"]
    assert not outcome(store, raster(tmp_path, TRANSFORMS["rotated"]))["source geometry"]


@pytest.mark.parametrize("harm", ["moved", "relabelled", "truncated", "gone", "another crs", "another size"])
def test_an_export_that_is_not_the_store_s_is_told(tmp_path, harm):
    source = raster(tmp_path)
    store = finished(tmp_path, source)
    (file, _) = tiling.export(store, tmp_path / "labels.tif")
    labels = store.read(Box.whole((60, 50)))
    if harm == "moved":
        write_tiff(file, labels[None], transform=TRANSFORMS["south-up"])
    elif harm == "relabelled":
        labels[59, 49] ^= 1
        write_tiff(file, labels[None])
    elif harm == "truncated":
        file.write_bytes(file.read_bytes()[:-200])
    elif harm == "gone":
        file.unlink()
    elif harm == "another crs":
        write_tiff(file, labels[None], crs="EPSG:32634")
    else:
        write_tiff(file, labels[None, :-1])
    checks = {c.name: c for c in tiling.verify(store, source, [file])}
    assert not checks["export labels.tif"].passed
    assert "\n" not in checks["export labels.tif"].detail


@pytest.mark.parametrize("harm", ["moved", "relabelled", "truncated", "another size"])
def test_a_volume_export_that_is_not_the_store_s_is_told(tmp_path, harm):
    values = np.random.default_rng(0).integers(0, 9, (9, 10, 11)).astype(np.uint8)
    source = tiling.open(write_volume(tmp_path / "a.nii", values))
    store = finished(tmp_path, source)
    file = tiling.export(store, tmp_path / "seg.nii.gz")[0]
    labels = store.read(Box.whole((11, 10, 9))).T.copy()
    if harm == "moved":
        write_volume(file, labels, AFFINES["LPS"])
    elif harm == "relabelled":
        labels[8, 9, 10] += 1
        write_volume(file, labels)
    elif harm == "truncated":
        file.write_bytes(file.read_bytes()[:-30])
    else:
        write_volume(file, labels[1:])
    checks = {c.name: c for c in tiling.verify(store, source, [file])}
    assert not checks["export seg.nii.gz"].passed


def test_a_raster_s_export_is_the_store_bit_for_bit(tmp_path):
    source = raster(tmp_path)
    store = finished(tmp_path, source)
    (file, _) = tiling.export(store, tmp_path / "labels.tif")
    with rasterio.open(file) as image:
        assert np.array_equal(image.read(1), store.read(Box.whole((60, 50))))
