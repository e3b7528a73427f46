"""Predictions with their truths."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.flows.evaluation.label_maps import write_folders, write_labels
from tests.tiling.files import write_tiff

Pair = tuple[Path, Path, np.ndarray[Any, Any], np.ndarray[Any, Any]]
SIDE = 512


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Prediction and truth of 5000 x 60 pixels, which is more than one piece, with nodata in both."""
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 4, (500, 6)), np.ones((10, 10), int)).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.97, truth, rng.integers(0, 4, truth.shape)).astype(np.uint8)
    truth[:50] = 255
    prediction[-50:] = 255
    return write_labels(tmp_path / "p.tif", prediction), write_labels(tmp_path / "t.tif", truth), prediction, truth


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three predictions and their truths."""
    return write_folders(tmp_path)


@pytest.fixture
def scene_pair(tmp_path: Path) -> tuple[Path, Path]:
    """Three by two squares of stripes, of which the first is wrong most and the last never."""
    patch = np.ones((8, 8), np.uint8)
    truth = np.zeros((2 * SIDE // 8, 3 * SIDE // 8), np.uint8)
    truth[:, ::2] = 1
    wrong = np.random.default_rng(0).random(truth.shape)
    share = np.kron(np.array([[0.5, 0.4, 0.3], [0.2, 0.1, 0.0]]), np.ones((SIDE // 8, SIDE // 8)))
    p = write_tiff(tmp_path / "p.tif", np.kron(np.where(wrong < share, 2, truth).astype(np.uint8), patch)[None])
    return p, write_tiff(tmp_path / "t.tif", np.kron(truth, patch)[None])
