"""Averaged weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmseg_core.adapters import is_rank


class Average:
    """An exponential moving average of the weights that train and of the statistics of the norm layers.

    It predicts better than the last weights, whose noise it evens out (Polyak and Juditsky 1992). The decay starts
    low, so that the first steps are soon forgotten. What is frozen is not copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._weights = {name: value.detach().clone() for name, value in _moving(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one more step."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in _moving(model):
            self._weights[name].lerp_(value.detach(), share)
            if is_rank(name):  # what AdaLoRA has cut stays cut: the mean with what it was before would bring it back
                self._weights[name].masked_fill_(value == 0, 0.0)

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """The averaged weights in the model, for as long as the context lasts."""
        with torch.no_grad():
            kept = {name: value.detach().clone() for name, value in _moving(model)}
            _put(model, self._weights)
            try:
                yield
            finally:
                _put(model, kept)

    def save(self, path: Path) -> None:
        """Write the averaged weights and the number of steps they are of."""
        save_file({name: value.contiguous() for name, value in self._weights.items()}, path, {"steps": str(self.steps)})

    def load(self, path: Path, steps: int) -> None:
        """Go on from what `save` wrote after `steps` steps."""
        for name, value in load_file(path).items():
            self._weights[name].copy_(value)
        self.steps = steps


def _moving(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights that train, and floating-point buffers."""
    yield from ((name, value) for name, value in model.named_parameters() if value.requires_grad)
    yield from ((name, value) for name, value in model.named_buffers() if value.is_floating_point())


def _put(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, value in _moving(model):
        value.copy_(weights[name])
