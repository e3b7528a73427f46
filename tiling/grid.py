"""Where tiles and blocks lie: one rule an axis, composed to N-D.

A *tile* is what the network sees; a *block* is what one task owns and writes. Tiles are fixed by the image alone, so a
pixel's label does not depend on the block, the worker or the area that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

from tiling.box import Box
from tiling.errors import InputError

_STRIDE = 32  # of the coarsest encoders in use; those of others divide it
_SHARING = 8  # last tiles that are closer together than the others


@dataclass(frozen=True, slots=True)
class Axis:
    """Tiles and blocks along one axis.

    Tiles start every `step`, but for the last few, which share out evenly what is less: else the last two could see
    nearly the same. All but the last one start at multiples of what `step` has in common with 32, for a network answers
    otherwise where its strides fall elsewhere on the pixels. Blocks part `start..stop` every `block`.

    Raises:
        InputError: where a tile does not fit the image or leaves gaps, or the area is empty.
    """

    extent: int
    tile: int
    step: int
    block: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 1 <= self.tile <= self.extent:
            raise InputError(
                f"a tile of {self.tile} does not fit an image side of {self.extent}; use --tile {self.extent} or less"
            )
        if not 1 <= self.step <= self.tile:
            raise InputError(f"tiles of {self.tile} every {self.step} leave gaps; use an overlap from 0 to below 1")
        if self.block < 1:
            raise InputError(f"a block of {self.block} is empty; use 1 or more")
        if not 0 <= self.start < self.stop <= self.extent:
            raise InputError(f"the area {self.start}..{self.stop} misses the image side 0..{self.extent}")

    @property
    def tiles(self) -> int:
        """Number of tiles along the whole image."""
        return math.ceil((self.extent - self.tile) / self.step) + 1

    @property
    def blocks(self) -> int:
        """Number of blocks along the area."""
        return math.ceil((self.stop - self.start) / self.block)

    @property
    def shared(self) -> int:
        """Most pixels that two neighbouring tiles share."""
        starts = (self.tile_start(i) for i in range(max(0, self.tiles - 2 - _SHARING), self.tiles))
        return max((before + self.tile - start for before, start in pairwise(starts)), default=0)

    def tile_start(self, index: int) -> int:
        last = self.tiles - 1
        even = max(0, last - _SHARING)
        if index <= even or index == last:
            return min(index * self.step, self.extent - self.tile)
        begin, unit = even * self.step, math.gcd(self.step, _STRIDE)
        share = (index - even) * (self.extent - self.tile - begin)
        return begin + -(-share // ((last - even) * unit)) * unit  # rounded up, in whole numbers

    def block_range(self, index: int) -> tuple[int, int]:
        first = self.start + index * self.block
        return first, min(first + self.block, self.stop)

    def tiles_touching(self, start: int, stop: int) -> range:
        """Numbers of the tiles that share an index with `start..stop`."""
        # No tile starts after its number of steps, nor a whole step before.
        first = 0 if start < self.tile else (start - self.tile) // self.step + 1
        first += self.tile_start(first) + self.tile <= start
        last = (stop - 1) // self.step
        last += last + 1 < self.tiles and self.tile_start(last + 1) < stop
        return range(first, min(last, self.tiles - 1) + 1)


@dataclass(frozen=True, slots=True)
class Grid:
    """The product of one `Axis` a dimension, in array order."""

    axes: tuple[Axis, ...]

    @classmethod
    def regular(
        cls,
        shape: tuple[int, ...],
        tile: int | tuple[int, ...],
        overlap: float = 0.25,
        block: int | tuple[int, ...] | None = None,
        area: Box | None = None,
    ) -> Grid:
        """A grid over an image of `shape`, with blocks over `area` only.

        Args:
            tile: pixels the network sees, one number or one an axis.
            overlap: share of a tile that the next one sees again, 0 <= overlap < 1.
            block: pixels one task owns; the whole area by default.
            area: the part of the image to segment; all of it by default.

        Raises:
            InputError: where the tile is larger than the image, or the overlap or the area is out of range.
        """
        if not 0 <= overlap < 1:
            raise InputError(f"an overlap of {overlap} never advances; use 0 <= overlap < 1, such as 0.25")
        area = area or Box.whole(shape)
        tiles = (tile,) * len(shape) if isinstance(tile, int) else tile
        blocks = area.shape if block is None else (block,) * len(shape) if isinstance(block, int) else block
        return cls(
            tuple(
                Axis(extent, t, max(1, t - round(t * overlap)), max(1, min(b, stop - start)), start, stop)
                for extent, t, b, start, stop in zip(shape, tiles, blocks, area.start, area.stop, strict=True)
            )
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole image."""
        return tuple(a.extent for a in self.axes)

    @property
    def tile(self) -> tuple[int, ...]:
        return tuple(a.tile for a in self.axes)

    @property
    def overlap(self) -> tuple[int, ...]:
        """Pixels that neighbouring tiles share at least, one number an axis."""
        return tuple(a.tile - a.step for a in self.axes)

    @property
    def block(self) -> tuple[int, ...]:
        return tuple(a.block for a in self.axes)

    @property
    def area(self) -> Box:
        """The part of the image that is segmented."""
        return Box(tuple(a.start for a in self.axes), tuple(a.stop for a in self.axes))

    @property
    def n_blocks(self) -> int:
        return math.prod(a.blocks for a in self.axes)

    @property
    def n_tiles(self) -> int:
        """Tiles that are predicted: each once, and once more for each further strip of blocks that it touches."""
        down, *across = self.axes
        columns = (sum(len(a.tiles_touching(*a.block_range(i))) for i in range(a.blocks)) for a in across)
        return len(down.tiles_touching(down.start, down.stop)) * math.prod(columns)

    def blocks(self) -> Iterator[Box]:
        """Every block's box, in C order."""
        return map(self.block_box, range(self.n_blocks))

    def block_box(self, number: int) -> Box:
        """The box of one block, in the image's indices."""
        if not 0 <= number < self.n_blocks:
            raise IndexError(f"block {number} of {self.n_blocks}")
        index = []
        for axis in reversed(self.axes):
            number, i = divmod(number, axis.blocks)
            index.append(i)
        ranges = [a.block_range(i) for a, i in zip(self.axes, reversed(index), strict=True)]
        return Box(tuple(r[0] for r in ranges), tuple(r[1] for r in ranges))

    def strips(self, numbers: Iterable[int], longest: int) -> list[list[int]]:
        """Blocks parted into strips: each block the one below the last along the first axis, at most `longest`."""
        columns = math.prod(a.blocks for a in self.axes[1:])
        strips: list[list[int]] = []
        for number in sorted(numbers, key=lambda n: (n % columns, n)):
            if strips and number == strips[-1][-1] + columns and len(strips[-1]) < longest:
                strips[-1].append(number)
            else:
                strips.append([number])
        return strips

    def tiles(self, block: Box) -> Iterator[Box]:
        """The boxes of all tiles that touch `block`, in C order, whole."""
        starts = (
            [a.tile_start(i) for i in a.tiles_touching(start, stop)]
            for a, start, stop in zip(self.axes, block.start, block.stop, strict=True)
        )
        for start in product(*starts):
            yield Box(start, tuple(s + t for s, t in zip(start, self.tile, strict=True)))

    def reach(self, block: Box) -> Box:
        """The box around all tiles that touch `block`: what must be read to compute it."""
        start, stop = [], []
        for a, first, last in zip(self.axes, block.start, block.stop, strict=True):
            touching = a.tiles_touching(first, last)
            start.append(a.tile_start(touching[0]))
            stop.append(a.tile_start(touching[-1]) + a.tile)
        return Box(tuple(start), tuple(stop))
