"""Agreement of outlines: boundary F1, normalised surface Dice and the 95th percentile of the Hausdorff distance.

Images come in pieces. An element belongs to the surface of its class where it touches, by a face, an element of
another class. What is left out is no class: it makes no surface.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNKNOWN = 255  # the label of what is left out
CLASSES = 255
MOST = 2**23  # surface elements of one image, prediction and truth together, whose distances are taken
_ROUNDING = 1 + 1e-6  # of distances, so that a step of 0.1 + 0.2 is within 0.3

Labels = NDArray[np.uint8]
Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Outlines:
    """Surface elements of two label maps, and how many have one of their class near them in the other.

    Attributes:
        elements, hits: (2, 255) in prediction and truth, by class; of one image or the sum of several.
    """

    elements: NDArray[np.int64]
    hits: NDArray[np.int64]

    def __add__(self, other: "Outlines") -> "Outlines":
        return Outlines(self.elements + other.elements, self.hits + other.hits)

    @property
    def boundary_f1(self) -> NDArray[np.float64]:
        """(255,) F1 of precision and recall of surface elements within the tolerance (Csurka et al. 2013).

        nan where neither has a surface, 0 where only one has.
        """
        precision, recall = np.divide(self.hits, self.elements, out=np.zeros((2, CLASSES)), where=self.elements > 0)
        both = precision + recall
        f1: NDArray[np.float64] = np.where(self.elements.any(axis=0), 0.0, np.nan)
        np.divide(2 * precision * recall, both, out=f1, where=both > 0)
        return f1

    @property
    def nsd(self) -> NDArray[np.float64]:
        """(255,) normalised surface Dice: share of both surfaces' elements within the tolerance of the other's.

        Nikolov et al. (2018), with every element counted alike, as in MONAI. nan where neither has a surface, 0 where
        only one has.
        """
        total = self.elements.sum(axis=0)
        share: NDArray[np.float64] = np.full(CLASSES, np.nan)
        np.divide(self.hits.sum(axis=0), total, out=share, where=total > 0)
        return share


class Surfaces:
    """Surface elements of two label maps of one image: how many, how many near the other's, and how far.

    Counts are exact however the image is cut into pieces, and take no more memory than a piece. Distances need every
    surface element at once; `overflowed` says that there were more than `most`, and then there are none.

    Args:
        shape: (*S) of the whole image.
        steps: (ndim, ndim), row i the world vector of a step along array axis i; the identity for pixels.
        tolerance: distance up to which two surfaces agree, in units of `steps`.
        closed: whether the image's own edge is a surface of what it cuts, as MONAI and Nikolov et al. (2018) count
            organs; False for scenes, whose edges would agree by themselves.
        most: surface elements beyond which no distances are taken.
    """

    def __init__(
        self, shape: Sequence[int], steps: NDArray[np.float64], tolerance: float, *, closed: bool, most: int = MOST
    ) -> None:
        self.shape = tuple(shape)
        self.steps = np.asarray(steps, np.float64)
        self.tolerance = tolerance
        self.closed = closed
        self.most = most
        self.overflowed = False
        self.outlines = Outlines(np.zeros((2, CLASSES), np.int64), np.zeros((2, CLASSES), np.int64))
        self._found: tuple[list[_Found], list[_Found]] = ([], [])

    @property
    def halo(self) -> tuple[int, ...]:
        """Elements around a piece, an axis, that `add` must see to count the piece as in the whole image."""
        return halo(self.steps, self.tolerance)

    def add(self, prediction: Labels, truth: Labels, inner: Slices, start: Sequence[int]) -> None:
        """Count a piece.

        Args:
            prediction, truth: (*S) uint8, the piece and `halo` around it, cut to the image; 255 is left out.
            inner: where in them the piece is.
            start: index in the image of their first element.
        """
        known = (prediction != UNKNOWN) & (truth != UNKNOWN)
        marked = [self._marked(labels, known, start) for labels in (prediction, truth)]
        same = (marked[0] == marked[1])[inner]
        origin = np.array([s.start for s in inner])
        for side in (0, 1):
            here = marked[side][inner]
            index = np.argwhere(here != UNKNOWN)
            values = here[here != UNKNOWN]
            alike = same[here != UNKNOWN]
            self.outlines.elements[side] += np.bincount(values, minlength=CLASSES)
            self.outlines.hits[side] += np.bincount(values[alike], minlength=CLASSES)
            self.outlines.hits[side] += self._near(index[~alike] + origin, values[~alike], marked[1 - side])
            self._keep(side, (index + origin + np.array(start)).astype(np.int32), values, alike)

    def hd95(self) -> NDArray[np.float64]:
        """(255,) 95th percentile of the distance to the other surface, the larger of both directions.

        nan where neither has a surface or there were too many elements, infinite where only one has a surface.
        """
        elements = self.outlines.elements
        distances = np.where(elements.any(axis=0), np.inf, np.nan)
        if self.overflowed:
            distances[elements.all(axis=0)] = np.nan
            return distances
        sides = [_joined(found, len(self.shape)) for found in self._found]
        for value in np.flatnonzero(elements.all(axis=0)):
            (mine, mine_same), (theirs, theirs_same) = (
                (index[values == value], same[values == value]) for index, values, same in sides
            )
            distances[value] = max(
                np.percentile(self._distances(mine, mine_same, theirs), 95),
                np.percentile(self._distances(theirs, theirs_same, mine), 95),
            )
        return distances

    def _marked(self, labels: Labels, known: NDArray[np.bool_], start: Sequence[int]) -> Labels:
        """The labels of surface elements, and 255 elsewhere."""
        surface = np.zeros(labels.shape, bool)
        for axis in range(labels.ndim):
            low, high = _along(labels.ndim, axis, slice(None, -1)), _along(labels.ndim, axis, slice(1, None))
            differ = (labels[low] != labels[high]) & known[low] & known[high]
            surface[low] |= differ
            surface[high] |= differ
            if self.closed and start[axis] == 0:
                surface[_along(labels.ndim, axis, slice(None, 1))] = True
            if self.closed and start[axis] + labels.shape[axis] == self.shape[axis]:
                surface[_along(labels.ndim, axis, slice(-1, None))] = True
        marked: Labels = np.where(surface & known, labels, np.uint8(UNKNOWN))
        return marked

    def _near(self, index: NDArray[Any], values: Labels, other: Labels) -> NDArray[np.int64]:
        """(255,) how many of some elements have one of their class in `other` within the tolerance."""
        hits = np.zeros(CLASSES, np.int64)
        for value in np.unique(values):
            targets = np.argwhere(other == value)
            if len(targets):
                wanted = index[values == value] @ self.steps
                reach = self.tolerance * _ROUNDING
                distances = _nearest(targets @ self.steps, wanted, reach)
                hits[value] = np.count_nonzero(np.isfinite(distances))
        return hits

    def _keep(self, side: int, index: NDArray[np.int32], values: Labels, alike: NDArray[np.bool_]) -> None:
        if self.outlines.elements.sum() > self.most:
            self.overflowed = True
            self._found = ([], [])
        if not self.overflowed:
            self._found[side].append((index, values, alike))

    def _distances(
        self, mine: NDArray[np.int32], same: NDArray[np.bool_], theirs: NDArray[np.int32]
    ) -> NDArray[np.float64]:
        """How far each of my elements is from the nearest of theirs; nothing where both have it."""
        distances = np.zeros(len(mine))
        if not same.all():
            distances[~same] = _nearest(theirs @ self.steps, mine[~same] @ self.steps)
        return distances


_Found = tuple[NDArray[np.int32], Labels, NDArray[np.bool_]]


def halo(steps: NDArray[np.float64], tolerance: float) -> tuple[int, ...]:
    """Elements an axis that a ball of radius `tolerance` reaches, and one to see whether the last is a surface."""
    # An index moves along axis i by the product with column i of the inverse.
    reach = tolerance * np.linalg.norm(np.linalg.inv(steps), axis=0)
    return tuple(int(n) + 1 for n in np.ceil(reach * _ROUNDING))


def _nearest(points: NDArray[Any], wanted: NDArray[Any], reach: float = np.inf) -> NDArray[np.float64]:
    """The distance from each wanted point (n, ndim) to the nearest of `points`; infinite beyond `reach`."""
    from scipy.spatial import cKDTree

    # Points of a grid share coordinates: splitting at medians would take long and gain nothing.
    tree = cKDTree(points, balanced_tree=False)
    return np.asarray(tree.query(wanted, distance_upper_bound=reach)[0], np.float64)


def _along(ndim: int, axis: int, part: slice) -> Slices:
    return tuple(part if a == axis else slice(None) for a in range(ndim))


def _joined(found: list[_Found], ndim: int) -> _Found:
    if not found:
        return np.zeros((0, ndim), np.int32), np.zeros(0, np.uint8), np.zeros(0, bool)
    index, values, same = zip(*found, strict=True)
    return np.concatenate(index), np.concatenate(values), np.concatenate(same)
