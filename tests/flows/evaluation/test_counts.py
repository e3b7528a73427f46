"""Outlines against distance transforms of whole arrays and SimpleITK, and in what they are measured."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from rasterio.transform import Affine
from scipy import ndimage

import tiling
from tests.flows.conftest import Cli
from tests.flows.evaluation.conftest import Pair
from tests.flows.evaluation.label_maps import PLACE, scores_of, write_labels, write_run
from tests.tiling.files import write_volume


def test_streamed_outlines_equal_those_of_the_whole(cli: Cli, pair: Pair) -> None:
    """Pieces of 2048 rows against distance transforms of all 5000, at two pixels of 10 m."""
    p_path, t_path, p, t = pair
    scores = scores_of(cli, p_path, t_path)
    assert (scores["tolerance"], scores["unit"]) == (20, "m")
    known = (p != 255) & (t != 255)
    cross = ndimage.generate_binary_structure(2, 1)
    for c in scores["classes"]:
        a, b = (
            m & ~ndimage.binary_erosion(m | ~known, cross, border_value=1)
            for m in ((p == c["value"]) & known, (t == c["value"]) & known)
        )
        to_b, to_a = (10 * ndimage.distance_transform_edt(~s) for s in (b, a))
        precision, recall = (to_b[a] <= 20).mean(), (to_a[b] <= 20).mean()
        assert c["boundary_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
        assert c["nsd"] == pytest.approx(((to_b[a] <= 20).sum() + (to_a[b] <= 20).sum()) / (a.sum() + b.sum()))
        assert c["hd95"] == pytest.approx(max(np.percentile(to_b[a], 95), np.percentile(to_a[b], 95)))
    wider = scores_of(cli, p_path, t_path, "--tolerance", 35)
    assert wider["tolerance"] == 35
    assert wider["boundary_f1"] > scores["boundary_f1"]


@pytest.mark.parametrize(
    ("crs", "tolerance", "unit"),
    [("EPSG:32618", 20.0, "m"), ("EPSG:4326", 2.0, "px"), (None, 0.0075 * np.hypot(80, 60), "px")],
)
def test_units_follow_the_reference_system(
    cli: Cli, tmp_path: Path, crs: str | None, tolerance: float, unit: str
) -> None:
    labels = np.zeros((80, 60), np.uint8)
    labels[10:40, 10:40] = 1
    place = Affine(1e-4, 0, 10, 0, -1e-4, 50) if crs == "EPSG:4326" else PLACE
    t = write_labels(tmp_path / "t.tif", labels, place, crs=crs)
    p = write_labels(tmp_path / "p.tif", np.roll(labels, 3, axis=1), place, crs=crs)
    scores = scores_of(cli, p, t)
    assert (scores["tolerance"], scores["unit"]) == (pytest.approx(tolerance), unit)
    assert scores["classes"][1]["hd95"] == (30 if unit == "m" else 3)


def test_volumes_are_measured_in_millimetres(cli: Cli, tmp_path: Path) -> None:
    """Dice and Hausdorff against SimpleITK, with slices three times as thick as pixels."""
    place = np.diag([1.0, 1.0, 3.0, 1.0])
    truth = np.zeros((30, 32, 12), np.uint8)
    truth[8:20, 8:22, 3:9] = 1
    moved = np.roll(truth, 1, axis=2)
    p, t = write_volume(tmp_path / "p.nii.gz", moved, place), write_volume(tmp_path / "t.nii.gz", truth, place)
    scores = scores_of(cli, p, t)
    images = [sitk.ReadImage(str(f)) for f in (t, p)]
    overlap, distance = sitk.LabelOverlapMeasuresImageFilter(), sitk.HausdorffDistanceImageFilter()
    overlap.Execute(*images)
    distance.Execute(*images)
    organ = scores["classes"][1]
    assert organ["dice"] == pytest.approx(overlap.GetDiceCoefficient(1))
    assert organ["hd95"] == pytest.approx(distance.GetHausdorffDistance()) == 3
    assert (scores["tolerance"], scores["unit"]) == (1, "mm")
    assert scores["foreground"]["mean_dice"] == organ["dice"] != scores["mean_dice"]
    out = cli("evaluate", p, t)[1]
    assert "HD95 mm" in out
    assert "mean without 0" in out


def test_values_beyond_the_list_are_refused(cli: Cli, tmp_path: Path) -> None:
    store = write_run(tmp_path / "run.zarr")
    labels = store.read(tiling.Box.whole((96, 80)))
    labels[3, 4] = 7
    t = write_labels(tmp_path / "t.tif", labels, Affine.identity(), crs=None)
    code, _, err = cli("evaluate", store.path, t)
    assert (code, err.count("\n")) == (2, 1)
    assert "t.tif holds the value 7, which is none of the classes 0 class 0, 1 class 1, 2 class 2" in err
    assert cli("evaluate", store.path, t, "--ignore", 7)[0] == 0


@pytest.mark.parametrize("tolerance", ["0", "-1", "nan", "inf", "1e9"])
def test_senseless_tolerances_are_refused(cli: Cli, pair: Pair, tolerance: str) -> None:
    code, _, err = cli("evaluate", *pair[:2], "--tolerance", tolerance)
    assert (code, err.count("\n")) == (2, 1)
    assert "tolerance" in err
