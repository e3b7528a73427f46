"""Windows of images and labels, for training and for validation.

Data reaches training as `Example`s, whose images and labels are anything with `shape` and `read(box)`: a file behind
a reader, or an array.
"""

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lmseg_core.errors import ModelError
from lmseg_core.loss import IGNORE
from lmseg_core.training import augment
from lmseg_core.training.settings import AugmentSettings, Settings

if TYPE_CHECKING:
    from lmseg_core.training.census import Census

_TRIES = 10  # draws before a window without any label gives way to one that has some for certain

Box = tuple[slice, ...]


class Pixels(Protocol):
    """An image (C, *S) or labels (*S) that are read where they are needed; it can be pickled."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of an image, (*S) of labels."""

    def read(self, box: Box) -> NDArray[Any]:
        """Return the pixels in spatial slices that lie inside.

        An image gives (C, *box) of any dtype, NaN where a band is invalid; labels give (*box) integer, 255 = ignore.
        """


@dataclass(frozen=True, eq=False)
class InMemory:
    """An array as `Pixels`."""

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    def read(self, box: Box) -> NDArray[Any]:
        """Return a view of the array."""
        index: tuple[Any, ...] = (..., *box)
        view: NDArray[Any] = self.array[index]
        return view


@dataclass(frozen=True)
class Example:
    """An image and its labels on one grid.

    mean, std: of each band, in the units of the image; those the predictor will use. sources: number of bands of each
    source, where there are several. scale: sides of a pixel in array order, in metres on the ground or millimetres;
    empty where they are not known.
    """

    name: str
    image: Pixels
    labels: Pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sources: tuple[int, ...] = ()
    scale: tuple[float, ...] = ()


class Window(TypedDict):
    """pixel_values: (C, *W) float32, normalised; labels: (*W) uint8, 255 = ignore; example: index of its example."""

    pixel_values: Tensor
    labels: Tensor
    example: int


def cached(examples: Sequence[Example], budget: int) -> list[Example]:
    """Return the examples with their smallest images and labels held in memory, up to `budget` bytes in all.

    A compressed file is then decoded once and not for each window. Arrays keep their dtype.
    """
    sizes: list[tuple[int, int, str]] = []
    for index, example in enumerate(examples):
        for field, pixels in (("image", example.image), ("labels", example.labels)):
            corner = pixels.read(tuple(slice(0, 1) for _ in example.labels.shape))  # tells the dtype
            sizes.append((math.prod(pixels.shape) * corner.itemsize, index, field))
    held = list(examples)
    for size, index, field in sorted(sizes):
        if size > budget:
            break
        budget -= size
        everything = tuple(slice(0, n) for n in held[index].labels.shape)
        if field == "image":
            held[index] = replace(held[index], image=InMemory(held[index].image.read(everything)))
        else:
            held[index] = replace(held[index], labels=InMemory(held[index].labels.read(everything)))
    return held


