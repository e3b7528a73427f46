"""What label maps say about themselves, and the bytes they are compared as."""

from pathlib import Path

import numpy as np
import pytest

import tiling
from flows.evaluation.labels import LabelMap
from tests.flows.conftest import Cli
from tests.tiling.files import write_tiff, write_volume
from tests.tiling.predictors import Mixing
from tests.tiling.runs import image_of
from tiling import Box, InputError


@pytest.mark.parametrize(("shape", "name"), [((40, 48), "labels.tif"), ((20, 24, 22), "case_seg.nii.gz")])
def test_exports_keep_names_and_colours(tmp_path: Path, shape: tuple[int, ...], name: str) -> None:
    values = np.random.default_rng(0).integers(0, 255, (1, *shape)).astype(np.uint8)
    file = (
        write_volume(tmp_path / "a.nii.gz", values[0].T) if len(shape) == 3 else write_tiff(tmp_path / "a.tif", values)
    )
    source = tiling.open(file)
    model = Mixing(1, (16,) * len(shape))
    grid = tiling.Grid.regular(shape, tile=16, overlap=0.25, block=64)
    store = tiling.create(tmp_path / "a.zarr", source, grid, model)
    tiling.segment(source, model, store)
    tiling.export(store, tmp_path / name)
    exported, stored = LabelMap.open(str(tmp_path / name)), LabelMap.open(store.path)
    assert exported.classes is not None
    assert stored.classes is not None
    assert [(c.value, c.name, c.color) for c in exported.classes] == [
        (c.value, c.name, c.color) for c in stored.classes
    ]
    np.testing.assert_array_equal(exported.read(Box.whole(shape)), stored.read(Box.whole(shape)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_nodata_and_ignored_values_become_255(tmp_path: Path, dtype: type) -> None:
    values = np.array([[[0, 1, 2], [9, 255, 5]]], dtype)
    labels = LabelMap.open(str(write_tiff(tmp_path / "a.tif", values, nodata=9)))
    assert labels.classes is None
    read = labels.read(Box.whole((2, 3)), ignore=2)
    assert read.dtype == np.uint8
    assert read.tolist() == [[0, 1, 255], [255, 255, 5]]


def test_bands_and_damaged_names_are_refused(tmp_path: Path) -> None:
    several = write_tiff(tmp_path / "rgb.tif", np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(InputError, match="several bands"):
        LabelMap.open(str(several))
    one = write_tiff(tmp_path / "one.tif", np.zeros((1, 4, 4), np.uint8))
    Path(f"{one}.aux.xml").write_text("<PAMDataset><PAM")
    with pytest.raises(InputError, match="is damaged"):
        LabelMap.open(str(one))


def test_unfinished_runs_are_refused(cli: Cli, tmp_path: Path) -> None:
    source = image_of((96, 80))
    grid = tiling.Grid.regular((96, 80), tile=32, overlap=0.25, block=64)
    store = tiling.create(tmp_path / "run.zarr", source, grid, Mixing(2, (32, 32)))
    code, _, err = cli("evaluate", store.path, store.path)
    assert code == 2
    assert "still lacks 4 of 4 blocks" in err
