"""Scores against sums done by hand with numpy, distance transforms of whole arrays, and SimpleITK."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import rasterio
import SimpleITK as sitk
from rasterio.transform import Affine
from scipy import ndimage

import tiling
from flows.evaluate import evaluate
from flows.evaluation.scores import EvaluationParameters
from tests.local_server import Server
from tests.tiling.files import write_volume
from tests.tiling.predictors import Mixing
from tests.tiling.runs import image_of

from .conftest import Cli

PLACE = Affine(10, 0, 500_000, 0, -10, 4_000_000)
Pair = tuple[Path, Path, np.ndarray[Any, Any], np.ndarray[Any, Any]]


def _label_map(
    path: Path,
    labels: np.ndarray[Any, Any],
    transform: Affine = PLACE,
    nodata: int | None = 255,
    crs: str | None = "EPSG:32618",
) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", width=labels.shape[1], height=labels.shape[0], count=1, dtype=labels.dtype,
        crs=crs, transform=transform, nodata=nodata,
    ) as target:  # fmt: skip
        target.write(labels, 1)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Prediction and truth of 5000 x 60 pixels, which is more than one piece, with nodata in both."""
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 4, (500, 6)), np.ones((10, 10), int)).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.97, truth, rng.integers(0, 4, truth.shape)).astype(np.uint8)
    truth[:50] = 255
    prediction[-50:] = 255
    return _label_map(tmp_path / "p.tif", prediction), _label_map(tmp_path / "t.tif", truth), prediction, truth


def _json(cli: Cli, *arguments: object) -> dict[str, Any]:
    code, out, err = cli("evaluate", *arguments, "--json")
    assert (code, err) == (0, "")
    scores: dict[str, Any] = json.loads(out)
    return scores


