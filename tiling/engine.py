"""Blocks are read, predicted and written, one task each."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from tiling.batches import fitting_batch, host, is_out_of_memory, predicted
from tiling.blend import blend
from tiling.box import Box
from tiling.damage import mend
from tiling.errors import BlockError, InputError
from tiling.heap import give_back
from tiling.lease import check, lease
from tiling.predict import Array, Predict
from tiling.sources import Pixels, Source
from tiling.stamp import stamp_of
from tiling.store import SCALE, STEPS, Answer, Store
from tiling.window import tukey

# One block at a time on the device of a process; the next is read and the last written meanwhile.
_DEVICE = threading.Lock()
THREADS = 2
_IN_FLIGHT = 256  # more than a large cluster has threads, fewer than would fill the scheduler
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What a task tells of its block: small, for it crosses the network.

    Attributes:
        tiles: tiles predicted; those without a wanted pixel are not.
        nonfinite: pixels masked because they were NaN or infinite.
        seconds: spent in `read`, `wait` (for the device), `predict` and `write`.
        batch: tiles in one call of the network; fewer than the model asks for where the device had no memory for them.
    """

    block: int
    tiles: int
    nonfinite: int
    seconds: dict[str, float]
    batch: int


def segment(
    source: Source,
    predict: Predict,
    store: Store,
    *,
    executor: Executor | None = None,
    on_block: Callable[[BlockReport], None] | None = None,
) -> None:
    """Computes every block of the store that is pending, and those that were damaged since they were done.

    Holds the store's lease meanwhile, in this process alone, wherever blocks run.

    Args:
        executor: where blocks run: two threads of this process by default, a Dask cluster with
            `distributed.Client(...).get_executor()`.
        on_block: called in this thread after every block.

    Raises:
        InputError: where another run is under way on the store, or the source cannot be read or has changed; nothing
            more is started then.
        BlockError: where the model fails on a block; the others are finished first.
    """
    with lease(store.path):
        for damage in mend(store):
            _LOG.warning("%s: %s and is computed again", store.path, damage)
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
    """`segment` for some blocks only; the caller holds the lease, and may run several such parts at a time."""
    with ExitStack() as stack:
        if executor is None:
            executor = stack.enter_context(ThreadPoolExecutor(THREADS, thread_name_prefix="block"))
        waiting = iter(blocks)
        running: set[Future[BlockReport]] = set()
        # Futures come here by themselves: `wait` would lock each of those in flight for every one that is done.
        done: SimpleQueue[Future[BlockReport]] = SimpleQueue()
        failures: list[BlockError] = []
        try:
            while True:
                for number in itertools.islice(waiting, _IN_FLIGHT - len(running)):
                    future = executor.submit(compute_block, source, predict, store, number)
                    running.add(future)
                    future.add_done_callback(done.put)
                if not running:
                    break
                future = done.get()
                running.remove(future)
                try:
                    report = future.result()
                except BlockError as error:
                    failures.append(error)
                else:
                    if report.batch < predict.batch:
                        _say_batch(source.uri, predict.batch, report.batch)
                    if on_block is not None:
                        on_block(report)
                check(store.path)
        finally:
            for future in running:
                future.cancel()
    if failures:
        more = f"; and {len(failures) - 1} more of {len(blocks)} blocks" if failures[1:] else ""
        raise BlockError(f"{failures[0]}{more}; the others are done") from failures[0]


@cache
def _say_batch(uri: str, asked: int, fitting: int) -> None:
    """Says once a process that the device is smaller than the model hoped."""
    _LOG.warning("%s: no device memory for %d tiles at a time; going on with %d", uri, asked, fitting)


def compute_block(source: Source, predict: Predict, store: Store, number: int) -> BlockReport:
    """Reads, predicts and writes one block, and gives back its memory; doing it again changes nothing.

    Raises:
        InputError: where the block cannot be read, its file has changed since the run began, or there is no room to
            write it.
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
    pixels = _read(source, store, reach)
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
            fix = "; pass --device cpu, a smaller --tile or a smaller --memory" if is_out_of_memory(error) else ""
            raise BlockError(f"{place} failed: {type(error).__name__}: {error}{fix}") from error
    clock.append(time.perf_counter())
    nonfinite = pixels.nonfinite and _count_nonfinite(source, store, block)
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
    batch = fitting_batch(predict, grid.tile)
    return BlockReport(number, len(tiles), nonfinite, dict(zip(STEPS, seconds, strict=True)), batch)


def _read(source: Source, store: Store, box: Box) -> Pixels:
    try:
        return source.read(box)
    finally:
        # After reading, or failing to: had the file changed before or meanwhile, it would show.
        if store.stamp and stamp_of(source) != store.stamp:
            raise InputError(
                f"{source.uri} changed while it was segmented; put the old file back and run again, or pass --fresh"
            )


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
        scores = predicted(predict, placed, reach, tiles, len(classes))
        values = np.array(classes.values, classes.dtype)
        for slab, total, weight in blend(block, scores, tukey(store.grid.tile, store.grid.overlap)):
            here = slab.relative(block.start).slices
            # Unwanted pixels may have no tile at all: their weight is zero and their answer nodata.
            keep = wanted[here]
            labels[here] = np.where(keep, values[_label_index(total)], classes.nodata)
            if probability is not None or uncertainty is not None:
                share = host(total) / np.maximum(host(weight), 1)
                if probability is not None:
                    probability[(slice(None), *here)] = np.where(keep, np.rint(share * SCALE), 255)
                if uncertainty is not None:
                    uncertainty[here] = np.where(keep, np.rint(_entropy(share) * SCALE), 255)
    return Answer(labels, probability, uncertainty)


def _label_index(total: Array) -> NDArray[Any]:
    xp = array_namespace(total)
    # NaN and infinity survive a sum, which costs less than looking at each score.
    if not bool(xp.isfinite(xp.sum(total))):
        raise ValueError("the model gave scores that are not finite")
    return host(xp.argmax(total, axis=0))


def _entropy(share: NDArray[Any]) -> NDArray[Any]:
    """Entropy over the entropy of not knowing: 0 sure, 1 every class alike."""
    share = np.clip(share, 0, 1)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    entropy: NDArray[Any] = -(share * logs).sum(axis=0) / np.log(len(share))
    return entropy.clip(0, 1)


def _count_nonfinite(source: Source, store: Store, block: Box) -> int:
    # What was read reaches past the block, whose neighbours would count the same pixels again.
    return _read(source, store, block).nonfinite


def _counts(store: Store, labels: NDArray[Any]) -> list[int]:
    found = np.zeros(store.classes.nodata + 1, np.int64)
    for rows in labels:  # bincount makes eight bytes of each label
        found += np.bincount(rows.ravel(), minlength=len(found))
    return [int(found[v]) for v in (*store.classes.values, store.classes.nodata)]
