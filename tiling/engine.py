"""Blocks are read, predicted and written, one task each."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, to_device
from numpy.typing import NDArray

from tiling.blend import blend
from tiling.box import Box
from tiling.errors import BlockError, InputError
from tiling.heap import give_back
from tiling.predict import Array, Predict
from tiling.sources import Pixels, Source
from tiling.store import SCALE, STEPS, Answer, Store
from tiling.window import tukey

# One block at a time on the device of a process; the next is read and the last written meanwhile.
_DEVICE = threading.Lock()
THREADS = 2
_IN_FLIGHT = 256  # more than a large cluster has threads, fewer than would fill the scheduler


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What a task tells of its block: small, for it crosses the network.

    Attributes:
        tiles: tiles predicted; those without a wanted pixel are not.
        nonfinite: pixels masked because they were NaN or infinite.
        seconds: spent in `read`, `wait` (for the device), `predict` and `write`.
    """

    block: int
    tiles: int
    nonfinite: int
    seconds: dict[str, float]


def segment(
    source: Source,
    predict: Predict,
    store: Store,
    *,
    executor: Executor | None = None,
    on_block: Callable[[BlockReport], None] | None = None,
) -> None:
    """Computes every block of the store that is pending.

    Args:
        executor: where blocks run: two threads of this process by default, a Dask cluster with
            `distributed.Client(...).get_executor()`.
        on_block: called in this thread after every block.

    Raises:
        InputError: where the source cannot be read; nothing more is started then.
        BlockError: where the model fails on a block; the others are finished first.
    """
    run_blocks(source, predict, store, store.pending(), executor=executor, on_block=on_block)


def run_blocks(
    source: Source,
    predict: Predict,
    store: Store,
    blocks: Sequence[int],
    *,
    executor: Executor | None = None,
    on_block: Callable[[BlockReport], None] | None = None,
) -> None:
    """`segment` for some blocks only."""
    with ExitStack() as stack:
        if executor is None:
            executor = stack.enter_context(ThreadPoolExecutor(THREADS, thread_name_prefix="block"))
        waiting = iter(blocks)
        running: set[Future[BlockReport]] = set()
        failure: BlockError | None = None
        try:
            while True:
                for number in itertools.islice(waiting, _IN_FLIGHT - len(running)):
                    running.add(executor.submit(compute_block, source, predict, store, number))
                if not running:
                    break
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    try:
                        report = future.result()
                    except BlockError as error:
                        failure = failure or error
                    else:
                        if on_block is not None:
                            on_block(report)
        finally:
            for future in running:
                future.cancel()
    if failure is not None:
        raise failure


def compute_block(source: Source, predict: Predict, store: Store, number: int) -> BlockReport:
    """Reads, predicts and writes one block, and gives back its memory; doing it again changes nothing.

    Raises:
        InputError: where the block cannot be read, or there is no room to write it.
        BlockError: where the model fails or gives scores of the wrong shape or not finite.
    """
    try:
        return _compute(source, predict, store, number)
    finally:
        give_back()


def _compute(source: Source, predict: Predict, store: Store, number: int) -> BlockReport:
    grid = store.grid
    block = grid.block_box(number)
    clock = [time.perf_counter()]
    reach = grid.reach(block)
    pixels = source.read(reach)
    wanted = pixels.valid[block.relative(reach.start).slices]
    mask = store.area.mask(store.space, block)
    if mask is not None:
        wanted = wanted & mask
    clock.append(time.perf_counter())
    with _DEVICE:
        clock.append(time.perf_counter())
        tiles = [t for t in grid.tiles(block) if wanted[(t & block).relative(block.start).slices].any()]
        try:
            answer = _answer(predict, store, block, pixels, reach, tiles, wanted)
        except InputError:
            raise
        except Exception as error:
            place = f"block {number} at {block.start}..{block.stop} of {source.uri}"
            raise BlockError(f"{place} failed: {type(error).__name__}: {error}") from error
    clock.append(time.perf_counter())
    nonfinite = pixels.nonfinite and _count_nonfinite(source, block)
    del pixels  # the other thread reads its next block while this one writes
    try:
        store.write(number, answer)
        clock.append(time.perf_counter())
        seconds = [b - a for a, b in itertools.pairwise(clock)]
        store.record(number, [*_counts(store, answer.labels), nonfinite, len(tiles)], seconds)
    except OSError as error:
        raise InputError(
            f"{store.path} cannot take block {number}: {error.strerror or error}; free some space and run again"
        ) from error
    return BlockReport(number, len(tiles), nonfinite, dict(zip(STEPS, seconds, strict=True)))


