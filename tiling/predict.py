"""What the engine asks of a model, and models seen from another side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from tiling.errors import InputError
from tiling.sources import Part

# numpy's, torch's or another array of the array API standard; the standard has no name for the type.
Array = Any


class Predict(Protocol):
    """Anything that scores tiles. Sent to workers with every block, so pickling it must be cheap."""

    @property
    def channels(self) -> int: ...
    @property
    def ndim(self) -> int: ...
    @property
    def tile(self) -> tuple[int, ...]:
        """The tile it was made for, in array order."""
        ...

    @property
    def batch(self) -> int:
        """Tiles in one call; the engine fills up the last batch."""
        ...

    @property
    def classes(self) -> Sequence[tuple[int, str, str, str | None]]:
        """(value, name, colour, code) of every score channel."""
        ...

    @property
    def digest(self) -> str:
        """Changes when its answers may."""
        ...

    @property
    def logits(self) -> bool:
        """Whether scores are logits, of which the engine takes the softmax over the classes, or probabilities."""
        ...

    def place(self, values: NDArray[Any], valid: NDArray[np.bool_] | None) -> Array:
        """Moves (C, *S) raw values to the device, once a block; `valid` (*S) marks what may be believed.

        Called while another block is predicted.
        """
        ...

    def __call__(self, batch: Array) -> Array:
        """Return the scores (B, K, *tile) of tiles (B, C, *tile), the higher the likelier.

        Unless they are logits they must lie between 0 and 1 wherever probabilities or uncertainty are written.
        """
        ...

    def peak_memory(self) -> int:
        """Bytes taken on a device with memory of its own, at most since the last call; 0 where it has none."""
        ...


@dataclass(frozen=True)
class Oriented:
    """A volume model in the voxel order of a file: tiles are turned to RAS+ for it and its scores turned back.

    Args:
        model: predicts (z, y, x) tiles of RAS+ volumes.
        affine: the file's index-to-world rows, which say how its axes lie.
    """

    model: Predict
    affine: tuple[tuple[float, ...], ...]
    _order: tuple[int, ...] = field(init=False, repr=False)
    _flips: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        order, flips = ras_order(self.affine)
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_flips", flips)

    @property
    def channels(self) -> int:
        return self.model.channels

    @property
    def ndim(self) -> int:
        return self.model.ndim

    @property
    def tile(self) -> tuple[int, ...]:
        sides = [0] * self.ndim
        for side, axis in zip(self.model.tile, self._order, strict=True):
            sides[axis] = side
        return tuple(sides)

    @property
    def batch(self) -> int:
        return self.model.batch

    @property
    def classes(self) -> Sequence[tuple[int, str, str, str | None]]:
        return self.model.classes

    @property
    def digest(self) -> str:
        return f"{self.model.digest} {self._order} {self._flips}"

    @property
    def logits(self) -> bool:
        return self.model.logits

    def place(self, values: NDArray[Any], valid: NDArray[np.bool_] | None) -> Array:
        return self.model.place(values, valid)

    def __call__(self, batch: Array) -> Array:
        xp = array_namespace(batch)
        forth = (0, 1, *(a + 2 for a in self._order))
        back = tuple(forth.index(a) for a in range(len(forth)))
        flips = tuple(a + 2 for a in self._flips)
        scores = self.model(_flip(xp, xp.permute_dims(batch, forth), flips))
        return xp.permute_dims(_flip(xp, scores, flips), back)

    def peak_memory(self) -> int:
        return self.model.peak_memory()


def _flip(xp: Any, array: Array, axes: tuple[int, ...]) -> Array:
    if not axes:
        return array
    # torch flips uint16, the type of most DICOM conversions, along some axes only; it gathers along all.
    if str(array.dtype).endswith("uint16"):
        for axis in axes:
            backwards = xp.arange(array.shape[axis] - 1, -1, -1, device=device(array))
            array = xp.take(array, backwards, axis=axis)
        return array
    return xp.flip(array, axis=axes)


def ras_order(affine: tuple[tuple[float, ...], ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How to turn a (z, y, x) array to RAS+: the order of its axes, and which then to flip."""
    matrix = np.array(affine)[:, :-1]
    steps = matrix / np.linalg.norm(matrix, axis=0)
    axis_of: dict[int, int] = {}
    flipped = []
    # The clearest axis first, so that an oblique volume still gives each world axis one array axis.
    for world, index in sorted(np.ndindex(3, 3), key=lambda wi: -abs(steps[wi])):
        if world not in axis_of and index not in axis_of.values():
            axis_of[world] = index
            if steps[world, index] < 0:
                flipped.append(2 - world)
    return tuple(2 - axis_of[world] for world in (2, 1, 0)), tuple(sorted(flipped))


def check_kind(predict: Predict, ndim: int, uri: str) -> None:
    """InputError where a raster meets a model for volumes, or a volume one for rasters."""
    kinds = {2: "a 2D raster", 3: "a 3D volume"}
    if ndim != predict.ndim:
        raise InputError(f"{uri} is {kinds[ndim]}, but the model is for {kinds[predict.ndim]}; choose another --model")


def check_bands(predict: Predict, channels: int, uri: str) -> None:
    """InputError where an image has another number of bands than the model expects."""
    if channels != predict.channels:
        choice = ",".join(str(b + 1) for b in range(predict.channels))
        fix = "choose another --model"
        if predict.ndim == 3:
            fix = "join as many files by commas, in the model's order"
        elif channels > predict.channels:
            fix = f"pass --bands {choice} or the ones that match"
        raise InputError(f"{uri} has {channels} bands, but the model expects {predict.channels}; {fix}")


def check_sources(parts: Sequence[Part], sources: Sequence[int], uri: str) -> tuple[int, ...]:
    """Numbers, from 0, of the model's sources that are missing.

    Where files are missing, and where there are as many as sources, each has to be the source in its place.

    Args:
        sources: bands of each source of the model; empty where it has but one.

    Raises:
        InputError: naming the file and what the model expects in its place.
    """
    missing = tuple(number for number, part in enumerate(parts) if part.missing)
    if missing and not sources:
        raise InputError(f"{uri} lacks a file, and the model has no sources to do without; give all of its bands")
    bands = sum(part.channels for part in parts)
    if sources and len(parts) != len(sources) and (missing or bands < sum(sources)):
        raise InputError(
            f"{uri} has {bands} bands in {len(parts)} parts, but the model's sources have "
            f"{', '.join(map(str, sources))} bands; join one file or - for each by commas"
        )
    if len(parts) == len(sources):
        for number, (part, channels) in enumerate(zip(parts, sources, strict=True), 1):
            if not part.missing and part.channels != channels:
                raise InputError(
                    f"{part.file} has {part.channels} bands, but source {number} of the model has {channels}; "
                    "give the files in the order of the model's sources, or choose --bands"
                )
    return missing