class RandomWindows(Dataset[Window]):
    """Random windows of the examples, changed at random; each is a pure function of the seed and its index.

    Neither the number of worker processes nor where a training was resumed changes what item i is. Examples are drawn
    by their number of pixels; a share `data.balance` of the windows is instead placed around a class drawn evenly.
    """

    def __init__(self, examples: Sequence[Example], census: "Census", settings: Settings, length: int) -> None:
        """census: of the same examples; length: number of items. Raises ModelError for a window of other axes."""
        self._window = tuple(settings.data.window)
        _check_axes(examples, self._window)
        self.examples = tuple(examples)
        self._changes = settings.augment
        self._balance = settings.data.balance
        self._length = length
        self._settles = round((1 - settings.augment.settle) * length)
        self._pixels = torch.tensor([math.prod(example.labels.shape) for example in examples], dtype=torch.float64)
        self._by_class = torch.from_numpy(census.counts.T.astype(float))
        self._positions = census.positions
        self._present = np.flatnonzero(census.counts.sum(axis=0)).tolist()
        # Spreads the seeds of different trainings; torch keeps 32 bits of a seed.
        self._seed = int(np.random.SeedSequence(settings.seed).generate_state(1)[0])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < self._length:
            raise IndexError(f"window {index} of {self._length}")
        generator = torch.Generator().manual_seed((self._seed + index) % 2**32)
        changes = self._changes if index < self._settles else self._changes.settled
        number, image, labels = self._draw(changes, generator)
        if augment.chance(changes.cutmix, generator):
            _, other, its_labels = self._draw(changes, generator)
            image, labels = augment.cutmix(image, labels, (other, its_labels), generator)
        sources = self.examples[number].sources
        image = _told_missing(augment.intensity(image, changes, generator), image, sources)
        if len(sources) > 1 and augment.chance(changes.source_dropout, generator):
            image = augment.drop_source(image, sources, generator)
        return {"pixel_values": image.contiguous(), "labels": labels.contiguous(), "example": number}

    def _draw(self, changes: AugmentSettings, generator: torch.Generator) -> tuple[int, Tensor, Tensor]:
        """Return a window with at least one label, after the index of its example."""
        for _ in range(_TRIES):
            around = augment.chance(self._balance, generator)
            matrix = augment.geometry(changes, len(self._window), generator)
            number, place = self._place(matrix, around, generator)
            labels = place.labels()  # before the image, which need not be read if there are none
            if bool((labels != IGNORE).any()):
                return number, place.image(), labels
        number, place = self._place(np.eye(len(self._window)), True, generator)
        labels = place.labels()
        if not bool((labels != IGNORE).any()):
            raise ModelError(
                f"the labels of {place.example.name} are {IGNORE} (ignore) where classes were counted; "
                "keep the file as it is during a training."
            )
        return number, place.image(), labels

    def _place(self, matrix: augment.Matrix, around: bool, generator: torch.Generator) -> "tuple[int, _Place]":
        """Return where a window lies, around a pixel of a class drawn evenly or anywhere, and in which example."""
        if around:
            value = self._present[augment.below(len(self._present), generator)]
            weights = self._by_class[value]
        else:
            weights = self._pixels
        number = int(torch.multinomial(weights, 1, generator=generator))
        shape = self.examples[number].labels.shape
        extent = augment.reach(matrix, self._window)
        beyond = augment.chance(self._changes.shift, generator)
        limits = [_limits(size, want, beyond) for size, want in zip(shape, extent, strict=True)]
        if around:
            positions = self._positions[number][value]
            # The pixel shows anywhere in the middle half of the window, whatever the geometry.
            shown = [augment.between(-size / 4, size / 4, generator) for size in self._window]
            centre = positions[augment.below(len(positions), generator)] - matrix @ np.asarray(shown)
            wanted = [round(float(at) - (want - 1) / 2) for at, want in zip(centre, extent, strict=True)]
            start = tuple(min(max(at, low), high) for at, (low, high) in zip(wanted, limits, strict=True))
        else:
            start = tuple(low + augment.below(high - low + 1, generator) for low, high in limits)
        return number, _Place(self.examples[number], matrix, start, self._window)


