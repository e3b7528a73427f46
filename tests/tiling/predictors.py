"""Models that tests can foretell. In a module of their own, so that workers can unpickle them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tiling.classes import ClassTable


@dataclass(frozen=True)
class Identity:
    """Gives its input back: channel k is the score of class k."""

    channels: int
    tile: tuple[int, ...]
    batch: int = 3
    digest: str = "identity"
    logits: bool = False

    @property
    def ndim(self) -> int:
        return len(self.tile)

    @property
    def classes(self) -> list[tuple[int, str, str, str | None]]:
        return [(c.value, c.name, c.color, c.code) for c in ClassTable.numbered(self.channels)]

    def place(self, values: Any, valid: Any) -> Any:
        return values.astype(np.float32)

    def __call__(self, batch: Any) -> Any:
        return batch

    def peak_memory(self) -> int:
        return 0


@dataclass(frozen=True)
class Sparing(Identity):
    """Asks for one tile at a time in a worker, as a model does where a process has fewer threads."""

    def __reduce__(self) -> Any:
        return type(self), (self.channels, self.tile, 1, self.digest)


@dataclass(frozen=True)
class Mixing(Identity):
    """Scores that differ in every pixel of a tile and look at all of it, so that no tile agrees with its neighbour."""

    n_classes: int = 3
    digest: str = "mixing"

    @property
    def classes(self) -> list[tuple[int, str, str, str | None]]:
        return [(c.value, c.name, c.color, c.code) for c in ClassTable.numbered(self.n_classes)]

    def one(self, tile: Any) -> Any:
        """(C, *tile) -> (K, *tile), float32, a probability distribution over the classes."""
        gains = np.random.default_rng(7).normal(size=(self.n_classes, *tile.shape)).astype(np.float32)
        scores = (gains * np.float32(1 / 64) * tile).sum(axis=1) + gains[:, 0] * np.float32(np.float64(tile.mean()))
        scores = np.exp(np.clip(scores, -8, 8)).astype(np.float32)
        return scores / scores.sum(axis=0)

    def __call__(self, batch: Any) -> Any:
        return np.stack([self.one(tile) for tile in batch])


@dataclass(frozen=True)
class Raising(Identity):
    """Fails on tiles that hold the value 200."""

    def __call__(self, batch: Any) -> Any:
        if (batch == 200).any():
            raise RuntimeError("the device is on fire")
        return batch


@dataclass(frozen=True)
class Unplaced(Identity):
    """Cannot be given what holds the value 200."""

    def place(self, values: Any, valid: Any) -> Any:
        if (values == 200).any():
            raise RuntimeError("the device is full")
        return super().place(values, valid)


@dataclass(frozen=True)
class Cropping(Identity):
    """Gives scores a pixel smaller than its tile."""

    def __call__(self, batch: Any) -> Any:
        return batch[..., 1:]


@dataclass(frozen=True)
class Spoiling(Identity):
    """Puts `value` among its scores."""

    value: float = float("nan")

    def __call__(self, batch: Any) -> Any:
        scores = batch.copy()
        scores[:, 0, ..., 0] = self.value
        return scores


@dataclass(frozen=True)
class Constant(Identity):
    """Says class 1 everywhere, whatever it sees, and refuses to see what is not finite."""

    n_classes: int = 2
    digest: str = "constant"

    @property
    def classes(self) -> list[tuple[int, str, str, str | None]]:
        return [(c.value, c.name, c.color, c.code) for c in ClassTable.numbered(self.n_classes)]

    def __call__(self, batch: Any) -> Any:
        assert np.isfinite(batch).all()
        scores = np.zeros((batch.shape[0], self.n_classes, *batch.shape[2:]), np.float32)
        scores[:, 1] = 1
        return scores


@dataclass(frozen=True)
class Picture(Identity):
    """Answers each pixel's own value as its class, of values below `n_classes`."""

    n_classes: int = 2
    digest: str = "picture"

    @property
    def classes(self) -> list[tuple[int, str, str, str | None]]:
        return [(c.value, c.name, c.color, c.code) for c in ClassTable.numbered(self.n_classes)]

    def __call__(self, batch: Any) -> Any:
        wanted = np.arange(self.n_classes).reshape(-1, *(1,) * self.ndim)
        return (batch[:, :1] == wanted).astype(np.float32)


@dataclass(frozen=True)
class Small(Mixing):
    """On a device with memory for `room` tiles at a time; each batch it was asked for is a line in `log`."""

    room: int = 1
    log: str = ""
    error: type[Exception] = RuntimeError
    words: str = "CUDA out of memory. Tried to allocate 20.00 MiB"

    def __call__(self, batch: Any) -> Any:
        if self.log:
            with open(self.log, "a") as lines:
                lines.write(f"{len(batch)}\n")
        if len(batch) > self.room:
            raise self.error(self.words)
        return super().__call__(batch)
