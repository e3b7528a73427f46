"""Blocks one below another are computed by one task, and tiles on the borders between them once.

While a block is predicted, the one below is read and brought to the device, and the one above written.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiling.answer import Answer
from tiling.batches import check_probabilities, fitting_batch, is_out_of_memory, predicted
from tiling.blend import Field, Slab
from tiling.box import Box
from tiling.errors import BlockError, InputError
from tiling.heap import give_back
from tiling.predict import Array, Predict
from tiling.record import STEPS
from tiling.sources import Pixels, Source
from tiling.store import Store

# Blocks of a task that are begun and not yet recorded: one is predicted, one is written.
IN_HAND = 2
# One block at a time on the device of a process, where a cluster runs several tasks in it.
_DEVICE = threading.Lock()
_SMALLER = "; pass --device cpu, a smaller --tile or a smaller --memory"


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What a task tells of a block: small, for it crosses the network.

    Attributes:
        tiles: tiles predicted for it; those that the block above shares were predicted there.
        skipped: tiles that were not, because nothing in them is wanted.
        nonfinite: pixels masked because they were NaN or infinite.
        seconds: spent in each of `STEPS`.
        batch: tiles in one call of the network.
        asked: tiles that the model asks for there; more than `batch` where the device had no memory for them.
    """

    block: int
    tiles: int
    skipped: int
    nonfinite: int
    seconds: dict[str, float]
    batch: int
    asked: int


class StripReport(NamedTuple):
    """What a task tells of its blocks: those that are done now, and by number those on which the model failed."""

    blocks: list[BlockReport]
    failures: dict[int, BlockError]


def compute_strip(
    source: Source,
    predict: Predict,
    store: Store,
    numbers: Sequence[int],
    on_block: Callable[[BlockReport], None] | None = None,
) -> StripReport:
    """Reads, predicts and writes those of some blocks that are not done.

    Args:
        numbers: blocks of the store, best those of a strip in order; see `Grid.strips`.
        on_block: called after each block, in this thread; what it raises ends the task.

    Raises:
        InputError: where a block cannot be read, its file has changed since the run began, or there is no room to
            write it.
        ConnectionError: where the network fails.
    """
    try:
        return _compute(source, predict, store, numbers, on_block)
    except (InputError, ConnectionError) as error:
        alone = type(error)(*error.args)
    # Without its cause: GDAL's errors do not survive the way back from a worker, and what they caused not with them.
    raise alone


def _compute(
    source: Source,
    predict: Predict,
    store: Store,
    numbers: Sequence[int],
    on_block: Callable[[BlockReport], None] | None,
) -> StripReport:
    report = StripReport([], {})

    def finish(writing: Future[BlockReport]) -> None:
        report.blocks.append(writing.result())
        give_back()
        if on_block is not None:
            on_block(report.blocks[-1])

    store.check()
    if not store.is_made_from("model", predict.digest):
        raise InputError(
            f"the model of {store.path} is another on a worker than where the run began: its files were replaced; put "
            "those back, or run again with --fresh"
        )
    give_back()  # what loading the model left
    # Where a worker dies Dask runs its task again, of which a part is done.
    todo = store.pending(numbers)
    column: _Column | None = None
    writing: Future[BlockReport] | None = None
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        coming = [reader.submit(_read, source, predict, store, todo[0], None)] if todo else []
        for number, below in zip(todo, [*todo[1:], None], strict=False):
            clock = time.perf_counter()
            block = coming.pop().result()
            if block.shares and column is None:
                block = _read(source, predict, store, number, None)  # the model failed on the block above
            if below is not None:
                coming.append(reader.submit(_read, source, predict, store, below, number))
            # What is late was last on its way to the device; else nobody waited for that.
            block.seconds["move"] = min(block.seconds["move"], time.perf_counter() - clock)
            if column is None or not block.shares:
                column = _Column(predict, store, block.box)
            with _DEVICE:
                block.seconds["wait"] = time.perf_counter() - clock - block.seconds["move"]
                try:
                    answered = column.answer(block)
                except InputError:
                    raise
                except Exception as error:
                    place = f"block {number} at {block.box.start}..{block.box.stop} of {source.uri}"
                    fix = _SMALLER if is_out_of_memory(error) else ""
                    failure = BlockError(f"{place} failed: {type(error).__name__}: {error}{fix}")
                    # A traceback does not travel between processes; its text does, and names the model's own lines.
                    failure.add_note("".join(traceback.format_exception(error)))
                    report.failures[number] = failure
                    column = None
                    continue
            del block  # its pixels, while the next ones come
            clock = time.perf_counter()
            if writing is not None:
                finish(writing)
            answered.seconds["hold"] = time.perf_counter() - clock
            writing = writer.submit(_write, predict, store, answered)
        if writing is not None:
            finish(writing)
    return report


@dataclass(frozen=True, slots=True)
class _Block:
    """A block, and what was read for it.

    Attributes:
        shares: whether the block above predicts the tiles that both touch.
        reach: the box of what was read, in image indices: what the other tiles see.
        placed: its pixels on the device, or why they are not there; None where none is wanted.
        wanted: bool, over the block and as much of the area below it as its tiles cover.
        nonfinite: pixels of the block that were masked because they were NaN or infinite.
    """

    number: int
    box: Box
    shares: bool
    reach: Box
    placed: Future[Array] | None
    wanted: NDArray[np.bool_]
    nonfinite: int
    seconds: dict[str, float]

    def wants(self, tile: Box) -> bool:
        """Whether a pixel of a tile is wanted."""
        seen = Box(self.box.start, tuple(a + n for a, n in zip(self.box.start, self.wanted.shape, strict=True)))
        return bool(self.wanted[(tile & seen).relative(seen.start).slices].any())


