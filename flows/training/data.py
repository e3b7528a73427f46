"""Images and their labels, opened for training: what the settings name becomes examples that are read lazily."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import tiling
from flows.placement import check_same_place
from flows.training.pairing import files, rows
from flows.training.polygons import IGNORE, PolygonLabels, is_vector
from tiling import Box, InputError, Source
from tiling.intensity import statistics
from tiling.predict import ras_order
from tiling.scale import pixel_sides

if TYPE_CHECKING:
    from lmseg_core.training.settings import DataSettings, Pairs
    from lmseg_core.training.windows import Example

# How far, in pixels, an image and its labels may lie apart: what rounding in a header does.
_NEAR = 0.01


@dataclass(frozen=True)
class ImagePixels:
    """The channels of one or more sources on one grid; NaN where a source holds no data.

    shape: (C, *S), volumes turned to RAS+ as the predictor turns its tiles.
    """

    sources: tuple[Source, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        space = self.sources[0].space
        return sum(source.channels for source in self.sources), *_turned_shape(space.shape, space.affine)

    def read(self, box: tuple[slice, ...]) -> NDArray[Any]:
        """The pixels of a box, (C, *box)."""
        return np.concatenate([_read(source, box) for source in self.sources])


@dataclass(frozen=True)
class LabelPixels:
    """A label map whose values are classes, 255 where there is nothing to learn.

    lookup: (value in the file, class) pairs. Other values stay what they are, or are refused where `complete`.
    """

    source: Source
    lookup: tuple[tuple[int, int], ...]
    complete: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return _turned_shape(self.source.space.shape, self.source.space.affine)

    def read(self, box: tuple[slice, ...]) -> NDArray[Any]:
        """The classes of a box, int64 where a value is beyond a byte, so that it can be refused by name."""
        values = _read(self.source, box)[0]
        if values.dtype.kind == "f":
            missing = np.isnan(values)
            rounded = np.where(missing, IGNORE, np.rint(values))
            if not np.array_equal(rounded[~missing], values[~missing]):
                raise InputError(f"{self.source.uri} holds fractions, not labels; give a label map")
            values = rounded
        labels = values.astype(np.int64)
        mapped: NDArray[Any] = labels.copy()
        known = labels == IGNORE
        for value, to in self.lookup:
            here = labels == value
            mapped[here] = to
            known |= here
        if self.complete and not known.all():
            raise InputError(
                f"{self.source.uri} has the label {labels[~known][0]}, which data.values does not list; add it there, "
                "or to data.ignore"
            )
        fits = int(mapped.min(initial=0)) >= 0 and int(mapped.max(initial=0)) < 256
        return mapped.astype(np.uint8) if fits else mapped


def examples(data: DataSettings, pairs: Sequence[Pairs], names: Sequence[str]) -> list[Example]:
    """Every image with its labels, opened and compared.

    Args:
        names: of the classes, by which polygons are told apart.

    Raises:
        InputError: where a file is missing or has no partner, or image and label differ in size, CRS or affine.
    """
    return [example for pair in pairs for example in _of_pair(data, pair, names)]


def _of_pair(data: DataSettings, pair: Pairs, names: Sequence[str]) -> list[Example]:
    told = [pair.image] if isinstance(pair.image, str) else list(pair.image)
    if not is_vector(pair.label):
        found = rows(data.root, [*told, pair.label])
        return [_example(data, pair, row[:-1], row[-1], names) for row in found]
    (label,) = files(data.root, pair.label)
    return [_example(data, pair, row, label, names) for row in rows(data.root, told)]


def _example(data: DataSettings, pair: Pairs, images: Sequence[str], label: str, names: Sequence[str]) -> Example:
    from lmseg_core.training.windows import Example

    sources = tuple(tiling.open(image, bands=bands) for image, bands in zip(images, pair.chosen, strict=True))
    for source in sources[1:]:
        check_same_place(sources[0].uri, sources[0].space, source.uri, source.space, _NEAR)
    labels: LabelPixels | PolygonLabels
    if is_vector(label):
        labels = PolygonLabels.open(label, sources[0], pair.attribute, tuple(names), dict(_lookup(data)))
    else:
        truth = tiling.open(label)
        check_same_place(sources[0].uri, sources[0].space, truth.uri, truth.space, _NEAR)
        if truth.channels != 1:
            raise InputError(f"{label} has {truth.channels} bands; give a label map with one")
        labels = LabelPixels(truth, _lookup(data), data.values is not None)
    means, stds = zip(*(statistics(source) for source in sources), strict=True)
    return Example(
        name=images[0],
        image=ImagePixels(sources),
        labels=labels,
        mean=sum(means, ()),
        std=sum(stds, ()),
        sources=tuple(source.channels for source in sources) if len(sources) > 1 else (),
        scale=pixel_sides(sources[0].space, Box.whole(sources[0].space.shape)) or (),
    )


def _lookup(data: DataSettings) -> tuple[tuple[int, int], ...]:
    chosen = dict(data.values or {}) | dict.fromkeys(data.ignore, IGNORE)
    return tuple(sorted(chosen.items()))


def _read(source: Source, box: tuple[slice, ...]) -> NDArray[Any]:
    """Pixels of a box of the turned image, (C, *box), NaN where there are none."""
    order, flips = _turn(source.space.ndim, source.space.affine)
    sides = _turned_shape(source.space.shape, source.space.affine)
    placed = [(sides[a] - s.stop, sides[a] - s.start) if a in flips else (s.start, s.stop) for a, s in enumerate(box)]
    start, stop = [0] * len(box), [0] * len(box)
    for (low, high), axis in zip(placed, order, strict=True):
        start[axis], stop[axis] = low, high
    pixels = source.read(Box(tuple(start), tuple(stop)))
    values = pixels.values
    if not pixels.valid.all():
        values = values.astype(np.float32)
        values[:, ~pixels.valid] = math.nan
    turned = values.transpose(0, *(a + 1 for a in order))
    return np.flip(turned, tuple(a + 1 for a in flips))


def _turned_shape(shape: tuple[int, ...], affine: tuple[tuple[float, ...], ...]) -> tuple[int, ...]:
    return tuple(shape[a] for a in _turn(len(shape), affine)[0])


def _turn(ndim: int, affine: tuple[tuple[float, ...], ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Order of the axes and which then to flip; rasters stay as they are."""
    return ras_order(affine) if ndim == 3 else ((0, 1), ())
