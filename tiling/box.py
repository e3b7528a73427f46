"""Boxes of array indices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True)
class Box:
    """An N-D half-open range of indices, in array order (y, x) or (z, y, x).

    Raises:
        ValueError: where `start` and `stop` differ in length or a side is negative.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop):
            raise ValueError(f"box start {self.start} and stop {self.stop} differ in dimensions")
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"box stops at {self.stop}, before its start {self.start}")

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """The box of a whole array of this shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def ndim(self) -> int:
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of elements."""
        n = 1
        for side in self.shape:
            n *= side
        return n

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of this box into an array."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def __and__(self, other: Box) -> Box:
        """The part in both; empty (size 0) where they do not meet."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(max, start, map(min, self.stop, other.stop)))
        return Box(start, stop)

    def __or__(self, other: Box) -> Box:
        """The smallest box around both."""
        return Box(tuple(map(min, self.start, other.start)), tuple(map(max, self.stop, other.stop)))

    def __contains__(self, other: Box) -> bool:
        return (self & other) == other

    def grow(self, by: int) -> Box:
        """This box with `by` elements more on every side; may leave the array."""
        return Box(tuple(a - by for a in self.start), tuple(b + by for b in self.stop))

    def shift(self, by: tuple[int, ...]) -> Box:
        """This box moved by `by`."""
        return Box(
            tuple(a + d for a, d in zip(self.start, by, strict=True)),
            tuple(b + d for b, d in zip(self.stop, by, strict=True)),
        )

    def relative(self, origin: tuple[int, ...]) -> Box:
        """This box in the indices of an array whose first element lies at `origin`."""
        return self.shift(tuple(-o for o in origin))

    def split(self, step: tuple[int, ...]) -> Iterator[Box]:
        """Boxes of at most `step` that cover this one, in C order."""
        ranges = (range(a, b, s) for a, b, s in zip(self.start, self.stop, step, strict=True))
        for start in product(*ranges):
            yield Box(start, tuple(map(min, (a + s for a, s in zip(start, step, strict=True)), self.stop)))
