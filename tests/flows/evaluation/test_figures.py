"""Figures of classes, of cases, over cases and of all cases together."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.flows.conftest import Cli
from tests.flows.evaluation.label_maps import scores_of, write_labels


def test_a_class_that_one_side_lacks(cli: Cli, tmp_path: Path) -> None:
    truth = np.zeros((20, 20), np.uint8)
    truth[5:9, 5:9] = 1
    prediction = np.where(truth, 2, 0).astype(np.uint8)
    p, t = write_labels(tmp_path / "p.tif", prediction), write_labels(tmp_path / "t.tif", truth)
    scores = scores_of(cli, p, t)
    missed, made_up = scores["classes"][1:]
    for c, where in ((missed, "prediction"), (made_up, "truth")):
        assert (c["dice"], c["boundary_f1"], c["nsd"], c["hd95"]) == (0, 0, 0, None)
        assert c["hd95_reason"] == f"no outline in the {where}: infinite"
    out = cli("evaluate", p, t)[1]
    assert "inf" in out
    assert "HD95 is infinite, and left out of means, where one side lacks a class: 1, 2" in out


def test_folders_give_cases_means_and_sums(cli: Cli, folders: tuple[Path, Path]) -> None:
    scores = scores_of(cli, *folders)
    assert [c["name"] for c in scores["cases"]] == ["case0", "case1", "case2"]
    single = [scores_of(cli, folders[0] / f"case{i}_seg.nii", folders[1] / f"case{i}_labels.nii.gz") for i in range(3)]
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
