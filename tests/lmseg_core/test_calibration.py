"""Calibration against sums done bin by bin, and temperatures that are known because they were put in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmseg_core.calibration import BINS, Reliability, fit_temperature, scaled

FLOOR = 1e-6


def drawn(temperature: float, n: int = 40_000, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (K, n) that are too sure by `temperature`, and truths drawn from the honest ones."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(classes, n))
    honest = np.exp(logits) / np.exp(logits).sum(axis=0)
    truth = (honest.cumsum(axis=0) < rng.random(n)).sum(axis=0)
    said = np.exp(logits * temperature)
    return said / said.sum(axis=0), truth


@given(st.integers(0, 1000))
def test_ece_equals_sums_bin_by_bin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, right = rng.random(500), rng.random(500) < 0.6
    confidence[:3] = (0, 1, 1 / BINS)
    halves = [Reliability(), Reliability()]
    halves[0].add(confidence[:200], right[:200])
    halves[1].add(confidence[200:], right[200:])
    halves[0].merge(halves[1])
    expected = 0.0
    for i in range(BINS):
        here = (confidence > i / BINS) & (confidence <= (i + 1) / BINS)
        here |= (confidence == 0) & (i == 0)
        if here.any():
            expected += here.mean() * abs(right[here].mean() - confidence[here].mean())
    assert halves[0].ece == pytest.approx(expected)


def test_nothing_counted_is_nan() -> None:
    assert np.isnan(Reliability().ece)
    assert np.isnan(fit_temperature(np.zeros((3, 0)), np.zeros(0, int), FLOOR))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_known_temperature_is_found_and_cures(temperature: float) -> None:
    said, truth = drawn(temperature)
    found = fit_temperature(said, truth, FLOOR)
    assert found == pytest.approx(temperature, rel=0.05)
    cured = scaled(said, found, FLOOR)
    np.testing.assert_allclose(cured.sum(axis=0), 1)
    np.testing.assert_array_equal(cured.argmax(axis=0), said.argmax(axis=0))
    before, after = Reliability(), Reliability()
    for reliability, shares in ((before, said), (after, cured)):
        reliability.add(shares.max(axis=0), shares.argmax(axis=0) == truth)
    assert after.ece < 0.015
    if temperature != 1:
        assert before.ece > 3 * after.ece


def test_perfect_answers_want_the_coldest() -> None:
    said, _ = drawn(1.0, 500)
    assert fit_temperature(said, said.argmax(axis=0), FLOOR) < 0.1
