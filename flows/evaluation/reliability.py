"""Whether the stored probabilities of runs mean what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flows.evaluation.cases import Case
from lmseg_core.calibration import Reliability, fit_temperature, scaled
from lmseg_core.surface import UNKNOWN
from tiling import Box, Store
from tiling.answer import SCALE

# What a stored zero stands for: at most half a step of the scale.
_FLOOR = 0.5 / SCALE
_SAMPLE = 2**17
_SCORES = 2**23  # probabilities that are looked at together, as floats


@dataclass(frozen=True)
class Calibration:
    """Reliability of probabilities as they are and under the temperature that fits them best.

    Attributes:
        before, after: of each case that has probabilities, by name.
        temperature: one for all cases, fitted on a random sample of their pixels.
    """

    before: dict[str, Reliability]
    after: dict[str, Reliability]
    temperature: float


def calibrate(cases: Sequence[Case], ignore: int | None) -> Calibration | None:
    """Reads the probabilities of all runs that stored them twice: to fit, then to check. None where none did."""
    stored = [case for case in cases if _store(case) is not None]
    if not stored:
        return None
    before: dict[str, Reliability] = {}
    samples: list[tuple[NDArray[np.float64], NDArray[np.int64]]] = []
    most = -(-_SAMPLE // len(stored))
    for number, case in enumerate(stored):
        rng = np.random.default_rng(number)
        share = most / math.prod(case.truth.space.shape)
        before[case.name] = Reliability()
        for probability, channel, right in _pixels(case, ignore):
            before[case.name].add(probability.max(axis=0), right)
            # A fixed share of every piece: the sample is spread evenly, and the same each time.
            chosen = np.flatnonzero(rng.random(channel.size) < share)
            samples.append((probability[:, chosen], channel[chosen]))
    temperature = _fitted(samples)
    after: dict[str, Reliability] = {}
    for case in stored:
        after[case.name] = Reliability()
        for probability, _, right in _pixels(case, ignore):
            after[case.name].add(scaled(probability, temperature, _FLOOR).max(axis=0), right)
    return Calibration(before, after, temperature)


def pooled(parts: dict[str, Reliability]) -> Reliability:
    """All cases as one."""
    total = Reliability()
    for part in parts.values():
        total.merge(part)
    return total


def _fitted(samples: list[tuple[NDArray[np.float64], NDArray[np.int64]]]) -> float:
    channels = {len(probability) for probability, _ in samples}
    # Runs of models with other numbers of classes have no logits in common; zeros stand for classes they lack.
    most = max(channels)
    padded = [np.pad(probability, ((0, most - len(probability)), (0, 0))) for probability, _ in samples]
    return fit_temperature(np.concatenate(padded, axis=1), np.concatenate([c for _, c in samples]), _FLOOR)


def _store(case: Case) -> Store | None:
    source = case.prediction.source
    return source if isinstance(source, Store) and "probability" in source.outputs else None


def _pixels(
    case: Case, ignore: int | None
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]]:
    """Of the known pixels of each piece: probability (K, n), the true channel (n,), whether the label is right (n,)."""
    store = _store(case)
    assert store is not None
    channels = np.full(256, -1)
    channels[list(store.classes.values)] = np.arange(len(store.classes))
    for box in _pieces(store.out_space.shape, _SCORES // len(store.classes)):
        predicted, truth = case.prediction.read(box), case.truth.read(box, ignore)
        known = (predicted != UNKNOWN) & (truth != UNKNOWN)
        stored = store.read(box, "probability")[:, known]
        yield stored / SCALE, channels[truth[known]], (predicted == truth)[known]


def _pieces(shape: tuple[int, ...], most: int) -> Iterator[Box]:
    """Whole planes of volumes, as they lie in their files; squares of whole chunks of rasters, where that will do."""
    if len(shape) == 3 and shape[1] * shape[2] <= most:
        return Box.whole(shape).split((most // (shape[1] * shape[2]), *shape[1:]))
    side = 1 << (int(most ** (1 / len(shape))).bit_length() - 1)
    return Box.whole(shape).split((side,) * len(shape))
