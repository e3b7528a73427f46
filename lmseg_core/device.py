"""Where a network runs: the device, its precision, and what several threads ask of it side by side.

`torch.get_device_module` gives CUDA's streams and events, and on a CPU ones that do nothing: both run the same lines.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lmseg_core.errors import ModelError

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Streams(threading.local):
    """This thread's own stream of each device."""

    def __init__(self) -> None:
        self.of: dict[torch.device, Any] = {}


_STREAMS = _Streams()


def device_of(name: str) -> torch.device:
    """Return the device of "auto" (CUDA where there is one, else CPU), "cpu", "cuda" or "cuda:1".

    Raises ModelError where torch does not know it, or finds none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f'device "{name}" is not known; use auto, cpu, cuda or cuda:0.') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f'device "{name}" was asked for, but torch finds no CUDA device; use cpu or auto.')
    return device


def precision_of(name: str, device: torch.device) -> str:
    """Return "bfloat16" or "float32" for either of them, or for "auto": bfloat16 where a CUDA device has it."""
    if name == "auto":
        has = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if has else "float32"
    if name not in _PRECISIONS:
        raise ModelError(f'precision "{name}" is not known; use auto, {" or ".join(_PRECISIONS)}.')
    return name


def mixed(device: torch.device, precision: str) -> torch.autocast:
    """Return what runs convolutions and matrix products in a precision, and the rest in float32."""
    return torch.autocast(device.type, _PRECISIONS[precision], enabled=precision != "float32")


def bring(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of this machine's memory on a device: itself on a CPU, else a copy from pinned memory.

    Kernels of other threads go on meanwhile; pages that are not pinned would be copied twice, in the way of all others.
    """
    if device.type == "cpu":
        return values
    return apart(device, lambda: values.pin_memory().to(device, non_blocking=True))


def apart(device: torch.device, make: Callable[[], Tensor]) -> Tensor:
    """Return what `make` computes on a stream of this thread, complete.

    The stream begins when all is done that this thread asked of the device before. Those of several threads overlap,
    and as each hands over only what is there, none has to know of another's.
    """
    module: Any = torch.get_device_module(device)
    if device not in _STREAMS.of:
        _STREAMS.of[device] = module.Stream(device)
    callers, stream = module.current_stream(device), _STREAMS.of[device]
    stream.wait_stream(callers)
    with module.stream(stream):
        made = make()
        end = module.Event()
        end.record(stream)
    end.synchronize()
    if made.device.type != "cpu":
        # Its memory is the stream's: freed while the caller's kernels still read it, it would be given to the next.
        made.record_stream(callers)
    return made


def peak_memory(device: torch.device) -> int:
    """Return bytes of the device's own memory that tensors took at most since the last call; 0 on a CPU."""
    if device.type == "cpu":
        return 0
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
