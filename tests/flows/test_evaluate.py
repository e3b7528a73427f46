"""Scores against sums done by hand with numpy."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from .conftest import Cli

PLACE = Affine(10, 0, 500_000, 0, -10, 4_000_000)


def _label_map(path: Path, labels: np.ndarray, transform: Affine = PLACE, nodata: int | None = 255) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", width=labels.shape[1], height=labels.shape[0], count=1, dtype=labels.dtype,
        crs="EPSG:32618", transform=transform, nodata=nodata,
    ) as target:  # fmt: skip
        target.write(labels, 1)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """Prediction and truth of 5000 x 60 pixels, which is more than one piece, with nodata in both."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (5000, 60)).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 4, truth.shape)).astype(np.uint8)
    truth[:50] = 255
    prediction[-50:] = 255
    return _label_map(tmp_path / "p.tif", prediction), _label_map(tmp_path / "t.tif", truth), prediction, truth


def test_scores_equal_sums_by_hand(cli: Cli, pair: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    p_path, t_path, p, t = pair
    code, out, _ = cli("evaluate", p_path, t_path, "--json")
    scores = json.loads(out)
    keep = (p != 255) & (t != 255)
    assert code == 0
    assert scores["pixels"] == keep.sum()
    assert scores["pixel_accuracy"] == pytest.approx((p == t)[keep].mean())
    for c in scores["classes"]:
        a, b = (p == c["value"]) & keep, (t == c["value"]) & keep
        assert c["iou"] == pytest.approx((a & b).sum() / (a | b).sum())
        assert c["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert scores["mean_iou"] == pytest.approx(np.mean([c["iou"] for c in scores["classes"]]))


def test_a_value_can_be_left_out(cli: Cli, pair: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    p_path, t_path, p, t = pair
    scores = json.loads(cli("evaluate", p_path, t_path, "--ignore", 3, "--json")[1])
    assert scores["pixels"] == ((p != 255) & (t != 255) & (t != 3)).sum()


def test_the_table_names_every_class(cli: Cli, pair: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    _, out, _ = cli("evaluate", *pair[:2])
    assert [line.split()[0] for line in out.splitlines()] == ["class", "0", "1", "2", "3", "mean", "pixel"]


def test_other_grids_are_refused(cli: Cli, tmp_path: Path, pair: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    p_path, _, _, truth = pair
    moved = _label_map(tmp_path / "moved.tif", truth, PLACE @ Affine.translation(1, 0))
    smaller = _label_map(tmp_path / "smaller.tif", truth[1:])
    fractions = _label_map(tmp_path / "f.tif", truth.astype(np.float32) + 0.5, nodata=None)
    for other, word in ((moved, "places"), (smaller, "shape"), (fractions, "fractions")):
        code, _, err = cli("evaluate", p_path, other)
        assert (code, err.count("\n")) == (2, 1)
        assert word in err
