"""Blocks are computed in strips, a task each, wherever an executor runs them."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache
from queue import Empty, SimpleQueue

from tiling.damage import mend
from tiling.errors import BlockError
from tiling.lease import check, lease
from tiling.predict import Predict
from tiling.sources import Source
from tiling.sources.fingerprint import changed
from tiling.store import Store
from tiling.strip import BlockReport, StripReport, compute_strip

_IN_FLIGHT = 256  # more than a large cluster has threads, fewer than would fill the scheduler
_LONGEST = 16  # blocks of a task on a cluster: what a lost worker may have to read again, and a wait for progress
_BEAT = 5.0  # seconds between looks at the lease
_LOG = logging.getLogger(__name__)


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
        executor: where blocks run: a thread of this process by default, a Dask cluster with
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
    slots: int = 1,
) -> None:
    """`segment` for some blocks only; the caller holds the lease, and may run several such parts at a time.

    Args:
        slots: tasks that the executor runs at a time; blocks are parted so that each has its share.

    Raises:
        InputError: where the store was made from another source.
    """
    if not store.is_made_from("source", source.fingerprint):
        raise changed(source.uri)
    with ExitStack() as stack:
        if executor is None:
            executor = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="strip"))
        # A thread of this process tells of every block, the others of their strip at its end.
        here = isinstance(executor, ThreadPoolExecutor)
        strips = iter(store.grid.strips(blocks, _longest(len(blocks), slots, here)))
        events: SimpleQueue[BlockReport | Future[StripReport]] = SimpleQueue()
        stopped = threading.Event()
        running: set[Future[StripReport]] = set()
        failures: dict[int, BlockError] = {}

        def tell(report: BlockReport) -> None:
            events.put(report)
            if stopped.is_set():
                raise InterruptedError("the run has ended")

        def seen(report: BlockReport) -> None:
            if report.batch < report.asked:
                _say_batch(source.uri, report.asked, report.batch)
            if on_block is not None:
                on_block(report)

        try:
            while True:
                for numbers in itertools.islice(strips, _IN_FLIGHT - len(running)):
                    future = executor.submit(compute_strip, source, predict, store, numbers, tell if here else None)
                    running.add(future)
                    future.add_done_callback(events.put)
                if not running:
                    break
                with suppress(Empty):
                    event = events.get(timeout=_BEAT)
                    if isinstance(event, BlockReport):
                        seen(event)
                    else:
                        running.remove(event)
                        report = event.result()
                        failures |= report.failures
                        for block in () if here else report.blocks:
                            seen(block)
                check(store.path)
        finally:
            stopped.set()
            for future in running:
                future.cancel()
    if failures:
        first = failures[min(failures)]
        more = f"; and {len(failures) - 1} more of {len(blocks)} blocks" if len(failures) > 1 else ""
        raise BlockError(f"{first}{more}; the others are done") from first


def _longest(blocks: int, slots: int, here: bool) -> int:
    """How many blocks a strip may have: as many as leaves no slot idle for long."""
    if here and slots == 1:
        return max(1, blocks)
    return max(min(_LONGEST, blocks // (4 * slots)), min(3, math.ceil(blocks / slots)), 1)


@cache
def _say_batch(uri: str, asked: int, fitting: int) -> None:
    """Says once a process that the device is smaller than the model hoped."""
    _LOG.warning("%s: no device memory for %d tiles at a time; going on with %d", uri, asked, fitting)