def test_scores_equal_sums_by_hand(cli: Cli, pair: Pair) -> None:
    p_path, t_path, p, t = pair
    scores = _json(cli, p_path, t_path)
    keep = (p != 255) & (t != 255)
    assert scores["pixels"] == keep.sum()
    assert scores["unpredicted"] == ((p == 255) & (t != 255)).sum()
    assert scores["pixel_accuracy"] == pytest.approx((p == t)[keep].mean())
    for c in scores["classes"]:
        a, b = (p == c["value"]) & keep, (t == c["value"]) & keep
        assert c["iou"] == pytest.approx((a & b).sum() / (a | b).sum())
        assert c["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert scores["mean_iou"] == pytest.approx(np.mean([c["iou"] for c in scores["classes"]]))
    values, counts = scores["confusion"]["values"], np.array(scores["confusion"]["counts"])
    expected = [[((t == i) & (p == j) & keep).sum() for j in values] for i in values]
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_allclose(scores["confusion"]["by_truth"], counts / counts.sum(axis=1, keepdims=True))


def test_streamed_outlines_equal_those_of_the_whole(cli: Cli, pair: Pair) -> None:
    """Pieces of 2048 rows against distance transforms of all 5000, at two pixels of 10 m."""
    p_path, t_path, p, t = pair
    scores = _json(cli, p_path, t_path)
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
    wider = _json(cli, p_path, t_path, "--tolerance", 35)
    assert wider["tolerance"] == 35
    assert wider["boundary_f1"] > scores["boundary_f1"]


def test_outlines_can_be_left_out(cli: Cli, pair: Pair) -> None:
    scores = _json(cli, *pair[:2], "--no-surface")
    assert [scores[name] for name in ("boundary_f1", "hd95", "nsd")] == [None] * 3
    assert "HD95" not in cli("evaluate", *pair[:2], "--no-surface")[1]


def test_a_value_can_be_left_out(cli: Cli, pair: Pair) -> None:
    p_path, t_path, p, t = pair
    scores = _json(cli, p_path, t_path, "--ignore", 3)
    assert scores["pixels"] == ((p != 255) & (t != 255) & (t != 3)).sum()


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
    t = _label_map(tmp_path / "t.tif", labels, place, crs=crs)
    p = _label_map(tmp_path / "p.tif", np.roll(labels, 3, axis=1), place, crs=crs)
    scores = _json(cli, p, t)
    assert (scores["tolerance"], scores["unit"]) == (pytest.approx(tolerance), unit)
    assert scores["classes"][1]["hd95"] == (30 if unit == "m" else 3)


def test_volumes_are_measured_in_millimetres(cli: Cli, tmp_path: Path) -> None:
    """Dice and Hausdorff against SimpleITK, with slices three times as thick as pixels."""
    place = np.diag([1.0, 1.0, 3.0, 1.0])
    truth = np.zeros((30, 32, 12), np.uint8)
    truth[8:20, 8:22, 3:9] = 1
    moved = np.roll(truth, 1, axis=2)
    p, t = write_volume(tmp_path / "p.nii.gz", moved, place), write_volume(tmp_path / "t.nii.gz", truth, place)
    scores = _json(cli, p, t)
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


def test_a_class_that_one_side_lacks(cli: Cli, tmp_path: Path) -> None:
    truth = np.zeros((20, 20), np.uint8)
    truth[5:9, 5:9] = 1
    prediction = np.where(truth, 2, 0).astype(np.uint8)
    p, t = _label_map(tmp_path / "p.tif", prediction), _label_map(tmp_path / "t.tif", truth)
    scores = _json(cli, p, t)
    missed, made_up = scores["classes"][1:]
    for c, where in ((missed, "prediction"), (made_up, "truth")):
        assert (c["dice"], c["boundary_f1"], c["nsd"], c["hd95"]) == (0, 0, 0, None)
        assert c["hd95_reason"] == f"no outline in the {where}: infinite"
    out = cli("evaluate", p, t)[1]
    assert "inf" in out
    assert "HD95 is infinite, and left out of means, where one side lacks a class: 1, 2" in out


def test_the_table_names_every_class(cli: Cli, pair: Pair) -> None:
    _, out, _ = cli("evaluate", *pair[:2])
    firsts = [line.split()[0] for line in out.splitlines() if "─" not in line]
    assert firsts == ["class", "0", "1", "2", "3", "mean", "pixel", "3000", "outlines"]
    assert "3000 pixels have a truth and no prediction" in out
    assert "within 20 m" in out


def test_names_and_colours_come_with_an_export(cli: Cli, tmp_path: Path) -> None:
    store = _run(tmp_path / "run.zarr")
    tiling.export(store, tmp_path / "run_labels.tif")
    for name in ("run.zarr", "run_labels.tif"):
        scores = _json(cli, tmp_path / name, tmp_path / "run_labels.tif")
        assert [c["name"] for c in scores["classes"]] == ["class 0", "class 1", "class 2"]
        assert scores["pixel_accuracy"] == 1


def _run(path: Path, outputs: tuple[str, ...] = ()) -> tiling.Store:
    source = image_of((96, 80))
    grid = tiling.Grid.regular((96, 80), tile=32, overlap=0.25, block=64)
    model = Mixing(2, (32, 32))
    store = tiling.create(path, source, grid, model, outputs=outputs)
    tiling.segment(source, model, store)
    return store


def test_probabilities_are_calibrated(cli: Cli, tmp_path: Path) -> None:
    """The error before scaling, from the stored bytes; and scaling makes it smaller where truth is often other."""
    store = _run(tmp_path / "run.zarr", ("probability",))
    labels = store.read(tiling.Box.whole((96, 80)))
    rng = np.random.default_rng(1)
    truth = np.where(rng.random(labels.shape) < 0.5, labels, rng.integers(0, 3, labels.shape)).astype(np.uint8)
    t = _label_map(tmp_path / "t.tif", truth, Affine.identity(), crs=None)
    scores = _json(cli, store.path, t)
    confidence = store.read(tiling.Box.whole((96, 80)), "probability").max(axis=0) / 254
    bins = np.clip(np.ceil(confidence * 15) - 1, 0, 14)
    right = labels == truth
    expected = sum(
        (bins == b).mean() * abs(right[bins == b].mean() - confidence[bins == b].mean()) for b in np.unique(bins)
    )
    assert scores["ece"] == pytest.approx(expected)
    assert scores["ece_scaled"] < scores["ece"]
    assert scores["temperature"] > 1  # it was too sure
    assert scores == _json(cli, store.path, t)  # the sample is the same each time
    assert "at the temperature" in cli("evaluate", store.path, t)[1]


# ------------------------------------------------------------------------------------------------- refusals


def test_other_grids_are_refused(cli: Cli, tmp_path: Path, pair: Pair) -> None:
    p_path, _, _, truth = pair
    wide = truth.astype(np.int16)
    others = {
        "places": _label_map(tmp_path / "moved.tif", truth, PLACE @ Affine.translation(1, 0)),
        "shape": _label_map(tmp_path / "smaller.tif", truth[1:]),
        "fractions": _label_map(tmp_path / "f.tif", truth.astype(np.float32) + 0.5, nodata=None),
        "different CRS": _label_map(tmp_path / "crs.tif", truth, crs="EPSG:32633"),
        "holds the value 300": _label_map(tmp_path / "wide.tif", np.where(wide == 1, 300, wide)),
        "holds the value -7": _label_map(tmp_path / "low.tif", np.where(wide == 1, -7, wide)),
        "share no pixel": _label_map(tmp_path / "empty.tif", np.full_like(truth, 255)),
    }
    for word, other in others.items():
        code, _, err = cli("evaluate", p_path, other)
        assert (code, err.count("\n")) == (2, 1), word
        assert word in err


def test_a_small_shift_of_fine_pixels_is_another_place(cli: Cli, tmp_path: Path) -> None:
    """A metre is nothing to a northing of four million, and three pixels of 0.3 m."""
    labels = np.zeros((20, 20), np.uint8)
    fine = Affine(0.3, 0, 500_000, 0, -0.3, 4_000_000)
    p, t = (_label_map(tmp_path / f"{n}.tif", labels, Affine.translation(0, n) @ fine) for n in (0, 1))
    code, _, err = cli("evaluate", p, t)
    assert code == 2
    assert "3.33 pixels apart" in err


def test_values_beyond_the_list_are_refused(cli: Cli, tmp_path: Path) -> None:
    store = _run(tmp_path / "run.zarr")
    labels = store.read(tiling.Box.whole((96, 80)))
    labels[3, 4] = 7
    t = _label_map(tmp_path / "t.tif", labels, Affine.identity(), crs=None)
    code, _, err = cli("evaluate", store.path, t)
    assert (code, err.count("\n")) == (2, 1)
    assert "t.tif holds the value 7, which is none of the classes 0 class 0, 1 class 1, 2 class 2" in err
    assert cli("evaluate", store.path, t, "--ignore", 7)[0] == 0


def test_unfinished_runs_are_refused(cli: Cli, tmp_path: Path) -> None:
    source = image_of((96, 80))
    grid = tiling.Grid.regular((96, 80), tile=32, overlap=0.25, block=64)
    store = tiling.create(tmp_path / "run.zarr", source, grid, Mixing(2, (32, 32)))
    code, _, err = cli("evaluate", store.path, store.path)
    assert code == 2
    assert "still lacks 4 of 4 blocks" in err


@pytest.mark.parametrize("tolerance", ["0", "-1", "nan", "inf", "1e9"])
def test_senseless_tolerances_are_refused(cli: Cli, pair: Pair, tolerance: str) -> None:
    code, _, err = cli("evaluate", *pair[:2], "--tolerance", tolerance)
    assert (code, err.count("\n")) == (2, 1)
    assert "tolerance" in err


# ------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three volumes named in two ways, predictions moved by none, one and two voxels."""
    rng = np.random.default_rng(0)
    for i, size in enumerate((10, 7, 12)):
        truth = np.zeros((24, 26, 22), np.uint8)
        truth[4 : 4 + size, 5:15, 6:14] = 1
        truth[4 : 4 + size, 15:18, 6:14] = 1 + rng.integers(0, 2)
        for folder in ("p", "t"):
            (tmp_path / folder).mkdir(exist_ok=True)
        write_volume(tmp_path / "t" / f"case{i}_labels.nii.gz", truth)
        write_volume(tmp_path / "p" / f"case{i}_seg.nii", np.roll(truth, i, axis=0))
    return tmp_path / "p", tmp_path / "t"


def test_folders_give_cases_means_and_sums(cli: Cli, folders: tuple[Path, Path]) -> None:
    scores = _json(cli, *folders)
    assert [c["name"] for c in scores["cases"]] == ["case0", "case1", "case2"]
    single = [_json(cli, folders[0] / f"case{i}_seg.nii", folders[1] / f"case{i}_labels.nii.gz") for i in range(3)]
    for row, one in zip(scores["cases"], single, strict=True):
        for name in ("pixels", "mean_dice", "hd95", "nsd", "boundary_f1"):
            assert row[name] == one[name]
    for name in ("pixel_accuracy", "mean_dice", "hd95", "nsd"):
        values = [s[name] for s in single]
        assert scores["mean_over_cases"][name] == pytest.approx(np.mean(values))
        assert scores["sd_over_cases"][name] == pytest.approx(np.std(values, ddof=1))
    dice = [s["classes"][1]["dice"] for s in single]
    assert scores["mean_over_cases"]["classes"][1]["dice"] == pytest.approx(np.mean(dice))
    # Pooled: voxels of all cases together.
    p, t = (
        np.stack([np.asarray(nibabel.load(f).dataobj) for f in sorted(folder.iterdir())])  # type: ignore[attr-defined]
        for folder in folders
    )
    assert scores["classes"][1]["dice"] == pytest.approx(
        2 * ((p == 1) & (t == 1)).sum() / ((p == 1).sum() + (t == 1).sum())
    )
    out = cli("evaluate", *folders)[1]
    for word in ("case0", "mean over cases", "standard deviation", "all together"):
        assert word in out


def test_the_store_is_taken_and_not_its_export(cli: Cli, tmp_path: Path) -> None:
    store = _run(tmp_path / "out" / "scene.zarr", ("probability",))
    for name, what in (("labels", "labels"), ("prob", "probability")):
        tiling.export(store, tmp_path / "out" / f"scene_{name}.tif", what)
    (tmp_path / "out" / "scene_preview.png").write_bytes(b"")
    (tmp_path / "truth").mkdir()
    labels = store.read(tiling.Box.whole((96, 80)))
    _label_map(tmp_path / "truth" / "scene.tif", labels, Affine.identity(), crs=None)
    scores = _json(cli, tmp_path / "out", tmp_path / "truth")
    assert scores["cases"][0]["prediction"].endswith("scene.zarr")
    assert scores["ece"] is not None


def test_cases_must_match(cli: Cli, tmp_path: Path, folders: tuple[Path, Path]) -> None:
    p, t = folders
    empty = tmp_path / "empty"
    empty.mkdir()
    truth = t / "case0_labels.nii.gz"
    checks: list[tuple[Path, Path, str]] = [
        (p, truth, "is not; give two label maps or two folders"),
        (p, empty, "holds no label maps"),
        (tmp_path / "gone", t, "gone"),
    ]
    for one, other, word in checks:
        code, _, err = cli("evaluate", one, other)
        assert (code, err.count("\n")) == (2, 1)
        assert word in err
    (p / "case3_seg.nii").write_bytes((p / "case0_seg.nii").read_bytes())
    assert "case3_seg.nii has no partner in" in cli("evaluate", p, t)[2]
    (p / "case3_seg.nii").rename(p / "case0.nii")
    assert "are both named case0" in cli("evaluate", p, t)[2]


# ------------------------------------------------------------------------------------------------- the flow


def test_flow_returns_figures_and_writes_the_report(
    prefect_server: Server, folders: tuple[Path, Path], tmp_path: Path, cli: Cli
) -> None:
    told = EvaluationParameters(prediction=str(folders[0]), truth=str(folders[1]), report=tmp_path / "report")
    result = evaluate(told)
    assert isinstance(result, dict)
    page = tmp_path / "report" / "index.html"
    assert result["report"] == str(page)
    assert page.is_file()
    assert {k: v for k, v in result.items() if k != "report"} == _json(cli, *folders)


def test_flow_fails_with_the_line_that_says_why(prefect_server: Server, folders: tuple[Path, Path]) -> None:
    told = EvaluationParameters(prediction=str(folders[0]), truth=str(folders[1] / "none.nii"))
    state = evaluate(told, return_state=True)
    assert state.is_failed()
    assert "give two label maps or two folders" in str(state.message)
