"""The confusion matrix against figures worked out one class at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmseg_core import Confusion


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_figures_equal_sets_of_pixels(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, classes, (2, 7, 9)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = 255
    confusion = Confusion(classes)
    confusion.add(prediction[:3], truth[:3])  # in two parts, as blocks arrive
    confusion.add(prediction[3:], truth[3:])
    known = truth != 255
    for value in range(classes):
        t, p = (truth == value) & known, (prediction == value) & known
        both, either = (t & p).sum(), (t | p).sum()
        assert confusion.support[value] == t.sum()
        np.testing.assert_allclose(confusion.iou[value], both / either if either else np.nan)
        total = t.sum() + p.sum()
        np.testing.assert_allclose(confusion.dice[value], 2 * both / total if total else np.nan)
    np.testing.assert_allclose(confusion.pixel_accuracy, (truth == prediction)[known].mean())
    np.testing.assert_allclose(confusion.mean_iou, np.nanmean(confusion.iou))
    np.testing.assert_allclose(confusion.mean_dice, np.nanmean(confusion.dice))


def test_absent_classes_are_nan() -> None:
    confusion = Confusion(3)
    assert np.isnan([confusion.pixel_accuracy, confusion.mean_iou, confusion.mean_dice]).all()
    confusion.add(np.array([0, 1, 255]), np.array([0, 0, 1]))
    assert confusion.iou.tolist()[:2] == [0.5, 0.0]
    assert np.isnan(confusion.iou[2])
    assert confusion.mean_iou == 0.25


def test_wrong_arrays_are_refused() -> None:
    confusion = Confusion(2)
    with pytest.raises(ValueError, match=r"shape \(2,\) and the truth \(3,\)"):
        confusion.add(np.zeros(2, int), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"truth has values 0..7; expected 0..1 or 255"):
        confusion.add(np.zeros(2, int), np.array([0, 7]))


def test_dice_and_overlap_equal_itk() -> None:
    import SimpleITK as sitk

    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, (6, 7, 8)).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, 2).astype(np.uint8)
    confusion = Confusion(3)
    confusion.add(prediction, truth)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(sitk.GetImageFromArray(truth), sitk.GetImageFromArray(prediction))
    for value in (1, 2):
        assert confusion.dice[value] == pytest.approx(overlap.GetDiceCoefficient(value))
        assert confusion.iou[value] == pytest.approx(overlap.GetJaccardCoefficient(value))


def test_some_classes_in_another_order() -> None:
    confusion = Confusion(4)
    confusion.add(np.array([1, 3, 3, 1]), np.array([1, 3, 1, 1]))
    part = confusion.take([3, 1, 0])
    assert part.matrix.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    np.testing.assert_allclose(part.by_truth, [[1, 0, 0], [1 / 3, 2 / 3, 0], [np.nan] * 3])
    assert part.mean_iou == confusion.mean_iou
