"""Scores against sums done by hand with numpy."""

from pathlib import Path

import numpy as np
import pytest

import tiling
from tests.flows.conftest import Cli
from tests.flows.evaluation.conftest import Pair
from tests.flows.evaluation.label_maps import scores_of, write_run


def test_scores_equal_sums_by_hand(cli: Cli, pair: Pair) -> None:
    p_path, t_path, p, t = pair
    scores = scores_of(cli, p_path, t_path)
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


def test_outlines_can_be_left_out(cli: Cli, pair: Pair) -> None:
    scores = scores_of(cli, *pair[:2], "--no-surface")
    assert [scores[name] for name in ("boundary_f1", "hd95", "nsd")] == [None] * 3
    assert "HD95" not in cli("evaluate", *pair[:2], "--no-surface")[1]


def test_a_value_can_be_left_out(cli: Cli, pair: Pair) -> None:
    p_path, t_path, p, t = pair
    scores = scores_of(cli, p_path, t_path, "--ignore", 3)
    assert scores["pixels"] == ((p != 255) & (t != 255) & (t != 3)).sum()


def test_names_and_colours_come_with_an_export(cli: Cli, tmp_path: Path) -> None:
    store = write_run(tmp_path / "run.zarr")
    tiling.export(store, tmp_path / "run_labels.tif")
    for name in ("run.zarr", "run_labels.tif"):
        scores = scores_of(cli, tmp_path / name, tmp_path / "run_labels.tif")
        assert [c["name"] for c in scores["classes"]] == ["class 0", "class 1", "class 2"]
        assert scores["pixel_accuracy"] == 1