class _Answered(NamedTuple):
    """A block that can be written.

    Attributes:
        own: tiles, of those predicted, that a run which computes the block above does not predict there.
    """

    number: int
    answer: Answer
    tiles: int
    skipped: int
    own: int
    nonfinite: int
    seconds: dict[str, float]


def _read(source: Source, predict: Predict, store: Store, number: int, above: int | None) -> _Block:
    """Brings to the device what a block needs, or needs more than the one before it, where that is the one above."""
    clock = time.perf_counter()
    grid, area = store.grid, store.area.box
    box = grid.block_box(number)
    reach = grid.reach(box)
    shares = above is not None and len(grid.strips((above, number), 2)) == 1
    if shares:
        reach = Box((box.start[0], *reach.start[1:]), reach.stop)
    pixels = source.read(reach)
    seen = Box(box.start, (min(reach.stop[0], area.stop[0]), *box.stop[1:]))
    wanted = pixels.valid[seen.relative(reach.start).slices]
    mask = store.area.mask(store.space, seen)
    if mask is not None:
        wanted = wanted & mask
    # What was read reaches past the block, whose neighbours would count the same pixels again.
    nonfinite = pixels.nonfinite and source.read(box).nonfinite
    seconds = dict.fromkeys(STEPS, 0.0) | {"read": time.perf_counter() - clock}
    clock = time.perf_counter()
    placed = _place(predict, pixels) if wanted.any() else None
    seconds["move"] = time.perf_counter() - clock
    return _Block(number, box, shares, reach, placed, wanted, nonfinite, seconds)


def _place(predict: Predict, pixels: Pixels) -> Future[Array]:
    placed: Future[Array] = Future()
    try:
        placed.set_result(predict.place(pixels.values, pixels.valid))
    except Exception as error:  # the model's, for whoever predicts the block
        placed.set_exception(error)
    return placed


class _Column:
    """The field of scores that goes down a strip, from its first block on."""

    def __init__(self, predict: Predict, store: Store, first: Box) -> None:
        grid = store.grid
        self._predict = predict
        self._store = store
        below = Box(first.start, (grid.area.stop[0], *first.stop[1:]))
        self._field = Field(grid, below, weighed=bool(store.outputs))
        self._ahead: Answer | None = None  # to rows below the block that no later tile touches

    def answer(self, block: _Block) -> _Answered:
        """Predicts what a block does not share with the one above; whatever the model raises, this raises."""
        grid, classes = self._store.grid, self._store.classes
        top = block.box.start[0]
        touching = [t for t in grid.tiles(block.box) if not block.shares or t.start[0] >= top]
        tiles = [t for t in touching if block.wants(t)]
        own = len(tiles) if top == grid.area.start[0] else sum(t.start[0] >= top for t in tiles)
        bottom = block.box.stop[0]
        below = Box((bottom, *block.box.start[1:]), (self._field.complete(bottom), *block.box.stop[1:]))
        answer, ahead = (Answer.blank(box, classes, self._store.outputs) for box in (block.box, below))
        if self._ahead is not None:
            answer.take(self._ahead)
            ahead.take(self._ahead)
        clock, height = time.perf_counter(), block.box.shape[0]

        def fill(slabs: Iterator[Slab]) -> None:
            for slab in slabs:
                answer.fill(slab, block.wanted[:height], classes)
                ahead.fill(slab, block.wanted[height:], classes)

        def lap(step: str) -> None:
            nonlocal clock
            now = time.perf_counter()
            block.seconds[step] += now - clock
            clock = now

        if tiles:
            assert block.placed is not None
            placed = block.placed.result()
            for tile, scores in predicted(self._predict, placed, block.reach, tiles, len(classes)):
                lap("network")
                if self._store.outputs:
                    check_probabilities(scores)
                fill(self._field.upto(*tile.start[:2]))
                self._field.add(tile, scores)
                lap("blend")
        fill(self._field.upto(bottom))
        self._ahead = ahead
        lap("blend")
        skipped = len(touching) - len(tiles)
        return _Answered(block.number, answer, len(tiles), skipped, own, block.nonfinite, block.seconds)


def _write(predict: Predict, store: Store, block: _Answered) -> BlockReport:
    clock = time.perf_counter()
    try:
        store.write(block.number, block.answer)
        block.seconds["write"] = time.perf_counter() - clock
        counts = [*block.answer.counts(store.classes), block.nonfinite, block.own]
        store.record(block.number, counts, [block.seconds[step] for step in STEPS])
    except ConnectionError:
        raise
    except OSError as error:
        raise InputError(
            f"{store.path} cannot take block {block.number}: {error.strerror or error}; free some space and run again"
        ) from error
    batch = fitting_batch(predict, store.grid.tile)
    return BlockReport(block.number, block.tiles, block.skipped, block.nonfinite, block.seconds, batch, predict.batch)
