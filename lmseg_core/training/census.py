"""What the labels of a training hold: how many pixels of each class, and where some of them lie."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lmseg_core.errors import ModelError
from lmseg_core.loss import IGNORE

if TYPE_CHECKING:
    from lmseg_core.training.windows import Example

_PIECE = {2: 2048, 3: 128}  # pixels an axis that are read at once: 4 MB of uint8 in 2D, 2 MB in 3D


@dataclass(frozen=True)
class Census:
    """Counts of each class in E examples, and random positions of it.

    counts: (E, K) int64, pixels. positions: for each example and class an array (n, D) int32 of indices, drawn
    evenly among all its pixels.
    """

    counts: NDArray[np.int64]
    positions: tuple[tuple[NDArray[np.int32], ...], ...]

    @property
    def share(self) -> NDArray[np.float64]:
        """Share of each class (K,) among the pixels that are not ignored."""
        total = self.counts.sum(axis=0)
        share: NDArray[np.float64] = total / total.sum()
        return share

    def check(self, names: Sequence[str]) -> None:
        """Raise ModelError for a class that no training label has; `names` are those of the classes."""
        absent = [name for name, count in zip(names, self.counts.sum(axis=0), strict=True) if not count]
        if absent:
            raise ModelError(
                f"the training labels have no pixel of {', '.join(absent)}; "
                "take it out of model.classes or add labels that have it."
            )


def take(examples: "Sequence[Example]", classes: int, names: Sequence[str], keep: int = 2000) -> Census:
    """Count the labels of every example, a piece at a time, and keep up to `keep` positions a class and example.

    names: those of the classes, in the order of the label values. Equal labels give equal positions. Raises
    ModelError for an image and labels of different shapes, a label that is no class, and labels that are all 255.
    """
    assert classes == len(names)
    counted = [_count(example, names, keep, np.random.default_rng(index)) for index, example in enumerate(examples)]
    return Census(np.stack([counts for counts, _ in counted]), tuple(positions for _, positions in counted))


def _count(
    example: "Example", names: Sequence[str], keep: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int32], ...]]:
    shape = example.labels.shape
    if example.image.shape[1:] != shape:
        raise ModelError(
            f"{example.name} has an image of shape {example.image.shape[1:]} and labels of shape {shape}; "
            "bring both onto one grid."
        )
    counts = np.zeros(len(names), np.int64)
    samples = [_Sample(keep, len(shape)) for _ in names]
    for box in _pieces(shape):
        labels = example.labels.read(box)
        histogram = _histogram(labels, example.name, names)
        counts += histogram
        origin = [part.start for part in box]
        for value in np.flatnonzero(histogram):
            samples[value].offer(labels == value, int(histogram[value]), origin, rng)
    if not counts.any():
        raise ModelError(f"the labels of {example.name} are all {IGNORE} (ignore); leave it out, or mend data.values.")
    return counts, tuple(sample.positions for sample in samples)


def _histogram(labels: NDArray[Any], name: str, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the pixels of each class (K,); raises ModelError for a value that is no class."""
    if labels.dtype.kind not in "iub":
        raise ModelError(f"the labels of {name} are {labels.dtype}; store them as whole numbers.")
    low, high = int(labels.min()), int(labels.max())
    wrong = low if low < 0 else high if high > IGNORE else None
    if wrong is None:
        histogram = np.bincount(labels.ravel(), minlength=IGNORE + 1)
        unknown = len(names) + np.flatnonzero(histogram[len(names) : IGNORE])
        if not unknown.size:
            return histogram[: len(names)]
        wrong = int(unknown[0])
    raise ModelError(
        f"the labels of {name} have the value {wrong}; expected 0..{len(names) - 1} ({names[0]} .. {names[-1]}) "
        f"or {IGNORE} to ignore. Map it in data.values, or list it in data.ignore."
    )


class _Sample:
    """Up to `keep` positions, drawn evenly from a stream: those with the smallest of random keys."""

    def __init__(self, keep: int, ndim: int) -> None:
        self._keys = np.empty(0)
        self.positions = np.empty((0, ndim), np.int32)
        self._keep = keep

    def offer(self, mask: NDArray[np.bool_], count: int, origin: Sequence[int], rng: np.random.Generator) -> None:
        """Let the `count` pixels of a mask, whose corner is at `origin`, into the draw."""
        take = min(self._keep, count)
        # Only the smallest keys matter: those of `count` exponential variables, without drawing them all
        # (Renyi 1953).
        keys = np.cumsum(rng.exponential(size=take) / (count - np.arange(take)))
        chosen = np.flatnonzero(mask)[rng.choice(count, take, replace=False)]
        positions = np.stack(np.unravel_index(chosen, mask.shape), axis=1) + np.asarray(origin)
        self._keys = np.concatenate([self._keys, keys])
        self.positions = np.concatenate([self.positions, positions.astype(np.int32)])
        if len(self._keys) > self._keep:
            kept = np.sort(np.argpartition(self._keys, self._keep)[: self._keep])
            self._keys, self.positions = self._keys[kept], self.positions[kept]


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    step = _PIECE[len(shape)]
    axes = [[slice(start, min(start + step, size)) for start in range(0, size, step)] for size in shape]
    return itertools.product(*axes)
