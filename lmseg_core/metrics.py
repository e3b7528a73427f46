"""Agreement of a prediction with the truth, from one confusion matrix. numpy only."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Confusion:
    """Counts of (truth, prediction) pairs over any number of arrays; rows are truth, columns are prediction.

    Pixels whose truth is `ignore` are left out, and so are those whose prediction is, where nothing was
    predicted. Figures of a class that neither truth nor prediction has are nan, and means leave it out.
    """

    def __init__(self, classes: int, ignore: int = 255) -> None:
        self.classes = classes
        self.ignore = ignore
        self.matrix: NDArray[np.int64] = np.zeros((classes, classes), np.int64)

    def add(self, prediction: NDArray[Any], truth: NDArray[Any]) -> None:
        """Count two integer arrays of one shape. Raises ValueError on another shape or a value beyond the
        classes."""
        if prediction.shape != truth.shape:
            raise ValueError(f"the prediction has shape {prediction.shape} and the truth {truth.shape}; crop one.")
        keep = (truth != self.ignore) & (prediction != self.ignore)
        pairs = np.zeros(0, np.int64)
        for name, values in (("prediction", prediction[keep]), ("truth", truth[keep])):
            if values.size and not 0 <= values.min() <= values.max() < self.classes:
                raise ValueError(
                    f"the {name} has values {values.min()}..{values.max()}; expected 0..{self.classes - 1} "
                    f"or {self.ignore} to ignore."
                )
            pairs = values.astype(np.int64) if name == "prediction" else pairs + values * np.int64(self.classes)
        self.matrix += np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    def take(self, values: Sequence[int]) -> "Confusion":
        """The counts between some of the classes, in this order."""
        part = Confusion(len(values), self.ignore)
        part.matrix = self.matrix[np.ix_(values, values)]
        return part

    @property
    def support(self) -> NDArray[np.int64]:
        """Pixels of each class in the truth."""
        support: NDArray[np.int64] = self.matrix.sum(axis=1)
        return support

    @property
    def by_truth(self) -> NDArray[np.float64]:
        """Share of each class's true pixels that was given to each class: rows sum to one."""
        return _ratio(self.matrix, np.broadcast_to(self.support[:, None], self.matrix.shape))

    @property
    def pixel_accuracy(self) -> float:
        """Share of counted pixels that are right."""
        total = int(self.matrix.sum())
        return float(np.trace(self.matrix) / total) if total else float("nan")

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class."""
        hit = np.diag(self.matrix)
        return _ratio(hit, self.matrix.sum(axis=0) + self.matrix.sum(axis=1) - hit)

    @property
    def dice(self) -> NDArray[np.float64]:
        """Dice coefficient of each class."""
        return _ratio(2 * np.diag(self.matrix), self.matrix.sum(axis=0) + self.matrix.sum(axis=1))

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over the classes that occur."""
        return mean(self.iou)

    @property
    def mean_dice(self) -> float:
        """Mean of `dice` over the classes that occur."""
        return mean(self.dice)


def mean(values: NDArray[np.float64]) -> float:
    """The mean of the finite values; nan where there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.full(part.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio
