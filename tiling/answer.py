"""What a block answers: sums of scores become labels, probabilities and uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from tiling.batches import host
from tiling.blend import Slab
from tiling.box import Box
from tiling.classes import ClassTable
from tiling.predict import Array

SCALE = 254  # uint8 value of probability 1; 255 is nodata


class Answer(NamedTuple):
    """The result of a box: labels (*S); probability uint8 (K, *S) and uncertainty uint8 (*S) where asked for."""

    box: Box
    labels: NDArray[Any]
    probability: NDArray[np.uint8] | None
    uncertainty: NDArray[np.uint8] | None

    @classmethod
    def blank(cls, box: Box, classes: ClassTable, outputs: Sequence[str]) -> Answer:
        """The answer of a box without a wanted pixel."""
        shape = box.shape
        return cls(
            box,
            np.full(shape, classes.nodata, classes.dtype),
            np.full((len(classes), *shape), 255, np.uint8) if "probability" in outputs else None,
            np.full(shape, 255, np.uint8) if "uncertainty" in outputs else None,
        )

    def fill(self, slab: Slab, wanted: NDArray[np.bool_], classes: ClassTable) -> None:
        """Puts in what a slab has of the box.

        Args:
            wanted: bool, over the box at least; pixels that are not may have no tile at all, and stay nodata.

        Raises:
            ValueError: where a score is not finite.
        """
        box, total, weight = slab
        part = box & self.box
        if not part.size:
            return
        there, here = part.relative(box.start).slices, part.relative(self.box.start).slices
        total, weight = total[(slice(None), *there)], None if weight is None else weight[there]
        keep = wanted[here]
        values = np.array(classes.values, classes.dtype)
        np.copyto(self.labels[here], values[_label_index(total)], where=keep)
        if self.probability is None and self.uncertainty is None:
            return
        share = host(total) / np.maximum(host(weight), 1)
        if self.probability is not None:
            self.probability[(slice(None), *here)] = np.where(keep, np.rint(share * SCALE), 255)
        if self.uncertainty is not None:
            self.uncertainty[here] = np.where(keep, np.rint(_entropy(share) * SCALE), 255)

    def take(self, other: Answer) -> None:
        """Puts in what another answer has of the box."""
        part = self.box & other.box
        here, there = (part.relative(box.start).slices for box in (self.box, other.box))
        self.labels[here] = other.labels[there]
        if self.probability is not None and other.probability is not None:
            self.probability[(slice(None), *here)] = other.probability[(slice(None), *there)]
        if self.uncertainty is not None and other.uncertainty is not None:
            self.uncertainty[here] = other.uncertainty[there]

    def counts(self, classes: ClassTable) -> list[int]:
        """Pixels of each class, and of none."""
        found = np.zeros(classes.nodata + 1, np.int64)
        for rows in self.labels:  # bincount makes eight bytes of each label
            found += np.bincount(rows.ravel(), minlength=len(found))
        return [int(found[v]) for v in (*classes.values, classes.nodata)]


def _label_index(total: Array) -> NDArray[Any]:
    """The class of the largest sum in each pixel; the first of several."""
    xp = array_namespace(total)
    # NaN and infinity survive a sum, which costs less than looking at each score.
    if not bool(xp.isfinite(xp.sum(total))):
        raise ValueError("the model gave scores that are not finite")
    kind = np.uint8 if len(total) <= 256 else np.uint16
    if not isinstance(total, np.ndarray):
        # Narrow before they leave the device; 16 bits without a sign are not in every library.
        return host(xp.astype(xp.argmax(total, axis=0), xp.uint8 if kind is np.uint8 else xp.int32))
    # numpy's argmax over the first axis takes many times as long, and so does writing where a mask is set.
    best = total[0].copy()
    index, larger = np.zeros(best.shape, kind), np.empty(best.shape, np.bool_)
    for number, scores in enumerate(total[1:], 1):
        np.greater(scores, best, out=larger)
        np.maximum(index, np.multiply(larger, kind(number)), out=index)  # no class before has a larger number
        np.maximum(best, scores, out=best)
    return index


def _entropy(share: NDArray[Any]) -> NDArray[Any]:
    """Entropy over the entropy of not knowing: 0 sure, 1 every class alike."""
    share = np.clip(share, 0, 1)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    entropy: NDArray[Any] = -(share * logs).sum(axis=0) / np.log(len(share))
    return entropy.clip(0, 1)