class GridWindows(Dataset[Window]):
    """Windows on a regular grid over every example; over all windows each pixel's label counts exactly once.

    The last window of an axis shifts back inside the image, and what it then repeats is 255; so is what lies outside an
    image that is smaller than the window.
    """

    def __init__(self, examples: Sequence[Example], window: Sequence[int]) -> None:
        """Raises ModelError for a window of other axes than the images."""
        self._window = tuple(window)
        _check_axes(examples, self._window)
        self.examples = tuple(examples)
        self._counts = [self._cells(example) for example in examples]
        self._ends = list(itertools.accumulate(math.prod(counts) for counts in self._counts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        example, counts = self.examples[number], self._counts[number]
        cell = np.unravel_index(index - (self._ends[number] - math.prod(counts)), counts)
        first = [int(i) * want for i, want in zip(cell, self._window, strict=True)]
        start = tuple(
            max(0, min(at, size - want))
            for at, size, want in zip(first, example.labels.shape, self._window, strict=True)
        )
        place = _Place(example, np.eye(len(start)), start, self._window)
        own = tuple(slice(at - begin, None) for at, begin in zip(first, start, strict=True))
        read = place.labels()
        labels = torch.full_like(read, IGNORE)
        labels[own] = read[own]
        image = place.image().contiguous()
        image = _told_missing(image, image, example.sources)
        return {"pixel_values": image, "labels": labels, "example": number}

    def _cells(self, example: Example) -> tuple[int, ...]:
        return tuple(-(-size // want) for size, want in zip(example.labels.shape, self._window, strict=True))


@dataclass(frozen=True)
class _Place:
    """Where a window lies: in the upright box of shape `reach(matrix, window)` at `start`, partly outside perhaps."""

    example: Example
    matrix: augment.Matrix
    start: tuple[int, ...]
    window: tuple[int, ...]

    def labels(self) -> Tensor:
        """Return labels (*W) uint8, 255 outside the image."""
        region = torch.from_numpy(self.example.labels.read(self._box).astype(np.uint8))
        if self._exact:
            return augment.reorder(self._padded(region, IGNORE), self.matrix)
        return augment.resample_labels(region, self._grid)

    def image(self) -> Tensor:
        """Return the normalised image (C, *W) float32, 0 outside the image and where a band is invalid."""
        region = _normalised(self.example.image.read(self._box), self.example)
        if self._exact:
            return augment.reorder(self._padded(region, 0), self.matrix)
        return augment.resample(region, self._grid)

    @cached_property
    def _exact(self) -> bool:
        return augment.is_exact(self.matrix)

    @cached_property
    def _extent(self) -> tuple[int, ...]:
        return augment.reach(self.matrix, self.window)

    @cached_property
    def _box(self) -> Box:
        """The part of the image to read."""
        margin = 0 if self._exact else 1  # interpolation looks at one neighbour more
        return tuple(
            slice(max(0, at - margin), min(at + want + margin, size))
            for at, want, size in zip(self.start, self._extent, self.example.labels.shape, strict=True)
        )

    @cached_property
    def _grid(self) -> Tensor:
        """Where the pixels of the window lie in that part."""
        middles = zip(self.start, self._extent, self._box, strict=True)
        centre = [at + (want - 1) / 2 - part.start for at, want, part in middles]
        return augment.sampling_grid(self.matrix, centre, [part.stop - part.start for part in self._box], self.window)

    def _padded(self, region: Tensor, fill: int) -> Tensor:
        lead = region.shape[: region.ndim - len(self._extent)]
        if region.shape[len(lead) :] == self._extent:
            return region
        padded = torch.full((*lead, *self._extent), fill, dtype=region.dtype)
        inside = [slice(part.start - at, part.stop - at) for part, at in zip(self._box, self.start, strict=True)]
        index: tuple[Any, ...] = (..., *inside)
        padded[index] = region
        return padded


def _told_missing(image: Tensor, before: Tensor, sources: Sequence[int]) -> Tensor:
    """Return the image with NaN for sources that hold no data in it, all zero `before`: as the network takes it."""
    if len(sources) < 2:
        return image
    parts = zip(torch.split(image, list(sources)), torch.split(before, list(sources)), strict=True)
    return torch.cat([part if bool(was.any()) else torch.full_like(part, math.nan) for part, was in parts])


def _normalised(image: NDArray[Any], example: Example) -> Tensor:
    """Return (image - mean) / std a band as float32, 0 where it is not finite."""
    view = (-1, *[1] * (image.ndim - 1))
    centre = np.asarray(example.mean, np.float32).reshape(view)
    # As in prediction: a band that is constant over the whole image becomes zero, not infinity.
    spread = np.maximum(np.asarray(example.std, np.float32), 1e-6).reshape(view)
    values = image.astype(np.float32)
    values -= centre
    values /= spread
    if image.dtype.kind == "f":
        np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return torch.from_numpy(values)


def _limits(size: int, want: int, beyond: bool) -> tuple[int, int]:
    """Return the first and the last place where `want` pixels may start on an axis of `size` pixels."""
    low, high = sorted((0, size - want))  # an axis shorter than the window lies anywhere inside it
    # At least half of what can lie inside does.
    reach = min(size, want) // 2 if beyond else 0
    return low - reach, high + reach


def _check_axes(examples: Sequence[Example], window: Sequence[int]) -> None:
    for example in examples:
        if len(example.labels.shape) != len(window):
            raise ModelError(
                f"{example.name} has {len(example.labels.shape)} axes {example.labels.shape}; "
                f"data.window {list(window)} has {len(window)}. Give one size for each axis."
            )