def _answer(
    predict: Predict,
    store: Store,
    block: Box,
    pixels: Pixels,
    reach: Box,
    tiles: list[Box],
    wanted: NDArray[np.bool_],
) -> Answer:
    classes = store.classes
    labels = np.full(block.shape, classes.nodata, classes.dtype)
    probability = np.full((len(classes), *block.shape), 255, np.uint8) if "probability" in store.outputs else None
    uncertainty = np.full(block.shape, 255, np.uint8) if "uncertainty" in store.outputs else None
    if tiles:
        placed = predict.place(pixels.values, pixels.valid)
        predicted = _predicted(predict, placed, reach, tiles, len(classes))
        values = np.array(classes.values, classes.dtype)
        for slab, total, weight in blend(block, predicted, tukey(store.grid.tile, store.grid.overlap)):
            here = slab.relative(block.start).slices
            # Unwanted pixels may have no tile at all: their weight is zero and their answer nodata.
            keep = wanted[here]
            labels[here] = np.where(keep, values[_label_index(total)], classes.nodata)
            if probability is not None or uncertainty is not None:
                share = _host(total) / np.maximum(_host(weight), 1)
                if probability is not None:
                    probability[(slice(None), *here)] = np.where(keep, np.rint(share * SCALE), 255)
                if uncertainty is not None:
                    uncertainty[here] = np.where(keep, np.rint(_entropy(share) * SCALE), 255)
    return Answer(labels, probability, uncertainty)


def _predicted(
    predict: Predict, placed: Array, reach: Box, tiles: list[Box], n_classes: int
) -> Iterator[tuple[Box, Array]]:
    """Scores of each tile, in order; the network always sees batches of one size."""
    xp = array_namespace(placed)
    expected = (predict.batch, n_classes, *tiles[0].shape)
    for first in range(0, len(tiles), predict.batch):
        batch = tiles[first : first + predict.batch]
        filled = batch + batch[-1:] * (predict.batch - len(batch))
        scores = predict(xp.stack([placed[(slice(None), *t.relative(reach.start).slices)] for t in filled]))
        if tuple(scores.shape) != expected:
            raise ValueError(f"the model gave scores of shape {tuple(scores.shape)} instead of {expected}")
        if str(device(scores)) == "cpu":
            # numpy adds and compares faster than torch, and looks at the same memory.
            scores = _host(xp.astype(scores, xp.float32, copy=False))
        yield from zip(batch, scores, strict=False)


def _label_index(total: Array) -> NDArray[Any]:
    xp = array_namespace(total)
    # NaN and infinity survive a sum, which costs less than looking at each score.
    if not bool(xp.isfinite(xp.sum(total))):
        raise ValueError("the model gave scores that are not finite")
    return _host(xp.argmax(total, axis=0))


def _host(array: Array) -> NDArray[Any]:
    host: NDArray[Any] = np.asarray(to_device(array, "cpu"))
    return host


def _entropy(share: NDArray[Any]) -> NDArray[Any]:
    """Entropy over the entropy of not knowing: 0 sure, 1 every class alike."""
    share = np.clip(share, 0, 1)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    entropy: NDArray[Any] = -(share * logs).sum(axis=0) / np.log(len(share))
    return entropy.clip(0, 1)


def _count_nonfinite(source: Source, block: Box) -> int:
    # What was read reaches past the block, whose neighbours would count the same pixels again.
    return source.read(block).nonfinite


def _counts(store: Store, labels: NDArray[Any]) -> list[int]:
    found = np.zeros(store.classes.nodata + 1, np.int64)
    for rows in labels:  # bincount makes eight bytes of each label
        found += np.bincount(rows.ravel(), minlength=len(found))
    return [int(found[v]) for v in (*store.classes.values, store.classes.nodata)]
