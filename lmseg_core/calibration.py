"""Whether probabilities mean what they say: expected calibration error and temperature scaling (Guo et al. 2017)."""

import numpy as np
from numpy.typing import NDArray

BINS = 15
_COLDEST, _HOTTEST = 0.05, 20.0


class Reliability:
    """How often predictions of each confidence are right, in 15 bins of equal width."""

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.right: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.confidence: NDArray[np.float64] = np.zeros(BINS)

    def add(self, confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> None:
        """Count (n,) probabilities of the predicted class, and whether it was the true one."""
        # A bin holds its upper end and not its lower one.
        bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)
        self.right += np.bincount(bins[right], minlength=BINS)
        self.confidence += np.bincount(bins, weights=confidence, minlength=BINS)

    def merge(self, other: "Reliability") -> None:
        """Add another's counts."""
        self.counts += other.counts
        self.right += other.right
        self.confidence += other.confidence

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap of confidence and accuracy; nan where nothing was counted."""
        total = int(self.counts.sum())
        return float(np.abs(self.right - self.confidence).sum() / total) if total else float("nan")


def scaled(probability: NDArray[np.floating], temperature: float, floor: float) -> NDArray[np.float64]:
    """(K, n) probabilities after dividing their logarithms by a temperature: above 1 less sure, below 1 surer.

    Args:
        floor: what a stored zero stands for, as probabilities are rounded before they are stored.
    """
    logits = np.log(np.maximum(probability, floor)) / temperature
    powers = np.exp(logits - logits.max(axis=0))
    shares: NDArray[np.float64] = powers / powers.sum(axis=0)
    return shares


def fit_temperature(probability: NDArray[np.floating], truth: NDArray[np.integer], floor: float) -> float:
    """The temperature in 0.05..20 under which the truth is likeliest; nan without pixels.

    Args:
        probability: (K, n).
        truth: (n,) the true channel of each pixel.
        floor: as for `scaled`.
    """
    from scipy.optimize import minimize_scalar

    if not truth.size:
        return float("nan")
    logits = np.log(np.maximum(probability, floor))
    logits -= logits.max(axis=0)
    chosen = logits[truth, np.arange(truth.size)]

    def surprise(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        return float((np.log(np.exp(logits / temperature).sum(axis=0)) - chosen / temperature).mean())

    # Bounded over the logarithm: 1/2 and 2 are equally far from 1.
    best = minimize_scalar(surprise, bounds=(np.log(_COLDEST), np.log(_HOTTEST)), method="bounded")
    return float(np.exp(best.x))
