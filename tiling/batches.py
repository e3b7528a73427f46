"""Tiles through the network, in batches of one size that the device has memory for."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, to_device
from numpy.typing import NDArray

from tiling.box import Box
from tiling.predict import Array, Predict

# Of this process: the batch of a model and tile that the device had memory for, where it is smaller than asked for.
_FITTING: dict[tuple[str, tuple[int, ...]], int] = {}
# Batches that are under way while one is used: the next follows on the device at once, and cores of a CPU go on to it
# one by one.
AHEAD = 2
_ROUNDING = 1e-3  # less than half a step of the stored probability, and what bfloat16 may be above 1
_WORDS = ("out of memory", "can't allocate memory", "alloc_failed", "failed to allocate")


def fitting_batch(predict: Predict, tile: tuple[int, ...]) -> int:
    """Tiles in one call: what the model asks for, or less where that was more than the device has memory for."""
    return min(predict.batch, _FITTING.get((predict.digest, tile), predict.batch))


def predicted(
    predict: Predict, placed: Array, reach: Box, tiles: Sequence[Box], n_classes: int
) -> Iterator[tuple[Box, Array]]:
    """Scores of each tile, in order; the network always sees batches of one size.

    While a batch is being used the next `AHEAD` are under way. Where the device runs out of memory the batch is halved,
    for the rest of the process.

    Args:
        placed: (C, *reach) on the device.

    Yields:
        (tile box, scores (K, *tile)).

    Raises:
        ValueError: where scores have another shape.
    """
    network = _threads()
    coming: deque[Future[list[tuple[Box, Array]]]] = deque()
    left = deque(tiles)
    room = 1  # the first alone: it finds out for how many tiles the device has memory
    try:
        while left or coming:
            while left and len(coming) < room:
                size = min(fitting_batch(predict, left[0].shape), len(left))
                batch = [left.popleft() for _ in range(size)]
                coming.append(network.submit(score, predict, placed, reach, batch, n_classes))
            yield from coming.popleft().result()
            room = AHEAD + 1
    finally:  # where a batch failed, or nobody wants the rest
        wait([batch for batch in coming if not batch.cancel()])


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads that wait for the network; starting them for each block would cost as much as a small block."""
    return ThreadPoolExecutor(AHEAD, thread_name_prefix="network")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a child process has none of its parent's threads


def score(predict: Predict, placed: Array, reach: Box, tiles: Sequence[Box], n_classes: int) -> list[tuple[Box, Array]]:
    """Each tile of a batch with its scores; where the device has no memory for them all, a part at a time.

    Raises:
        ValueError: where scores have another shape.
    """
    xp = array_namespace(placed)
    tile = tiles[0].shape
    found: list[tuple[Box, Array]] = []
    while len(found) < len(tiles):
        size = fitting_batch(predict, tile)
        batch = tiles[len(found) : len(found) + size]
        filled = [*batch, *[batch[-1]] * (size - len(batch))]
        try:
            scores = predict(xp.stack([placed[(slice(None), *t.relative(reach.start).slices)] for t in filled]))
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            # Another batch may have found out more meanwhile.
            _FITTING[predict.digest, tile] = min(size // 2, fitting_batch(predict, tile))
            # Only behind this clause: the error holds on to what the failed call had on the device.
            continue
        expected = (size, n_classes, *tile)
        if tuple(scores.shape) != expected:
            raise ValueError(f"the model gave scores of shape {tuple(scores.shape)} instead of {expected}")
        if str(device(scores)) == "cpu":
            # numpy adds and compares faster than torch, and looks at the same memory.
            scores = host(xp.astype(scores, xp.float32, copy=False))
        if predict.logits:
            scores = _softmax(scores)
        found += zip(batch, scores, strict=False)
    return found


def check_probabilities(scores: Array) -> None:
    """Refuse scores (K, *tile) that cannot be probabilities.

    Raises:
        ValueError: where one lies outside 0 to 1 by more than rounding; those that are not finite are found elsewhere.
    """
    xp = array_namespace(scores)
    low, high = float(xp.min(scores)), float(xp.max(scores))
    if math.isfinite(low) and math.isfinite(high) and (low < -_ROUNDING or high > 1 + _ROUNDING):
        raise ValueError(
            f"the model gave scores from {low:.4g} to {high:.4g}, which are no probabilities; let it say that they are "
            "logits, or run without --probability and --uncertainty"
        )


def _softmax(scores: Array) -> Array:
    """Return the probabilities of logits (B, K, *tile)."""
    xp = array_namespace(scores)
    scores = xp.astype(scores, xp.float32, copy=False)
    powers = xp.exp(scores - xp.max(scores, axis=1, keepdims=True))
    return powers / xp.sum(powers, axis=1, keepdims=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so, by its name or its words: each library has a class of its own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def host(array: Array) -> NDArray[Any]:
    """The array as numpy's, in this machine's memory."""
    here: NDArray[Any] = np.asarray(to_device(array, "cpu"))
    return here
