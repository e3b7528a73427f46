"""The seam to the tiling engine: raw windows in, class probabilities out."""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import logging as transformers_logging

from lmseg_core import bundled
from lmseg_core.adapters import merge
from lmseg_core.blocks import fold
from lmseg_core.classes import SegmentClass
from lmseg_core.description import CONFIG, PROCESSOR
from lmseg_core.device import apart, bring, device_of, mixed, peak_memory, precision_of
from lmseg_core.errors import ModelError, first_line
from lmseg_core.mirror import mirrored
from lmseg_core.model import LMSegForSemanticSegmentation
from lmseg_core.processor import LMSegImageProcessor, normalise

# Part of every digest: raise it when a change here or in the network changes scores, so that old blocks
# recompute.
NUMERICS = 2
_LOADING = threading.Lock()
_FORMAT = {2: torch.channels_last, 3: torch.channels_last_3d}  # twice as fast on a CPU in 2D
_LOG = logging.getLogger(__name__)


class Statistics(NamedTuple):
    """Mean and standard deviation of each band, in raw units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class _Arguments(NamedTuple):
    source: str
    device: str
    statistics: Statistics | None
    absent: tuple[int, ...]
    precision: str
    compiled: bool
    files: str  # digest of the model's files, empty for whatever they are


@dataclass(frozen=True)
class _Loaded:
    network: LMSegForSemanticSegmentation
    processor: LMSegImageProcessor
    device: torch.device
    digest: str


class Predictor:
    """A trained network bound to a device and, where it needs them, to the statistics of a scene.

    Where the network has several sources it may be bound to an image that lacks some: its `channels`, `bands` and
    statistics are of the others. Pickles as its arguments, and loads once a process: it is cheap to send with every
    block. Where the files of the model are others by then, its digest is another and it refuses blocks.

    spacing (mm a voxel, in the order of `tile`) or resolution (m a pixel) are what the network was trained on, None
    where that is unknown; tested_range are the multiples of it that it was tested with. trained_on: mean and standard
    deviation of its training images, None where it normalises by each image.
    """

    logits = False

    def __init__(
        self,
        source: str,
        device: str = "auto",
        statistics: Statistics | None = None,
        absent: tuple[int, ...] = (),
        precision: str = "auto",
        compiled: bool = False,
        files: str = "",
    ) -> None:
        loaded = _load(source, device)
        # Refused when used: what unpickles may be Dask's scheduler, whose errors are not ours.
        self._replaced = files not in ("", loaded.digest)
        config = loaded.network.config
        # As it is here: a worker with another device must not answer otherwise.
        precision = precision_of(precision, loaded.device)
        self._arguments = _Arguments(source, device, statistics, absent, precision, compiled, files or loaded.digest)
        self._network = loaded.network
        self._device = loaded.device
        self.sources: tuple[int, ...] = tuple(config.sources or ())
        self._kept = _kept(self.sources, absent) if absent else list(range(config.in_channels))
        fixed = loaded.processor.raw_statistics()
        self._statistics = (
            statistics if fixed is None else Statistics(*(tuple(values[c] for c in self._kept) for values in fixed))
        )
        self.trained_on: Statistics | None = None if fixed is None else self._statistics
        self.spacing: tuple[float, ...] | None = None if config.spacing is None else tuple(config.spacing)
        self.resolution: float | None = config.resolution
        low, high = config.tested_range or (1.0, 1.0)
        self.tested_range: tuple[float, float] = (low, high)
        self.channels: int = len(self._kept)
        self.ndim: int = config.ndim
        self.tile: tuple[int, ...] = tuple(config.tile)
        self.classes: tuple[SegmentClass, ...] = config.classes
        self.bands: tuple[str, ...] = tuple(config.bands[c] for c in self._kept)
        self.batch: int = 8 if loaded.device.type == "cuda" else _lanes()[1]
        self.needs_statistics: bool = self._statistics is None
        self._forward = _compiled(loaded.network, loaded.device, precision, self.batch) if compiled else loaded.network
        if self._statistics is not None:
            self._check_statistics(self._statistics)
        # What changes scores: the same words in the same order give the same digest.
        words = [
            repr(statistics) if statistics is not None else "",
            f"without {absent}" if absent else "",
            f"in {precision}" if precision != "float32" else "",
            "compiled" if compiled else "",
        ]
        self.digest: str = loaded.digest
        for word in filter(None, words):
            self.digest = hashlib.sha256(f"{self.digest} {word}".encode()).hexdigest()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, device: str = "auto", precision: str = "auto", compiled: bool = False
    ) -> "Predictor":
        """Return the predictor of a bundled model, a model folder or a hub id.

        device: "auto" (CUDA where there is one, else CPU), "cpu", "cuda" or "cuda:1". precision: "auto" (bfloat16
        where a CUDA device has it, else float32), "float32" or "bfloat16". compiled: by torch.compile, which takes a
        minute or more at first; where it fails a warning says why, and the network runs as it is. Raises ModelError.
        """
        name = str(name_or_path)
        source = name if name in bundled.names() else str(bundled.folder(name))
        return cls(source, device, precision=precision, compiled=compiled)

    def with_statistics(self, mean: Sequence[float], std: Sequence[float]) -> "Predictor":
        """Return this predictor bound to the mean and standard deviation a band of a scene, in raw units."""
        statistics = Statistics(tuple(map(float, mean)), tuple(map(float, std)))
        return type(self)(*self._arguments._replace(statistics=statistics))

    def without(self, absent: Sequence[int]) -> "Predictor":
        """Return this predictor for images that lack these sources, counted from 0; statistics are to be bound after.

        Blocks and windows then hold the channels of the other sources only. Raises ModelError where the model has no
        such sources, or none would be left.
        """
        source, statistics = self._arguments.source, self._arguments.statistics
        numbers = tuple(sorted(set(absent)))
        wrong = [number for number in numbers if not 0 <= number < len(self.sources)]
        if wrong:
            raise ModelError(f"{source} has {len(self.sources)} sources and cannot do without source {wrong[0] + 1}.")
        if numbers and len(numbers) == len(self.sources):
            raise ModelError(f"{source} needs one of its {len(self.sources)} sources; give at least one.")
        if statistics is not None:
            raise ModelError(f"{source} has statistics bound of other bands; call without() before with_statistics().")
        return type(self)(*self._arguments._replace(absent=numbers))

    def place(self, values: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> Tensor:
        """Bring a raw block (C, *S) to the device in its own dtype; `values` may be changed on the way.

        Pixels outside `valid` (*S), and NaN and infinities anywhere, become the mean of their band, which
        normalises to about zero. Raises ModelError on another number of bands or axes.
        """
        self._check_files()
        if values.ndim != self.ndim + 1 or values.shape[0] != self.channels:
            raise ModelError(
                f"{self._arguments.source} expects {self.channels} bands ({', '.join(self.bands)}) over "
                f"{self.ndim} axes; the block has shape {values.shape}. Select the bands or another model."
            )
        values = values.astype(values.dtype.newbyteorder("="), copy=not values.flags.writeable)
        invalid = None if valid is None or valid.all() else ~valid
        # Band by band: a block is many megabytes, and a mask of all bands would be as many again.
        for band, mean in zip(values, self._bound().mean, strict=True):
            if values.dtype.kind == "f":
                band[~np.isfinite(band)] = mean
            if invalid is not None:
                band[invalid] = mean if values.dtype.kind == "f" else np.rint(mean)
        return bring(torch.from_numpy(np.ascontiguousarray(values)), self._device)

    def __call__(self, batch: Tensor) -> Tensor:
        """Return class probabilities (B, K, *tile) float32 of raw windows (B, C, *tile) of any dtype.

        On a CPU each window is computed by one thread, and as many windows at a time as torch has threads: a
        convolution sums in another order on another number of threads, which changes the last bits of its scores,
        and so labels would depend on the number of cores.
        """
        self._check_files()
        self._bound()
        return apart(self._device, lambda: self._scores(batch))

    def peak_memory(self) -> int:
        """Return bytes of the device's own memory that tensors took at most since the last call; 0 on a CPU."""
        return peak_memory(self._device)

    def _scores(self, batch: Tensor) -> Tensor:
        if self._device.type != "cpu":
            return self._score(batch)
        return torch.cat(list(_lanes()[0].map(self._score, torch.split(batch, 1))))

    def _score(self, batch: Tensor) -> Tensor:
        with torch.inference_mode():
            values = self._complete(normalise(batch.to(self._device), *self._bound()))
            return mirrored(self._probabilities, values, self._network.config.mirror)

    def _probabilities(self, values: Tensor) -> Tensor:
        values = values.contiguous(memory_format=_FORMAT[self.ndim])
        with mixed(self._device, self._arguments.precision):
            logits = self._forward(values, source_mask=self._present(values)).logits
        return torch.softmax(logits.float(), dim=1).contiguous()

    def _complete(self, values: Tensor) -> Tensor:
        """Return windows (B, C, *S) of all the model's channels, zero where their source is absent."""
        channels = self._network.config.in_channels
        if len(self._kept) == channels:
            return values
        full = values.new_zeros((len(values), channels, *values.shape[2:]))
        full[:, self._kept] = values  # (B, C_present, *S) -> (B, C, *S)
        return full

    def _present(self, values: Tensor) -> Tensor | None:
        """Return which sources a window has, (B, n) bool; those that are absent, and pixels of no data, are zero."""
        sources = self._network.config.sources
        if sources is None:
            return None
        return torch.stack([part.flatten(1).any(1) for part in torch.split(values, sources, dim=1)], dim=1)

    def __reduce__(self) -> tuple[type["Predictor"], tuple[Any, ...]]:
        return type(self), tuple(self._arguments)

    def __repr__(self) -> str:
        return f"Predictor({self._arguments.source!r}, device={str(self._device)!r}, digest={self.digest[:12]!r})"

    def _bound(self) -> Statistics:
        if self._statistics is None:
            raise ModelError(
                f"{self._arguments.source} normalises by the statistics of the whole image; bind them first with "
                "with_statistics(mean, std)."
            )
        return self._statistics

    def _check_files(self) -> None:
        if self._replaced:
            raise ModelError(
                f"{self._arguments.source} holds other files than when it was loaded first; put those back, or run "
                "again with --fresh."
            )

    def _check_statistics(self, statistics: Statistics) -> None:
        for name, values in zip(("mean", "std"), statistics, strict=True):
            if len(values) != self.channels or not np.all(np.isfinite(values)):
                raise ModelError(
                    f"{self._arguments.source} got {name} {values}; give one finite value for each of its "
                    f"{self.channels} bands."
                )


