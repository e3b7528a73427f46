"""Scores averaged over the mirror images of a window."""

from collections.abc import Callable, Sequence
from itertools import chain, combinations

import torch
from torch import Tensor

AXES = {"x": -1, "y": -2, "z": -3}


def mirrored(score: Callable[[Tensor], Tensor], windows: Tensor, axes: Sequence[str]) -> Tensor:
    """Return the mean of what `score` says of windows (B, C, *S) and of their mirror images, turned back.

    axes: "x", "y", "z"; two axes make four images, three make eight, each as much work as the window itself.
    """
    numbers = [AXES[axis] for axis in axes]
    turns = list(chain.from_iterable(combinations(numbers, count) for count in range(len(numbers) + 1)))
    total = score(windows)  # of no turn, the first
    for turn in turns[1:]:
        total = total + torch.flip(score(torch.flip(windows, turn)), turn)
    return total / len(turns) if len(turns) > 1 else total
