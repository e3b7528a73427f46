"""Shapes, grids and areas for Hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tiling.box import Box
from tiling.grid import Grid

OVERLAPS = (0, 0.1, 0.25, 0.4, 0.5, 0.75, 0.9)


@st.composite
def boxes(draw: Any, shape: tuple[int, ...]) -> Box:
    """A part of an array of `shape` with something in it."""
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    return Box(start, tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)))


@st.composite
def grids(draw: Any, *, whole: bool = False, blocks: int = 4) -> Grid:
    """A 2D or 3D grid of at most `blocks` blocks a side; over the whole image or a part of it."""
    ndim = draw(st.sampled_from((2, 2, 3)))
    side, most = {2: (24, 9), 3: (9, 5)}[ndim]
    shape = tuple(draw(st.integers(1, side)) for _ in range(ndim))
    tile = tuple(draw(st.integers(1, min(n, most))) for n in shape)
    area = Box.whole(shape) if whole else draw(boxes(shape))
    blocks = blocks if ndim == 2 else 2
    block = tuple(draw(st.integers(-(-n // blocks), n)) for n in area.shape)
    return Grid.regular(shape, tile, draw(st.sampled_from(OVERLAPS)), block, area)