def _kept(sources: Sequence[int], absent: Sequence[int]) -> list[int]:
    """Return the channels of the sources that are not absent."""
    owners = [number for number, channels in enumerate(sources) for _ in range(channels)]
    return [channel for channel, owner in enumerate(owners) if owner not in absent]


def _load(source: str, device: str) -> _Loaded:
    path = bundled.folder(source)
    with _LOADING:
        # The stamp is part of the key: a model that was trained again under the same name loads again.
        return _load_once(path, device_of(device), _stamp(path))


def _stamp(path: Path) -> tuple[tuple[int, int, int], ...]:
    """Return what changes when a file of a model does: its number, size and time."""
    states = [(path / name).stat() for name in (bundled.WEIGHTS, CONFIG, PROCESSOR)]
    return tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states)


@lru_cache(maxsize=4)
def _load_once(path: Path, device: torch.device, stamp: tuple[tuple[int, int, int], ...]) -> _Loaded:
    digest = hashlib.sha256(f"numerics {NUMERICS}".encode())
    for name in (bundled.WEIGHTS, CONFIG, PROCESSOR):
        digest.update((path / name).read_bytes())
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # one line a worker would drown the progress of the run
    try:
        loaded: Any = LMSegForSemanticSegmentation.from_pretrained(
            path, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        network, report = loaded
        processor = LMSegImageProcessor.from_pretrained(path)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except Exception as error:  # configurations inside config.json make transformers raise anything
        first = first_line(error)
        raise ModelError(f"{path} cannot be loaded ({first}); save or download it again.") from None
    finally:
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    if _stamp(path) != stamp:
        raise ModelError(f"{path} changed while it was loaded; run again when it is complete.")
    if report["missing_keys"]:
        first = sorted(report["missing_keys"])[0]
        raise ModelError(f"{path / bundled.WEIGHTS} lacks {first}; save it again with the same config.json.")
    if report["unexpected_keys"]:
        first = sorted(report["unexpected_keys"])[0]
        raise ModelError(
            f"{path / bundled.WEIGHTS} has {first}, which its config.json has no use for; save both again."
        )
    merge(network)  # an adapter would cost time in every window, and so would norms
    network.eval()
    fold(network)
    network = network.to(device, memory_format=_FORMAT[network.config.ndim])
    return _Loaded(network, processor, device, digest.hexdigest())


@cache
def _lanes() -> tuple[ThreadPoolExecutor, int]:
    """Return the threads that compute windows on the CPU, each alone, and how many there are."""
    count = torch.get_num_threads()  # what OMP_NUM_THREADS says; Dask gives its workers one
    return ThreadPoolExecutor(count, "lmseg", torch.set_num_threads, (1,)), count


os.register_at_fork(after_in_child=_lanes.cache_clear)  # a child process has none of its parent's threads


@lru_cache(maxsize=4)
def _compiled(
    network: LMSegForSemanticSegmentation, device: torch.device, precision: str, batch: int
) -> Callable[..., Any]:
    """Return the network compiled for its own tile, or as it is where torch cannot compile it here."""
    config, on_cpu = network.config, device.type == "cpu"
    windows = torch.zeros(1 if on_cpu else batch, config.in_channels, *config.tile, device=device)
    # A window is computed by one thread, and what is compiled for one runs on all of them.
    compiled: Any = torch.compile(network, dynamic=False, options={"cpp.threads": 1} if on_cpu else None)

    def warm() -> None:
        with torch.inference_mode(), mixed(device, precision):
            compiled(windows.contiguous(memory_format=_FORMAT[config.ndim]))

    try:
        # In a lane: what is compiled holds for threads with the same settings.
        _lanes()[0].submit(warm).result() if on_cpu else warm()
    except Exception as error:  # each part of the compiler has its own
        _LOG.warning("torch.compile failed (%s); the network runs as it is", first_line(error))
        return network
    return cast(Callable[..., Any], compiled)
