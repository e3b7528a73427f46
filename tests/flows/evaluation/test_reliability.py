"""Whether probabilities mean what they say."""

from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import Affine

import tiling
from tests.flows.conftest import Cli
from tests.flows.evaluation.label_maps import scores_of, write_labels, write_run


def test_probabilities_are_calibrated(cli: Cli, tmp_path: Path) -> None:
    """The error before scaling, from the stored bytes; and scaling makes it smaller where truth is often other."""
    store = write_run(tmp_path / "run.zarr", ("probability",))
    labels = store.read(tiling.Box.whole((96, 80)))
    rng = np.random.default_rng(1)
    truth = np.where(rng.random(labels.shape) < 0.5, labels, rng.integers(0, 3, labels.shape)).astype(np.uint8)
    t = write_labels(tmp_path / "t.tif", truth, Affine.identity(), crs=None)
    scores = scores_of(cli, store.path, t)
    confidence = store.read(tiling.Box.whole((96, 80)), "probability").max(axis=0) / 254
    bins = np.clip(np.ceil(confidence * 15) - 1, 0, 14)
    right = labels == truth
    expected = sum(
        (bins == b).mean() * abs(right[bins == b].mean() - confidence[bins == b].mean()) for b in np.unique(bins)
    )
    assert scores["ece"] == pytest.approx(expected)
    assert scores["ece_scaled"] < scores["ece"]
    assert scores["temperature"] > 1  # it was too sure
    assert scores == scores_of(cli, store.path, t)  # the sample is the same each time
    assert "at the temperature" in cli("evaluate", store.path, t)[1]
