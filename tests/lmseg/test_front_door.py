"""`import lmseg`: every name it has, from an image to a label map."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

import lmseg


def test_importing_it_loads_no_libraries() -> None:
    code = "import sys, lmseg; print([m for m in ('torch', 'rasterio', 'zarr', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_is_there() -> None:
    assert all(hasattr(lmseg, name) for name in lmseg.__all__)
    assert dir(lmseg) == lmseg.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lmseg.nothing  # noqa: B018  # looked up for its error


def test_a_scene_from_file_to_file(scene: Path, tmp_path: Path) -> None:
    image = lmseg.open(scene)
    model = lmseg.Predictor.from_pretrained("land-cover-tiny")
    grid = lmseg.Grid.regular(image.space.shape, tile=256, overlap=0.25, block=512)
    assert isinstance(lmseg.plan(image, grid, model), lmseg.Plan)
    store = lmseg.create(tmp_path / "scene.zarr", image, grid, model)
    lmseg.segment(image, model, store)
    lmseg.export(store, tmp_path / "labels.tif")
    assert all(check.passed for check in lmseg.verify(store, image, [tmp_path / "labels.tif"]))
    with rasterio.open(tmp_path / "labels.tif") as labels, rasterio.open(scene) as source:
        assert labels.transform == source.transform
        assert len(np.unique(labels.read(1))) > 1
